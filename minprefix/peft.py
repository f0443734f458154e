"""Prefixes from and for the PEFT library: a folder with adapter_config.json and adapter_model.safetensors."""

import json
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from pydantic.dataclasses import dataclass
from safetensors.torch import save_file

from minprefix.checks import LENIENT, InputError, build, read_json, read_path
from minprefix.hub import read_safetensors
from minprefix.layers import Size
from minprefix.prefix import SavedPrefix
from minprefix.store import load_prefix, refuse_to_write, restore_prefix

CONFIG, WEIGHTS, TENSOR = "adapter_config.json", "adapter_model.safetensors", "prompt_embeddings"


@dataclass(frozen=True, config=LENIENT)
class PeftConfig:
    """What adapter_config.json must say; the MLP is never in the file, so prefix_projection is false.

    A CARTRIDGE is a prefix that began as a text's activations, of which the first num_frozen_tokens stayed.
    """

    peft_type: Literal["PREFIX_TUNING", "CARTRIDGE"]
    task_type: Literal["CAUSAL_LM"]
    num_transformer_submodules: Literal[1]
    num_layers: Size
    num_attention_heads: Size
    token_dim: Size
    num_virtual_tokens: Size
    encoder_hidden_size: int | None = None
    prefix_projection: bool | None = None
    inference_mode: bool = True
    base_model_name_or_path: str | None = None
    num_frozen_tokens: int | None = None

    def __post_init__(self):
        if not 0 <= (self.num_frozen_tokens or 0) <= self.num_virtual_tokens:
            raise InputError(f"num_frozen_tokens {self.num_frozen_tokens} must be 0 to num_virtual_tokens")


def from_peft(folder: str | Path) -> SavedPrefix:
    """The prefix for a GPT-2 or Llama in a PEFT folder, P_theta (P, 2·L·C) as floats.

    PEFT stores P_theta whether it trained it directly or through an MLP, but not for which weights. So the
    base has no fingerprint, unless to_peft left it there: only shapes can tell a wrong model. InputError
    names what is missing, damaged or of another kind. Pickles (.bin) are not read: they can hold code.
    """
    folder = read_path(folder)
    config = build(PeftConfig, read_json(folder / CONFIG), f"{folder / CONFIG}: ")
    tensors, facts = read_safetensors(folder / WEIGHTS)
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    said = {TENSOR: (config.num_virtual_tokens, 2 * config.num_layers * config.token_dim)}
    if shapes != said:
        raise InputError(f"{folder / WEIGHTS} holds {shapes}, not {said} as {CONFIG} says: copy both again")
    base = {"name": config.base_model_name_or_path or "", "fingerprint": facts.get("base_fingerprint", "")}
    base["config"] = {"n_layer": config.num_layers, "n_head": config.num_attention_heads}
    content = {"method": "prefix", "sites": {"decoder": tensors[TENSOR]}, "positions": "shifted"}
    kind = {"num_frozen_tokens": config.num_frozen_tokens} if config.peft_type == "CARTRIDGE" else {}
    content |= {"base": base, "config": kind, "metrics": {}, "data": "unknown, from a PEFT folder"}
    return restore_prefix(content, f"{folder / WEIGHTS} is damaged, copy it again: ")


def to_peft(path: str | Path, folder: str | Path) -> None:
    """Writes a prefix file for GPT-2 or Llama as a new PEFT folder, which appears whole or not at all.

    An embedding-only prefix is stored as the P_theta that it computes, so it is one too. InputError if PEFT's
    format cannot say what is in the file, or if the folder exists or cannot be written.
    """
    prefix, folder = load_prefix(path), read_path(folder)
    if set(prefix.sites) != {"decoder"} or prefix.positions != "shifted":
        what = f"method {prefix.method} at {', '.join(prefix.sites) or 'no site'}, {prefix.positions}"
        raise InputError(f"{path} is {what}: PEFT's format knows shifted ones before x in GPT-2 or Llama")
    if folder.exists():
        raise InputError(f"{folder} exists and is not overwritten: give another name")
    P_theta, base = prefix.sites["decoder"].contiguous(), prefix.base
    config = {"task_type": "CAUSAL_LM", "num_transformer_submodules": 1}
    shape = base["config"]  # by the names of GPT-2, or of Llama
    layers = shape.get("n_layer") or shape.get("num_hidden_layers", 0)
    heads = shape.get("n_head") or shape.get("num_key_value_heads") or shape.get("num_attention_heads", 0)
    width = P_theta.shape[1] // (2 * layers or 1)  # of the keys in a layer
    config |= {"num_layers": layers, "num_attention_heads": heads, "token_dim": width}
    config |= {"num_virtual_tokens": len(P_theta), "base_model_name_or_path": base["name"]}
    if "num_frozen_tokens" in prefix.config:
        config |= {"peft_type": "CARTRIDGE", "num_frozen_tokens": prefix.config["num_frozen_tokens"]}
    else:
        config |= {"peft_type": "PREFIX_TUNING", "encoder_hidden_size": width, "prefix_projection": False}
    content = asdict(build(PeftConfig, config, f"{path} does not say its model's shape: "))
    content = {key: value for key, value in content.items() if value is not None}  # the other type's keys
    with refuse_to_write(folder), TemporaryDirectory(dir=folder.parent, ignore_cleanup_errors=True) as home:
        part = Path(home) / folder.name
        part.mkdir()
        (part / CONFIG).write_text(json.dumps(content, indent=2))
        # PEFT does not look at the fingerprint
        save_file({TENSOR: P_theta}, part / WEIGHTS, {"base_fingerprint": base["fingerprint"]})
        part.rename(folder)
