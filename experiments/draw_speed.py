"""Draws each experiments/results/speed*.json as .svg: python -m experiments.draw_speed"""

import json
import math
import statistics
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

RESULTS = Path(__file__).parent / "results"
OURS, THEIRS, GREY = "#0072b2", "#d55e00", "#56565a"  # told apart without colours by their markers as well
X_LABELS = {"source": "|x|, tokens", "beams": "beams", "rows": "batch, rows"}


def draw(results: dict) -> plt.Figure:
    """Above: each case's ratios and their targets. Below: seconds a step as the input grows, if measured."""
    growth, rows = results.get("growth", {}).get("float32"), list_rows(results)
    if not growth:
        figure = plt.figure(figsize=(9, 1.2 + 0.4 * len(rows)), layout="constrained")
        draw_ratios(figure.subplots(), rows)
        return figure
    figure = plt.figure(figsize=(9, 6.8), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=(3, 2))
    draw_ratios(upper.subplots(), rows)
    panels = lower.subplots(1, len(X_LABELS), sharey=True)
    for axes, name in zip(panels, X_LABELS):
        draw_growth(axes, growth[name], name)
    panels[0].set_ylabel("seconds a step")
    panels[0].legend(growth["names"], frameon=False, fontsize=8)
    return figure


def list_rows(results: dict) -> list[tuple[str, dict]]:
    """What was measured, with its title and dtype; growth has a picture of its own."""
    found = [(name, dtype, case) for name, cases in results.items() for dtype, case in cases.items()]
    return [(f"{case.get('title', name)}, {dtype}", case) for name, dtype, case in found if "ratio" in case]


def draw_ratios(axes, rows: list[tuple[str, dict]]) -> None:
    """Seconds just above a case's line, memory just below it, each with the bar that it should not pass."""
    points = {"seconds": [], "peak memory": [], "the floor's seconds": [], "promised at most": []}
    for i, (_, case) in enumerate(rows):
        theirs = statistics.median(seconds for _, seconds in case["seconds"])
        points["seconds"].append((case["ratio"], 0.15 - i))
        points["peak memory"].append((case["peak"][0] / case["peak"][1], -0.15 - i))
        points["the floor's seconds"].append((case.get("floor", math.nan) / theirs, 0.15 - i))
        for target, y in ((case["target"], 0.15 - i), (case["peak_target"], -0.15 - i)):
            points["promised at most"].append((math.nan if target is None else target, y))
    looks = (("o", OURS, OURS), ("D", THEIRS, "none"), ("<", GREY, "none"), ("|", GREY, GREY))
    for (label, places), (marker, colour, face) in zip(points.items(), looks):
        size = 12 if marker == "|" else 6
        axes.plot(*zip(*places), marker, color=colour, markerfacecolor=face, markersize=size, label=label)
    axes.axvline(1, color="#cccccc", linewidth=1, zorder=0)
    axes.set_yticks([-i for i in range(len(rows))], [label for label, _ in rows], fontsize=8)
    axes.set_xlim(left=0)
    axes.set_xlabel("ours / theirs")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=len(points), frameon=False, fontsize=8)


def draw_growth(axes, points: dict, name: str) -> None:
    x = [int(value) for value in points]
    for side, (colour, marker, line) in enumerate(((OURS, "o", "-"), (THEIRS, "s", "--"))):
        axes.plot(x, [pair[side] for pair in points.values()], line, marker=marker, color=colour)
    axes.set(xlabel=X_LABELS[name], xscale="log", yscale="log")
    axes.set_xticks(x, points)
    ticks = (0.1, 0.2, 0.5, 1)
    axes.set_yticks(ticks, map(str, ticks))
    axes.minorticks_off()


def save(figure: plt.Figure, path: Path) -> None:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
    plt.rcParams["svg.hashsalt"] = "minprefix"  # the same picture is the same file
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


if __name__ == "__main__":
    for path in sorted(RESULTS.glob("speed*.json")):
        save(draw(json.loads(path.read_text())), path.with_suffix(".svg"))
