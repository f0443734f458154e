"""Methods on real E2E, each with the same small grid of learning rates and the same batches.

    MINPREFIX_DATA=FOLDER python -m experiments.e2e [METHOD[=LR] ...]

Every cell trains the bundled model and writes experiments/results/e2e/METHOD-LR-SEED.json. Learning rate and
length penalty are chosen by BLEU on dev records; the test figures of that cell count. `table` prints them. A
cell with a file is not run again: a stopped grid goes on where it was.
"""

import dataclasses
import json
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from minprefix.config import parse_config
from minprefix.data import find_files
from minprefix.hub import load_lm
from minprefix.methods import collapse
from minprefix.store import save_prefix
from train import evaluate, train

RESULTS = Path(__file__).parent / "results" / "e2e"
MLP, LONG, SHORT = (
    "mlp_hidden=512",
    "max_steps=800",
    "max_steps=400",
)  # a step of full costs twice one of prefix
GRID = {  # name: (settings, learning rates)
    "prefix": (["method=prefix", MLP, LONG], (1e-3, 2e-3, 4e-3)),
    "direct": (["method=prefix", "mlp_hidden=0", LONG], (3e-2, 1e-2, 1e-1)),
    "sum": (["method=prefix", MLP, LONG, "loss=sum"], (2e-3,)),
    "full": (["method=full", SHORT], (5e-4, 2e-4, 1e-3)),
    "infix": (["method=infix", MLP, LONG], (2e-3,)),
    "embedding": (["method=embedding", LONG], (1e-2,)),
}
ALPHAS = (1.0, 2.0, 4.0)  # length penalties; the bundled model ends early, which alpha = 1 does not make good
SETTINGS = ["dataset=e2e", "epochs=5", "batch_size=16", "eval_limit=120", "prefix_len=10"]


def run_cell(name: str, lr: float, seed: int) -> dict:
    """Trains one cell -> its settings, losses, dev and test metrics, and 20 test texts."""
    with tempfile.TemporaryDirectory() as scratch:
        given = [f"lr={lr}", f"seed={seed}", f"out={scratch}/e2e.pt"]
        config = parse_config([*SETTINGS, *GRID[name][0], *given])
        files = find_files(config.dataset, config.data)
        lm, tokenizer = load_lm(config.model)
        began = time.monotonic()
        theta = train(config, lm, tokenizer, files)
        seconds = time.monotonic() - began
        lines = [json.loads(line) for line in Path(scratch, "e2e.jsonl").read_text().splitlines()]
    saved = collapse(lm, config.method, theta, dataclasses.asdict(config), files.origin)
    save_prefix(saved, RESULTS / f"{name}-{lr:g}-{seed}.pt")
    choices = [dataclasses.replace(config, length_penalty=alpha) for alpha in ALPHAS]
    dev = [evaluate(choice, lm, tokenizer, files, saved, "dev")[0] for choice in choices]
    best = max(range(len(dev)), key=lambda i: dev[i]["BLEU"])
    test, described = evaluate(choices[best], lm, tokenizer, files, saved, "test")
    return {
        "command": f"python -m experiments.e2e {name}",
        "config": dataclasses.asdict(dataclasses.replace(config, out="")),
        "data": files.origin,
        "model": lm.config.fingerprint,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        "commit": subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip(),
        "train_seconds": round(seconds),
        "loss": [[line["step"], round(line["loss"], 4)] for line in lines if "loss" in line][9::10],
        "dev_loss": [[line["step"], round(line["dev_loss"], 4)] for line in lines if "dev_loss" in line],
        "length_penalty": ALPHAS[best],
        "dev_by_length_penalty": dict(zip(map(str, ALPHAS), dev)),
        "dev": dev[best],
        "test": test,
        "texts": [{"source": record.source, "text": text} for record, text in described[::6]],
    }


def print_table() -> None:
    """Every cell, a method's best learning rate by dev BLEU first."""
    cells = [(path.stem.split("-")[0], json.loads(path.read_text())) for path in RESULTS.glob("*.json")]
    print("method     lr      alpha  dev loss  dev BLEU  test BLEU  length  seconds")
    for method in GRID:
        mine = [cell for name, cell in cells if name == method]
        for cell in sorted(mine, key=lambda cell: -cell["dev"]["BLEU"]):
            lr = cell["config"]["lr"]
            alpha = cell.get("length_penalty", cell["config"]["length_penalty"])
            losses = (
                f"{cell['dev_loss'][-1][1]:8.3f}  {cell['dev']['BLEU']:8.1f}  {cell['test']['BLEU']:9.1f}"
            )
            rest = f"{cell['test']['length_ratio']:6.2f}  {cell['train_seconds']:7d}"
            print(f"{method:<10} {lr:<7g} {alpha:5g}  {losses}  {rest}")


def main(names: list[str]) -> None:
    if names == ["table"]:
        return print_table()
    RESULTS.mkdir(parents=True, exist_ok=True)
    for name, _, lr in (name.partition("=") for name in names or GRID):
        for rate in (float(lr),) if lr else GRID[name][1]:
            path = RESULTS / f"{name}-{rate:g}-0.json"
            if not path.exists():
                cell = run_cell(name, rate, 0)
                path.write_text(json.dumps(cell, indent=1, ensure_ascii=False) + "\n")
    print_table()


if __name__ == "__main__":
    main(sys.argv[1:])
