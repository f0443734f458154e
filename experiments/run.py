"""Runs the cells of a table or figure of the paper, or prints what there is of them, or measures METEOR where
the machine of the runs had no Java.

    MINPREFIX_DATA=FOLDER python -m experiments.run ARTEFACT [SCALE] [seeds=N] [CELL[=LR] ...]
    python -m experiments.run ARTEFACT [SCALE] table|meteor

experiments/artefacts.py lists artefacts and cells, experiments/tables/mini.toml the learning rates. First
every cell runs with seed 0 at each of its learning rates, or at those given; then dev chooses one, and the
further seeds run with it. Of several seeds at each rate the mean chooses. SCALE: `paper` takes the paper's
models and numbers of steps instead of the bundled ones, `smollm2` a real model of 135 million parameters.
A result is a JSON file; a cell that has it is not run again, a stopped one goes on where it was. Several
processes may share a grid: start the same command in each.
"""

import dataclasses
import itertools
import json
import math
import random
import re
import statistics
import time
from pathlib import Path

import torch

from experiments.artefacts import (
    MINI,
    SCALES,
    Cell,
    choose_rate,
    make_artefacts,
    merit,
    read_dev_loss,
    read_runs,
)
from experiments.cartridges import keep_sites
from experiments.keep import claim, describe_machine, read_commit, read_peak, reset_peak, start, write_result
from experiments.score import score_records
from minprefix.checks import InputError
from minprefix.config import Config, parse_config, restore_config
from minprefix.prefix import read_activations
from minprefix.store import save_prefix
from minprefix.texts import encode_source, encode_target, generate_texts
from tasks import DataFiles, choose_presets, find_files, find_task, list_pairs, pick, read_split
from train import (
    State,
    cut_log,
    describe_split,
    finish,
    load_frozen,
    load_state,
    log_path,
    score_texts,
    state_path,
    train,
)

TEXTS = 30  # of a run, that its result shows
SENTENCE = re.compile(r".+?[.!?]['\"’”)]*(?=\s|$)")


def main(arguments: list[str]) -> None:
    if not arguments:
        print(__doc__)
        return
    name, cells, seeds = parse(arguments)
    if "meteor" in arguments:
        for path in (cell.path(*run) for cell in cells.values() for run in read_runs(cell)):
            add_meteor(path)
    elif "table" not in arguments:
        run_grid(name, cells, seeds)
    print_table(cells)


def parse(arguments: list[str]) -> tuple[str, dict[str, Cell], int]:
    """The artefact's name, those of its cells that are asked for, and the most seeds of one."""
    scale = next((SCALES[word] for word in arguments if word in SCALES), MINI)
    artefacts = make_artefacts(scale)
    name, *words = [word for word in arguments if word not in (*SCALES, "table", "meteor")] or [""]
    if name not in artefacts:
        raise InputError(f"unknown artefact '{name}': choose one of {', '.join(artefacts)}")
    cells, chosen, seeds = artefacts[name], {}, 1000
    for key, equals, value in (word.partition("=") for word in words):
        if key == "seeds":
            seeds = math.ceil(parse_number(key, value))
        elif key not in cells:
            raise InputError(f"{name} has no cell '{key}': choose from {', '.join(cells)}")
        elif equals:
            rates = chosen[key].rates if key in chosen else ()
            chosen[key] = dataclasses.replace(cells[key], rates=(*rates, parse_number(key, value)))
        else:
            chosen[key] = cells[key]
    return name, chosen or cells, seeds


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
            lr = choose_rate(runs)
            further += [(cell, lr, seed) for seed in range(min(cell.runs, seeds)) if (lr, seed) not in runs]
    return first + further


def run_cell(cell: Cell, lr: float, seed: int, commit: str) -> None:
    """Trains, chooses the length penalty on dev, scores on test, and writes the JSON file."""
    path = cell.path(lr, seed)
    out = path.with_suffix(".pt")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = parse_config([f"device={device}", *cell.arguments(lr, seed), f"out={out}"], choose_presets)
    files = find_files(config.dataset, config.data)
    if files.is_sample and config.data != "sample":
        raise InputError(f"{config.dataset} is needed, not its sample: set MINPREFIX_DATA ({files.detail})")
    began = time.monotonic()
    kind = run_method if cell.rates else run_examples if cell.examples else run_lead
    found = kind(cell, config, files)
    described = found.pop("described")
    result = {
        "artefact": cell.folder.name,  # where a cell that several artefacts share is at home
        "cell": cell.name,
        "command": name_command(cell, lr, seed),
        "config": dataclasses.asdict(dataclasses.replace(config, out="")),
        "data": files.origin,
        "machine": describe_machine(device),
        "commit": commit,
        "seconds": round(time.monotonic() - began),
        **found,
        "texts": list_texts(described, 0 if found["test"].get("METEOR missing") else TEXTS),
    }
    write_result(path, result)
    remove_traces(out)


def list_texts(described: list, count: int) -> list[dict]:
    """So many of the texts, all if 0, each with its record."""
    return [{"source": record.source, "text": text} for record, text in pick(described, count)]


def add_meteor(path: Path) -> None:
    """Measures METEOR where the machine of the run had none, by all the texts that such a result keeps."""
    result = json.loads(path.read_text(encoding="utf-8"))
    if result["test"].get("METEOR missing"):
        config = restore_config(result["config"])
        records = pick(read_split(find_files(config.dataset, config.data), "test"), config.eval_limit)
        described = list(zip(records, [pair["text"] for pair in result["texts"]], strict=True))
        result["test"] = measure(Cell("", (), (), path.parent, meteor=True), config, described)
        write_result(path, result | {"texts": list_texts(described, TEXTS)})


def name_command(cell: Cell, lr: float, seed: int) -> str:
    """What makes this result."""
    names = [name for name, scale in SCALES.items() if scale is not MINI]
    scale = [name for name in names if cell.folder.is_relative_to(SCALES[name].folder)]
    rate = f"={lr:g}" if lr else ""
    command = ["python -m experiments.run", cell.folder.name, *scale, f"{cell.name}{rate}"]
    return " ".join([*command, f"seeds={seed + 1}"])


def run_method(cell: Cell, config: Config, files: DataFiles) -> dict:
    """One training, with what it cost and what came of it."""
    out = Path(config.out)
    config, lm, tokenizer = load_frozen(config)
    state = resume(config)
    cut_log(log_path(out), state.step if state else 0)
    reset_peak(config.device)
    began = time.monotonic()
    theta, kept = train(config, lm, tokenizer, files, state)
    costs = {"train_seconds": round(time.monotonic() - began), "peak_memory_bytes": read_peak(config.device)}
    costs |= {"resumed_at_step": state.step} if state else {}
    saved = finish(config, lm, theta, kept, files.origin)
    save_prefix(saved, out)
    stored = [*saved.sites.values(), *saved.tensors.values()]
    return {
        "model": lm.config.fingerprint,
        "dtype": config.dtype,
        **saved.metrics,
        **costs,
        "trained_numbers": sum(parameter.numel() for parameter in theta.parameters()),
        "stored_numbers": sum(tensor.numel() for tensor in stored),
        "stored_bytes": out.stat().st_size,
        **read_curves(log_path(out)),
        **choose_and_score(cell, config, lm, tokenizer, files, saved),
    }


def resume(config: Config) -> State | None:
    """The state that a stopped process left for this very cell, if there is one."""
    path = state_path(Path(config.out))
    state = load_state([f"resume={path}"]) if path.exists() else None
    if state and restore_config(state.config) != config:
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


def run_examples(cell: Cell, config: Config, files: DataFiles) -> dict:
    """In-context learning: worked examples in front of the record, as a prefix that was read, not trained."""
    config, lm, tokenizer = load_frozen(config)
    pairs = random.Random(config.seed).sample(list_pairs(read_split(files, "train")), cell.examples)
    text = frame_examples(cell, lm, tokenizer, pairs)
    prompt = keep_sites(lm, read_activations(lm, text, len(text)))
    if cell.frame:  # there a text ends with its line
        lm.config = dataclasses.replace(lm.config, eos_token_id=tokenizer.encode("\n")[0])
    records = pick(read_split(files, "test"), config.eval_limit)
    sources = [record.source for record in records]
    texts = generate_texts(lm, tokenizer, sources, prompt, config.decoding(), frame=cell.frame)
    described = list(zip(records, texts))
    facts = {"model": lm.config.fingerprint, "dtype": config.dtype, "text_tokens": len(text), "dev": {}}
    return facts | {"test": measure(cell, config, described), "described": described}


def frame_examples(cell: Cell, lm, tokenizer, pairs: list[tuple[str, str]]) -> list[int]:
    if cell.frame:
        return tokenizer.encode("".join(f"{cell.frame.replace('{}', x)} {y}\n" for x, y in pairs))
    framed = [encode_source(lm, tokenizer, x) + encode_target(lm, tokenizer, y) for x, y in pairs]
    return list(itertools.chain.from_iterable(framed))


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
    metric, *_ = find_task(files.dataset).metrics
    metrics = metric([text for _, text in described], [record.references for record, _ in described])
    return metrics | {"records": len(described)}


def read_curves(log: Path) -> dict:
    """The log as curves: the mean of each tenth step and its predecessors, the dev loss, and the speed."""
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    steps = [line for line in lines if "loss" in line]
    tens = [steps[i : i + 10] for i in range(0, len(steps), 10)]
    return {
        "tokens_per_second": statistics.median(line["tokens_per_second"] for line in steps),
        "loss": [[ten[-1]["step"], round(sum(line["loss"] for line in ten) / len(ten), 4)] for ten in tens],
        "dev_loss": [[line["step"], round(line["dev_loss"], 4)] for line in lines if "dev_loss" in line],
    }


def remove_traces(out: Path) -> None:
    """Once the result is written: the state, the log, and what is too large to keep for every cell."""
    for path in (state_path(out), log_path(out)):
        path.unlink(missing_ok=True)
    if out.exists() and out.stat().st_size > 5e6:
        out.unlink()


def print_table(cells: dict[str, Cell]) -> None:
    """What there is, the learning rate that dev chose first, with its seeds."""
    for name, cell in cells.items():
        runs = read_runs(cell)
        best = choose_rate(runs)
        for (lr, seed), run in sorted(runs.items(), key=lambda item: item[0][0] != best):
            figures = {"dev loss": read_dev_loss(run), "dev": merit(run["dev"]), **run["test"]}
            alpha = run.get("length_penalty", run["config"]["length_penalty"])
            print(f"{name:<22} lr {lr:<8g} seed {seed} alpha {alpha:g}: {format_metrics(figures)}")


def format_metrics(metrics: dict) -> str:
    shown = {name: value for name, value in metrics.items() if isinstance(value, float)}
    shown = {name: value for name, value in shown.items() if not name.endswith((" low", " high"))}
    return ", ".join(f"{name} {value:.2f}" for name, value in shown.items() if math.isfinite(value))


if __name__ == "__main__":
    start(main, __doc__)
