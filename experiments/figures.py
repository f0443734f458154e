"""The pictures of the report."""

import textwrap

import matplotlib.pyplot as plt
import pandas as pd

from experiments.claims import LOSS, Claim, Comparison, Results

# Okabe and Ito's colours, which colour-blind people tell apart; the line styles differ as well.
ORANGE, BLUE, GREEN, GREY = "#d55e00", "#0072b2", "#009e73", "#56565a"
LOOKS = {
    "prefix": {"color": ORANGE, "linestyle": "-", "marker": "o"},
    "direct": {"color": "#e69f00", "linestyle": "--", "marker": "s"},
    "full": {"color": BLUE, "linestyle": "-.", "marker": "^"},
    "dev": {"color": GREY, "linestyle": ":", "marker": "D"},
}
LABELS = {"prefix": "prefix, through the MLP", "direct": "prefix, direct", "full": "full fine-tuning"}
STARTS = {  # of Fig. 5: those that are no words of the task, and their kinds
    "random": ("random", GREY),
    "elephant": ("unrelated words", BLUE),
    "divide": ("unrelated words", BLUE),
}
MARKS = {"yes": ("o", GREEN), "no": ("X", ORANGE), "unclear": ("s", "#8a8a8e")}


def draw_means(axes, values: dict[float, pd.Series], look: dict) -> None:
    """At each x the mean over seeds, with their standard deviation where there are several."""
    found = {x: seeds for x, seeds in values.items() if len(seeds)}
    means = [seeds.mean() for seeds in found.values()]
    spread = [seeds.std() if len(seeds) > 1 else 0 for seeds in found.values()]
    if found:
        axes.errorbar(list(found), means, spread, capsize=3, **look)


def add_legend(axes) -> None:
    if axes.get_legend_handles_labels()[1]:
        axes.legend(frameon=False, fontsize=8)


def set_ticks(axes, places: list[int]) -> None:
    axes.set_xticks(places, map(str, places))
    axes.minorticks_off()


def draw_e2e(results: Results) -> plt.Figure:
    """The loss curves of each method at its chosen learning rate, and dev BLEU against the learning rate."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for method, label in LABELS.items():
        tried = results.tried[results.tried["place"] == f"e2e/{method}"].sort_values(["lr", "seed"])
        look = LOOKS[method] | {"marker": None}
        for i, curve in enumerate(tried.loc[tried["chosen"], "dev_loss"]):  # a line a seed
            left.plot(*zip(*curve), **look, label=None if i else label)
        first = tried[tried["seed"] == 0]
        scores = [dev["BLEU"] for dev in first["dev"]]
        right.plot(first["lr"], scores, **LOOKS[method] | {"marker": "o"})
    left.set(xlabel="step of 16 pairs", ylabel="dev loss, nats a token", title="at the chosen learning rate")
    right.set(xlabel="learning rate", ylabel="dev BLEU, beam 5", title="the grid", xscale="log")
    left.legend(frameon=False, fontsize=8)
    return figure


def draw_fig3(results: Results) -> plt.Figure:
    figure, axes = plt.subplots(figsize=(5, 3.4), layout="constrained")
    places = draw_methods(axes, results, "fig3")
    axes.set(xlabel="training pairs", ylabel="test BLEU", xscale="log", title="few examples")
    set_ticks(axes, places)
    return figure


def draw_fig6(results: Results) -> plt.Figure:
    figure, axes = plt.subplots(figsize=(5, 3.4), layout="constrained")
    draw_methods(axes, results, "fig6")
    axes.set(xlabel="% of the pool of training pairs", ylabel="test BLEU", title="data efficiency")
    return figure


def draw_methods(axes, results: Results, artefact: str) -> list[int]:
    """Prefix-tuning and full fine-tuning through their cells METHOD-x -> every x."""
    for method in ("prefix", "full"):
        places = list_places(results, artefact, method)
        values = {x: results.values(f"{artefact}/{method}-{x}", "BLEU") for x in places}
        draw_means(axes, values, LOOKS[method] | {"label": LABELS[method]})
    add_legend(axes)
    return places


def list_places(results: Results, artefact: str, start: str) -> list[int]:
    """Every x of the cells START-x."""
    rests = (name.removeprefix(f"{start}-") for name in results.artefacts[artefact])
    return [int(rest) for rest in rests if rest.isdigit()]


def draw_fig4(results: Results) -> plt.Figure:
    """Texts and losses by length: above E2E, below summaries."""
    figure, rows = plt.subplots(2, 2, figsize=(9, 6), layout="constrained")
    curves = (("prefix", "BLEU", "E2E"), ("xsum", "ROUGE-L", "XSum"))
    for (left, right), (start, metric, title) in zip(rows, curves):
        lengths = list_places(results, "fig4", start)
        runs = {length: results.list_runs(f"fig4/{start}-{length}") for length in lengths}
        runs = {length: found for length, found in runs.items() if len(found)}
        texts = {length: results.values(f"fig4/{start}-{length}", metric) for length in runs}
        draw_means(left, texts, LOOKS["prefix"] | {"label": LABELS["prefix"]})
        draw_losses(right, runs)
        left.set(xlabel="|P|", ylabel=f"test {metric}", xscale="log", title=title)
        right.set(xlabel="|P|", ylabel="loss, nats a token", xscale="log", title=title)
        for axes in (left, right):
            set_ticks(axes, list(runs))
            add_legend(axes)
    return figure


def draw_losses(axes, runs: dict[int, pd.DataFrame]) -> None:
    """At the end of training, by length."""
    train = {length: found["curve"].map(average_end) for length, found in runs.items()}
    dev = {length: found[LOSS] for length, found in runs.items()}
    draw_means(axes, train, LOOKS["prefix"] | {"label": "training, last 50 steps"})
    draw_means(axes, dev, LOOKS["dev"] | {"label": "dev"})


def average_end(curve: list[list[float]]) -> float:
    """The training loss of the last 50 steps."""
    losses = [loss for _, loss in curve[-5:]]
    return sum(losses) / len(losses)


def draw_fig5(results: Results) -> plt.Figure:
    figure, panels = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    for axes, data in zip(panels, ("100", "all")):
        inits = [name[: -len(data) - 1] for name in results.artefacts["fig5"] if name.endswith(f"-{data}")]
        kinds = [STARTS.get(init, ("task words", ORANGE)) for init in inits]
        for i, (init, (_, colour)) in enumerate(zip(inits, kinds)):
            values = results.values(f"fig5/{init}-{data}", "BLEU")
            draw_means(axes, {i: values}, {"color": colour, "marker": "o"})
        axes.set(ylabel="test BLEU", title=f"{data} pairs")
        labels = [f"{textwrap.fill(init, 16)}\n({kind})" for init, (kind, _) in zip(inits, kinds)]
        axes.set_xticks(range(len(inits)), labels, fontsize=6)
    return figure


def draw_claims(claims: list[Claim]) -> plt.Figure:
    """Every comparison but the ratios: by texts on the left, by dev loss on the right."""
    rows = list_rows(claims)
    figure, panels = plt.subplots(1, 2, figsize=(11, 1 + 0.2 * len(rows)), layout="constrained", sharey=True)
    for i, (_, pair) in enumerate(rows):
        for c in pair:
            draw_comparison(panels[int(c.measure == LOSS)], c, -i)
    for axes, unit in zip(panels, ("points of BLEU or ROUGE-L", "nats of dev loss (to the right: lower)")):
        axes.axvline(0, color="#cccccc", linewidth=1, zorder=0)
        axes.set_xlabel(unit)
    figure.supxlabel("circle: yes, cross: no, square: unclear, hollow: the paper's", fontsize=9)
    panels[0].set_yticks([-i for i in range(len(rows))], [label for label, _ in rows], fontsize=7)
    for tick, (_, pair) in zip(panels[0].get_yticklabels(), rows):
        tick.set_fontweight("normal" if pair else "bold")
    return figure


def list_rows(claims: list[Claim]) -> list[tuple[str, list[Comparison]]]:
    """A line for each claim, then one for each comparison that was run."""
    rows = []
    for number, claim in enumerate(claims):
        text = claim.text if len(claim.text) < 70 else f"{claim.text[:68]} …"
        pairs = {label: [c for c in pair if c.ours is not None] for label, pair in claim.pairs().items()}
        found = [(label, pair) for label, pair in pairs.items() if pair and pair[0].kind != "times"]
        rows += [(f"{number}. {text}: {claim.judge()}", []), *found] if found else []
    return rows


def draw_comparison(axes, c: Comparison, y: int) -> None:
    marker, colour = MARKS[c.judge()]
    axes.errorbar(c.ours, y, xerr=c.half, marker=marker, color=colour, capsize=2, markersize=5)
    if c.paper is not None:
        axes.plot(c.paper, y, "o", markerfacecolor="none", markeredgecolor=GREY)


DRAW = {"e2e": draw_e2e, "fig3": draw_fig3, "fig4": draw_fig4, "fig5": draw_fig5, "fig6": draw_fig6}
