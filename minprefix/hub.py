"""LM_phi from a Hugging Face folder or hub id, checked before it is believed."""

import hashlib
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from huggingface_hub import snapshot_download
from safetensors import SafetensorError, safe_open
from torch import Tensor

from minprefix.activations import ACTIVATIONS
from minprefix.errors import InputError, first_line
from minprefix.gpt2 import GPT2, GPT2Config
from minprefix.tokenizer import Tokenizer, load_tokenizer, read_json

REPOSITORY = Path(__file__).resolve().parent.parent
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
NEEDED = ["config.json", "generation_config.json", "vocab.json", "merges.txt"]
NEEDED += [WEIGHTS, INDEX, "model-*.safetensors"]
LEGACY_BUFFER = re.compile(r"h\.\d+\.attn\.(masked_)?bias")  # the causal mask, which old files store


def load_lm(
    folder_or_hub_id: str | Path, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> tuple[GPT2, Tokenizer]:
    """The frozen LM_phi, in eval mode, and its tokenizer.

    Takes a folder, a folder of this repository (`weights/gpt2-mini`) or a hub id (`gpt2-medium`).
    InputError names the file at fault, and every missing, unexpected or mis-shaped tensor in it.
    """
    _check_device(device)
    name = str(folder_or_hub_id)
    folder = _find_folder(name)
    config = _read_config(folder)
    tensors = _read_tensors(folder)
    config = replace(_resolve_tying(config, tensors), name=name, fingerprint=_fingerprint(tensors))
    with torch.device("meta"):  # shapes without memory, until they have been compared
        lm = GPT2(config)
    _compare(lm.state_dict(), tensors, folder)
    # Copies, for `tensors` are views of the mapped file, which may change or vanish later.
    lm.load_state_dict({key: t.to(device, dtype, copy=True) for key, t in tensors.items()}, assign=True)
    return lm.eval().requires_grad_(False), load_tokenizer(folder)


def _check_device(device: str | torch.device) -> None:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"device={device} is not to be had ({first_line(error)}): give device=cpu") from None


def _find_folder(name: str) -> Path:
    roots = (Path(), REPOSITORY)
    for root in roots:
        if name and (root / name).is_dir():
            return root / name
    in_a_folder = "/" in name and any((root / name).parent.is_dir() for root in roots)
    if not name or name[0] in "./~" or name.count("/") > 1 or in_a_folder:
        raise InputError(f"there is no model folder {name!r}: give a folder, or a hub id such as gpt2-medium")
    return _download(name)


def _download(hub_id: str) -> Path:
    """The folder in huggingface_hub's cache, which obeys HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE and so on."""
    try:
        return Path(snapshot_download(hub_id, allow_patterns=NEEDED))
    except Exception as error:  # a network fails with the exceptions of several libraries
        raise InputError(
            f"model {hub_id!r} is no folder, and the Hugging Face hub did not give it: check the name, the "
            f"network and HF_HUB_OFFLINE, or give a folder that holds it ({first_line(error)})"
        ) from None


def _is_size(value: object, largest: int = 2**20) -> bool:
    return type(value) is int and 1 <= value <= largest


# Key of config.json: (what it is when absent, what it may be, the same in words). The bounds lie far above
# any GPT-2: they keep a damaged file from asking for a model that is never finished.
EXPECTED: dict[str, tuple[object, Callable[[object], bool], str]] = {
    "model_type": (None, lambda v: v == "gpt2", '"gpt2"'),
    "vocab_size": (None, _is_size, "a whole number from 1 to 2^20"),
    "n_positions": (None, _is_size, "a whole number from 1 to 2^20"),
    "n_embd": (None, _is_size, "a whole number from 1 to 2^20"),
    "n_layer": (None, lambda v: _is_size(v, 1000), "a whole number from 1 to 1000"),
    "n_head": (None, _is_size, "a whole number from 1 to 2^20"),
    "n_inner": (None, lambda v: v is None or _is_size(v), "null or a whole number from 1 to 2^20"),
    "layer_norm_epsilon": (1e-5, lambda v: type(v) is float and 0 < v < 1, "a number between 0 and 1"),
    "activation_function": ("gelu_new", lambda v: v in list(ACTIVATIONS), f"one of {', '.join(ACTIVATIONS)}"),
    "tie_word_embeddings": (True, lambda v: type(v) is bool, "true or false"),
    "scale_attn_weights": (True, lambda v: v is True, "true, the only scaling supported"),
    "scale_attn_by_inverse_layer_idx": (False, lambda v: v is False, "false, the only scaling supported"),
}


def _read_config(folder: Path) -> GPT2Config:
    path = folder / "config.json"
    given = read_json(path)
    config = {key: given.get(key, default) for key, (default, _, _) in EXPECTED.items()}
    for key, (_, may_be, in_words) in EXPECTED.items():
        if not may_be(config[key]):
            found = repr(config[key]) if key in given else "missing"
            raise InputError(f"{path}: {key} is {found}, but must be {in_words}")
    if config["n_embd"] % config["n_head"]:
        raise InputError(f"{path}: n_embd {config['n_embd']} must be divisible by n_head {config['n_head']}")
    for key in ("bos_token_id", "eos_token_id"):
        config[key] = _read_token_id(folder, given, key, config["vocab_size"])
    return GPT2Config(**{key: config[key] for key in config if key in GPT2Config.__dataclass_fields__})


def _read_token_id(folder: Path, config: dict, key: str, vocab_size: int) -> int:
    """generation_config.json goes before config.json, as in transformers; of several ends, the first."""
    path = folder / "generation_config.json"
    generation = read_json(path) if path.exists() else {}
    id = generation[key] if generation.get(key) is not None else config.get(key, 50256)
    id = id[0] if isinstance(id, list) and id else id
    if type(id) is not int or not 0 <= id < vocab_size:
        raise InputError(f"{folder / 'config.json'}: {key} is {id!r}, but must be an id below {vocab_size}")
    return id


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors under GPT2's own names, as views of the mapped files: nothing is read yet."""
    tensors = {}
    for path in _list_weights(folder):
        try:
            with safe_open(path, framework="pt") as file:
                for key in file.keys():  # noqa: SIM118 (not a dict)
                    name = key.removeprefix("transformer.")
                    if name in tensors:
                        raise InputError(f"{path}: tensor {key} is there twice: remove one of the two")
                    tensors[name] = file.get_tensor(key)
        except (OSError, SafetensorError) as error:
            reason = first_line(error)
            raise InputError(f"{path} is missing or damaged ({reason}): download or copy it again") from None
    return {name: tensor for name, tensor in tensors.items() if not LEGACY_BUFFER.fullmatch(name)}


def _list_weights(folder: Path) -> list[Path]:
    if (folder / WEIGHTS).exists() or not (folder / INDEX).exists():
        return [folder / WEIGHTS]
    shards = read_json(folder / INDEX).get("weight_map")
    if not isinstance(shards, dict) or not all(type(s) is str and Path(s).name == s for s in shards.values()):
        raise InputError(f"{folder / INDEX}: weight_map must give each tensor the name of a file beside it")
    return [folder / shard for shard in sorted(set(shards.values()))]


def _resolve_tying(config: GPT2Config, tensors: dict[str, Tensor]) -> GPT2Config:
    """A tied head may be stored again; if it differs, it overrules config.json, as in transformers."""
    if not config.tie_word_embeddings or not {"lm_head.weight", "wte.weight"} <= set(tensors):
        return config
    if torch.equal(tensors["lm_head.weight"], tensors["wte.weight"]):
        del tensors["lm_head.weight"]
        return config
    return replace(config, tie_word_embeddings=False)


def _fingerprint(tensors: dict[str, Tensor]) -> str:
    """Which checkpoint this is: 16 hex digits over names, shapes and at most 1,024 values of each tensor."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        stride = max(1, math.ceil(tensor.numel() / 1024))
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten()[::stride].float().numpy().tobytes())
    return digest.hexdigest()[:16]


def _compare(expected: dict[str, Tensor], found: dict[str, Tensor], folder: Path) -> None:
    wrong = [f"{name} is missing" for name in expected if name not in found]
    wrong += [f"{name} is unexpected" for name in found if name not in expected]
    wrong += [
        f"{name} is {tuple(found[name].shape)} and should be {tuple(expected[name].shape)}"
        for name in expected
        if name in found and found[name].shape != expected[name].shape
    ]
    wrong += [f"{name} holds {t.dtype}, not floats" for name, t in found.items() if not t.is_floating_point()]
    if wrong:
        raise InputError(f"the tensors in {folder} do not fit its config.json: {'; '.join(wrong)}")
