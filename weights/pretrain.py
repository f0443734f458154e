"""Pre-train a small GPT-2 or BART from nothing: python weights/pretrain.py corpus=FOLDER [minutes=2] [...]

The folder `work` receives the BPE, the token files, state.pt and log.jsonl; the finished checkpoint goes to
`out`, in Hugging Face layout. Started again with the same `work`, a run goes on from its last save. What a
step reads and its learning rate are functions of the step and of `tokens`. With `minutes`, the clock says
what `tokens` is: once, after five steps.
"""

import dataclasses
import json
import math
import os
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that minprefix need not be installed

import corpus
from denoising import EOS, Noise, number_vocabulary, read_vocabulary
from export import BPE, SHAPE, export, write_json
from transplant import transplant

from minprefix.bart import BART, BARTConfig
from minprefix.checks import STRICT, InputError, build
from minprefix.gpt2 import GPT2, GPT2Config
from minprefix.hub import load_lm
from minprefix.store import read_pt, write_atomically, write_pt

MEASURED = 20_000  # tokens of each held-out file, the same ones at every look

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Minutes = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@dataclass(frozen=True, config=STRICT)
class Config:
    corpus: str = os.environ.get("MINPREFIX_CORPUS", "")  # folder of .txt or .txt.xz files
    work: str = "pretrain"
    out: str = "pretrain/lm"
    model: Literal["gpt2", "bart"] = "gpt2"  # predict the next token, or rebuild damaged text (denoising.py)
    # A folder to start from, with its BPE; empty: random weights and an own BPE. A BART can begin with a
    # GPT-2, too (transplant.py).
    init: str = ""
    tests: str = ""  # folder of .txt files with test texts: documents that overlap with them are left out
    tokens: Count = 40_000_000  # of the whole run; a smaller number on resuming pulls the decay forward
    minutes: Minutes = 0.0  # time limit for everything; when given, `tokens` is what fits
    vocab_size: Count = 8192
    n_positions: Count = 512
    n_embd: Count = 256
    n_layer: Count = 6  # for bart: in the encoder, and as many in the decoder
    n_head: Count = 4
    batch: Count = 4096  # tokens a step
    # The share `warm` of the tokens is read in sequences of an eighth of the positions, then up to the share
    # `short` in sequences of half of them: attention is learnt faster there.
    warm: Share = 0.0
    short: Share = 0.75
    lr_matrix: Positive = 3e-3  # Muon: the matrices of the blocks
    lr_rest: Positive = 2e-3  # AdamW: embeddings and vectors
    warmup: int = Field(100, ge=0)  # steps, at most a tenth of the run
    decay: Positive = 0.35  # share of the run over which the rates fall to zero in a straight line
    save_minutes: Minutes = 3.0
    eval_minutes: Minutes = 6.0
    preview_minutes: Minutes = 0.0  # when given, the running weights go to work/preview that often
    workers: Count = 2 if (os.cpu_count() or 1) > 1 else 1  # processes of one thread, which share every batch
    seed: int = Field(0, ge=0)

    def __post_init__(self):
        if self.batch % (self.workers * self.n_positions):
            raise InputError(f"batch={self.batch} must be a multiple of workers x n_positions: change one")


def parse(arguments: list[str]) -> Config:
    """Config from key=value arguments; tokens=40M means 40,000,000. InputError names a wrong key or value."""
    if lone := [argument for argument in arguments if "=" not in argument]:
        raise InputError(f"{lone[0]!r} is not understood: write key=value")
    values = dict(argument.split("=", 1) for argument in arguments)
    if "tokens" in values:
        values["tokens"] = values["tokens"].replace("M", "000000")
    return build(Config, values, text=True)


# ---- optimisers ----


class InFloat32(TorchFunctionMode):
    """What torch.optim.Muon iterates in bfloat16 stays float32 in here.

    With oneDNN held to AVX2, which lacks bfloat16, a step of gpt2-mini took 11 s in it, and 0.3 s in here.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        return args[0].clone() if function is Tensor.bfloat16 else function(*args, **(kwargs or {}))


def build_optimisers(lm: GPT2 | BART, config: Config) -> list[torch.optim.Optimizer]:
    tables = {id(module.weight) for module in lm.modules() if isinstance(module, nn.Embedding)}
    matrices = [p for p in lm.parameters() if p.ndim == 2 and id(p) not in tables]
    rest = [p for p in lm.parameters() if p.ndim != 2 or id(p) in tables]
    adam = torch.optim.AdamW(rest, config.lr_rest, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    muon = torch.optim.Muon(
        matrices, config.lr_matrix, weight_decay=0.05, momentum=0.95, adjust_lr_fn="match_rms_adamw"
    )
    return [muon, adam]


def scale_rate(step: int, total: int, config: Config) -> float:
    """Warm-up, plateau, linear decay: the factor on both learning rates at `step` of `total`."""
    warmup = min(config.warmup, total / 10)
    return min(1.0, (step + 1) / (warmup + 1), (total - step) / (config.decay * total))


# ---- model and loss ----


def describe(config: Config) -> GPT2Config | BARTConfig:
    """The shape of the model to train."""
    V, T, C, L, H = (getattr(config, key) for key in SHAPE)
    if config.model == "gpt2":
        return build(GPT2Config, dict(zip(SHAPE, (V, T, C, L, H))))
    sizes = {"vocab_size": V + 4, "max_position_embeddings": T, "d_model": C}  # five special tokens, not one
    for side in ("encoder", "decoder"):
        sizes |= {f"{side}_layers": L, f"{side}_attention_heads": H, f"{side}_ffn_dim": 4 * C}
    return build(BARTConfig, sizes)


def build_lm(config: Config) -> GPT2 | BART:
    """The model to train: random as GPT-2 began (smaller towards the residual stream), or from `init`."""
    torch.manual_seed(config.seed)
    shape = describe(config)
    lm = BART(shape) if config.model == "bart" else GPT2(shape)
    for name, p in lm.named_parameters():
        if p.ndim == 2:
            small = name.endswith(("c_proj.weight", "out_proj.weight", "fc2.weight"))
            nn.init.normal_(p, std=0.02 / math.sqrt(2 * config.n_layer) if small else 0.02)
        elif name.endswith("bias"):
            nn.init.zeros_(p)
    if config.init:
        start, _ = load_lm(config.init)
        if isinstance(start, BART):
            lm.load_state_dict(start.state_dict())
        elif config.model == "bart":
            transplant(start, lm, read_ids(config)[None, : start.config.n_positions])
        else:
            take_over(lm, start)
    return lm


def read_ids(config: Config) -> Tensor:
    """The first held-out tokens."""
    return torch.from_numpy(np.load(Path(config.work) / "heldout.npy")[:512].astype(np.int64))


def check_start(start: GPT2 | BART, config: Config) -> None:
    """InputError where the run cannot begin with this checkpoint."""
    bart, shape = config.model == "bart", {key: getattr(config, key) for key in SHAPE}
    if isinstance(start, BART):
        fits = bart and replace(start.config, name="", fingerprint="") == describe(config)
    else:
        same = ("vocab_size", "n_embd", "n_head", "n_positions" if bart else "n_layer")
        fits = all(getattr(start.config, key) == shape[key] for key in same)
        fits = fits and start.config.n_layer >= config.n_layer
    if not fits:
        needs = ", ".join(f"{key}={value}" for key, value in shape.items())
        raise InputError(f"init={config.init} does not fit a {config.model} of {needs}: change one of them")


def take_over(lm: GPT2, start: GPT2) -> None:
    """Begins where a checkpoint of the same shape ended, which may have fewer positions."""
    tensors = start.state_dict()
    # Positions that it lacks begin as copies of those that it has: neighbours stay neighbours.
    copies = math.ceil(lm.config.n_positions / start.config.n_positions)
    tensors["wpe.weight"] = tensors["wpe.weight"].repeat(copies, 1)[: lm.config.n_positions]
    lm.load_state_dict(tensors)


def score_words(h: Tensor, wte: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy of h (N, C) under the tied head wte (V, C) against targets (N,).

    The gradient is formed on the way forward, chunk by chunk, so that no (N, V) logits ever exist.
    """
    chunks = nn.LinearCrossEntropyOptions(batch_chunk_size=512)  # its own choice took a third longer
    return F.linear_cross_entropy(h, wte, targets, options=chunks)


def compute_loss(lm: GPT2, ids: Tensor) -> tuple[Tensor, int]:
    """The mean loss in nats over the predicted tokens of ids (B, T+1), and how many they are."""
    inputs, targets = ids[:, :-1] & (corpus.GIVEN - 1), ids[:, 1:]
    predicted = targets < corpus.GIVEN  # records are read, not predicted
    h = lm.hidden(inputs)[predicted]  # (N, C)
    return score_words(h, lm.wte.weight, targets[predicted]), len(h)


def compute_rebuilding_loss(lm: BART, source, mask, target, predicted) -> tuple[Tensor, int]:
    """The same for target (B, T) after a damaged source (B, S), over the tokens where predicted (B, T)."""
    start = target.new_full((len(target), 1), EOS)
    h = lm.hidden(torch.cat((start, target[:, :-1]), 1), lm.read(source, mask, {}))[predicted]  # (N, C)
    return score_words(h, lm.shared.weight, target[predicted]), len(h)


def compute_share(lm, ids: Tensor, noise: Noise | None, step: int, rank: int, config: Config) -> Tensor:
    """This worker's part of the mean loss of a step on ids (B, T+1), of which every worker reads its rows."""
    mine = slice(rank, None, config.workers)
    if noise is None:
        loss, count = compute_loss(lm, ids[mine])
        return loss * count / (ids[:, 1:] < corpus.GIVEN).sum()
    source, mask, target, _ = noise.make_batch(cut_rows(ids), (config.seed, step))
    everything = torch.ones_like(target[mine], dtype=torch.bool)
    loss, count = compute_rebuilding_loss(lm, source[mine], mask[mine], target[mine], everything)
    return loss * count / target.numel()


def take_step(lm, optimisers: list, share: Tensor, factor: float, config: Config) -> None:
    """One step down the gradient of a loss of which every worker has a share."""
    for optimiser, lr in zip(optimisers, (config.lr_matrix, config.lr_rest)):
        optimiser.param_groups[0]["lr"] = lr * factor
        optimiser.zero_grad()
    share.backward()
    add_up([p.grad for p in lm.parameters()], config.workers)
    nn.utils.clip_grad_norm_(lm.parameters(), 1.0)
    with InFloat32():
        for optimiser in optimisers:
            optimiser.step()


def add_up(tensors: list[Tensor], workers: int) -> None:
    """Replaces each tensor by its sum over the workers."""
    if workers > 1:
        flat = torch.cat([t.flatten() for t in tensors])
        dist.all_reduce(flat)
        for t, total in zip(tensors, flat.split([t.numel() for t in tensors])):
            t.copy_(total.view_as(t))


# ---- data ----


def prepare_data(config: Config) -> None:
    """Fills `work` with what is not there yet: the BPE (trained, or that of `init`), then the token files."""
    work = Path(config.work)
    work.mkdir(parents=True, exist_ok=True)
    tokens = int(min(config.tokens, config.minutes * 60 * 10_000) if config.minutes else config.tokens)
    if not all((work / name).exists() for name in BPE):
        if config.init:
            shutil.copyfile(Path(config.init) / "merges.txt", work / "merges.txt")
            write_json(work / "vocab.json", read_vocabulary(Path(config.init) / "vocab.json"))
        else:
            corpus.train_tokenizer(config.corpus, work, config.vocab_size, sample=min(40_000_000, 4 * tokens))
    if not (work / "data.json").exists():
        corpus.prepare(config.corpus, work, tokens, config.seed, config.tests, config.workers)


def read_batch(data: np.ndarray, step: int, total: int, config: Config) -> Tensor:
    """ids (B, T+1) of a step; neighbouring rows share a token, which one predicts and the next reads."""
    part = 8 if step < config.warm * total else 2 if step < config.short * total else 1
    length = config.n_positions // part
    rows = np.arange(0, config.batch, length)[:, None] + np.arange(length + 1)
    return torch.from_numpy(data[(step * config.batch + rows) % len(data)].astype(np.int64))


def cut_rows(ids: Tensor) -> np.ndarray:
    """Rows (B, T+1) of a token file -> (B, T-2), for BART's task puts <s> before and </s> behind them."""
    return ids[:, :-3].numpy()


@torch.inference_mode()
def evaluate(lm, data: np.ndarray, length: int, noise: Noise | None = None, lost: bool = False) -> float:
    """The mean loss in nats over the predicted tokens of held-out data; `lost`: only over what noise took."""
    data = data.astype(np.int64)
    starts = np.arange(0, max(1, len(data) - length), length)
    rows = starts[:, None] + np.arange(min(length + 1, len(data)))
    parts = []
    for seed, chunk in enumerate(np.array_split(rows, math.ceil(len(rows) / 16))):
        ids = torch.from_numpy(data[chunk])
        if noise is None:
            parts.append(compute_loss(lm, ids))
        else:
            *batch, taken = noise.make_batch(cut_rows(ids), (seed,))
            parts.append(compute_rebuilding_loss(lm, *batch, taken if lost else torch.ones_like(taken)))
    return sum(loss.item() * n for loss, n in parts) / sum(n for _, n in parts)


def count_bytes(data: np.ndarray, vocab: Path) -> float:
    """Bytes of text for a token of `data`, on average: byte-level BPE spells every byte as one character."""
    lengths = {i: len(token) for token, i in json.loads(vocab.read_text()).items() if token != corpus.EOT}
    return float(np.mean([lengths.get(i, 0) for i in data.tolist()]))


# ---- what a run leaves ----


def save_state(lm, optimisers: list, step: int, seconds: float, config: Config) -> None:
    state = {"lm": lm.state_dict(), "optimisers": [o.state_dict() for o in optimisers]}
    state |= {"step": step, "seconds": seconds, "config": dataclasses.asdict(config)}
    write_atomically(Path(config.work) / "state.pt", lambda part: write_pt(state, part))


def read_state(config: Config) -> dict | None:
    """The last save, if there is one. InputError where it is that of another model."""
    path = Path(config.work) / "state.pt"
    if not path.exists():
        return None
    state = read_pt(path)
    if state["step"] > config.tokens // config.batch:
        raise InputError(
            f"{path} has {state['step'] * config.batch:,} tokens behind it: give tokens= above that"
        )
    if "ns_steps" not in state["optimisers"][0]["param_groups"][0]:
        raise InputError(f"{path} is of before torch.optim.Muon was used: give another work=FOLDER")
    for key in ("model", *SHAPE, "batch"):
        was = state["config"][key]
        if was != getattr(config, key):
            raise InputError(f"{path} was made with {key}={was}: give that, or another work=FOLDER")
    return state


def restore(state: dict | None, lm: GPT2, optimisers: list) -> tuple[int, float]:
    """Brings back a save -> the step to take next and the seconds spent so far."""
    if not state:
        return 0, 0.0
    lm.load_state_dict(state["lm"])
    for optimiser, saved in zip(optimisers, state["optimisers"]):
        optimiser.load_state_dict(saved)
    return state["step"], state["seconds"]


def write_line(config: Config, **values: float) -> None:
    with open(Path(config.work) / "log.jsonl", "a") as file:
        file.write(json.dumps({name: round(value, 5) for name, value in values.items()}) + "\n")


def cut_log(config: Config, state: dict | None) -> None:
    """Takes out of the log what came after the last save: it will be done again."""
    path, saved = Path(config.work) / "log.jsonl", state["step"] if state else 0
    if path.exists():
        lines = [line for line in path.read_text().splitlines() if json.loads(line)["step"] <= saved]
        write_atomically(path, lambda part: part.write_text("".join(f"{line}\n" for line in lines)))


# ---- the run ----


def join_workers(rank: int, config: Config) -> None:
    """One thread each: two threads in one process wait for each other whenever another program runs."""
    torch.set_num_threads(1)
    if config.workers > 1:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        meeting = f"file://{Path(config.work).resolve()}/rendezvous"
        dist.init_process_group("gloo", meeting, rank=rank, world_size=config.workers)


def fit_steps(step: int, speed: float, deadline: float, config: Config) -> int:
    """How many steps the run may have in all to end by the deadline, a tenth of the time kept for the end."""
    total = torch.tensor(step + int(0.9 * max(0.0, deadline - time.time()) * speed / config.batch))
    if config.workers > 1:
        dist.broadcast(total, 0)  # the workers' clocks differ, but all must stop at one step
    return min(max(step, int(total)), max(step, config.tokens // config.batch))


def measure(lm, held_out: dict, noise: Noise | None, step: int, config: Config) -> None:
    """Logs held-out losses: of plain text, also in bits per byte; and of texts after their records (GPT-2)
    or of the words that noise took (BART)."""
    length = config.n_positions // 2
    plain, records = (held_out[name][:MEASURED] for name in ("heldout", "heldout_records"))
    loss = evaluate(lm, plain, length, noise)
    bits = loss / math.log(2) / count_bytes(plain, Path(config.work) / "vocab.json")
    losses = {"heldout": loss, "bits_per_byte": bits}
    if noise:
        losses["heldout_lost"] = evaluate(lm, plain, length, noise, lost=True)
    else:
        losses["heldout_records"] = evaluate(lm, records, length)
    write_line(config, step=step, tokens=step * config.batch, **losses)


class Timer:
    """Says when something is due that happens every so many minutes; 0 is never."""

    def __init__(self, minutes: float):
        self.minutes, self.last = minutes, time.time()

    def is_due(self) -> bool:
        due = 0 < 60 * self.minutes < time.time() - self.last
        self.last = time.time() if due else self.last
        return due


def train(rank: int, config: Config, deadline: float) -> None:
    """One worker; the first also reports, measures, saves and exports."""
    join_workers(rank, config)
    work, files = Path(config.work), ("train", "heldout", "heldout_records")
    data = {name: np.load(work / f"{name}.npy", mmap_mode="r") for name in files}
    if config.model == "bart":  # it learns to copy from the task itself, and needs no records for it
        data = {name: tokens[tokens < corpus.GIVEN] for name, tokens in data.items()}
    lm = build_lm(config)
    noise = Noise(number_vocabulary(work / "vocab.json")) if config.model == "bart" else None
    optimisers = build_optimisers(lm, config)
    first, before = restore(read_state(config), lm, optimisers)
    total, losses, start = config.tokens // config.batch, [], time.time()
    timers = [Timer(config.eval_minutes), Timer(config.save_minutes), Timer(config.preview_minutes)]
    bar, step = tqdm(total=total, initial=first, unit="step", disable=True if rank else None), first
    while step < total:
        ids = read_batch(data["train"], step, total, config)
        share = compute_share(lm, ids, noise, step, rank, config)
        take_step(lm, optimisers, share, scale_rate(step, total, config), config)
        losses.append(share.item() * config.workers)
        step += 1
        seconds = time.time() - start
        speed = (step - first) * config.batch / seconds
        if config.minutes and step == first + 5:
            bar.total = total = fit_steps(step, speed, deadline, config)
        if rank:
            continue
        bar.set_postfix_str(f"loss {losses[-1]:.3f}, {speed:,.0f} tokens/s")
        bar.update()
        if step % 20 == 0 or step == total:
            line = {"loss": float(np.mean(losses)), "seconds": before + seconds, "tokens_per_second": speed}
            write_line(config, step=step, tokens=step * config.batch, **line)
            losses.clear()
        evaluating, saving, previewing = [timer.is_due() for timer in timers]
        if evaluating:
            measure(lm, data, noise, step, config)
        if saving or step == total:
            save_state(lm, optimisers, step, before + seconds, config)
        if previewing:
            shutil.rmtree(work / "preview", ignore_errors=True)
            export(lm, work, work / "preview")
    if rank == 0:
        export(lm, work, Path(config.out))
        measure(lm, data, noise, step, config)


def main(arguments: list[str]) -> None:
    began, config = time.time(), parse(arguments)
    if Path(config.out).exists():
        raise InputError(f"{config.out} exists and is not replaced: give another out=FOLDER, or move it away")
    describe(config)  # so that bad input is found before anything is written
    if config.init:
        check_start(load_lm(config.init)[0], config)
    prepare_data(config)
    cut_log(config, read_state(config))
    (Path(config.work) / "rendezvous").unlink(missing_ok=True)
    options = (config, began + 60 * config.minutes)
    if config.workers == 1:
        train(0, *options)
    else:
        torch.multiprocessing.spawn(train, options, config.workers)


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except InputError as error:
        print(f"pretrain.py: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\nstopped; the same command goes on from the last save", file=sys.stderr)
        sys.exit(130)
