"""Runs the cells of a table or figure of the paper, or prints what there is of them.

    MINPREFIX_DATA=FOLDER python -m experiments.run ARTEFACT [paper] [seeds=N] [CELL[=LR] ...]
    python -m experiments.run ARTEFACT [paper] table

experiments/artefacts.py lists artefacts, cells and learning rates. First every cell runs with seed 0 at each
of its learning rates, or at those given; then dev chooses one, and the further seeds run with it. `paper`
means the paper's models and numbers of steps instead of the bundled ones. A result is a JSON file; a cell
that has it is not run again, a stopped one goes on where it was. Several processes may share a grid: start
the same command in each.
"""

import contextlib
import dataclasses
import fcntl
import json
import math
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from experiments.artefacts import (
    MINI,
    PAPER,
    Cell,
    choose_runs,
    make_artefacts,
    merit,
    read_runs,
    write_result,
)
from experiments.machine import describe_machine, read_memory, reset_peak
from experiments.score import score_records
from minprefix.config import Config, find_task, parse_config, restore_config
from minprefix.data import DataFiles, find_files, pick, read_split
from minprefix.errors import InputError
from minprefix.hub import load_lm
from minprefix.methods import collapse
from minprefix.metrics import bleu, rouge
from minprefix.store import save_prefix
from train import (
    check_origin,
    describe_origin,
    describe_split,
    load_state,
    log_path,
    score_texts,
    state_path,
    train,
)

REPOSITORY = Path(__file__).resolve().parent.parent
SENTENCE = re.compile(r".+?[.!?]['\"’”)]*(?=\s|$)")


def main(arguments: list[str]) -> None:
    if not arguments or {"-h", "--help", "help"} & set(arguments):
        print(__doc__)
        return
    name, cells, seeds = parse(arguments)
    if "table" not in arguments:
        run_grid(name, cells, seeds)
    print_table(cells)


def parse(arguments: list[str]) -> tuple[str, dict[str, Cell], int]:
    """The artefact's name, those of its cells that are asked for, and the most seeds of one."""
    artefacts = make_artefacts(PAPER if "paper" in arguments else MINI)
    name, *words = [word for word in arguments if word not in ("paper", "table")] or [""]
    if name not in artefacts:
        raise InputError(f"unknown artefact '{name}': choose one of {', '.join(artefacts)}")
    chosen: dict[str, Cell] = {}
    seeds = 1000
    for key, equals, value in (word.partition("=") for word in words):
        number = parse_number(key, value) if equals else 0
        if key == "seeds":
            seeds = math.ceil(number)
        elif key not in artefacts[name]:
            raise InputError(f"{name} has no cell '{key}': choose from {', '.join(artefacts[name])}")
        else:
            rates = (*(chosen[key].rates if key in chosen else ()), number) if equals else None
            cell = artefacts[name][key]
            chosen[key] = dataclasses.replace(cell, rates=rates) if equals else cell
    return name, chosen or artefacts[name], seeds


def parse_number(key: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = 0
    if not 0 < number < 1000:
        raise InputError(f"{key}={value} must be a number above 0")
    return number


def run_grid(artefact: str, cells: dict[str, Cell], seeds: int) -> None:
    """Runs what is neither finished nor being run by another process, until nothing is left to take."""
    commit, taken = read_commit(), True  # of the code that has been imported, whatever is checked out later
    while taken:
        taken = False
        for cell, lr, seed in list_open(cells, seeds):
            with claim(cell.path(lr, seed)) as mine:
                if mine:
                    print(f"{artefact}: {cell.name}, lr {lr:g}, seed {seed}", flush=True)
                    run_cell(cell, lr, seed, commit)
                    taken = True
                    break  # what is open may have changed: look again
    if count := len(list_open(cells, seeds)):
        print(f"{count} cells are left to the other processes; run again if there are none", flush=True)


def list_open(cells: dict[str, Cell], seeds: int) -> list[tuple[Cell, float, int]]:
    """(cell, learning rate, seed) without a result: first seed 0 of all, then what dev chose."""
    first, further = [], []
    for cell in cells.values():
        runs = read_runs(cell)
        missing = [(cell, lr, 0) for lr in cell.rates or (0.0,) if (lr, 0) not in runs]
        first += missing
        if not missing:
            lr = choose_runs(runs)[0]["config"]["lr"] if cell.rates else 0.0
            further += [(cell, lr, seed) for seed in range(min(cell.runs, seeds)) if (lr, seed) not in runs]
    return first + further


@contextlib.contextmanager
def claim(path: Path) -> Iterator[bool]:
    """Yields whether this process may make `path`. The claim ends with the process, however that ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path.with_suffix(".lock"), "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield not path.exists()  # another process may just have finished it


def run_cell(cell: Cell, lr: float, seed: int, commit: str) -> None:
    """Trains, chooses the length penalty on dev, scores on test, and writes the JSON file."""
    path = cell.path(lr, seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = parse_config([f"device={device}", *cell.arguments(lr, seed), f"out={path.with_suffix('.pt')}"])
    files = find_files(config.dataset, config.data)
    if files.is_sample and config.data != "sample":
        raise InputError(
            f"the {config.dataset} data is needed, not the sample: set MINPREFIX_DATA ({files.detail})"
        )
    began = time.monotonic()
    found = run_method(cell, config, files) if cell.rates else run_lead(cell, config, files)
    described = found.pop("described")
    paper = ["paper"] if cell.folder.is_relative_to(PAPER.folder) else []
    rate = f"={lr:g}" if lr else ""
    home = cell.folder.name  # of a cell that several artefacts share, and its name there
    command = ["python -m experiments.run", home, *paper, f"{cell.name}{rate}", f"seeds={seed + 1}"]
    result = {
        "artefact": home,
        "cell": cell.name,
        "command": " ".join(command),
        "config": dataclasses.asdict(dataclasses.replace(config, out="")),
        "data": files.origin,
        "machine": f"{describe_machine()}, {device}",
        "commit": commit,
        "seconds": round(time.monotonic() - began),
        **found,
        "texts": [{"source": record.source, "text": text} for record, text in pick(described, 20)],
    }
    write_result(path, result)
    remove_traces(path.with_suffix(".pt"))


def run_method(cell: Cell, config: Config, files: DataFiles) -> dict:
    """One training, with what it cost and what came of it."""
    out = Path(config.out)
    lm, tokenizer = load_lm(config.model, device=config.device)
    state = resume(config)
    check_origin(state, describe_origin(lm, files))
    begin_peak(config.device)
    began = time.monotonic()
    theta = train(config, lm, tokenizer, files, state)
    costs = {"train_seconds": round(time.monotonic() - began), "peak_memory_bytes": read_peak(config.device)}
    costs |= {"resumed_at_step": state["step"]} if state else {}
    costs["trained_numbers"] = sum(parameter.numel() for parameter in theta.parameters())
    saved = collapse(lm, config.method, theta, dataclasses.asdict(config), files.origin)
    save_prefix(saved, out)
    stored = [*saved.sites.values(), *saved.tensors.values()]
    costs |= {"stored_numbers": sum(t.numel() for t in stored), "stored_bytes": out.stat().st_size}
    fingerprint = {"model": lm.config.fingerprint}
    lines = [json.loads(line) for line in log_path(out).read_text().splitlines()]
    return (
        fingerprint | costs | read_curves(lines) | choose_and_score(cell, config, lm, tokenizer, files, saved)
    )


def resume(config: Config) -> dict | None:
    """The state that a stopped process left for this very cell, if there is one."""
    path = state_path(Path(config.out))
    state = load_state([f"resume={path}"]) if path.exists() else None
    if state and restore_config(state["config"]) != config:
        raise InputError(f"{path} was begun with other settings: remove it to start the cell anew")
    return state


def choose_and_score(cell: Cell, config: Config, lm, tokenizer, files: DataFiles, saved) -> dict:
    """Dev metrics by length penalty, where dev has something to choose, and test metrics with the best."""
    dev = {}
    for alpha in cell.alphas or (config.length_penalty,):
        choice = dataclasses.replace(config, length_penalty=alpha, eval_limit=cell.dev)
        described = describe_split(choice, lm, tokenizer, files, saved, "dev") if len(cell.alphas) > 1 else []
        dev[alpha] = measure_choice(files, described) if described else {}
    best = max(dev, key=lambda alpha: merit(dev[alpha]))
    choice = dataclasses.replace(config, length_penalty=best)
    described = describe_split(choice, lm, tokenizer, files, saved)
    return {
        "length_penalty": best,
        "dev_by_length_penalty": {f"{alpha:g}": metrics for alpha, metrics in dev.items()},
        "dev": dev[best],
        "test": measure(cell, config, described),
        "described": described,
    }


def run_lead(cell: Cell, config: Config, files: DataFiles) -> dict:
    """The baseline without training: an article's first sentence is its summary."""
    records = pick(read_split(files, "test"), config.eval_limit)
    described = [(record, first_sentence(record.source)) for record in records]
    return {"dev": {}, "test": measure(cell, config, described), "described": described}


def first_sentence(text: str) -> str:
    found = SENTENCE.match(text)
    return found[0] if found else text


def measure(cell: Cell, config: Config, described: list) -> dict:
    """The test metrics; METEOR, which takes 20 seconds, is spared the further seeds."""
    if not cell.meteor or config.seed > 0:
        return score_texts(config.dataset, described)
    records, texts = map(list, zip(*described))
    return score_records(config.dataset, texts, records) | {"records": len(records)}


def measure_choice(files: DataFiles, described: list) -> dict:
    """The metric that dev chooses by, without the slow ones beside it."""
    metric = rouge if find_task(files.dataset) == "xsum" else bleu
    metrics = metric([text for _, text in described], [record.references for record, _ in described])
    return metrics | {"records": len(described)}


def read_curves(lines: list[dict]) -> dict:
    """The log as curves: the mean of each tenth step and its predecessors, the dev loss, and the speed."""
    steps = [line for line in lines if "loss" in line]
    tens = [steps[i : i + 10] for i in range(0, len(steps), 10)]
    return {
        "tokens_per_second": statistics.median(line["tokens_per_second"] for line in steps),
        "loss": [[ten[-1]["step"], round(sum(line["loss"] for line in ten) / len(ten), 4)] for ten in tens],
        "dev_loss": [[line["step"], round(line["dev_loss"], 4)] for line in lines if "dev_loss" in line],
    }


def begin_peak(device: str) -> None:
    if device == "cpu":
        reset_peak()
    else:
        torch.cuda.reset_peak_memory_stats()


def read_peak(device: str) -> int:
    """The most memory since begin_peak, in bytes: resident on a CPU, allocated on a GPU."""
    return read_memory("VmHWM") if device == "cpu" else torch.cuda.max_memory_allocated()


def read_commit() -> str:
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True).stdout.strip()


def remove_traces(out: Path) -> None:
    """Once the result is written: the state, the log, and what is too large to keep for every cell."""
    for path in (state_path(out), log_path(out)):
        path.unlink(missing_ok=True)
    if out.exists() and out.stat().st_size > 5e6:
        out.unlink()


def print_table(cells: dict[str, Cell]) -> None:
    """What there is, the learning rate that dev chose first, with its seeds."""
    print(f"{'cell':<22} {'lr':<8} seed  alpha  dev loss   dev  test metrics")
    for name, cell in cells.items():
        runs = read_runs(cell)
        chosen = choose_runs(runs)
        for run in [*chosen, *(run for run in runs.values() if run not in chosen)]:
            config = run["config"]
            lr = f"{config['lr']:g}" if cell.rates else "-"
            alpha = run.get("length_penalty", config["length_penalty"])
            loss = f"{run['dev_loss'][-1][1]:8.3f}" if run.get("dev_loss") else f"{'-':>8}"
            dev = f"{merit(run['dev']):5.1f}" if run["dev"] else f"{'-':>5}"
            print(
                f"{name:<22} {lr:<8} {config['seed']:4d}  {alpha:5g}  {loss} {dev}  "
                + format_metrics(run["test"])
            )


def format_metrics(metrics: dict) -> str:
    shown = {name: value for name, value in metrics.items() if isinstance(value, float)}
    shown = {name: value for name, value in shown.items() if not name.endswith((" low", " high"))}
    return ", ".join(f"{name} {value:.2f}" for name, value in shown.items())


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (InputError, OSError) as error:
        print(f"experiments.run: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("\nstopped: the same command goes on", file=sys.stderr)
        sys.exit(130)
