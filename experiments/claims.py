"""The paper's claims (tables/claims.toml) as comparisons of our cells, with intervals over seeds, and a
verdict on each. results/NOTES.md tells the rules."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pandas as pd
from scipy import stats

from experiments.artefacts import Cell, Scale, choose_rate, make_artefacts, read_dev_loss, read_runs
from experiments.keep import RESULTS, read_table

LOSS = "dev loss"
# How far "as good" may lie behind and "no matter" apart: independent reruns of the paper differ by 1 to 1.5
# points of BLEU; seeds of ours mostly by 0.01 to 0.1 nats.
TIE_POINTS, TIE_NATS = 1.5, 0.02
WORDS = {"holds partly": "partly", "mixed": "partly", "does not hold here": "not here"}


class Results:
    """All runs as one table, `runs`: those with the learning rate that the dev loss chose are `chosen`."""

    def __init__(self, scale: Scale):
        self.scale = scale
        self.artefacts = make_artefacts(scale)
        places = [(artefact, name) for artefact, cells in self.artefacts.items() for name in cells]
        rows = [row for place in places for row in self.list_rows(*place)]
        columns = ["artefact", "place", "home", "lr", "seed", "chosen"]  # of no runs at all
        self.tried = pd.DataFrame(rows, columns=None if rows else columns)
        self.runs = self.tried[self.tried["chosen"].astype(bool)]

    def list_rows(self, artefact: str, name: str) -> list[dict]:
        cell = self.artefacts[artefact][name]
        runs = read_runs(cell)
        best = choose_rate(runs)
        where = {
            "artefact": artefact,
            "place": f"{artefact}/{name}",
            "home": f"{cell.folder.name}/{cell.name}",
        }
        return [flatten(run, cell) | where | {"chosen": lr == best} for (lr, _), run in runs.items()]

    def knows(self, names: Sequence[str]) -> bool:
        """Whether the scale has all of these ARTEFACT/CELL."""
        places = (name.split("/") for name in names)
        return all(cell in self.artefacts.get(artefact, ()) for artefact, cell in places)

    def list_runs(self, place: str) -> pd.DataFrame:
        """The chosen runs of a cell ARTEFACT/CELL, in the order of their seeds."""
        return self.runs[self.runs["place"] == place]

    def values(self, place: str, metric: str) -> pd.Series:
        """One figure a seed; none where the cell or the metric is missing."""
        return self.list_runs(place).get(metric, pd.Series(dtype=float)).dropna()

    def average(self, places: Sequence[str], metric: str) -> pd.Series:
        """The mean of the cells by subset, or else by seed, of those that all of them have."""
        if metric not in self.runs:
            return pd.Series(dtype=float)
        table = self.runs.pivot_table(metric, "unit", "place")
        return table.reindex(columns=places).dropna().mean(axis=1)


def flatten(run: dict, cell: Cell) -> dict:
    """Settings, costs and test figures of a run side by side; those of a group are "seen BLEU" and so on."""
    groups = run["test"].get("groups", {}).items()
    parts = {f"{group} {name}": figure for group, figures in groups for name, figure in figures.items()}
    losses = {"curve": run.get("loss"), LOSS: read_dev_loss(run) if run.get("dev_loss") else None}
    facts = {"unit": run["config"]["subset" if cell.subsets else "seed"]}
    facts |= {"hours": run.get("seconds", run.get("train_seconds", 0)) / 3600}
    return run | run["config"] | run["test"] | parts | losses | facts


@dataclass(frozen=True)
class Comparison:
    """ours: the mean difference, more being better for the claim; None where it was not run. half: of its 95%
    interval; None for fewer than three runs. kind: what is claimed: "better", "as good", "equal", or "times"
    for a ratio. runs: how many differences there are.
    """

    label: str
    measure: str
    ours: float | None
    half: float | None = None
    paper: float | None = None
    kind: str = "better"
    runs: int = 0

    def judge(self) -> str:
        """Is it so? yes, no or unclear; "" where it was not run."""
        if self.ours is None:
            return ""
        if self.half is None:
            return "unclear"
        low, high, tie = self.ours - self.half, self.ours + self.half, self.tie
        if self.kind == "equal":
            so, not_so = -tie < low and high < tie, low > tie or high < -tie
        else:
            needed = {"better": 0, "as good": -tie, "times": 1}[self.kind]
            so, not_so = low > needed, high < needed
        return "yes" if so else "no" if not_so else "unclear"

    @property
    def tie(self) -> float:
        return TIE_NATS if self.measure == LOSS else TIE_POINTS


@dataclass(frozen=True)
class Claim:
    text: str
    place: str
    comparisons: list[Comparison]

    def pairs(self) -> dict[str, list[Comparison]]:
        """The comparisons of a label: by the texts, or a ratio, and by the dev loss if that is compared."""
        labels = dict.fromkeys(c.label for c in self.comparisons)
        return {label: [c for c in self.comparisons if c.label == label] for label in labels}

    def judge(self) -> str:
        """The verdict, in words."""
        found = [verdict for comparison in self.comparisons if (verdict := comparison.judge())]
        if not found:
            return "not tested here"
        text = weigh(found)
        return text if len(found) == len(self.comparisons) else f"{text} (not all of it was run)"

    def answer(self) -> tuple[str, str]:
        """The verdict in a word or two, and "one run" or so where no comparison has enough for an interval:
        then the differences themselves are judged. "by loss": nothing but the dev loss speaks against it."""
        found = [c for c in self.comparisons if c.ours is not None]
        if not found:
            return "not run", ""
        runs = max(c.runs for c in found) if all(c.half is None for c in found) else 0
        text = weigh([replace(c, half=0.0).judge() if runs else c.judge() for c in found])
        against = [c.measure for c in found if c.judge() == "no"]
        note = "by loss" if set(against) == {LOSS} and text == "does not hold here" else ""
        return WORDS.get(text, text), {0: note, 1: "one run"}.get(runs, f"{runs} runs")


def weigh(verdicts: list[str]) -> str:
    """What comparisons that are so (yes), not so (no) or unclear say of their claim."""
    if "yes" in verdicts:
        return "holds" if set(verdicts) == {"yes"} else "mixed" if "no" in verdicts else "holds partly"
    return "does not hold here" if "no" in verdicts else "undecided"


def read_claims(results: Results) -> list[Claim]:
    claims = []
    for claim in read_table("claims")["claim"]:
        rows = [{"kind": "better"} | claim | row for row in claim["pairs"]]
        comparisons = [comparison for row in rows for comparison in compare(results, row)]
        claims.append(Claim(claim["text"], claim["place"], comparisons))
    return claims


def compare(results: Results, row: dict) -> list[Comparison]:
    """One row of claims.toml, by each of its measures."""
    label, kind, paper = row["label"], row["kind"], row.get("paper")
    if "speed" in row:  # what was measured without any data, beside the costs
        ratios = read_speed(row["speed"])
        found = [Comparison(label, "ratio", *summarise(ratios), paper, kind, len(ratios))]
        return found if "costs" in results.artefacts else []
    ours, other = (list_places(row[side], results.scale) for side in ("ours", "other"))
    if not results.knows([*ours, *other]):
        return []
    found = []
    for i, measure in enumerate(row["measures"]):
        a, b = (results.average(places, measure) for places in (ours, other))
        gaps = a / b if kind == "times" else b - a if measure == LOSS else a - b
        gaps = gaps.dropna()
        published = None if i else paper
        found.append(Comparison(label, measure, *summarise(gaps), published, kind, len(gaps)))
    return found


def list_places(names: str | list[str], scale: Scale) -> list[str]:
    names = [names] if isinstance(names, str) else names
    return [name.format(own=scale.own) for name in names]


def read_speed(what: str) -> list[float]:
    """Seconds or peak memory of a full step over one of prefix-tuning, GPT-2 medium's shape."""
    step = json.loads((RESULTS / "speed.json").read_text())["prefix-to-full"]["float32"]
    pairs = step["seconds"] if what == "seconds" else [step["peak"]]  # which was measured once
    return [full / prefix for prefix, full in pairs]


def summarise(gaps: Sequence[float]) -> tuple[float | None, float | None]:
    """The mean, and half of its 95% interval (Student's t), as far as there are enough for them."""
    if not len(gaps):
        return None, None
    half = stats.sem(gaps) * stats.t.ppf(0.975, len(gaps) - 1) if len(gaps) > 2 else None
    return sum(gaps) / len(gaps), half
