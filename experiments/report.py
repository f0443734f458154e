"""Draws what experiments/run.py found beside the paper's numbers: python experiments/report.py [SCALE ...]

Needs the extra `experiments`. Writes REPORT.md and its pictures to experiments/results/, and for a real model
(SCALE: smollm2, paper) to a folder in there; without SCALE all that have results. First the answer, by model;
then a verdict for each claim of the paper, every comparison behind them, and every table and figure. Why it
came out so stands in experiments/results/NOTES.md, which is written by hand.
"""

import os
import sys
from pathlib import Path

import pandas as pd
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the editable install has minprefix only

from experiments.artefacts import SCALES, Scale
from experiments.claims import LOSS, Claim, Comparison, Results, read_claims
from experiments.draw_answer import draw_answer
from experiments.draw_speed import save
from experiments.figures import DRAW, draw_claims
from experiments.keep import RESULTS, read_table
from minprefix.gpt2 import GPT2, GPT2Config
from minprefix.methods import make_theta
from minprefix.store import write_atomically

PUBLISHED = read_table("published")
MODELS = {"mini": "gpt2-mini, 7M", "smollm2": "SmolLM2, 135M", "paper": "GPT-2 medium, 355M"}
# What claim 0 is about, on E2E.
FIRST = {
    "nothing trained": ["table5/untuned"],
    "words": ["table5/words-write", "table5/words-describe", "table5/words-is"],
    "4 examples read": ["table5/examples-4"],
    "prefix": ["table2/e2e-prefix"],
    "full fine-tuning": ["table2/e2e-full"],
}
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
    "whole": "Five epochs of all of E2E (no table of the paper)",
    "search": "What else was tried with 100 pairs (no table of the paper)",
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


def write_answer(known: dict[str, Results]) -> list[str]:
    """BLEU without, with words, examples or a prefix, and with everything trained, for each model at hand."""
    lines = write_head(["E2E, BLEU", *FIRST])
    for name, results in known.items():
        cells = [format_values(results.average(places, "BLEU")) for places in FIRST.values()]
        lines.append(write_row([MODELS[name], *cells]))
        if results.knows(["whole/prefix"]):
            values = [results.values(f"whole/{method}", "BLEU") for method in ("prefix", "full")]
            lines.append(write_row([f"{MODELS[name]}, five epochs", "", "", "", *map(format_values, values)]))
    paper = [PUBLISHED["table2"][f"e2e-{method}"].split()[0] for method in ("prefix", "full")]
    return [*lines, write_row([f"{MODELS['paper']}, the paper's", "", "", "", *paper])]


def format_values(values: pd.Series) -> str:
    """Mean ± standard deviation of three runs or more, else how many there are."""
    if values.empty:
        return "not run"
    count = "one run" if len(values) == 1 else f"{len(values)} runs"
    return (
        f"{values.mean():.1f} ± {values.std():.1f}" if len(values) > 2 else f"{values.mean():.1f} ({count})"
    )


def write_verdicts(name: str, claims: dict[str, list[Claim]]) -> list[str]:
    """A row for each claim: in full for the scale of this report, in short for the others."""
    others = [found for other, found in claims.items() if other != name]
    names = [MODELS[other] for other in claims if other != name]
    lines = write_head(["", "claim", "in the paper", "here", *names])
    for number, claim in enumerate(claims[name]):
        short = [", ".join(filter(None, found[number].answer())) for found in others]
        lines.append(write_row([str(number), claim.text, claim.place, f"**{claim.judge()}**", *short]))
    return lines


def write_comparisons(claims: list[Claim]) -> list[str]:
    names = ["claim", "comparison", "in points, or times", "the paper's", "so?", "in nats of dev loss", "so?"]
    lines = write_head(names)
    for number, claim in enumerate(claims):
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
        if names := [name for name in results.artefacts[artefact] if name.startswith(start)]:
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
        cells = [format_column(runs, column) for column in columns]
        cells = [f"{ours} ({paper})" for ours, paper in zip(cells, published)] + cells[len(published) :]
        # at 1e-9 nothing moves
        trained = results.artefacts[artefact][name].rates and len(runs) and runs["lr"].iloc[0] > 1e-6
        lr = f"{runs['lr'].iloc[0]:g}" if trained else "-"
        lines.append(write_row([name, lr, str(len(runs) or "not run"), *cells]))
    return lines


def format_column(runs: pd.DataFrame, column: str) -> str:
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
    lines = write_head(["cell", "seeds", "mean dev loss of these in nats, by learning rate (chosen in bold)"])
    for home, runs in results.tried.drop_duplicates(["home", "lr", "seed"]).groupby("home", sort=False):
        table = runs.pivot(index="seed", columns="lr", values=LOSS).dropna()  # the seeds that all rates have
        if len(table.columns) > 1:
            best = runs.loc[runs["chosen"], "lr"].iloc[0]
            tried = {lr: f"{lr:g}: {loss:.3f}" for lr, loss in table.mean().items()}
            marked = [f"**{text}**" if lr == best else text for lr, text in tried.items()]
            lines.append(write_row([home, str(len(table)), ", ".join(marked)]))
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
                wanted = f"{seeds} of {cell.runs} seeds"
                wanted += f", {rates} of {len(cell.rates)} learning rates" if cell.rates else ""
                lines.append(f"- {artefact}, {name}: {wanted} are there")
    return lines or ["Nothing is missing."]


def write_report(name: str, scale: Scale) -> Path:
    """Draws the pictures, writes REPORT.md beside them and returns its path."""
    results = Results(scale)
    known = {name: results} | ({"smollm2": Results(SCALES["smollm2"])} if name == "mini" else {})
    claims = {other: read_claims(found) for other, found in known.items()}
    done = [artefact for artefact in results.artefacts if artefact in set(results.runs["artefact"])]
    for artefact in set(done) & set(DRAW):
        save(DRAW[artefact](results), scale.folder / f"{artefact}.svg")
    save(draw_claims(claims[name]), scale.folder / "claims.svg")
    answer = draw_answer({MODELS[other]: found for other, found in claims.items()}, "the paper, 355M")
    (scale.folder / "answer.svg").write_text(answer, encoding="utf-8")
    lines = [*write_opening(name, known), "## Verdicts", "", *write_verdicts(name, claims), ""]
    lines += ["![comparisons](claims.svg)", ""]
    lines += ["## The comparisons behind them", "", *write_comparisons(claims[name]), ""]
    lines += ["## Tables and figures", "", f"{LEGEND} {scale.about}".strip(), ""]
    for artefact in done:
        facts = describe_runs(results, artefact, f"python -m experiments.run {artefact}{name_scale(name)}")
        lines += [f"### {TITLES[artefact]}", "", facts, "", *write_artefact(results, artefact), ""]
    lines += ["## Not run", "", *list_missing(results), ""]
    lines += ["## Learning rates", "", *write_grid(results)]
    path = scale.folder / "REPORT.md"
    write_atomically(path, lambda part: part.write_text("\n".join(lines) + "\n", encoding="utf-8"))
    return path


def write_opening(name: str, known: dict[str, Results]) -> list[str]:
    """The answer of ten seconds, what decides it, and where everything else comes from."""
    notes = os.path.relpath(RESULTS / "NOTES.md", RESULTS / read_table(name)["folder"])
    lines = ["# The paper's tables and figures, here", ""]
    lines += ["![each claim of the paper by model: holds, partly, not here, or not run](answer.svg)", ""]
    lines += [read_note("What decides it"), "", *write_answer(known), ""]
    lines += [
        f"Written by `python experiments/report.py{name_scale(name)}` from the JSON files in this folder."
    ]
    lines += [f"[NOTES.md]({notes}) says how to read it and why, we think, it came out so."]
    if name == "mini":
        lines += [
            "On summaries gpt2-mini's place is taken by bart-mini, which has 10 million parameters. All of"
        ]
        lines += ["SmolLM2's tables are in [a report of its own](smollm2/REPORT.md)."]
    return [*lines, ""]


def name_scale(name: str) -> str:
    """What a command needs to be of this scale."""
    return "" if name == "mini" else f" {name}"


def read_note(title: str) -> str:
    """A section of NOTES.md."""
    text = (RESULTS / "NOTES.md").read_text(encoding="utf-8")
    return text.split(f"## {title}\n")[1].split("\n## ")[0].strip()


if __name__ == "__main__":
    asked = [name for name in SCALES if name in sys.argv[1:]]
    for name in asked or [name for name, scale in SCALES.items() if [*scale.folder.glob("*/*.json")]]:
        print(f"wrote {write_report(name, SCALES[name])}")
