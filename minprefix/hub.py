"""LM_phi from a Hugging Face folder or hub id, checked before it is believed."""

import hashlib
import math
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from minprefix.activations import ACTIVATIONS
from minprefix.bart import BART, BARTConfig
from minprefix.errors import InputError, explain
from minprefix.gpt2 import GPT2, Conv1D, GPT2Config
from minprefix.tokenizer import BART_SPECIAL, GPT2_SPECIAL, Tokenizer, load_tokenizer, read_json

REPOSITORY = Path(__file__).resolve().parent.parent
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
NEEDED = ["config.json", "generation_config.json", "vocab.json", "merges.txt"]
NEEDED += [WEIGHTS, INDEX, "model-*.safetensors"]
# What old files store beside the parameters: the causal mask, fairseq's version.
LEGACY_BUFFER = re.compile(r"h\.\d+\.attn\.(masked_)?bias|(en|de)coder\.version")


def load_lm(
    folder_or_hub_id: str | Path, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> tuple[GPT2 | BART, Tokenizer]:
    """The frozen LM_phi, in eval mode, and its tokenizer.

    Takes a folder, a folder of this repository (`weights/gpt2-mini`) or a hub id (`gpt2-medium`,
    `facebook/bart-large`).
    InputError names the file at fault, and every missing, unexpected or mis-shaped tensor in it.
    """
    with explain((RuntimeError, AssertionError), f"device={device} is not to be had", "give device=cpu"):
        torch.empty(0, device=device)
    name = str(folder_or_hub_id)
    folder = _find_folder(name)
    config = _read_config(folder)
    tensors = _read_tensors(folder)
    is_bart = isinstance(config, BARTConfig)
    config = _merge_copies(config, tensors) if is_bart else _resolve_tying(config, tensors)
    config = replace(config, name=name, fingerprint=_fingerprint(tensors))
    with torch.device("meta"):  # shapes without memory, until they have been compared
        lm = BART(config) if is_bart else GPT2(config)
    _compare(lm.state_dict(), tensors, folder)
    lm.load_state_dict(_copy(tensors, lm, device, dtype), assign=True)
    tokenizer = load_tokenizer(folder, BART_SPECIAL if is_bart else GPT2_SPECIAL)
    if max(tokenizer.bytes_of_id) >= config.vocab_size:
        raise InputError(f"{folder}: vocab.json has ids beyond config.json's vocab_size {config.vocab_size}")
    return lm.eval().requires_grad_(False), tokenizer


def _copy(tensors: dict[str, Tensor], lm: GPT2 | BART, device: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """Copies, for `tensors` are views of the mapped file, which may change or vanish later.

    Weights (in, out) of a Conv1D lie in memory as (out, in), which `linear` reads faster.
    """
    to = {"device": device, "dtype": dtype, "copy": True, "memory_format": torch.contiguous_format}
    convs = {f"{name}.weight" for name, module in lm.named_modules() if isinstance(module, Conv1D)}
    return {key: t.T.to(**to).T if key in convs else t.to(**to) for key, t in tensors.items()}


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
    what = f"model {hub_id!r} is no folder, and the Hugging Face hub did not give it"
    advice = "check the name, the network and HF_HUB_OFFLINE, or give a folder that holds it"
    from huggingface_hub import snapshot_download  # here, for it takes longer to import than a folder to read

    with explain(Exception, what, advice):  # a network fails with the exceptions of several libraries
        return Path(snapshot_download(hub_id, allow_patterns=NEEDED))


def _is_size(value: object, largest: int = 2**20) -> bool:
    return type(value) is int and 1 <= value <= largest


# Key of config.json: (what it is when absent, what it may be, the same in words). The bounds lie far above
# any of these models: they keep a damaged file from asking for one that is never finished.
Expected = dict[str, tuple[object, Callable[[object], bool], str]]
SIZE = (None, _is_size, "a whole number from 1 to 2^20")
LAYERS = (None, lambda v: _is_size(v, 200), "a whole number from 1 to 200")
ACTIVATION = (lambda v: v in list(ACTIVATIONS), f"one of {', '.join(ACTIVATIONS)}")
FLAG = (lambda v: type(v) is bool, "true or false")
MODEL_TYPE: Expected = {"model_type": (None, lambda v: v in ("gpt2", "bart"), '"gpt2" or "bart"')}
GPT2_KEYS: Expected = dict.fromkeys(("vocab_size", "n_positions", "n_embd", "n_head"), SIZE) | {
    "n_layer": LAYERS,
    "n_inner": (None, lambda v: v is None or _is_size(v), "null or a whole number from 1 to 2^20"),
    "layer_norm_epsilon": (1e-5, lambda v: type(v) is float and 0 < v < 1, "a number between 0 and 1"),
    "activation_function": ("gelu_new", *ACTIVATION),
    "tie_word_embeddings": (True, *FLAG),
    "scale_attn_weights": (True, lambda v: v is True, "true, the only scaling supported"),
    "scale_attn_by_inverse_layer_idx": (False, lambda v: v is False, "false, the only scaling supported"),
}
BART_KEYS: Expected = dict.fromkeys(("vocab_size", "max_position_embeddings", "d_model"), SIZE) | {
    **dict.fromkeys(("encoder_layers", "decoder_layers"), LAYERS),
    **dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), SIZE),
    **dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), SIZE),
    "activation_function": ("gelu", *ACTIVATION),
    "scale_embedding": (False, *FLAG),
    "tie_word_embeddings": (True, lambda v: v is True, "true, as in every BART"),
}
# What these ids are when absent; forced ones may be absent.
GPT2_IDS = {"bos_token_id": 50256, "eos_token_id": 50256}
BART_IDS = {"bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2}
BART_IDS |= {"forced_bos_token_id": None, "forced_eos_token_id": None}


def _read_config(folder: Path) -> GPT2Config | BARTConfig:
    path = folder / "config.json"
    given = read_json(path)
    if pick_keys(path, given, MODEL_TYPE)["model_type"] == "bart":
        Config, keys, ids, n_embd = BARTConfig, BART_KEYS, BART_IDS, "d_model"
    else:
        Config, keys, ids, n_embd = GPT2Config, GPT2_KEYS, GPT2_IDS, "n_embd"
    config = pick_keys(path, given, keys)
    for key in [key for key in keys if key.endswith(("n_head", "attention_heads"))]:
        if config[n_embd] % config[key]:
            raise InputError(f"{path}: {n_embd} {config[n_embd]} must be divisible by {key} {config[key]}")
    config |= _read_ids(folder, given, ids, config["vocab_size"])
    return Config(**{key: config[key] for key in config if key in Config.__dataclass_fields__})


def pick_keys(path: Path, given: dict, expected: Expected) -> dict:
    """The values of the expected keys of a JSON file, or InputError if one is not what it may be."""
    config = {key: given.get(key, default) for key, (default, _, _) in expected.items()}
    for key, (_, may_be, in_words) in expected.items():
        if not may_be(config[key]):
            found = repr(config[key]) if key in given else "missing"
            raise InputError(f"{path}: {key} is {found}, but must be {in_words}")
    return config


def _read_ids(folder: Path, config: dict, defaults: dict, vocab_size: int) -> dict[str, int | None]:
    """generation_config.json goes before config.json, as in transformers; of several ends, the first.

    A forced token is what the first of these files that exists says.
    """
    path, ids = folder / "generation_config.json", {}
    files = [read_json(path), config] if path.exists() else [config]
    for key, default in defaults.items():
        found = [file.get(key) for file in (files[:1] if default is None else files)]
        id = next((id for id in found if id is not None), default)
        ids[key] = id = id[0] if isinstance(id, list) and id else id
        if id is not None and (type(id) is not int or not 0 <= id < vocab_size):
            raise InputError(f"{folder}/config.json: {key} is {id!r}, but must be an id below {vocab_size}")
    return ids


def _read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors under our models' names, as views of the mapped files: nothing is read yet."""
    tensors: dict[str, Tensor] = {}
    for path in _list_weights(folder):
        for key, tensor in read_safetensors(path)[0].items():
            name = key.removeprefix("transformer.").removeprefix("model.")
            if name in tensors:
                raise InputError(f"{path}: tensor {key} is there twice: remove one of the two")
            tensors[name] = tensor
    tensors = {name: tensor for name, tensor in tensors.items() if not LEGACY_BUFFER.fullmatch(name)}
    for name, tensor in tensors.items():
        if not tensor.is_floating_point():
            raise InputError(f"{folder}: tensor {name} holds {tensor.dtype}, not floats: download it again")
        if not tensor.sum(dtype=torch.float64).isfinite():  # float64 holds any sum of smaller ones
            raise InputError(f"{folder}: tensor {name} holds values that are not finite: download it again")
    return tensors


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file, as views of it, and its metadata."""
    damaged = explain((OSError, SafetensorError), f"{path} is missing or damaged", "get it again")
    with damaged, safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118


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


def _merge_copies(config: BARTConfig, tensors: dict[str, Tensor]) -> BARTConfig:
    """One shared.weight for all the names that files store it under, and no bias where they leave it out."""
    for name in ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"):
        if name in tensors and torch.equal(tensors.setdefault("shared.weight", tensors[name]), tensors[name]):
            del tensors[name]
    tensors.setdefault("final_logits_bias", torch.zeros(1, config.vocab_size))
    return config


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
    if wrong:
        wrong[20:] = [f"and {len(wrong) - 20} more"] if len(wrong) > 20 else []
        raise InputError(f"the tensors in {folder} do not fit its config.json: {'; '.join(wrong)}")
