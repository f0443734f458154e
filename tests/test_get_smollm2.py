"""A GGUF file becomes a folder that means the same: the tensors' order, the tokenizer, the config."""

import sys
from pathlib import Path

import pytest
import torch

from minprefix.hub import load_lm
from minprefix.tokenizer import BYTE_OF_CHAR

gguf = pytest.importorskip("gguf", reason="weights/get_smollm2.py reads GGUF")
transformers = pytest.importorskip("transformers", reason="compares with transformers")
WEIGHTS = Path(__file__).resolve().parent.parent / "weights"
sys.path.insert(0, str(WEIGHTS))

import get_smollm2  # noqa: E402

SHAPE = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "num_hidden_layers": 2}
SHAPE |= {"vocab_size": 259, "hidden_size": 32, "intermediate_size": 64, "max_position_embeddings": 128}
SHAPE |= {
    "rms_norm_eps": 1e-5,
    "rope_theta": 100000.0,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}


def write_gguf(path: Path, lm) -> None:
    """As llama.cpp writes it: the two numbers of a rotary pair side by side."""
    writer = gguf.GGUFWriter(path, "llama")
    for key, name in get_smollm2.CONFIG.items():
        add = writer.add_float32 if isinstance(SHAPE[key], float) else writer.add_uint32
        add(f"llama.{name}", SHAPE[key])
    tokens = ["<|endoftext|>", "<|im_end|>", *[char for char in BYTE_OF_CHAR if char != "Ă"], "th", "the"]
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3] + [1] * (len(tokens) - 2))
    writer.add_token_merges(["t h", "th e"])
    for key, name in get_smollm2.SPECIAL.items():
        writer.add_uint32(f"tokenizer.ggml.{name}_token_id", SHAPE[f"{key}_token_id"])
    writer.add_chat_template("{{ messages }}")
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, SHAPE["num_hidden_layers"])
    for name, tensor in lm.state_dict().items():
        if "q_proj" in name or "k_proj" in name:
            tensor = tensor.unflatten(0, (-1, 2, 4)).transpose(1, 2).flatten(0, 2)
        writer.add_tensor(names.get_name(name, (".weight",)), tensor.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def agree(folder: Path, text: str) -> tuple:
    """The folder's model and ids, after transformers has read the same from it."""
    lm, tokenizer = load_lm(folder)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = tokenizer.encode(text)
    assert ids == transformers.AutoTokenizer.from_pretrained(folder).encode(text)
    with torch.no_grad():
        logits, expected = lm(torch.tensor([ids])), theirs(torch.tensor([ids])).logits
    assert (logits - expected).abs().max() < 1e-4 * expected.abs().max()
    return logits, ids


def test_a_gguf_file_becomes_the_same_model(tmp_path):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SHAPE, tie_word_embeddings=False)
    lm = transformers.LlamaForCausalLM(config).eval()
    for parameter in lm.parameters():
        parameter.data.normal_(0, 0.3).copy_(parameter.data.bfloat16())  # which the folder holds without loss
    write_gguf(tmp_path / "tiny.gguf", lm)
    get_smollm2.convert(tmp_path / "tiny.gguf", tmp_path)
    logits, ids = agree(tmp_path, "the 12\x02 th<|im_end|>")
    assert len(ids) == 7 and ids[0] == 258 and ids[-1] == 1  # digits one by one, no byte 2
    with torch.no_grad():
        assert (logits - lm(torch.tensor([ids])).logits).abs().max() < 1e-4


def test_a_second_call_finds_it_there(tmp_path, capsys):
    (tmp_path / "model.safetensors").touch()
    get_smollm2.main(tmp_path)
    assert "is there already" in capsys.readouterr().out


@pytest.mark.skipif(not get_smollm2.FOLDER.is_dir(), reason="weights/get_smollm2.py has not been run")
def test_the_real_model_is_read_alike():
    agree(get_smollm2.FOLDER, "In 1999, a café\n\n  sold 12 teas.")
