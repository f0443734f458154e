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
import signal
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from tqdm import tqdm

from minprefix import ranks
from minprefix.config import (
    DECODING,
    Config,
    describe_keys,
    find_task,
    parse_argument,
    parse_config,
    restore_config,
)
from minprefix.data import find_files, make_batches, pairs, pick, read_split
from minprefix.errors import InputError, blame_memory, explain, wrap
from minprefix.generate import check_length
from minprefix.hub import load_lm
from minprefix.methods import PREFIXES, collapse, compute_sites, make_theta, target_loss
from minprefix.metrics import score
from minprefix.readers import UNSEEN
from minprefix.store import hold, load_prefix, read_pt, save_prefix, write_atomically, write_pt
from minprefix.texts import encode_source, encode_target, generate_texts

SMALLER = "lower batch_size, prefix_len or mlp_hidden, or take a smaller model"
STATE_FORMAT = "minprefix-state/1"


def main(arguments: list[str]) -> None:
    if {"-h", "--help", "help"} & set(arguments):
        print(f"{__doc__}\nThe keys and their defaults (data sets and models have presets):")
        print(describe_keys())
        return
    with ranks.join():
        state = load_state(arguments)
        config = restore_config(state["config"]) if state else parse_config(arguments)
        with hold(config.out) if ranks.is_first() else contextlib.nullcontext():
            run(config, state)


def run(config: Config, state: dict | None) -> None:
    out = Path(config.out)
    if ranks.is_first():
        remove_parts(out)
        refuse_overwriting(config, state)
    # One download, and the same files for all ranks.
    (files,) = ranks.gather([find_files(config.dataset, config.data)] if ranks.is_first() else [])
    announce(files)
    lm, tokenizer = load_lm(config.model, device=ranks.own_device(config.device))
    check_origin(state, describe_origin(lm, files))
    with say_how_to_go_on(out):
        with blame_memory(SMALLER):
            theta = train(config, lm, tokenizer, files, state)
            saved = collapse(lm, config.method, theta, dataclasses.asdict(config), files.origin)
        if ranks.is_first():
            save_prefix(saved, out)
        with blame_memory(f"{out} is there for sample.py with fewer --beams"):
            described = describe_split(config, lm, tokenizer, files, saved)
    if not ranks.is_first():
        return
    metrics = score_texts(config.dataset, described)
    report(files, metrics, described)
    save_prefix(dataclasses.replace(saved, metrics=metrics), out)
    append_line(log_path(out), metrics | {"data": files.origin})
    state_path(out).unlink()
    print(f"\nsaved {out} ({out.stat().st_size / 1e6:.2f} MB). Read more: python sample.py --prefix {out}")


def train(config: Config, lm, tokenizer, files, state: dict | None = None) -> torch.nn.Module:
    """Maximises Eq. 2 over theta; each step follows from the seed and its number, so a run can be resumed."""
    torch.manual_seed(config.seed)
    chosen = choose_pairs(config, pairs(read_split(files, "train")))
    train_pairs = encode_pairs(config, lm, tokenizer, chosen)
    dev_pairs = encode_pairs(config, lm, tokenizer, pick(pairs(read_split(files, "dev")), config.dev_limit))
    check_lengths(config, lm, tokenizer, files, train_pairs + dev_pairs)
    words = [] if config.init == "random" else tokenizer.encode(config.init)
    sites = config.sites.split("+") if config.sites else ()
    shape = (config.prefix_len, config.mlp_hidden)
    theta = make_theta(lm, config.method, *shape, words, sites, config.bottleneck)
    optimizer = torch.optim.AdamW(theta.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    total = count_steps(config, len(train_pairs))
    first = restore(state, theta, optimizer, total) if state else 0
    numbers = sum(parameter.numel() for parameter in theta.parameters())
    what = f"{numbers:,} numbers, {len(train_pairs):,} pairs"
    print(wrap(f"{config.method} on ", f"{config.model}: {what}", sys.stdout))
    since = f" from step {first:,} on" if first else ""
    print(f"{total:,} steps of {config.batch_size} pairs{since}, lr {config.lr:g}, seed {config.seed}")
    if shortened := sum(len(source) == config.max_source for source, _ in train_pairs):
        print(f"{shortened:,} sources are cut to {config.max_source} tokens (max_source; 0 cuts nothing)")

    facts = describe_origin(lm, files)
    bar = tqdm(total=total, initial=first, unit="step", disable=None)
    keeper = Keeper(config, facts, theta, optimizer, first)
    with stop_politely() as stop, keeper, bar, blame_memory(SMALLER):
        for step, batch in walk_batches(config, train_pairs, first, total):
            began, lr = time.monotonic(), config.lr * (1 - step / total)
            try:
                loss, tokens = take_step(config, lm, theta, optimizer, batch, lr)
            except InputError:  # raised before theta was changed
                keeper.save(step)
                raise
            speed = round(tokens / (time.monotonic() - began))
            done = step + 1
            bar.update()
            bar.set_postfix_str(f"loss {loss:.3f}, {speed:,} tokens/s")
            keeper.log(step=done, loss=loss, lr=lr, tokens_per_second=speed)
            if done % config.eval_every == 0 or done == total:
                dev_loss = measure_loss(config, lm, theta, dev_pairs)
                keeper.log(step=done, dev_loss=dev_loss)
                bar.write(f"step {done:5d} of {total}: loss {loss:.3f}, dev loss {dev_loss:.3f} nats a token")
            stops = torch.tensor(len(stop))
            ranks.add([stops])  # all stop at one step: none waits for another's next one
            if stops or done == total or keeper.is_due():
                keeper.save(done)
            if stops:
                raise KeyboardInterrupt
    return theta


def take_step(config: Config, lm, theta, optimizer, batch: list, lr: float) -> tuple[float, int]:
    """One step of AdamW -> the mean loss of y's tokens in nats, and how many they were.

    Several ranks share the batch. They started from one seed and add up the same gradients, so their
    theta stays the same, and is never sent.
    """
    mine, tokens = ranks.share(batch), sum(len(y) for _, y in batch)
    with torch.autocast(torch.device(config.device).type, torch.bfloat16, enabled=config.bf16):
        summed, _ = target_loss(lm, compute_sites(lm, config.method, theta), mine or batch[:1])
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


@torch.no_grad()
def measure_loss(config: Config, lm, theta, encoded: list) -> float:
    """Mean loss of y's tokens, in nats."""
    sites, mine = compute_sites(lm, config.method, theta), ranks.share(encoded)
    summed = torch.zeros((), device=lm.wte.weight.device)
    for start in range(0, len(mine), 32):
        summed += target_loss(lm, sites, mine[start : start + 32])[0]
    ranks.add([summed])
    return summed.item() / sum(len(y) for _, y in encoded)


def describe_split(config: Config, lm, tokenizer, files, saved, split: str = "test") -> list:
    """Each record of a split with the text that beam search finds for it."""
    records = pick(read_split(files, split), config.eval_limit)
    mine = ranks.share(records)
    options = {name: getattr(config, name) for name in DECODING}
    prefix = saved if saved.sites else None  # without sites, the LM itself has changed
    texts: list[str] = []
    with tqdm(total=len(mine), unit="record", desc=split, disable=None) as bar:
        for start in range(0, len(mine), 32):
            sources = [record.source for record in mine[start : start + 32]]
            texts += generate_texts(lm, tokenizer, sources, prefix, options)
            bar.update(len(sources))
    return list(zip(records, ranks.gather(texts)))


def score_texts(dataset: str, described: list) -> dict:
    """What the data set's official script reports, for WebNLG also of seen and unseen categories."""
    records, texts = map(list, zip(*described))
    is_webnlg = dataset == "webnlg"
    groups = ["unseen" if record.group in UNSEEN else "seen" for record in records] if is_webnlg else ()
    figures = score(find_task(dataset), texts, [record.references for record in records], groups)
    return figures | {"records": len(records)}


def report(files, metrics: dict, described: list) -> None:
    for record, text in pick(described, 5):
        source = textwrap.shorten(record.source, 500, placeholder=" ...")  # an article has thousands
        print()
        for label, line in (("record", source), ("text", text), ("reference", record.references[0])):
            print(wrap(f"{label:<10} ", line, sys.stdout))
    print(f"\n{metrics['records']} test records, {files.origin}")
    for group, figures in {"": metrics, **metrics.get("groups", {})}.items():
        for name, figure in figures.items():
            if isinstance(figure, float):
                print(f"  {f'{group} {name}'.strip():<24} {figure:8.2f}")


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
    targets = [encode_target(lm, tokenizer, y, config.max_target) for _, y in texts]
    return list(zip(sources, targets))


def choose_pairs(config: Config, everything: list) -> list:
    """All pairs, or n_train random ones in the order of the data; the same for every seed of a subset."""
    if not 0 < config.n_train < len(everything):
        return everything
    chosen = random.Random(config.subset).sample(range(len(everything)), config.n_train)
    return [everything[i] for i in sorted(chosen)]


def count_steps(config: Config, count: int) -> int:
    return min(config.epochs * math.ceil(count / config.batch_size), config.max_steps or math.inf)


def walk_batches(config: Config, encoded: list, first: int, total: int) -> Iterator[tuple[int, list]]:
    """(step, its pairs) from step `first` on."""
    lengths = [len(source) + len(target) for source, target in encoded]
    per_epoch = math.ceil(len(encoded) / config.batch_size)
    for step in range(first, total):
        if step == first or step % per_epoch == 0:
            batches = make_batches(lengths, config.batch_size, config.seed, step // per_epoch)
        yield step, [encoded[i] for i in batches[step % per_epoch]]


def announce(files) -> None:
    warning = f"!!! NOT THE {files.dataset.upper()} DATA !!! " if files.is_sample else ""
    print(wrap("", f"{warning}data: {files.origin}, {files.detail}", sys.stdout))


@contextlib.contextmanager
def stop_politely() -> Iterator[list]:
    """Yields a list that Ctrl-C or a kill fills, so that the step at hand is finished first."""
    stop: list = []
    old = {
        number: signal.signal(number, lambda *signal: stop.append(signal))
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        yield stop
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


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


class Keeper:
    """Keeps what a run must not lose: its log, and a state from which it goes on to the same bits."""

    def __init__(self, config: Config, facts: dict, theta, optimizer, step: int):
        self.out, self.seconds, self.first = Path(config.out), config.save_seconds, step
        self.facts = {"format": STATE_FORMAT, "config": dataclasses.asdict(config), **facts}
        self.theta, self.optimizer = theta, optimizer
        if ranks.is_first():
            lines = read_log(log_path(self.out), step) if step else []
            self.save(step)  # from here on a kill loses nothing
            write_atomically(log_path(self.out), lambda part: part.write_text("".join(lines)))

    def __enter__(self) -> "Keeper":
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        """A new run that fails before its first save leaves nothing in the way of the next try."""
        if ranks.is_first() and kind is InputError and self.step == 0:
            state_path(self.out).unlink()
            log_path(self.out).unlink()

    def log(self, **values: object) -> None:
        if ranks.is_first():
            append_line(log_path(self.out), values)

    def save(self, step: int) -> None:
        if not ranks.is_first():
            return
        state = self.facts | {"step": step, "theta": self.theta.state_dict()}
        state["optimizer"] = self.optimizer.state_dict()
        write_atomically(state_path(self.out), lambda part: write_pt(state, part))
        self.step, self.saved_at = step, time.monotonic()

    def is_due(self) -> bool:
        return ranks.is_first() and time.monotonic() - self.saved_at > self.seconds


def state_path(out: Path) -> Path:
    return out.with_suffix(".state.pt")


def log_path(out: Path) -> Path:
    return out.with_suffix(".jsonl")


def append_line(path: Path, values: dict) -> None:
    full = explain(OSError, f"cannot write {path}", "make room, then resume")
    with full, open(path, "a", encoding="utf-8") as log:
        log.write(json.dumps(values) + "\n")


def read_log(path: Path, step: int) -> list[str]:
    """The log's lines up to a step; a kill can have cut the last one short."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        whole = [line for line in lines if line.endswith("\n")]
        return [line for line in whole if json.loads(line).get("step", math.inf) <= step]
    except (ValueError, AttributeError, TypeError):
        raise InputError(f"{path} is not the log of this run: move it away, then resume") from None


def load_state(arguments: list[str]) -> dict | None:
    """The state that resume= names, or None; it goes on beside that file, and no other key may disagree."""
    given = dict(parse_argument(argument) for argument in arguments)
    path = given.pop("resume", "")
    if not path:
        return None
    state = read_pt(Path(path))
    keys = {"format", "config", "data", "fingerprint", "step", "theta", "optimizer"}
    known = isinstance(state, dict) and set(state) == keys and state["format"] == STATE_FORMAT
    if not known or not isinstance(state["config"], dict) or not path.endswith(".state.pt"):
        raise InputError(f"resume={path} is no training state: give the .state.pt file of an unfinished run")
    for name, value in given.items():
        if state["config"].get(name) != value:
            was = state["config"].get(name)
            raise InputError(f"the run to resume has {name}={was}, not {value}: leave {name}= out")
    state["config"]["out"] = path.removesuffix(".state.pt") + ".pt"
    return state


def refuse_overwriting(config: Config, state: dict | None) -> None:
    """InputError if files are in the way that are not this run's own."""
    out = Path(config.out)
    if state:
        if out.exists() and load_prefix(out).config != dataclasses.asdict(config):
            raise InputError(f"{out} is of another run and is not overwritten: move it away, then resume")
        return
    for path in (state_path(out), out, log_path(out)):
        if path.exists():
            advice = f"go on with resume={path}, " if path == state_path(out) else ""
            raise InputError(
                f"{path} exists and is not overwritten: {advice}give out=NAME.pt, or move it away"
            )


def remove_parts(out: Path) -> None:
    """Removes what a killed run was in the middle of writing: nobody else writes here now."""
    for path in (out, state_path(out), log_path(out)):
        for part in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
            part.unlink()


def describe_origin(lm, files) -> dict:
    return {"data": files.origin, "fingerprint": lm.config.fingerprint}


def check_origin(state: dict | None, facts: dict) -> None:
    """InputError if a run would go on with other data or another model than it began with."""
    for name, value in facts.items():
        if state and state[name] != value:
            raise InputError(
                f"the run began with {name} {state[name]!r}, now it is {value!r}: restore the former"
            )


def restore(state: dict, theta, optimizer, total: int) -> int:
    """Puts theta and optimizer where the run was -> the number of steps done."""
    step, groups = state["step"], optimizer.state_dict()["param_groups"]  # the groups follow from the config
    kinds = (RuntimeError, ValueError, LookupError, TypeError, AttributeError)
    with explain(kinds, "the state to resume is damaged", "start anew"):
        theta.load_state_dict(state["theta"])
        optimizer.load_state_dict({"state": state["optimizer"]["state"], "param_groups": groups})
        if type(step) is not int or not 0 <= step <= total:
            raise ValueError(f"step {step!r} of {total}")
        if not all(parameter.isfinite().all() for parameter in theta.parameters()):
            raise ValueError("values that are not finite")
        for parameter, moments in optimizer.state.items():
            if {moments["exp_avg"].shape, moments["exp_avg_sq"].shape} != {parameter.shape}:
                raise ValueError("moments of another shape")
            moments["step"].item()
    return step


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (InputError, OSError) as error:
        print(wrap("train.py: ", str(error), sys.stderr), file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
