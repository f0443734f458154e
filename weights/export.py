"""What pretrain.py leaves: a folder that transformers loads as is, in float16."""

import json
import shutil
from pathlib import Path

from denoising import number_vocabulary
from safetensors.torch import save_file

from minprefix.bart import BART
from minprefix.gpt2 import GPT2

SHAPE = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head")
BPE = ("vocab.json", "merges.txt")
HERE = Path(__file__).parent


def export(lm: GPT2 | BART, bpe: Path, out: Path) -> None:
    """Writes a model with the BPE files (GPT-2's) of a folder. The new folder appears whole or not at all."""
    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    for name in BPE:
        shutil.copyfile(bpe / name, part / name)
    if isinstance(lm, BART):
        names = {name: name if name == "final_logits_bias" else f"model.{name}" for name in lm.state_dict()}
        write_json(part / "vocab.json", number_vocabulary(bpe / "vocab.json"))
        settings = describe(lm, HERE / "bart-mini")
        settings["config.json"]["num_hidden_layers"] = lm.config.encoder_layers
    else:
        names = {name: f"transformer.{name}" for name in lm.state_dict()}
        settings = describe(lm, HERE / "gpt2-mini")
    tensors = {names[name]: tensor.half().contiguous() for name, tensor in lm.state_dict().items()}
    save_file(tensors, part / "model.safetensors", metadata={"format": "pt"})
    for name, content in settings.items():
        write_json(part / name, content)
    part.rename(out)


def describe(lm: GPT2 | BART, bundled: Path) -> dict[str, dict]:
    """{file name: content} of the JSON files beside a bundled model, with the sizes of this one."""
    settings = {path.name: json.loads(path.read_text()) for path in bundled.glob("*config.json")}
    config, sizes = settings["config.json"], vars(lm.config)
    config |= {key: sizes[key] for key in config if sizes.get(key) is not None}
    settings["tokenizer_config.json"]["model_max_length"] = lm.config.n_positions
    return settings


def write_json(path: Path, content: dict) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")
