"""Draw a log of pretrain.py: python weights/curve.py weights/gpt2-mini-log.jsonl weights/gpt2-mini.svg"""

import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt

KINDS = {
    "loss": ("training, average of 20 steps", {"color": "#b8c4d6"}),
    "heldout": ("held-out text", {"color": "#1f5fa8", "marker": "o"}),
    "heldout_records": ("held-out text after its record", {"color": "#c4551d", "marker": "o"}),
    "heldout_lost": ("held-out words that noise took (BART)", {"color": "#c4551d", "marker": "o"}),
}


def draw(log: str, out: str) -> None:
    """Nats per token against tokens, a line for each kind of loss in the log."""
    lines = [json.loads(line) for line in Path(log).read_text().splitlines()]
    _, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
    for kind, (label, style) in KINDS.items():
        points = [(line["tokens"] / 1e6, line[kind]) for line in lines if kind in line]
        if points:
            axes.plot(*zip(*points), label=label, **style)
    axes.set(xlabel="million tokens of this run", ylabel="nats per token")
    axes.grid(alpha=0.3)
    axes.legend()
    plt.savefig(out)


if __name__ == "__main__":
    draw(*sys.argv[1:])
