"""LM_phi from a Hugging Face folder or hub id, checked before it is believed."""

import hashlib
import re
import warnings
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from minprefix.bart import BART, BARTConfig
from minprefix.checks import InputError, build, explain, read_json
from minprefix.gpt2 import GPT2, GPT2Config
from minprefix.layers import Conv1D
from minprefix.llama import Llama, LlamaConfig
from minprefix.prefix import FLOATS, check_floats
from minprefix.store import read_pt
from minprefix.tokenizer import BART_SPECIAL, GPT2_SPECIAL, Tokenizer, load_tokenizer

REPOSITORY = Path(__file__).resolve().parent.parent
# Numbers a token, from which dtype=auto may be bfloat16. The bundled models have 256: they would gain, too
# (experiments/SPEED.md), but all that is published of them was found in float32.
WIDE = 512
NEEDED = ["*.json", "merges.txt", "model*.safetensors"]
WEIGHTS = ("model.safetensors", "pytorch_model.bin")  # whole, or in shards that an index names
MODELS = {  # by model_type: the class, its config, its special tokens
    "gpt2": (GPT2, GPT2Config, GPT2_SPECIAL),
    "bart": (BART, BARTConfig, BART_SPECIAL),
    "llama": (Llama, LlamaConfig, ()),
}
# What files wish for generation, beside token ids. What begins as in SILENT needs no warning: `generate` has
# an option for it, or it changes no text. In generation_config.json all else does; in config.json, where more
# stands, what ends as in UNHEEDED. What ends as in UNSET has no effect at 1, the others at 0.
OBEYED = ("suppress_tokens", "no_repeat_ngram_size", "early_stopping", "further_ends")
SILENT = ("max_length", "max_new_tokens", "min_length", "min_new_tokens", "num_beams", "length_penalty", "_")
SILENT += ("do_sample", "temperature", "top_k", "top_p", "remove_invalid", "return_dict", "output_", "use_")
SILENT += ("cache_", "compile_", "disable_compile", "low_memory", "prefill_", "max_cache", "continuous_")
SILENT += ("assistant_", "is_assistant", "num_assistant", "target_look", "prompt_lookup", "max_matching")
SILENT += ("speculation_type", "transformers_version")
UNSET = ("repetition_penalty", "typical_p", "top_h", "guidance_scale", "beam_groups", "return_sequences")
UNHEEDED = (*UNSET, "decay_length_penalty", "diversity_penalty", "ngram_size", "words_ids", "suppress_tokens")
UNHEEDED += ("sequence_bias", "renormalize_logits", "min_p", "_cutoff", "max_time", "stop_strings")
UNHEEDED += ("token_healing", "watermarking_config", "dola_layers", "constraints", "penalty_alpha")
# What files store beside the parameters: the causal mask, fairseq's version, the head of another task.
UNUSED = r"h\.\d+\.attn\.(masked_)?bias|(en|de)coder\.version|.*\.rotary_emb\.inv_freq"
UNUSED = re.compile(UNUSED + r"|(score|classification_head|qa_outputs)\..*")
COPIES = {"encoder.embed_tokens.weight", "decoder.embed_tokens.weight", "lm_head.weight"}


def load_lm(
    folder_or_hub_id: str | Path,
    dtype: torch.dtype | None = torch.float32,
    device: torch.device | str = "cpu",
) -> tuple[GPT2 | BART | Llama, Tokenizer]:
    """The frozen LM_phi, in eval mode, and its tokenizer.

    Takes a folder, a folder of this repository (`weights/gpt2-mini`) or a hub id (`gpt2-medium`,
    `facebook/bart-large`). dtype: of the weights; None leaves it to `choose_dtype`. Warns of what
    generation_config.json wants and `generate` does not do; beams, lengths, length_penalty and draws are
    always those of `generate`.
    InputError names the file at fault, and the first tensors that are missing, unexpected or mis-shaped.
    """
    with explain(Exception, f"device={device} is not to be had", "give device=cpu"):  # of several kinds
        torch.zeros((), device=device).item()
    if dtype not in (None, *FLOATS):
        raise InputError(f"dtype is {dtype!r}: give one of {', '.join(map(str, FLOATS))}")
    if torch.device(device).type == "cuda":  # cuDNN plans for each shape, 80 ms: here every step has another
        torch.backends.cuda.enable_cudnn_sdp(False)
    folder = find_folder(str(folder_or_hub_id))
    given, tensors = read_config(folder), read_tensors(folder)
    Model, Config, special = MODELS[given["model_type"]]
    unite_copies(given, tensors, Model, Config.tie_word_embeddings)
    given |= {"name": str(folder_or_hub_id), "fingerprint": make_fingerprint(tensors)}
    config = build_config(folder, Config, Config.unsaid | given)
    dtype = dtype or choose_dtype(config.n_embd, device)
    with torch.device("meta"):  # shapes without memory, until the tensors are put in
        lm = Model(config)
    with explain(RuntimeError, f"the tensors in {folder} do not fit its config.json", "get both again"):
        lm.load_state_dict(copy_tensors(lm, tensors, dtype, device), assign=True)
    tokenizer = load_tokenizer(folder, special)
    if max(tokenizer.bytes_of_id) >= config.vocab_size:
        raise InputError(f"{folder}: vocab.json or tokenizer.json: ids past vocab_size {config.vocab_size}")
    return lm.eval().requires_grad_(False), tokenizer


def choose_dtype(width: int, device: str | torch.device) -> torch.dtype:
    """bfloat16 where the device multiplies in it and the model is wide, else float32."""
    return torch.bfloat16 if width >= WIDE and multiplies_in_bfloat16(device) else torch.float32


def multiplies_in_bfloat16(device: torch.device | str) -> bool:
    """Whether it has units for that: without them it converts, and is slower than in float32."""
    if torch.device(device).type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    flags = getattr(torch.cpu, "get_capabilities", dict)()  # which an older PyTorch does not tell
    return any(flags.get(name, False) for name in ("avx512_bf16", "amx_bf16"))


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
    advice = "check name, network and HF_HUB_OFFLINE, or give a folder that holds it, see weights/README.md"
    with explain(Exception, what, advice):  # a network fails with the exceptions of several libraries
        folder = Path(snapshot_download(name, allow_patterns=NEEDED))
        if not any(folder.glob("*.safetensors")):
            snapshot_download(name, allow_patterns="pytorch_model*.bin")
        return folder


def read_config(folder: Path) -> dict:
    config = read_settings(folder / "config.json")
    if (kind := str(config.get("model_type"))) not in MODELS:
        raise InputError(f"{folder}/config.json: model_type is {kind}: it must be of {', '.join(MODELS)}")
    return config


def read_settings(path: Path) -> dict:
    """The JSON object in a file without its nulls; of several ids of EOS, the first one frames texts, too."""
    found = {key: value for key, value in read_json(path).items() if value is not None}
    if isinstance(ends := found.get("eos_token_id"), list) and ends:
        found |= {"eos_token_id": ends[0], "further_ends": ends[1:]}
    return found


def build_config(folder: Path, Config: type, given: dict):
    """What config.json gives, and what is obeyed of the wishes in generation_config.json or, where there is
    none, in config.json; warns of the rest. InputError names the file at fault.
    """
    path, place = folder / "generation_config.json", f"{folder}/config.json: "
    if not path.exists():
        warn_of(folder / "config.json", {key: given[key] for key in given if key.endswith(UNHEEDED)})
        return build(Config, given, place)
    wishes = read_settings(path)
    warn_of(path, wishes)
    obeyed = {key: wishes[key] for key in wishes if key.endswith("_token_id") or key in OBEYED}
    own = {key: given[key] for key in given if not key.startswith(("forced_", *OBEYED, *obeyed))}
    build(Config, own, place)  # so that what follows is the other file's fault
    return build(Config, own | obeyed, f"{path}: ")


def warn_of(path: Path, wishes: dict) -> None:
    """Says which of them would change texts, and that they are not obeyed."""
    wanted = [key for key, value in wishes.items() if value and not (key.endswith(UNSET) and value == 1)]
    known = [key for key in wanted if key.startswith((*SILENT, *OBEYED)) or key.endswith("_token_id")]
    if ignored := [key for key in wanted if key not in known]:
        warnings.warn(f"{path} asks for {', '.join(ignored)} in generation: not obeyed", stacklevel=4)


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors under our models' names; those of .safetensors are views of mapped files, not read yet."""
    tensors: dict[str, Tensor] = {}
    for path in list_weights(folder):
        content = read_bin(path) if path.suffix == ".bin" else read_safetensors(path)[0]
        for key, tensor in content.items():
            name = key.removeprefix("transformer.").removeprefix("model.")
            if UNUSED.fullmatch(name):
                continue
            if name in tensors:
                raise InputError(f"{path}: tensor {key} is there twice: remove one of the two")
            with explain((ValueError, AttributeError), f"{path}: tensor {key} is damaged", "get it again"):
                tensors[name] = check_floats(tensor).detach()
    return tensors


def list_weights(folder: Path) -> list[Path]:
    """The files with the tensors: the first of WEIGHTS that is there, or its shards."""
    names = [name for kind in WEIGHTS for name in (kind, f"{kind}.index.json") if (folder / name).exists()]
    path = folder / (names or WEIGHTS)[0]
    if path.suffix != ".json":
        return [path]  # if it is missing, reading it will say so
    with explain((AttributeError, LookupError), f"{path} names no files", "get it again"):
        shards = {Path(str(shard)).name for shard in read_json(path)["weight_map"].values()}
    return [folder / shard for shard in sorted(shards)]


def read_bin(path: Path) -> dict[str, Tensor]:
    """The tensors of an older file, a pickle: nothing in it is run, and nothing else is read."""
    with explain(AttributeError, f"{path} holds no named tensors", "get it again"):
        return {str(key): tensor for key, tensor in read_pt(path, allow_old=True).items()}


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a file, as views of it, and its metadata."""
    damaged = explain((OSError, SafetensorError), f"{path} is missing or damaged", "get it again")
    with damaged, safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, file.metadata() or {}  # noqa: SIM118


def unite_copies(config: dict, tensors: dict[str, Tensor], Model: type, is_tied: bool) -> None:
    """Drops what files store twice: a tied head, and BART's embeddings under all their names.

    A head that differs is not tied, whatever config.json says, as in transformers. BART's always is, and its
    bias may be absent.
    """
    embedding = Model.embedding
    if Model.always_tied or config.get("tie_word_embeddings", is_tied):
        for name in COPIES.intersection(tensors):
            if torch.equal(tensors.setdefault(embedding, tensors[name]), tensors[name]):
                del tensors[name]
        config["tie_word_embeddings"] = "lm_head.weight" not in tensors
    for name in Model.biases if embedding in tensors else ():
        tensors.setdefault(name, torch.zeros(1, len(tensors[embedding])))


def make_fingerprint(tensors: dict[str, Tensor]) -> str:
    """Which checkpoint this is: 16 hex digits over names, shapes and at most 1,024 values of each tensor."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        stride = 1 + max(0, tensor.numel() - 1) // 1024
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.flatten()[::stride].float().numpy().tobytes())
    return digest.hexdigest()[:16]
