"""Draws what experiments/e2e.py found: python -m experiments.report (needs the extra `experiments`)

Writes experiments/results/e2e.svg: the loss curve of each method at its chosen learning rate, and dev BLEU
against the learning rate.
"""

import json
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

RESULTS = Path(__file__).parent / "results"
LABELS = {
    "prefix": ("prefix, through the MLP", "#d55e00", "-"),
    "direct": ("prefix, direct", "#e69f00", "--"),
    "full": ("full fine-tuning", "#0072b2", "-."),
    "infix": ("infix", "#009e73", ":"),
    "embedding": ("embedding-only", "#56565a", (0, (1, 1))),
}


def read_cells(method: str) -> list[dict]:
    """The method's cells of seed 0, by learning rate."""
    cells = [json.loads(path.read_text()) for path in (RESULTS / "e2e").glob(f"{method}-*-0.json")]
    return sorted(cells, key=lambda cell: cell["config"]["lr"])


def draw() -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for method, (label, colour, style) in LABELS.items():
        if cells := read_cells(method):
            best = max(cells, key=lambda cell: cell["dev"]["BLEU"])
            left.plot(*zip(*best["dev_loss"]), color=colour, linestyle=style, label=label)
            rates, scores = zip(*((cell["config"]["lr"], cell["dev"]["BLEU"]) for cell in cells))
            right.plot(rates, scores, "o", color=colour, linestyle=style, label=label)
    left.set(xlabel="step of 16 pairs", ylabel="dev loss, nats a token", title="at the chosen learning rate")
    right.set(xlabel="learning rate", ylabel="dev BLEU, beam 5", title="the grid", xscale="log")
    left.legend(frameon=False, fontsize=8)
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(RESULTS / "e2e.svg", metadata={"Date": None})


if __name__ == "__main__":
    draw()
