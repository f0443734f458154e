"""What pretrain.py leaves: a folder that transformers loads as is, in float16."""

import json
import shutil
from pathlib import Path

from denoising import BOS, EOS, PAD, number_vocabulary
from records import EOT
from safetensors.torch import save_file

from minprefix.bart import BART
from minprefix.gpt2 import GPT2

SHAPE = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head")
BPE = ("vocab.json", "merges.txt")


def export(lm: GPT2 | BART, bpe: Path, out: Path) -> None:
    """Writes a model with the BPE files (GPT-2's) of a folder. The new folder appears whole or not at all."""
    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    is_bart = isinstance(lm, BART)
    prefix = "model." if is_bart else "transformer."
    names = {name: name if name == "final_logits_bias" else prefix + name for name in lm.state_dict()}
    tensors = {names[name]: tensor.half().contiguous() for name, tensor in lm.state_dict().items()}
    save_file(tensors, part / "model.safetensors", metadata={"format": "pt"})
    shutil.copyfile(bpe / "merges.txt", part / "merges.txt")
    if is_bart:
        write_json(part / "vocab.json", number_vocabulary(bpe / "vocab.json"))
    else:
        shutil.copyfile(bpe / "vocab.json", part / "vocab.json")
    settings = (describe_bart if is_bart else describe_gpt2)(lm)
    for name, content in settings.items():
        write_json(part / f"{name}.json", content)
    part.rename(out)


def write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def describe_gpt2(lm: GPT2) -> dict[str, dict]:
    """{file stem: content} of the JSON files beside a GPT-2."""
    config = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "dtype": "float16"}
    config |= {key: getattr(lm.config, key) for key in SHAPE}
    config |= {"n_inner": None, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5}
    config |= {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0, "initializer_range": 0.02}
    config |= {"tie_word_embeddings": True, "bos_token_id": 0, "eos_token_id": 0}
    tokenizer = {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False}
    tokenizer |= {"model_max_length": lm.config.n_positions}
    tokenizer |= dict.fromkeys(("bos_token", "eos_token", "unk_token"), EOT)
    generation = {"bos_token_id": 0, "eos_token_id": 0}
    return {"config": config, "generation_config": generation, "tokenizer_config": tokenizer}


def describe_bart(lm: BART) -> dict[str, dict]:
    """{file stem: content} of the JSON files beside a BART."""
    c = lm.config
    config = {"architectures": ["BartForConditionalGeneration"], "model_type": "bart", "dtype": "float16"}
    config |= {"is_encoder_decoder": True, "vocab_size": c.vocab_size, "d_model": c.d_model}
    config |= {"max_position_embeddings": c.max_position_embeddings, "num_hidden_layers": c.encoder_layers}
    for side in ("encoder", "decoder"):
        for key in ("layers", "attention_heads", "ffn_dim"):
            config[f"{side}_{key}"] = getattr(c, f"{side}_{key}")
    config |= {"activation_function": c.activation_function, "scale_embedding": c.scale_embedding}
    config |= dict.fromkeys(("dropout", "attention_dropout", "activation_dropout"), 0.0)
    config |= {"tie_word_embeddings": True, "forced_eos_token_id": EOS}
    ids = {"bos_token_id": BOS, "pad_token_id": PAD, "eos_token_id": EOS, "decoder_start_token_id": EOS}
    tokenizer = {"tokenizer_class": "BartTokenizer", "add_prefix_space": False}
    tokenizer |= {"model_max_length": c.max_position_embeddings, "unk_token": "<unk>", "mask_token": "<mask>"}
    tokenizer |= {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>"}
    generation = ids | {"forced_eos_token_id": EOS}
    return {"config": config | ids, "generation_config": generation, "tokenizer_config": tokenizer}
