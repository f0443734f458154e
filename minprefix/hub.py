"""LM_phi from a Hugging Face folder or hub id, checked before it is believed."""

import hashlib
import re
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from minprefix.bart import BART, BARTConfig
from minprefix.checks import InputError, build, explain, read_json
from minprefix.gpt2 import GPT2, GPT2Config
from minprefix.layers import Conv1D
from minprefix.llama import Llama, LlamaConfig
from minprefix.tokenizer import BART_SPECIAL, GPT2_SPECIAL, Tokenizer, load_tokenizer

REPOSITORY = Path(__file__).resolve().parent.parent
NEEDED = ["*.json", "merges.txt", "model*.safetensors"]
MODELS = {  # by model_type: the class, its config, its embedding in the file, its special tokens
    "gpt2": (GPT2, GPT2Config, "wte.weight", GPT2_SPECIAL),
    "bart": (BART, BARTConfig, "shared.weight", BART_SPECIAL),
    "llama": (Llama, LlamaConfig, "embed_tokens.weight", ()),
}
# What old files store beside the parameters: the causal mask, fairseq's version.
LEGACY_BUFFER = re.compile(r"h\.\d+\.attn\.(masked_)?bias|(en|de)coder\.version|.*\.rotary_emb\.inv_freq")
COPIES = {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"}


def load_lm(
    folder_or_hub_id: str | Path, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu"
) -> tuple[GPT2 | BART | Llama, Tokenizer]:
    """The frozen LM_phi, in eval mode, and its tokenizer.

    Takes a folder, a folder of this repository (`weights/gpt2-mini`) or a hub id (`gpt2-medium`,
    `facebook/bart-large`).
    InputError names the file at fault, and the first tensors that are missing, unexpected or mis-shaped.
    """
    with explain((RuntimeError, AssertionError), f"device={device} is not to be had", "give device=cpu"):
        torch.empty(0, device=device)
    folder = find_folder(str(folder_or_hub_id))
    given, tensors = read_config(folder), read_tensors(folder)
    Model, Config, embedding, special = MODELS[given["model_type"]]
    unite_copies(given, tensors, embedding, Config.tie_word_embeddings)
    given |= {"name": str(folder_or_hub_id), "fingerprint": make_fingerprint(tensors)}
    config = build(Config, given, f"{folder}/config.json: ")
    with torch.device("meta"):  # shapes without memory, until the tensors are put in
        lm = Model(config)
    with explain(RuntimeError, f"the tensors in {folder} do not fit its config.json", "get both again"):
        lm.load_state_dict(copy_tensors(lm, tensors, dtype, device), assign=True)
    tokenizer = load_tokenizer(folder, special)
    if max(tokenizer.bytes_of_id) >= config.vocab_size:
        raise InputError(
            f"{folder}: tokenizer.json or vocab.json has ids beyond vocab_size {config.vocab_size}"
        )
    return lm.eval().requires_grad_(False), tokenizer


def copy_tensors(lm, tensors: dict[str, Tensor], dtype: torch.dtype, device: str) -> dict[str, Tensor]:
    """Copies, for `tensors` are views of the mapped file, which may change or vanish later.

    Weights (in, out) of a Conv1D lie in memory as (out, in), which `linear` reads faster.
    """
    to = {"device": device, "dtype": dtype, "copy": True, "memory_format": torch.contiguous_format}
    convs = {f"{name}.weight" for name, module in lm.named_modules() if isinstance(module, Conv1D)}
    return {key: t.T.to(**to).T if key in convs else t.to(**to) for key, t in tensors.items()}


def find_folder(name: str) -> Path:
    """A folder as it is named, in this repository, or in huggingface_hub's cache."""
    for root in (Path(), REPOSITORY):
        if name and (root / name).is_dir():
            return root / name
    from huggingface_hub import snapshot_download  # here, for it takes longer to import than a folder to read

    what = f"model {name!r} is no folder, and the Hugging Face hub did not give it"
    advice = "check the name, the network and HF_HUB_OFFLINE, or give a folder that holds it"
    with explain(Exception, what, advice):  # a network fails with the exceptions of several libraries
        return Path(snapshot_download(name, allow_patterns=NEEDED))


def read_config(folder: Path) -> dict:
    """What config.json says, and of token ids generation_config.json, which goes first; nulls are absent.

    Of several EOS the first. A forced token is what the first of these files that exists says.
    """
    config, path = read_filled(folder / "config.json"), folder / "generation_config.json"
    kind = str(config.get("model_type"))
    if kind not in MODELS:
        raise InputError(f"{folder}/config.json: model_type is {kind}: it must be of {', '.join(MODELS)}")
    if kind == "gpt2":
        config = {"bos_token_id": 50256, "eos_token_id": 50256} | config
    if path.exists():
        ids = {key: id for key, id in read_filled(path).items() if key.endswith("_token_id")}
        config = {key: value for key, value in config.items() if not key.startswith("forced_")} | ids
    if isinstance(several := config.get("eos_token_id"), list) and several:
        config["eos_token_id"] = several[0]
    return config


def read_filled(path: Path) -> dict:
    return {key: value for key, value in read_json(path).items() if value is not None}


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors under our models' names, as views of the mapped files: nothing is read yet."""
    names, index = {"model.safetensors"}, folder / "model.safetensors.index.json"
    if index.exists() and not (folder / "model.safetensors").exists():
        with explain((AttributeError, LookupError), f"{index} names no files", "get it again"):
            names = {Path(str(name)).name for name in read_json(index)["weight_map"].values()}
    tensors: dict[str, Tensor] = {}
    for path in [folder / name for name in sorted(names)]:
        for key, tensor in read_safetensors(path)[0].items():
            name = key.removeprefix("transformer.").removeprefix("model.")
            if LEGACY_BUFFER.fullmatch(name):
                continue
            if name in tensors:
                raise InputError(f"{path}: tensor {key} is there twice: remove one of the two")
            # float64 holds any sum of smaller ones
            if not tensor.is_floating_point() or not tensor.sum(dtype=torch.float64).isfinite():
                raise InputError(f"{path}: tensor {key} does not hold finite floats: download it again")
            tensors[name] = tensor
    return tensors


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file, as views of it, and its metadata."""
    damaged = explain((OSError, SafetensorError), f"{path} is missing or damaged", "get it again")
    with damaged, safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118


def unite_copies(config: dict, tensors: dict[str, Tensor], embedding: str, is_tied: bool) -> None:
    """Drops what files store twice: a tied head, and BART's embeddings under all their names.

    A head that differs is not tied, whatever config.json says, as in transformers. BART's always is, and its
    bias may be absent.
    """
    is_bart = embedding == "shared.weight"
    if is_bart or config.get("tie_word_embeddings", is_tied):
        for name in COPIES.intersection(tensors):
            if torch.equal(tensors.setdefault(embedding, tensors[name]), tensors[name]):
                del tensors[name]
        config["tie_word_embeddings"] = is_bart or "lm_head.weight" not in tensors
    if is_bart and embedding in tensors:
        tensors.setdefault("final_logits_bias", torch.zeros(1, len(tensors[embedding])))


def make_fingerprint(tensors: dict[str, Tensor]) -> str:
    """Which checkpoint this is: 16 hex digits over names, shapes and at most 1,024 values of each tensor."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        stride = 1 + max(0, tensor.numel() - 1) // 1024
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten()[::stride].float().numpy().tobytes())
    return digest.hexdigest()[:16]
