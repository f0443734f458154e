"""Prefixes from and for the PEFT library: a folder with adapter_config.json and adapter_model.safetensors."""

import json
import os
import shutil
from pathlib import Path

import torch
from safetensors.torch import save
from torch import Tensor

from minprefix.errors import InputError, explain
from minprefix.hub import SIZE, Expected, pick_keys, read_safetensors
from minprefix.prefix import SavedPrefix
from minprefix.store import load_prefix, write_atomically
from minprefix.tokenizer import read_json

CONFIG, WEIGHTS, TENSOR = "adapter_config.json", "adapter_model.safetensors", "prompt_embeddings"
SHAPE = {"n_layer": "num_layers", "n_head": "num_attention_heads", "n_embd": "token_dim"}  # ours: PEFT's
KIND = {"peft_type": "PREFIX_TUNING", "task_type": "CAUSAL_LM", "num_transformer_submodules": 1}
KEYS: Expected = {
    **{key: (None, lambda v, only=only: v == only, f"{only!r}") for key, only in KIND.items()},
    **dict.fromkeys(("num_virtual_tokens", *SHAPE.values()), SIZE),
    "base_model_name_or_path": (None, lambda v: v is None or type(v) is str, "a name or null"),
}


def from_peft(folder: str | Path) -> SavedPrefix:
    """The prefix for GPT-2 in a PEFT folder, P_theta (P, 2·L·C) as floats.

    PEFT stores P_theta whether it trained it directly or through an MLP, but not for which weights. So the
    base has no fingerprint, unless to_peft left it there: only shapes can tell a wrong model. InputError
    names what is missing, damaged or of another kind.
    """
    folder = Path(folder)
    if not (folder / CONFIG).exists():
        raise InputError(f"{folder} is no PEFT folder, for it has no {CONFIG}: give one, or a .pt file")
    config = pick_keys(folder / CONFIG, read_json(folder / CONFIG), KEYS)
    shape = {ours: config[theirs] for ours, theirs in SHAPE.items()}
    width = 2 * shape["n_layer"] * shape["n_embd"]
    P_theta, fingerprint = _read_tensor(folder, (config["num_virtual_tokens"], width))
    base = {"name": config["base_model_name_or_path"] or "", "config": shape, "fingerprint": fingerprint}
    return SavedPrefix("prefix", {"decoder": P_theta}, "shifted", base, {}, {}, "unknown, from a PEFT folder")


def to_peft(path: str | Path, folder: str | Path) -> None:
    """Writes a prefix file for GPT-2 as a new PEFT folder, which appears whole or not at all.

    An embedding-only prefix is stored as the P_theta that it computes, so it is one too. InputError if PEFT's
    format cannot say what is in the file, or if the folder exists or cannot be written.
    """
    prefix, folder = load_prefix(path), Path(folder)
    if reason := _find_obstacle(prefix):
        raise InputError(f"{path} cannot become a PEFT folder: {reason}")
    if folder.exists():
        raise InputError(f"{folder} exists and is not overwritten: give another name")
    P_theta, base = prefix.sites["decoder"], prefix.base
    config = KIND | {theirs: base["config"][ours] for ours, theirs in SHAPE.items()}
    config |= {"num_virtual_tokens": len(P_theta), "encoder_hidden_size": config["token_dim"]}
    config |= {"prefix_projection": False, "inference_mode": True, "base_model_name_or_path": base["name"]}
    facts = {"base_fingerprint": base["fingerprint"]}  # PEFT does not look at it
    files = {CONFIG: json.dumps(config, indent=2).encode(), WEIGHTS: save({TENSOR: P_theta.float()}, facts)}
    _write_folder(folder, files)


def _find_obstacle(prefix: SavedPrefix) -> str:
    """Why PEFT's format cannot say what a file holds; "" if it can."""
    if prefix.tensors:
        return f"method {prefix.method} changes the model itself, and a PEFT prefix does not"
    if set(prefix.sites) != {"decoder"}:
        sites = ", ".join(prefix.sites)
        return f"its format has one place for a prefix, before x in GPT-2, and this one is at: {sites}"
    if prefix.positions != "shifted":
        return f"there a prefix takes |P| positions, and this one was trained with {prefix.positions!r} ones"
    if missing := [key for key in SHAPE if key not in prefix.base["config"]]:
        return f"the file does not say the model's {', '.join(missing)}"
    return ""


def _read_tensor(folder: Path, shape: tuple[int, int]) -> tuple[Tensor, str]:
    """P_theta, and the fingerprint of its model if to_peft left one. Pickles (.bin) are not read."""
    path = folder / WEIGHTS
    if not path.exists() and (folder / "adapter_model.bin").exists():
        advice = "load it in PEFT if you trust it, and save it there as safetensors"
        raise InputError(f"{folder / 'adapter_model.bin'} is refused, because it can hold code: {advice}")
    tensors, facts = read_safetensors(path)
    found = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    P_theta = tensors.get(TENSOR, torch.empty(0))
    if found != {TENSOR: shape} or not P_theta.is_floating_point() or not P_theta.float().isfinite().all():
        promised = f"finite floats in {TENSOR} {shape}"
        raise InputError(f"{path} holds {found}, but {CONFIG} promises {promised}: copy both again")
    return P_theta.float(), facts.get("base_fingerprint", "")


def _write_folder(folder: Path, files: dict[str, bytes]) -> None:
    temporary = folder.parent / f".{folder.name}.{os.getpid()}.tmp"
    try:
        with explain(OSError, f"{folder} cannot be written", "choose another place"):
            temporary.mkdir()
            for name, content in files.items():
                write_atomically(temporary / name, lambda part, content=content: part.write_bytes(content))
            os.rename(temporary, folder)
    finally:  # also on Ctrl-C; after os.rename there is nothing left to remove
        shutil.rmtree(temporary, ignore_errors=True)
