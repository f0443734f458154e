"""Draws what experiments/run.py found beside the paper's numbers: python experiments/report.py [paper]

Needs the extra `experiments`. Writes REPORT.md and its pictures to experiments/results/: a verdict for each
claim of the paper, every comparison behind them, and every table and figure that has results. Why it came out
so stands in experiments/results/NOTES.md, which is written by hand.
"""

import os
import sys
from pathlib import Path

import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the editable install has minprefix only

from experiments.artefacts import SCALES, Scale
from experiments.claims import LOSS, Claim, Comparison, Results, read_claims
from experiments.draw_speed import save
from experiments.figures import DRAW, draw_claims
from experiments.keep import RESULTS, read_table
from minprefix.gpt2 import GPT2, GPT2Config
from minprefix.methods import make_theta
from minprefix.store import write_atomically

PUBLISHED = read_table("published")
TITLES = {
    "e2e": "E2E with longer runs (no table of the paper)",
    "table2": "Table 2: methods",
    "table3": "Table 3: XSum",
    "table4": "Table 4: other topics than in training",
    "table5": "Table 5: embedding-only, infix, prefix",
    "fig3": "Fig. 3: few examples",
    "fig4": "Fig. 4: length of the prefix",
    "fig5": "Fig. 5: where the prefix starts",
    "fig6": "Fig. 6: share of the training data",
    "costs": "What the methods cost",
}
E2E = ("BLEU", "NIST", "METEOR", "ROUGE-L (COCO)", "CIDEr", "length_ratio", LOSS)
WEBNLG = tuple(f"{part}{name}" for name in ("BLEU", "METEOR", "TER") for part in ("seen ", "unseen ", ""))
DART = ("BLEU", "METEOR", "TER", "length_ratio", LOSS)
ROUGE = ("ROUGE-1", "ROUGE-2", "ROUGE-L", LOSS)
# A table for each beginning of the cells' names, with columns of its own; E2E's where nothing is said.
COLUMNS = {
    "table2": {"e2e-": E2E, "webnlg-": (*WEBNLG, "length_ratio", LOSS), "dart-": DART},
    "table3": {"": ROUGE},
    "table4": {"": ROUGE},
    "fig4": {"prefix-": E2E, "xsum-": ROUGE},
}

LEGEND = """Ours ± the standard deviation over seeds, [the 95% interval over the records of seed 0], (the
paper's). METEOR is of seed 0 alone. The dev loss is in nats a token. Hours are of the runs shown."""


def write_row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def write_head(names: list[str]) -> list[str]:
    return [write_row(names), "|---" * len(names) + "|"]


def write_verdicts(claims: list[Claim]) -> list[str]:
    lines = write_head(["", "claim", "in the paper", "here"])
    for number, claim in enumerate(claims, start=1):
        lines.append(write_row([str(number), claim.text, claim.place, f"**{claim.judge()}**"]))
    return lines


def write_comparisons(claims: list[Claim]) -> list[str]:
    names = ["claim", "comparison", "in points, or times", "the paper's", "so?", "in nats of dev loss", "so?"]
    lines = write_head(names)
    for number, claim in enumerate(claims, start=1):
        for label, (texts, *losses) in claim.pairs().items():
            kind = "" if texts.kind in ("better", "times") else f" ({texts.kind})"
            paper = "" if texts.paper is None else format_difference(texts, texts.paper)
            cells = [str(number), f"{label}{kind}", format_comparison(texts), paper, texts.judge()]
            for loss in losses:
                cells += [format_comparison(loss), loss.judge()]
            lines.append(write_row(cells + [""] * (len(names) - len(cells))))
    return lines


def format_comparison(c: Comparison) -> str:
    if c.ours is None:
        return "not run"
    half = "" if c.half is None else f" ± {format_difference(c, c.half).strip('+')}"
    return format_difference(c, c.ours) + half


def format_difference(c: Comparison, value: float) -> str:
    sign, digits = "" if c.kind == "times" else "+", 2 if c.measure == LOSS else 1
    return f"{value:{sign}.{digits}f}"


def write_artefact(results: Results, artefact: str) -> list[str]:
    if artefact == "costs":
        return [*write_costs(results), "", *write_numbers()]
    lines = [f"![{TITLES[artefact]}]({artefact}.svg)", ""] if artefact in DRAW else []
    for start, columns in COLUMNS.get(artefact, {"": E2E}).items():
        names = [name for name in results.artefacts[artefact] if name.startswith(start)]
        lines += [*write_table(results, artefact, names, columns), ""]
    if artefact == "table5":
        paper = PUBLISHED["table2"]["e2e-prefix"].split()
        lines.insert(-1, write_row(["prefix, length 5, the paper's", "", "", *paper, "", ""]))
    return lines[:-1]


def write_table(results: Results, artefact: str, names: list[str], columns: tuple[str, ...]) -> list[str]:
    """Ours, with the seeds' standard deviation or ROUGE's interval, and (the paper's)."""
    lines = write_head(["cell", "lr", "seeds", *columns])
    for name in names:
        runs = results.list_runs(f"{artefact}/{name}")
        published = PUBLISHED.get(artefact, {}).get(name, "").split()
        cells = [format_values(runs, column) for column in columns]
        cells = [f"{ours} ({paper})" for ours, paper in zip(cells, published)] + cells[len(published) :]
        # at 1e-9 nothing moves
        trained = results.artefacts[artefact][name].rates and len(runs) and runs["lr"].iloc[0] > 1e-6
        lr = f"{runs['lr'].iloc[0]:g}" if trained else "-"
        lines.append(write_row([name, lr, str(len(runs) or "not run"), *cells]))
    return lines


def format_values(runs: pd.DataFrame, column: str) -> str:
    """Mean ± standard deviation [number of runs, where some lack it] [the interval of seed 0]."""
    values = runs.get(column, pd.Series(dtype=float)).dropna()
    if values.empty:
        return "n/a" if len(runs) else "-"
    spread = f" ± {values.std():.2f}" if len(values) > 1 else ""
    fewer = f" [of {len(values)}]" if 1 < len(values) < len(runs) else ""
    first = runs.iloc[0]
    low, high = first.get(f"{column} low"), first.get(f"{column} high")
    interval = f" [{low:.2f}, {high:.2f}]" if pd.notna(low) else ""
    return f"{values.mean():.2f}{spread}{fewer}{interval}"


def write_costs(results: Results) -> list[str]:
    """What a method trains and stores, and what 30 steps cost, by the median over seeds."""
    names = ["method", "trained numbers", "stored numbers", "file, MB", "target tokens a second"]
    lines = write_head([*names, "memory, MB", "on"])
    for name in results.artefacts["costs"]:
        runs = results.list_runs(f"costs/{name}")
        if len(runs):
            first, middle = runs.iloc[0], runs.median(numeric_only=True)
            cells = [name, f"{first['trained_numbers']:,.0f}", f"{first['stored_numbers']:,.0f}"]
            cells += [f"{first['stored_bytes'] / 1e6:.2f}", f"{middle['tokens_per_second']:.0f}"]
            cells += [f"{middle['peak_memory_bytes'] / 1e6:.0f}", ", ".join(sorted(set(runs["machine"])))]
            lines.append(write_row(cells))
    return lines


def write_numbers() -> list[str]:
    """What the methods train of GPT-2 medium, counted on a model of its shape, without its weights."""
    lines = write_head(["of GPT-2 medium", "stored numbers", "the paper's"])
    for name, known in PUBLISHED["numbers"].items():
        with torch.device("meta"):
            lm = GPT2(GPT2Config(**PUBLISHED["gpt2-medium"]))
        theta = make_theta(lm, known["method"], known["length"], 0, [], inner=known["inner"])
        count = sum(parameter.numel() for parameter in theta.parameters())
        lines.append(write_row([name, f"{count:,}", known["stored"]]))
    return lines


def write_grid(results: Results) -> list[str]:
    """Every learning rate that was tried, by dev loss, so that one sees who was tuned how."""
    lines = write_head(["cell", "dev loss in nats by learning rate, seed 0 (chosen in bold)"])
    first = results.tried[results.tried["seed"] == 0].drop_duplicates(["home", "lr"])
    for home, runs in first.groupby("home", sort=False):
        if len(runs) > 1:
            runs = runs.sort_values("lr")
            tried = [f"{lr:g}: {loss:.3f}" for lr, loss in zip(runs["lr"], runs[LOSS])]
            marked = [f"**{text}**" if is_best else text for text, is_best in zip(tried, runs["chosen"])]
            lines.append(write_row([home, ", ".join(marked)]))
    return lines


def describe_runs(results: Results, artefact: str, command: str) -> str:
    runs = results.runs[results.runs["artefact"] == artefact]
    models = sorted({Path(model).name for model in runs["model"]})
    steps = [str(steps or "no limit") for steps in sorted(set(runs["max_steps"]))]
    records = map(str, sorted(set(runs["records"])))
    hours = runs["hours"].sum()
    return (
        f"{', '.join(models)}; steps at most {', '.join(steps)}; test records {', '.join(records)}; "
        f"{hours:.1f} hours. `{command}`"
    )


def list_missing(results: Results) -> list[str]:
    """The cells that lack seeds or learning rates."""
    lines = []
    for artefact, cells in results.artefacts.items():
        for name, cell in cells.items():
            tried = results.tried[results.tried["place"] == f"{artefact}/{name}"]
            seeds, rates = tried["chosen"].sum(), (tried["seed"] == 0).sum()
            if seeds < cell.runs or rates < len(cell.rates):
                wanted = f"{seeds} of {cell.runs} seeds, {rates} of {len(cell.rates)} learning rates"
                lines.append(f"- {artefact}, {name}: {wanted} are there")
    return lines or ["Nothing is missing."]


def write_report(name: str, scale: Scale) -> Path:
    """Draws the pictures, writes REPORT.md beside them and returns its path."""
    results = Results(scale)
    claims = read_claims(results)
    more = "" if name == "mini" else f" {name}"
    done = [artefact for artefact in results.artefacts if artefact in set(results.runs["artefact"])]
    for artefact in set(done) & set(DRAW):
        save(DRAW[artefact](results), scale.folder / f"{artefact}.svg")
    save(draw_claims(claims), scale.folder / "claims.svg")
    notes = os.path.relpath(RESULTS / "NOTES.md", RESULTS / read_table(name)["folder"])
    lines = ["# The paper's tables and figures, here", ""]
    lines += [f"Written by `python experiments/report.py{more}` from the JSON files in this folder."]
    lines += [f"[NOTES.md]({notes}) says how to read it and why, we think, it came out so.", ""]
    lines += ["## Verdicts", "", *write_verdicts(claims), "", "![comparisons](claims.svg)", ""]
    lines += ["## The comparisons behind them", "", *write_comparisons(claims), ""]
    lines += ["## Tables and figures", "", LEGEND, ""]
    for artefact in done:
        command = f"python -m experiments.run {artefact}{more}"
        lines += [f"### {TITLES[artefact]}", "", describe_runs(results, artefact, command), ""]
        lines += [*write_artefact(results, artefact), ""]
    lines += ["## Not run", "", *list_missing(results), ""]
    lines += ["## Learning rates", "", *write_grid(results)]
    path = scale.folder / "REPORT.md"
    write_atomically(path, lambda part: part.write_text("\n".join(lines) + "\n", encoding="utf-8"))
    return path


if __name__ == "__main__":
    name = next((name for name in SCALES if name in sys.argv[1:]), "mini")
    print(f"wrote {write_report(name, SCALES[name])}")
