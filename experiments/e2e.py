"""Methods on real E2E, each with the same small grid of learning rates and the same batches.

    MINPREFIX_DATA=FOLDER python -m experiments.e2e [METHOD ...]

Every cell trains the bundled model and writes experiments/results/e2e/METHOD-LR-SEED.json. The learning rate
is chosen by BLEU on dev records; the test figures of that cell count. `table` prints them. A cell with a
file is not run again: a stopped grid goes on where it was.
"""

import dataclasses
import io
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
from train import evaluate, train

RESULTS = Path(__file__).parent / "results" / "e2e"
GRID = {  # name: (settings, learning rates)
    "prefix": (["method=prefix", "mlp_hidden=512"], (2e-3, 4e-3, 8e-3)),
    "direct": (["method=prefix", "mlp_hidden=0"], (1e-2, 3e-2, 1e-1)),
    "sum": (["method=prefix", "mlp_hidden=512", "loss=sum"], (2e-3, 4e-3, 8e-3)),
    "full": (["method=full"], (2e-4, 5e-4, 1e-3)),
    "infix": (["method=infix", "mlp_hidden=512"], (2e-3, 4e-3, 8e-3)),
    "embedding": (["method=embedding"], (3e-3, 1e-2, 3e-2)),
}
SETTINGS = ["dataset=e2e", "epochs=5", "max_steps=500", "batch_size=16", "eval_limit=120", "prefix_len=10"]


def run_cell(name: str, lr: float, seed: int) -> dict:
    """Trains one cell -> its settings, losses, dev and test metrics, and 20 test texts."""
    with tempfile.TemporaryDirectory() as scratch:
        given = [f"lr={lr}", f"seed={seed}", f"out={scratch}/e2e.pt"]
        config = parse_config([*SETTINGS, *GRID[name][0], *given])
        files = find_files(config.dataset, config.data)
        lm, tokenizer = load_lm(config.model)
        log, began = io.StringIO(), time.monotonic()
        theta = train(config, lm, tokenizer, files, log, None)
    seconds = time.monotonic() - began
    saved = collapse(lm, config.method, theta, dataclasses.asdict(config), files.origin)
    dev, _ = evaluate(config, lm, tokenizer, files, saved, "dev")
    test, described = evaluate(config, lm, tokenizer, files, saved, "test")
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
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
        "dev": dev,
        "test": test,
        "texts": [{"source": record.source, "text": text} for record, text in described[::6]],
    }


def print_table() -> None:
    """Every cell, a method's best learning rate by dev BLEU first."""
    cells = [(path.stem.split("-")[0], json.loads(path.read_text())) for path in RESULTS.glob("*.json")]
    print("method     lr      seed  dev loss  dev BLEU  test BLEU  length  seconds")
    for method in GRID:
        mine = [cell for name, cell in cells if name == method]
        for cell in sorted(mine, key=lambda cell: -cell["dev"]["BLEU"]):
            lr, seed = cell["config"]["lr"], cell["config"]["seed"]
            losses = (
                f"{cell['dev_loss'][-1][1]:8.3f}  {cell['dev']['BLEU']:8.1f}  {cell['test']['BLEU']:9.1f}"
            )
            rest = f"{cell['test']['length_ratio']:6.2f}  {cell['train_seconds']:7d}"
            print(f"{method:<10} {lr:<7g} {seed:4d}  {losses}  {rest}")


def main(names: list[str]) -> None:
    if names == ["table"]:
        return print_table()
    RESULTS.mkdir(parents=True, exist_ok=True)
    for name in names or GRID:
        for lr in GRID[name][1]:
            path = RESULTS / f"{name}-{lr:g}-0.json"
            if not path.exists():
                cell = run_cell(name, lr, 0)
                path.write_text(json.dumps(cell, indent=1, ensure_ascii=False) + "\n")
    print_table()


if __name__ == "__main__":
    main(sys.argv[1:])
