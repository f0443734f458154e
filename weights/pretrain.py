"""Pre-train a small GPT-2 from an empty folder: python weights/pretrain.py corpus=FOLDER [minutes=2] [...]

The folder `work` receives the BPE, the token files, state.pt and log.jsonl; the finished checkpoint goes to
`out`, in Hugging Face layout. Started again with the same `work`, a run goes on from its last save. What a
step reads and its learning rate are functions of the step and of `tokens`, never of the clock.
"""

import dataclasses
import json
import math
import os
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # so that minprefix need not be installed

import corpus

from minprefix.config import parse_value
from minprefix.errors import InputError
from minprefix.gpt2 import GPT2, GPT2Config
from minprefix.hub import load_lm
from minprefix.store import read_pt, write_atomically, write_pt

SHAPE = ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head")
BPE = ("vocab.json", "merges.txt")
MEASURED = 20_000  # tokens of each held-out file, the same ones at every look


@dataclass(frozen=True)
class Config:
    corpus: str = os.environ.get("MINPREFIX_CORPUS", "")  # folder of .txt or .txt.xz files
    work: str = "pretrain"
    out: str = "pretrain/gpt2-mini"
    init: str = ""  # a checkpoint folder to start from, with its BPE; empty: random weights and an own BPE
    tests: str = ""  # folder of .txt files with test texts: documents that overlap with them are left out
    tokens: int = 40_000_000  # of the whole run; a smaller number on resuming pulls the decay forward
    minutes: float = 0  # time limit for everything; when given, `tokens` is what fits
    vocab_size: int = 8192
    n_positions: int = 512
    n_embd: int = 256
    n_layer: int = 6
    n_head: int = 4
    batch: int = 4096  # tokens a step
    short: float = 0.75  # this share of the tokens is read in sequences of half the positions
    lr_matrix: float = 3e-3  # Muon: the matrices of the blocks
    lr_rest: float = 2e-3  # AdamW: embeddings and vectors
    warmup: int = 100  # steps, at most a tenth of the run
    decay: float = 0.35  # share of the run over which the rates fall to zero in a straight line
    save_minutes: float = 3
    eval_minutes: float = 6
    preview_minutes: float = 0  # when given, the running weights go to work/preview that often
    workers: int = 2 if (os.cpu_count() or 1) > 1 else 1  # processes of one thread, which share every batch
    seed: int = 0


def parse(arguments: list[str]) -> Config:
    """Config from key=value arguments; 40M means 40,000,000. InputError names a wrong key or value."""
    kinds, given = {field.name: field.type for field in dataclasses.fields(Config)}, {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if key not in kinds or not equals:
            raise InputError(
                f"{argument!r} is not understood: write key=value, with a key of {', '.join(kinds)}"
            )
        given[key] = parse_value(
            key, kinds[key], value.replace("M", "000000") if kinds[key] is int else value
        )
    config = Config(**given)
    if config.batch % (config.workers * config.n_positions):
        raise InputError(
            f"batch={config.batch} must be a multiple of workers x n_positions: change one of the three"
        )
    return config


# ---- optimisers ----


def orthogonalise(update: Tensor, steps: int = 5) -> Tensor:
    """Newton-Schulz iteration of Muon (Jordan et al. 2024): brings the singular values of a matrix near 1."""
    x = update.T if update.shape[0] > update.shape[1] else update
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return x.T if update.shape[0] > update.shape[1] else x


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised, then scaled to the size of AdamW's updates.

    torch.optim.Muon iterates in bfloat16: seconds a step on a processor without such instructions.
    """

    def __init__(self, params, lr, rank=0, workers=1, momentum=0.95, weight_decay=0.05):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.rank, self.workers = rank, workers

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            updates = [self.accumulate(p, group["momentum"]) for p in group["params"]]
            for i, update in enumerate(updates):  # each worker takes its share of this work, too
                mine = i % self.workers == self.rank
                updates[i] = orthogonalise(update) if mine else torch.zeros_like(update)
            add_up(updates, self.workers)
            for p, update in zip(group["params"], updates):
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update, alpha=-0.2 * group["lr"] * math.sqrt(max(p.shape)))

    def accumulate(self, p: Tensor, momentum: float) -> Tensor:
        average = self.state[p].setdefault("momentum", torch.zeros_like(p))
        average.lerp_(p.grad, 1 - momentum)
        return p.grad.lerp(average, momentum)


def add_up(tensors: list[Tensor], workers: int) -> None:
    """Replaces each tensor by its sum over the workers."""
    if workers > 1:
        flat = torch.cat([t.flatten() for t in tensors])
        dist.all_reduce(flat)
        for t, total in zip(tensors, flat.split([t.numel() for t in tensors])):
            t.copy_(total.view_as(t))


def build_optimisers(lm: GPT2, config: Config, rank: int) -> list[torch.optim.Optimizer]:
    matrices = [p for name, p in lm.named_parameters() if name.startswith("h.") and p.ndim == 2]
    rest = [p for name, p in lm.named_parameters() if not (name.startswith("h.") and p.ndim == 2)]
    adam = torch.optim.AdamW(rest, config.lr_rest, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    return [Muon(matrices, config.lr_matrix, rank, config.workers), adam]


def scale_rate(step: int, total: int, config: Config) -> float:
    """Warm-up, plateau, linear decay: the factor on both learning rates at `step` of `total`."""
    warmup = min(config.warmup, total / 10)
    return min(1.0, (step + 1) / (warmup + 1), (total - step) / (config.decay * total))


# ---- model and loss ----


def build_lm(config: Config) -> GPT2:
    """The model to train: random as GPT-2 began (smaller towards the residual stream), or that of `init`."""
    torch.manual_seed(config.seed)
    lm = GPT2(GPT2Config(*(getattr(config, key) for key in SHAPE)))
    for name, p in lm.named_parameters():
        if p.ndim == 2:
            small = name.endswith("c_proj.weight")
            nn.init.normal_(p, std=0.02 / math.sqrt(2 * config.n_layer) if small else 0.02)
    if config.init:
        start, _ = load_lm(config.init)
        tensors = start.state_dict()
        # Positions that it lacks begin as copies of those that it has: neighbours stay neighbours.
        copies = math.ceil(config.n_positions / start.config.n_positions)
        tensors["wpe.weight"] = tensors["wpe.weight"].repeat(copies, 1)[: config.n_positions]
        lm.load_state_dict(tensors)
    return lm


class TiedSoftmaxLoss(torch.autograd.Function):
    """Mean cross-entropy of h (N, C) under the tied head wte (V, C) against targets (N,).

    The gradient is formed on the way forward, chunk by chunk, so that no (N, V) logits ever exist.
    """

    @staticmethod
    def forward(ctx, h, wte, targets, chunk=512):
        dh, dwte, loss = torch.empty_like(h), torch.zeros_like(wte), 0.0
        for i in range(0, len(h), chunk):
            part, y = h[i : i + chunk], targets[i : i + chunk, None]
            logp = (part @ wte.T).log_softmax(-1)  # (chunk, V)
            loss -= logp.gather(1, y).sum()
            dlogits = logp.exp_().scatter_add_(1, y, y.new_full(y.shape, -1, dtype=h.dtype)).div_(len(h))
            torch.mm(dlogits, wte, out=dh[i : i + chunk])
            dwte.addmm_(dlogits.T, part)
        ctx.save_for_backward(dh, dwte)
        return loss / len(h)

    @staticmethod
    def backward(ctx, grad):
        dh, dwte = ctx.saved_tensors
        return dh * grad, dwte * grad, None


def compute_loss(lm: GPT2, ids: Tensor) -> tuple[Tensor, int]:
    """The mean loss in nats over the predicted tokens of ids (B, T+1), and how many they are."""
    inputs, targets = ids[:, :-1] & (corpus.GIVEN - 1), ids[:, 1:]
    predicted = targets < corpus.GIVEN  # records are read, not predicted
    h = lm.hidden(inputs)[predicted]  # (N, C)
    return TiedSoftmaxLoss.apply(h, lm.wte.weight, targets[predicted]), len(h)


def take_step(lm: GPT2, optimisers: list, ids: Tensor, factor: float, config: Config, rank: int) -> float:
    """One step on ids (B, T+1), of which every worker reads its rows; returns the loss of this worker's."""
    for optimiser, lr in zip(optimisers, (config.lr_matrix, config.lr_rest)):
        optimiser.param_groups[0]["lr"] = lr * factor
        optimiser.zero_grad()
    loss, count = compute_loss(lm, ids[rank :: config.workers])
    (loss * count / (ids[:, 1:] < corpus.GIVEN).sum()).backward()
    add_up([p.grad for p in lm.parameters()], config.workers)
    nn.utils.clip_grad_norm_(lm.parameters(), 1.0)
    for optimiser in optimisers:
        optimiser.step()
    return loss.item()


# ---- data ----


def prepare_data(config: Config) -> None:
    """Fills `work` with what is not there yet: the BPE (trained, or that of `init`), then the token files."""
    work = Path(config.work)
    work.mkdir(parents=True, exist_ok=True)
    tokens = int(min(config.tokens, config.minutes * 60 * 10_000) if config.minutes else config.tokens)
    if not all((work / name).exists() for name in BPE):
        if config.init:
            for name in BPE:
                shutil.copyfile(Path(config.init) / name, work / name)
        else:
            corpus.train_tokenizer(config.corpus, work, config.vocab_size, sample=min(40_000_000, 4 * tokens))
    if not (work / "data.json").exists():
        corpus.prepare(config.corpus, work, tokens, config.seed, config.tests, config.workers)


def read_batch(data: np.ndarray, step: int, total: int, config: Config) -> Tensor:
    """ids (B, T+1) of a step; neighbouring rows share a token, which one predicts and the next reads."""
    length = config.n_positions // 2 if step < config.short * total else config.n_positions
    rows = np.arange(0, config.batch, length)[:, None] + np.arange(length + 1)
    return torch.from_numpy(data[(step * config.batch + rows) % len(data)].astype(np.int64))


@torch.inference_mode()
def evaluate(lm: GPT2, data: np.ndarray, length: int) -> float:
    """The mean loss in nats over the predicted tokens of held-out data."""
    data = data.astype(np.int64)
    starts = np.arange(0, max(1, len(data) - length), length)
    rows = starts[:, None] + np.arange(min(length + 1, len(data)))
    chunks = np.array_split(rows, math.ceil(len(rows) / 16))
    parts = [compute_loss(lm, torch.from_numpy(data[chunk])) for chunk in chunks]
    return sum(loss.item() * n for loss, n in parts) / sum(n for _, n in parts)


def count_bytes(data: np.ndarray, vocab: Path) -> float:
    """Bytes of text for a token of `data`, on average: byte-level BPE spells every byte as one character."""
    ids = json.loads(vocab.read_text())
    lengths = np.zeros(len(ids))
    for token, i in ids.items():
        lengths[i] = 0 if token == corpus.EOT else len(token)
    return lengths[data].mean()


# ---- what a run leaves ----


def export(lm: GPT2, config: Config, out: Path) -> None:
    """Writes a folder that transformers loads as is, in float16. It appears whole or not at all."""
    part = out.with_name(out.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    tensors = {f"transformer.{name}": t.half() for name, t in lm.state_dict().items()}
    save_file(tensors, part / "model.safetensors", metadata={"format": "pt"})
    for name in BPE:
        shutil.copyfile(Path(config.work) / name, part / name)
    settings = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "dtype": "float16"}
    settings |= {key: getattr(config, key) for key in SHAPE}
    settings |= {"n_inner": None, "activation_function": "gelu_new", "layer_norm_epsilon": 1e-5}
    settings |= {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0, "initializer_range": 0.02}
    settings |= {"tie_word_embeddings": True, "bos_token_id": 0, "eos_token_id": 0}
    generation = {"bos_token_id": 0, "eos_token_id": 0}
    tokenizer = {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": False}
    tokenizer |= {"model_max_length": config.n_positions}
    tokenizer |= dict.fromkeys(("bos_token", "eos_token", "unk_token"), corpus.EOT)
    for name, content in (
        ("config", settings),
        ("generation_config", generation),
        ("tokenizer_config", tokenizer),
    ):
        (part / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")
    part.rename(out)


def save_state(lm: GPT2, optimisers: list, step: int, seconds: float, config: Config) -> None:
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
    for key in (*SHAPE, "batch"):
        if state["config"][key] != getattr(config, key):
            raise InputError(
                f"{path} was made with {key}={state['config'][key]}: give that, or another work=FOLDER"
            )
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


def measure(lm: GPT2, held_out: dict, step: int, config: Config) -> None:
    """Logs the held-out losses: of plain text, also in bits per byte, and of texts that follow records."""
    length = config.n_positions // 2
    plain, records = (held_out[name][:MEASURED] for name in ("heldout", "heldout_records"))
    loss = evaluate(lm, plain, length)
    bits = loss / math.log(2) / count_bytes(plain, Path(config.work) / "vocab.json")
    losses = {"heldout": loss, "bits_per_byte": bits, "heldout_records": evaluate(lm, records, length)}
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
    lm = build_lm(config)
    optimisers = build_optimisers(lm, config, rank)
    first, before = restore(read_state(config), lm, optimisers)
    total, losses, start = config.tokens // config.batch, [], time.time()
    timers = [
        Timer(minutes) for minutes in (config.eval_minutes, config.save_minutes, config.preview_minutes)
    ]
    bar, step = tqdm(total=total, initial=first, unit="step", disable=True if rank else None), first
    while step < total:
        ids = read_batch(data["train"], step, total, config)
        losses.append(take_step(lm, optimisers, ids, scale_rate(step, total, config), config, rank))
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
            measure(lm, data, step, config)
        if saving or step == total:
            save_state(lm, optimisers, step, before + seconds, config)
        if previewing:
            shutil.rmtree(work / "preview", ignore_errors=True)
            export(lm, config, work / "preview")
    if rank == 0:
        export(lm, config, Path(config.out))
        measure(lm, data, step, config)


def main(arguments: list[str]) -> None:
    began, config = time.time(), parse(arguments)
    if Path(config.out).exists():
        raise InputError(f"{config.out} exists and is not replaced: give another out=FOLDER, or move it away")
    prepare_data(config)
    build_lm(config)  # so that bad input is found here and not in a worker
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
