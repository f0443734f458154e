"""Prefix-tune a frozen language model: python train.py dataset=e2e [key=value]

A run leaves DATASET.pt (the prefix), DATASET.jsonl (its log) and, while it is
unfinished, DATASET.state.pt.
"""

import contextlib
import dataclasses
import glob
import json
import math
import random
import sys
import textwrap
import time
from collections.abc import Iterator
from dataclasses import field
from pathlib import Path
from typing import Literal

import torch
from pydantic.dataclasses import dataclass
from tqdm import tqdm

from minprefix import InputError, load_lm, load_prefix, ranks, save_prefix
from minprefix.checks import STRICT, build, explain, run_command
from minprefix.config import Config, describe_keys, parse_arguments, parse_config, restore_config, translate
from minprefix.generate import check_length
from minprefix.methods import collapse, compute_sites, make_theta, target_loss
from minprefix.prefix import PREFIXES, SavedPrefix
from minprefix.store import FULL, hold, read_pt, write_atomically, write_pt
from minprefix.texts import encode_source, encode_target, generate_texts
from tasks import choose_presets, find_files, find_task, list_pairs, pick, read_split, score


def main(arguments: list[str]) -> None:
    if {"-h", "--help", "help"} & set(arguments):
        print(f"{__doc__}\nThe keys and their defaults (data sets have presets):\n{describe_keys()}")
        return
    with ranks.join():
        state = load_state(arguments)
        config = restore_config(state.config) if state else parse_config(arguments, choose_presets)
        with hold(config.out) if ranks.is_first() else contextlib.nullcontext():
            run(config, state)


def run(config: Config, state: "State | None") -> None:
    out = Path(config.out)
    if ranks.is_first():
        make_way(config, state)
    # One download, and the same files for all ranks.
    keys = (config.source_key, config.target_key)
    (files,) = ranks.gather([find_files(config.dataset, config.data, keys)] if ranks.is_first() else [])
    warning = f"!!! NOT THE {files.dataset.upper()} DATA !!! " if files.is_sample else ""
    print(f"{warning}data: {files.origin}, {files.detail}")
    config, lm, tokenizer = load_frozen(config)
    with say_how_to_go_on(out):
        theta, kept = train(config, lm, tokenizer, files, state)
        saved = finish(config, lm, theta, kept, files.origin)
        if ranks.is_first():
            save_prefix(saved, out)
        described = describe_split(config, lm, tokenizer, files, saved)
    if ranks.is_first():
        metrics = saved.metrics | score_texts(config.dataset, described)
        report(files, metrics, described)
        save_prefix(dataclasses.replace(saved, metrics=metrics), out)
        append_line(log_path(out), metrics | {"data": files.origin})
        state_path(out).unlink()
        size = out.stat().st_size / 1e6
        print(f"\nsaved {out} ({size:.2f} MB). Read more: python sample.py --prefix {out}")


def load_frozen(config: Config) -> tuple:
    """The config with the dtype that was taken, LM_phi, and its tokenizer."""
    lm, tokenizer = load_lm(config.model, config.weights(), ranks.own_device(config.device))
    return dataclasses.replace(config, dtype=str(lm.wte.weight.dtype)[len("torch.") :]), lm, tokenizer


def train(config: Config, lm, tokenizer, files, state: "State | None" = None) -> tuple[torch.nn.Module, int]:
    """Maximises Eq. 2 over theta -> theta, and after which step it was so.

    Each step follows from the seed and its number, so a run can be resumed.
    """
    torch.manual_seed(config.seed)
    train_pairs, dev_pairs = read_pairs(config, lm, tokenizer, files)
    words = [] if config.init == "random" else tokenizer.encode(config.init)
    sites = config.sites.split("+") if config.sites else ()
    shape = (config.prefix_len, config.mlp_hidden)
    theta = make_theta(lm, config.method, *shape, words, sites, config.bottleneck)
    rates = {"lr": config.lr, "weight_decay": config.weight_decay}
    # Fused, its last bits are others: float32 keeps those that it always had. None: as PyTorch chooses.
    optimizer = torch.optim.AdamW(theta.parameters(), **rates, fused=config.dtype == "bfloat16" or None)
    per_epoch = math.ceil(len(train_pairs) / config.batch_size)
    total = min(config.epochs * per_epoch, config.max_steps or math.inf)
    facts = {"data": files.origin, "fingerprint": lm.config.fingerprint}
    first, best = restore(state, facts, theta, optimizer, total) if state else (0, NO_LOOK)
    log, done, saved_at = log_path(Path(config.out)), first, -math.inf
    if state and ranks.is_first():
        cut_log(log, first)
    announce(config, theta, train_pairs, first, total)
    bar = tqdm(total=total, initial=first, unit="step", disable=None)
    with ranks.stop_together() as must_stop, bar:
        for step, batch in walk_batches(config, train_pairs, first, total):
            if 0 < config.patience * config.eval_every <= step - best["step"]:
                bar.write(f"no better dev loss for {config.patience} looks (patience): this is the end")
                break
            began, lr = time.monotonic(), config.lr * (1 - step / total)
            try:
                loss, tokens = take_step(config, lm, theta, optimizer, batch, lr)
            except InputError:  # raised before theta was changed
                save_state(config, facts, step, theta, optimizer, best)
                raise
            done, speed = step + 1, round(tokens / (time.monotonic() - began))
            bar.update()
            bar.set_postfix_str(f"loss {loss:.3f}, {speed:,} tokens/s")
            append_line(log, {"step": done, "loss": loss, "lr": lr, "tokens_per_second": speed})
            if done % config.eval_every == 0 or done == total:
                dev_loss = measure_loss(config, lm, theta, dev_pairs)
                append_line(log, {"step": done, "dev_loss": dev_loss})
                bar.write(f"step {done:5d} of {total}: loss {loss:.3f}, dev loss {dev_loss:.3f} nats a token")
                best = choose_better(config, theta, best, {"step": done, "dev_loss": dev_loss})
            if (stops := must_stop()) or done == total or time.monotonic() - saved_at > config.save_seconds:
                save_state(config, facts, done, theta, optimizer, best)
                saved_at = time.monotonic()
            if stops:
                raise KeyboardInterrupt
    return theta, take_best(theta, best, done)


def take_step(config: Config, lm, theta, optimizer, batch: list, lr: float) -> tuple[float, int]:
    """One step of AdamW -> the mean loss of y's tokens in nats, and how many they were. Ranks share the
    batch: they began with one seed and add up the same gradients, so theta stays the same and is never sent.
    """
    mine, tokens = ranks.share(batch), sum(len(y) for _, y in batch)
    sites = compute_sites(lm, config.method, theta)
    with multiply_in(config):
        summed, _ = target_loss(lm, sites, mine or batch[:1])
    if not mine:  # fewer pairs than ranks, but all must add something
        summed = summed * 0
    optimizer.zero_grad()
    (summed / (tokens if config.loss == "token" else len(batch))).backward()
    summed = summed.detach()
    ranks.add([summed, *(p.grad for p in theta.parameters() if p.grad is not None)])
    norm = torch.nn.utils.clip_grad_norm_(theta.parameters(), config.clip)
    if not (summed + norm).isfinite():  # before the step: what is kept must stay good
        raise InputError(f"loss or gradient is {(summed + norm).item()}: lower lr (now {config.lr})")
    optimizer.param_groups[0]["lr"] = lr
    optimizer.step()
    return summed.item() / tokens, tokens


def multiply_in(config: Config) -> torch.autocast:
    """Frozen weights in bfloat16 meet float32 that trains: products of both are taken in bfloat16."""
    return torch.autocast(torch.device(config.device).type, torch.bfloat16, config.dtype == "bfloat16")


@torch.no_grad()
def measure_loss(config: Config, lm, theta, encoded: list) -> float:
    """Mean loss of y's tokens, in nats."""
    sites, mine = compute_sites(lm, config.method, theta), ranks.share(encoded)
    summed = torch.zeros((), device=lm.wte.weight.device)
    with multiply_in(config):
        for start in range(0, len(mine), 32):
            summed += target_loss(lm, sites, mine[start : start + 32])[0]
    ranks.add([summed])
    return summed.item() / sum(len(y) for _, y in encoded)


def choose_better(config: Config, theta, best: dict, look: dict) -> dict:
    """The look at the dev loss that is best so far, with a copy of its theta unless keep=last."""
    if not look["dev_loss"] < best["dev_loss"]:
        return best
    kept = theta.state_dict() if config.keep == "best" else {}
    return look | {"theta": {name: tensor.to("cpu", copy=True) for name, tensor in kept.items()}}


def take_best(theta, best: dict, last: int) -> int:
    """Puts theta where the dev loss was least, if that was kept -> the step that theta is of."""
    if not best["theta"]:
        return last
    theta.load_state_dict(best["theta"])
    return best["step"]


def finish(config: Config, lm, theta, kept: int, data: str) -> SavedPrefix:
    """What is stored. From here on the LM has one dtype, also where it was trained, for texts to be found."""
    saved = collapse(lm, config.method, theta, dataclasses.asdict(config), data)
    lm.to(config.weights())
    return dataclasses.replace(saved, metrics={"kept_step": kept})


def describe_split(config: Config, lm, tokenizer, files, saved, split: str = "test") -> list:
    """Each record of a split with the text that beam search finds for it."""
    records = pick(read_split(files, split), config.eval_limit)
    prefix = saved if saved.sites else None  # without sites, the LM itself has changed
    sources, texts = [record.source for record in ranks.share(records)], []
    rows = 32 if config.device == "cpu" else 128  # a GPU takes as long for few as for many
    for start in tqdm(range(0, len(sources), rows), desc=split, unit="batch", disable=None):
        batch, decoding = sources[start : start + rows], config.decoding() | {"batch_size": rows}
        texts += generate_texts(lm, tokenizer, batch, prefix, decoding, config.max_source)
    return list(zip(records, ranks.gather(texts)))


def score_texts(dataset: str, described: list) -> dict:
    """What the data set's official script reports, for WebNLG also of seen and unseen categories."""
    records, texts = map(list, zip(*described))
    part = find_task(dataset).part
    parts = [part(record.group) for record in records]
    figures = score(dataset, texts, [record.references for record in records], parts)
    return figures | {"records": len(records)}


def report(files, metrics: dict, described: list) -> None:
    count, whole = len(described), len(read_split(files, "test"))
    taken = f"{count} of {whole} test records, spread evenly" if count < whole else f"{count} test records"
    for record, text in pick(described, 5):
        source = textwrap.shorten(record.source, 500, placeholder=" ...")  # an article has thousands
        print()
        for label, line in (("record", source), ("text", text), ("reference", record.references[0])):
            print(f"{label:<10} {line}")
    print(f"\n{taken}, {files.origin}; theta is that of step {metrics['kept_step']:,}")
    for group, figures in {"": metrics, **metrics.get("groups", {})}.items():
        for name in [name for name, figure in figures.items() if isinstance(figure, float)]:
            print(f"  {f'{group} {name}'.strip():<24} {figures[name]:8.2f}")


def announce(config: Config, theta, encoded: list, first: int, total: int) -> None:
    numbers = sum(parameter.numel() for parameter in theta.parameters())
    print(f"{config.method} on {config.model} in {config.dtype}: {numbers:,} numbers, {len(encoded):,} pairs")
    since = f" from step {first:,} on" if first else ""
    print(f"{total:,} steps of {config.batch_size} pairs{since}, lr {config.lr:g}, seed {config.seed}")
    if shortened := sum(len(source) == config.max_source for source, _ in encoded):
        print(f"{shortened:,} sources are cut to {config.max_source} tokens (max_source; 0 cuts nothing)")


def read_pairs(config: Config, lm, tokenizer, files) -> tuple[list, list]:
    """The ids of the training pairs, and of the dev pairs. InputError if anything would not fit."""
    train_texts = choose_pairs(config, list_pairs(read_split(files, "train")))
    dev_texts = pick(list_pairs(read_split(files, "dev")), config.dev_limit)
    train_pairs, dev_pairs = (encode_pairs(config, lm, tokenizer, xs) for xs in (train_texts, dev_texts))
    check_lengths(config, lm, tokenizer, files, train_pairs + dev_pairs)
    return train_pairs, dev_pairs


def check_lengths(config: Config, lm, tokenizer, files, encoded: list) -> None:
    """InputError before the first step if something would not fit the position table, or at the end."""
    length = config.prefix_len if config.method in PREFIXES else 0
    for number, (source, target) in enumerate(encoded, 1):
        check_length(lm, f"training or dev pair {number}", length, len(source), len(target))
    for number, record in enumerate(pick(read_split(files, "test"), config.eval_limit), 1):
        source = encode_source(lm, tokenizer, record.source, config.max_source)
        check_length(lm, f"test record {number}", length, len(source), config.max_new_tokens)


def encode_pairs(config: Config, lm, tokenizer, texts: list[tuple[str, str]]) -> list[tuple[list, list]]:
    sources = [encode_source(lm, tokenizer, x, config.max_source) for x, _ in texts]
    return [(x, encode_target(lm, tokenizer, y, config.max_target)) for x, (_, y) in zip(sources, texts)]


def choose_pairs(config: Config, everything: list) -> list:
    """All pairs, or n_train random ones in the order of the data; the same for every seed of a subset."""
    if not 0 < config.n_train < len(everything):
        return everything
    chosen = random.Random(config.subset).sample(range(len(everything)), config.n_train)
    return [everything[i] for i in sorted(chosen)]


def walk_batches(config: Config, encoded: list, first: int, total: int) -> Iterator[tuple[int, list]]:
    """(step, its pairs) from step `first` on."""
    lengths = [len(source) + len(target) for source, target in encoded]
    per_epoch = math.ceil(len(encoded) / config.batch_size)
    for step in range(first, total):
        if step == first or step % per_epoch == 0:
            batches = make_batches(lengths, config.batch_size, config.seed, step // per_epoch)
        yield step, [encoded[i] for i in batches[step % per_epoch]]


def make_batches(lengths: list[int], batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """Every index of `lengths` once, in batches of similar lengths and random order: a pure function of its
    arguments, which lets training resume at any batch.
    """
    rng, order = random.Random(f"{seed} {epoch}"), list(range(len(lengths)))
    rng.shuffle(order)
    bucket = 50 * batch_size  # sorting within buckets saves most of the padding and keeps the batches random
    chunks = [sorted(order[i : i + bucket], key=lengths.__getitem__) for i in range(0, len(order), bucket)]
    batches = [chunk[i : i + batch_size] for chunk in chunks for i in range(0, len(chunk), batch_size)]
    rng.shuffle(batches)
    return batches


@contextlib.contextmanager
def say_how_to_go_on(out: Path) -> Iterator[None]:
    """Ctrl-C, in training or evaluation, ends with the command that resumes and exit code 130."""
    try:
        yield
    except KeyboardInterrupt:
        state = state_path(out)
        advice = f"go on with: python train.py resume={state}" if state.exists() else "nothing was begun"
        print(f"\nstopped; {advice}", file=sys.stderr)
        sys.exit(130)


NO_LOOK = {"step": 0, "dev_loss": math.inf, "theta": {}}  # yet


@dataclass(frozen=True, config=STRICT)
class State:
    """An unfinished run, as its .state.pt holds it: enough to go on to the same bits."""

    config: dict
    data: str
    fingerprint: str
    step: int
    theta: dict
    optimizer: dict
    best: dict = field(default_factory=NO_LOOK.copy)  # older states have none: they kept the last theta
    format: Literal["minprefix-state/1"] = "minprefix-state/1"


def save_state(config: Config, facts: dict, step: int, theta, optimizer, best: dict) -> None:
    """Writes what a run goes on from; a run without a step leaves nothing in the next one's way. The best
    theta is beside the last one, for both are needed to the bit; once in the file where they are the same.
    """
    if ranks.is_first() and step:
        last = theta.state_dict()
        kept = {"theta": last} if best["theta"] and best["step"] == step else {}
        trained = {"theta": last, "optimizer": optimizer.state_dict(), "best": best | kept}
        state = State(dataclasses.asdict(config), **facts, step=step, **trained)
        write_atomically(state_path(Path(config.out)), lambda part: write_pt(vars(state), part), FULL)


def load_state(arguments: list[str]) -> State | None:
    """The state that resume= names, or None; it goes on beside that file, and no other key may disagree."""
    given = parse_arguments(arguments)
    path = given.pop("resume", "")
    if not path:
        return None
    content = read_pt(Path(path)) if path.endswith(".state.pt") else None
    if not isinstance(content, dict):
        raise InputError(f"resume={path} is no training state: give the .state.pt file of an unfinished run")
    state = build(State, content, f"resume={path} is no training state of an unfinished run: ")
    config = restore_config(state.config | {"out": path.removesuffix(".state.pt") + ".pt"})
    texts = {name: str(value) for name, value in vars(config).items() if value is not None}
    wanted = build(Config, texts | given, text=True)  # so that lr=1e-3 is 0.001
    for name in given:
        if getattr(wanted, name) != (was := getattr(config, name)):
            raise InputError(f"the run to resume has {name}={was}, not {given[name]}: leave {name}= out")
    return dataclasses.replace(state, config=dataclasses.asdict(config))


def restore(state: State, facts: dict, theta, optimizer, total: int) -> tuple[int, dict]:
    """Puts theta and optimizer where the run was -> the number of steps done, and what was best so far.
    InputError if the run would go on with other data or another model than it began with.
    """
    for name, value in facts.items():
        if value != (was := getattr(state, name)):
            raise InputError(f"the run began with {name} {was!r}, now it is {value!r}: restore the former")
    groups = optimizer.state_dict()["param_groups"]  # they follow from the config
    kinds = (RuntimeError, ValueError, LookupError, TypeError, AttributeError)
    with explain(kinds, "the state to resume is damaged", "start anew"):
        theta.load_state_dict(state.best["theta"] or state.theta)  # to see now that it fits in the end
        theta.load_state_dict(state.theta)
        optimizer.load_state_dict({"state": state.optimizer["state"], "param_groups": groups})
        for parameter, moments in optimizer.state.items():
            fits = {moments["exp_avg"].shape, moments["exp_avg_sq"].shape} == {parameter.shape}
            if not fits or not all(tensor.isfinite().all() for tensor in (parameter, *moments.values())):
                raise ValueError("tensors of another shape, or not finite")
        if math.isnan(state.best["dev_loss"]) or not 0 <= state.best["step"] <= state.step <= total:
            raise ValueError(f"step {state.step} of {total}")
    return state.step, state.best


def make_way(config: Config, state: State | None) -> None:
    """Removes what a killed run was just writing. InputError for files that are not this run's own."""
    out = Path(config.out)
    if state and out.exists() and translate(load_prefix(out).config) != dataclasses.asdict(config):
        raise InputError(f"{out} is of another run and is not overwritten: move it away, then resume")
    for path in (state_path(out), out, log_path(out)):
        for part in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
            part.unlink()
        if path.exists() and not state:
            advice = f"go on with resume={path}, " if path == state_path(out) else ""
            refused = f"{path} exists and is not overwritten"
            raise InputError(f"{refused}: {advice}give out=NAME.pt, or move it away")


def cut_log(path: Path, step: int) -> None:
    """Keeps the log's lines up to a step; a kill can have cut the last one short."""
    kinds = (OSError, ValueError, AttributeError, TypeError)
    with explain(kinds, f"{path} is not the log of this run", "move it away, then resume"):
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        whole = [line for line in lines if line.endswith("\n")]
        kept = [line for line in whole if json.loads(line).get("step", math.inf) <= step]
    write_atomically(path, lambda part: part.write_text("".join(kept), encoding="utf-8"))


def append_line(path: Path, values: dict) -> None:
    if ranks.is_first():
        with explain(OSError, f"cannot write {path}", FULL), open(path, "a", encoding="utf-8") as log:
            log.write(json.dumps(values) + "\n")


def state_path(out: Path) -> Path:
    return out.with_suffix(".state.pt")


def log_path(out: Path) -> Path:
    return out.with_suffix(".jsonl")


if __name__ == "__main__":
    run_command(main)
