"""Prefix-tune a frozen language model: python train.py dataset=e2e [key=value ...]

A run leaves DATASET.pt (the prefix), DATASET.jsonl (its log) and, while it is unfinished, DATASET.state.pt.
"""

import contextlib
import dataclasses
import json
import math
import random
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import torch
from tqdm import tqdm

from minprefix.config import Config, describe_keys, parse_argument, parse_config
from minprefix.data import find_files, make_batches, pairs, read_split
from minprefix.errors import InputError
from minprefix.hub import load_lm
from minprefix.methods import collapse, compute_sites, make_theta, target_loss
from minprefix.metrics import bleu
from minprefix.store import read_pt, save_prefix, write_atomically, write_pt
from minprefix.texts import encode_source, encode_target, generate_texts

STATE_FORMAT = "minprefix-state/1"


def main(arguments: list[str]) -> None:
    if {"-h", "--help", "help"} & set(arguments):
        print(f"{__doc__}\nThe keys, with their general defaults (data sets and models have presets):")
        print(describe_keys())
        return
    state = load_state(arguments)
    config = Config(**state["config"]) if state else parse_config(arguments)
    out = Path(config.out)
    if not state:
        refuse_overwriting(out)
    files = find_files(config.dataset, config.data)
    if state and state["data"] != files.origin:
        raise InputError(
            f"the run began with {state['data']}, but now there is {files.origin}: restore the data"
        )
    announce(files)
    lm, tokenizer = load_lm(config.model, device=config.device)
    with open_log(out.with_suffix(".jsonl"), state) as log, say_how_to_go_on(out):
        theta = train(config, lm, tokenizer, files, log, state)
        saved = collapse(lm, config.method, theta, dataclasses.asdict(config), files.origin)
        save_prefix(saved, out)
        metrics, described = evaluate(config, lm, tokenizer, files, saved)
        report(files, metrics, described)
        save_prefix(dataclasses.replace(saved, metrics=metrics), out)
        write_line(log, **metrics, data=files.origin)
    state_path(out).unlink()
    print(f"\nsaved {out} ({out.stat().st_size / 1e6:.2f} MB). Read more: python sample.py --prefix {out}")


def train(config: Config, lm, tokenizer, files, log: TextIO, state: dict | None) -> torch.nn.Module:
    """Maximises Eq. 2 over theta; each step follows from the seed and its number, so a run can be resumed."""
    torch.manual_seed(config.seed)
    words = [] if config.init == "random" else tokenizer.encode(config.init)
    theta = make_theta(lm, config.method, config.prefix_len, config.mlp_hidden, words).to(config.device)
    optimizer = torch.optim.AdamW(theta.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    first = restore(state, theta, optimizer) if state else 0

    train_pairs = encode_pairs(lm, tokenizer, choose_pairs(config, pairs(read_split(files, "train"))))
    dev_pairs = encode_pairs(lm, tokenizer, pick(pairs(read_split(files, "dev")), config.dev_limit))
    total = count_steps(config, len(train_pairs))
    numbers = sum(parameter.numel() for parameter in theta.parameters())
    print(
        f"{config.method} on {config.model}: {numbers:,} numbers, {len(train_pairs):,} pairs, {total:,} steps"
    )

    if not state:
        save_state(config, theta, optimizer, 0, files.origin)
    saved_at = time.monotonic()
    bar = tqdm(total=total, initial=first, unit="step", disable=None)
    with bar, stop_politely() as stop:
        for step, batch in walk_batches(config, train_pairs, first, total):
            began = time.monotonic()
            lr = config.lr * (1 - step / total)
            loss, tokens = take_step(config, lm, theta, optimizer, batch, lr)
            speed = tokens / (time.monotonic() - began)
            done = step + 1
            bar.update()
            bar.set_postfix_str(f"loss {loss:.3f}, {speed:,.0f} tokens/s")
            write_line(log, step=done, loss=loss, lr=lr, tokens_per_second=round(speed))
            if done % config.eval_every == 0 or done == total:
                dev_loss = measure_loss(config, lm, theta, dev_pairs)
                write_line(log, step=done, dev_loss=dev_loss)
                bar.write(f"step {done:5d} of {total}: loss {loss:.3f}, dev loss {dev_loss:.3f} nats a token")
            if stop or done == total or time.monotonic() - saved_at > config.save_seconds:
                save_state(config, theta, optimizer, done, files.origin)
                saved_at = time.monotonic()
            if stop:
                raise KeyboardInterrupt
    return theta


def take_step(config: Config, lm, theta, optimizer, batch: list, lr: float) -> tuple[float, int]:
    """One step of AdamW -> the mean loss of y's tokens in nats, and how many they were."""
    with torch.autocast(config.device, torch.bfloat16, enabled=config.bf16):
        summed, tokens = target_loss(lm, compute_sites(lm, config.method, theta), batch)
    loss = summed / (tokens if config.loss == "token" else len(batch))
    if not loss.isfinite():
        raise InputError(
            f"the loss is {loss.item()}: lower lr (now {config.lr}); the last saved state is kept"
        )
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(theta.parameters(), config.clip)
    optimizer.param_groups[0]["lr"] = lr
    optimizer.step()
    return summed.item() / tokens, tokens


@torch.no_grad()
def measure_loss(config: Config, lm, theta, encoded: list) -> float:
    """Mean loss of y's tokens, in nats."""
    sites = compute_sites(lm, config.method, theta)
    batches = [encoded[i : i + 32] for i in range(0, len(encoded), 32)]
    losses, tokens = zip(*(target_loss(lm, sites, batch) for batch in batches))
    return float(sum(losses)) / sum(tokens)


def evaluate(config: Config, lm, tokenizer, files, saved, split: str = "test") -> tuple[dict, list]:
    """Describes the records of a split by beam search -> the metrics, and each record with its text."""
    records = pick(read_split(files, split), config.eval_limit)
    names = ("beams", "length_penalty", "max_new_tokens")
    options = {name: getattr(config, name) for name in names}
    prefix = None if config.method == "full" else saved
    texts: list[str] = []
    with tqdm(total=len(records), unit="record", desc=split, disable=None) as bar:
        for start in range(0, len(records), 32):
            sources = [record.source for record in records[start : start + 32]]
            texts += generate_texts(lm, tokenizer, sources, prefix, options)
            bar.update(len(sources))
    metrics = bleu(texts, [record.references for record in records]) | {"records": len(records)}
    return metrics, list(zip(records, texts))


def report(files, metrics: dict, described: list) -> None:
    for record, text in pick(described, 5):
        print(f"\nrecord     {record.source}\ntext       {text}\nreference  {record.references[0]}")
    print(f"\n{metrics['records']} test records, {files.origin}")
    print(f"  BLEU          {metrics['BLEU']:8.2f}\n  length ratio  {metrics['length_ratio']:8.2f}")


def encode_pairs(lm, tokenizer, texts: list[tuple[str, str]]) -> list[tuple[list[int], list[int]]]:
    return [(encode_source(lm, tokenizer, x), encode_target(lm, tokenizer, y)) for x, y in texts]


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


def pick(items: list, limit: int) -> list:
    """All, or `limit` of them spread evenly: the test sets are sorted by kind, so their head is no sample."""
    return items if not 0 < limit < len(items) else [items[i * len(items) // limit] for i in range(limit)]


def announce(files) -> None:
    warning = f"!!! NOT THE {files.dataset.upper()} DATA !!! " if files.is_sample else ""
    print(f"{warning}data: {files.origin}, {files.detail}")


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
        print(f"\nstopped; go on with: python train.py resume={state_path(out)}", file=sys.stderr)
        sys.exit(130)


def state_path(out: Path) -> Path:
    return out.with_suffix(".state.pt")


def refuse_overwriting(out: Path) -> None:
    for path in (state_path(out), out, out.with_suffix(".jsonl")):
        if path.exists():
            advice = f"go on with resume={path}, " if path == state_path(out) else ""
            raise InputError(
                f"{path} exists and is not overwritten: {advice}give out=NAME.pt, or move it away"
            )


def open_log(path: Path, state: dict | None) -> TextIO:
    """A new JSON-lines log, or that of the run to resume, cut back to its saved step."""
    try:
        if not state:
            return open(path, "x", buffering=1)
        lines = [line for line in path.read_text().splitlines() if is_kept(line, state["step"])]
        write_atomically(path, lambda part: part.write_text("".join(f"{line}\n" for line in lines)))
        return open(path, "a", buffering=1)
    except OSError as error:
        raise InputError(
            f"cannot write {path} ({error.strerror}): give out=NAME.pt in another folder"
        ) from None


def is_kept(line: str, step: int) -> bool:
    """Whether a log line lies before the saved step; a kill can have cut the last one short."""
    with contextlib.suppress(ValueError):
        return json.loads(line).get("step", math.inf) <= step
    return False


def write_line(log: TextIO, **values: object) -> None:
    log.write(json.dumps(values) + "\n")


def save_state(config: Config, theta, optimizer, step: int, origin: str) -> None:
    state = {"format": STATE_FORMAT, "config": dataclasses.asdict(config), "data": origin, "step": step}
    state |= {"theta": theta.state_dict(), "optimizer": optimizer.state_dict()}
    write_atomically(state_path(Path(config.out)), lambda part: write_pt(state, part))


def load_state(arguments: list[str]) -> dict | None:
    """The state that resume= names, or None; its settings win, so no other key may disagree."""
    given = dict(parse_argument(argument) for argument in arguments)
    path = given.pop("resume", None)
    if not path:
        return None
    state = read_pt(Path(path))
    if not isinstance(state, dict) or state.get("format") != STATE_FORMAT:
        raise InputError(f"resume={path} is no training state: give the .state.pt file of an unfinished run")
    for name, value in given.items():
        if state["config"][name] != value:
            raise InputError(
                f"the run to resume has {name}={state['config'][name]}, not {value}: leave {name}= out"
            )
    return state


def restore(state: dict, theta, optimizer) -> int:
    theta.load_state_dict(state["theta"])
    optimizer.load_state_dict(state["optimizer"])
    return state["step"]


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except InputError as error:
        print(f"train.py: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
