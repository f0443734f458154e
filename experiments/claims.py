"""The paper's claims as comparisons of our cells, with intervals over seeds, and a verdict on each."""

import collections
import json
import statistics
from collections.abc import Iterable
from dataclasses import dataclass

from experiments.artefacts import (
    FEW,
    INITS,
    PERCENT,
    PROMPTS,
    RESULTS,
    Scale,
    choose_runs,
    make_artefacts,
    name_start,
    read_dev_loss,
    read_runs,
)

LOSS = "dev loss"
# How far "as good" may lie behind and "no matter" apart: independent reruns of the paper differ by 1 to 1.5
# points of BLEU; seeds of ours mostly by 0.01 to 0.1 nats.
TIE_POINTS, TIE_NATS = 1.5, 0.02
# Student's t for a 95% interval of a mean, by how many differences it is of.
T95 = {3: 4.30, 4: 3.18, 5: 2.78, 6: 2.57, 7: 2.45, 8: 2.36, 9: 2.31, 10: 2.26}


class Results:
    """The runs of every cell: all that were tried, and those at the learning rate that the dev loss chose."""

    def __init__(self, scale: Scale):
        self.scale = scale
        self.artefacts = make_artefacts(scale)
        self.tried = {
            (artefact, name): read_runs(cell)
            for artefact, cells in self.artefacts.items()
            for name, cell in cells.items()
        }
        self.runs = {
            (artefact, name): choose_runs(runs)[: self.artefacts[artefact][name].runs]
            for (artefact, name), runs in self.tried.items()
        }

    def list_rates(self, artefact: str, name: str) -> dict[float, dict]:
        """{learning rate: the run with seed 0}, from the smallest on."""
        return {lr: run for (lr, seed), run in sorted(self.tried[artefact, name].items()) if seed == 0}

    def has(self, artefact: str) -> bool:
        return any(self.runs[artefact, name] for name in self.artefacts[artefact])

    def values(self, artefact: str, name: str, metric: str) -> list[float]:
        """One figure a seed; none where the cell or the metric is missing."""
        found = [read_figure(run, metric) for run in self.runs.get((artefact, name), [])]
        return [value for value in found if value is not None]

    def average(self, names: Iterable[str], metric: str) -> dict[int, float]:
        """{subset, or else seed: the mean of the cells ARTEFACT/CELL}, of those that all cells have."""
        cells = []
        for artefact, name in (name.split("/", 1) for name in names):
            units = collections.defaultdict(list)
            for run in self.runs.get((artefact, name), []):
                by = "subset" if self.artefacts[artefact][name].subsets else "seed"
                if (value := read_figure(run, metric)) is not None:
                    units[run["config"][by]].append(value)
            cells.append({unit: statistics.mean(values) for unit, values in units.items()})
        shared = set.intersection(*map(set, cells))
        return {unit: statistics.mean(cell[unit] for cell in cells) for unit in sorted(shared)}


def read_figure(run: dict, metric: str) -> float | None:
    """A figure of the test texts, perhaps of a group, the dev loss, or what a run cost."""
    if metric == LOSS:
        return read_dev_loss(run) if run.get("dev_loss") else None
    group, _, name = metric.partition(" ")
    if group in ("seen", "unseen"):
        return run["test"].get("groups", {}).get(group, {}).get(name)
    return run["test"].get(metric, run.get(metric))


@dataclass(frozen=True)
class Comparison:
    """ours: the mean difference, more being better for the claim; None where it was not run. half: of its 95%
    interval; None for fewer than three runs. kind: what is claimed: "better", "as good", "equal", or "times"
    for a ratio.
    """

    label: str
    measure: str
    ours: float | None
    half: float | None = None
    paper: float | None = None
    kind: str = "better"

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
    """why: our reasons for what came out, of the bundled models."""

    text: str
    place: str
    comparisons: list[Comparison]
    why: str = ""

    def pairs(self) -> dict[str, list[Comparison]]:
        """The comparisons of a label: by the texts, or a ratio, and by the dev loss if that is compared."""
        labels = dict.fromkeys(c.label for c in self.comparisons)
        return {label: [c for c in self.comparisons if c.label == label] for label in labels}

    def judge(self) -> str:
        """The verdict, in words."""
        found = [verdict for comparison in self.comparisons if (verdict := comparison.judge())]
        if not found:
            return "not tested here"
        if "yes" in found:
            text = "holds" if set(found) == {"yes"} else "mixed" if "no" in found else "holds partly"
        else:
            text = "does not hold here" if "no" in found else "undecided"
        return text if len(found) == len(self.comparisons) else f"{text} (not all of it was run)"


def compare(
    results: Results, label: str, measure: str, good: str, bad: str, paper=None, kind="better"
) -> Comparison:
    """Two cells, each ARTEFACT/CELL, or averages over several, joined by +."""
    ours, theirs = (results.average(names.split("+"), measure) for names in (good, bad))
    sign = -1 if measure == LOSS else 1
    gaps = [sign * (ours[unit] - theirs[unit]) for unit in ours if unit in theirs]
    return Comparison(label, measure, *summarise(gaps), paper, kind)


def summarise(gaps: list[float]) -> tuple[float | None, float | None]:
    """The mean, and half of its 95% interval, as far as there are enough for them."""
    half = T95[len(gaps)] * statistics.stdev(gaps) / len(gaps) ** 0.5 if len(gaps) > 2 else None
    return (statistics.mean(gaps) if gaps else None), half


def compare_all(results: Results, measures: tuple[str, ...], rows: list[tuple]) -> list[Comparison]:
    """Each row of (label, better cell, other cell, the paper's figure[, kind]) by each measure; the paper has
    figures of the first one only."""
    return [
        compare(results, label, measure, good, bad, paper if measure == measures[0] else None, *kind)
        for label, good, bad, paper, *kind in rows
        for measure in measures
    ]


def divide(results: Results, label: str, key: str, more: str, less: str, paper: float | None) -> Comparison:
    """How many times as much of `key` the method `more` has as `less`, of the costs."""
    ours, theirs = (results.average([f"costs/{name}"], key) for name in (more, less))
    times = [ours[seed] / theirs[seed] for seed in ours if seed in theirs]
    return Comparison(label, "ratio", *summarise(times), paper, "times")


def divide_medium() -> list[Comparison]:
    """Time and memory of a step of full fine-tuning over one of prefix-tuning, GPT-2 medium's shape."""
    step = json.loads((RESULTS / "speed.json").read_text())["prefix-to-full"]["float32"]
    times = [full / prefix for prefix, full in step["seconds"]]
    prefix, full = step["peak"]  # measured once
    return [
        Comparison("GPT-2 medium's shape: step, full / prefix", "ratio", *summarise(times), 1.5, "times"),
        Comparison("GPT-2 medium's shape: memory, full / prefix", "ratio", full / prefix, None, 2.8, "times"),
    ]


BY_TEXTS, BY_SUMMARIES = ("BLEU", LOSS), ("ROUGE-L", LOSS)  # the dev loss is the less noisy one
WEAK = "The frozen model has read 16 million tokens, GPT-2 some billions, and a prefix steers what is there"
FORM = "Our BART has read 3 million tokens and cannot say what an article is about: all learn the form."


def list_claims(results: Results) -> list[Claim]:
    return [
        *list_claims_on_methods(results),
        *list_claims_on_variants(results),
        *list_claims_on_starts(results),
        *list_claims_on_amounts(results),
        claim_costs(results),
    ]


def list_claims_on_methods(results: Results) -> list[Claim]:
    """Prefix-tuning against full fine-tuning and adapters, with all of the data."""
    slots = results.scale.few_slots
    own = f"prefix-{slots}" if slots else "prefix"  # of the small adapter's size
    full = [
        ("E2E", "table2/e2e-prefix", "table2/e2e-full", 1.5, "as good"),
        ("WebNLG", "table2/webnlg-prefix", "table2/webnlg-full", 9.3, "as good"),
        ("DART", "table2/dart-prefix", "table2/dart-full", 0.2, "as good"),
    ]
    if results.artefacts["e2e"]:
        full.append(("E2E, 800 steps against 400", "e2e/prefix", "e2e/full", 1.5, "as good"))
    adapter = [
        ("E2E", f"table2/e2e-{own}", "table2/e2e-adapter-0.1", 4.0),
        ("WebNLG", f"table2/webnlg-{own}", "table2/webnlg-adapter-0.1", 4.8),
        ("DART", f"table2/dart-{own}", "table2/dart-adapter-0.1", 4.0),
    ]
    summaries = [("XSum", "table3/prefix-large", "table3/full", -1.2, "as good")]
    return [
        Claim(
            "With all of the data, prefix-tuning is as good as full fine-tuning",
            "Table 2",
            compare_all(results, BY_TEXTS, full),
            f"{WEAK}; full fine-tuning also teaches the language of the task.",
        ),
        Claim(
            "It is better than an adapter of its size",
            "Table 2 (0.1%)",
            compare_all(results, BY_TEXTS, adapter),
            "Two slots and one hidden number a block, some 7,000 numbers, cannot be told apart; on WebNLG "
            "and DART neither has learnt the task after 300 steps.",
        ),
        Claim(
            "It carries over to unseen categories and topics better than full fine-tuning",
            "Tables 2 and 4",
            compare_unseen(results),
            "On WebNLG full fine-tuning loses over half of its BLEU from seen to unseen categories, and the "
            "prefix a tenth: that is the paper's pattern, but this prefix has little to lose.",
        ),
        Claim(
            "On summaries it is close to full fine-tuning",
            "Table 3",
            compare_all(results, BY_SUMMARIES, summaries),
            FORM,
        ),
    ]


def compare_unseen(results: Results) -> list[Comparison]:
    """By texts only: the dev sets are of what was seen."""
    topics = [
        (f"XSum, {part}", f"table4/{part}-prefix", f"table4/{part}-full", paper)
        for part, paper in (("news-to-sports", 1.25), ("within-news", 0.32))
        if f"{part}-prefix" in results.artefacts["table4"]
    ]
    webnlg = ("WebNLG", "table2/webnlg-prefix", "table2/webnlg-full", 18.6)
    return [
        *compare_all(results, ("unseen BLEU",), [webnlg]),
        *compare_all(results, ("ROUGE-L",), topics),
    ]


def list_claims_on_variants(results: Results) -> list[Claim]:
    """Where the free numbers are, and how many."""
    words = "+".join(f"table5/{name}" for name in PROMPTS)
    embedding = [
        ("prefix - embedding, length 1", "table5/prefix-1", "table5/embedding-1", 22.2),
        ("prefix - embedding, length 10", "table5/prefix-10", "table5/embedding-10", 8.1),
        ("prefix - embedding, length 20", "table5/prefix-20", "table5/embedding-20", 8.4),
        ("embedding - words, length 10", "table5/embedding-10", words, None),
    ]
    infix = [
        ("prefix - infix, length 1", "table5/prefix-1", "table5/infix-1", 2.4),
        ("prefix - infix, length 10", "table5/prefix-10", "table5/infix-10", 3.1),
        ("prefix - infix, length 20", "table5/prefix-20", "table5/infix-20", 3.6),
    ]
    lengths = [
        ("E2E, 10 - 1", "fig4/prefix-10", "fig4/prefix-1", None),
        ("E2E, 10 - 5", "fig4/prefix-10", "fig4/prefix-5", None),
        ("E2E, 10 - 40", "fig4/prefix-10", "fig4/prefix-40", None, "as good"),
    ]
    summaries = [("XSum, large - small", "table3/prefix-large", "table3/prefix-small", 1.0)]
    return [
        Claim(
            "Embedding-only is less expressive than a prefix, and words less than that",
            "Table 5, whose prefix has length 5",
            compare_all(results, BY_TEXTS, embedding),
            "Free numbers in every layer reach what no word's activations reach (notebook 6).",
        ),
        Claim(
            "A prefix is better than an infix",
            "Table 5, whose prefix has length 5",
            compare_all(results, BY_TEXTS, infix),
            "By dev loss the two cannot be told apart. In BLEU, whichever writes the shorter texts is behind "
            "(length_ratio in the table): the infix with one slot, the prefix with 10 and 20.",
        ),
        Claim(
            "A longer prefix helps up to 10, and then no more",
            "Fig. 4",
            compare_all(results, BY_TEXTS, lengths),
            "BLEU is too noisy for it. The dev loss falls up to 10 slots and is level after that; so is the "
            "training loss, so nothing here shows the overfitting that the paper sees.",
        ),
        Claim(
            "Summaries gain from a longer prefix",
            "Table 3, Fig. 4",
            compare_all(results, BY_SUMMARIES, summaries),
            f"By the loss only. {FORM}",
        ),
    ]


def list_claims_on_starts(results: Results) -> list[Claim]:
    def join(data: str, *kinds: str) -> str:
        return "+".join(f"fig5/{name_start(init, data)}" for init, kind in INITS.items() if kind in kinds)

    task, others = "task words", "unrelated words"
    return [
        Claim(
            "With few examples, words are a better start than random numbers, and task words the best",
            "Fig. 5 (about +10, read off the picture)",
            compare_all(
                results,
                BY_TEXTS,
                [
                    ("words - random, n = 100", join("100", task, others), join("100", "random"), 10.0),
                    ("task words - others, n = 100", join("100", task), join("100", others), None),
                ],
            ),
            "7 million parameters hold no notion of a task that a word could call up; their vocabulary even "
            "cuts these words into pieces (s-um-mar-ize).",
        ),
        Claim(
            "With all of the data, the start does not matter",
            "Sec. 7.4",
            compare_all(
                results,
                BY_TEXTS,
                [("words - random", join("all", task, others), join("all", "random"), None, "equal")],
            ),
            "300 steps may be too few to wash out the start, or the rate, which was tuned on random starts, "
            "may suit words less.",
        ),
    ]


def list_claims_on_amounts(results: Results) -> list[Claim]:
    """Prefix-tuning against full fine-tuning by how much there is to learn from."""
    prefix, full = ("+".join(f"fig3/{method}-{n}" for n in FEW) for method in ("prefix", "full"))
    few = [("mean of all n", prefix, full, 2.9)]
    few += [(f"n = {n}", f"fig3/prefix-{n}", f"fig3/full-{n}", None) for n in FEW]
    shares = [(f"{p}%", f"fig6/prefix-{p}", f"fig6/full-{p}", None) for p in PERCENT[1:]]
    return [
        Claim(
            "With few examples it is better than full fine-tuning",
            "Fig. 3",
            compare_all(results, BY_TEXTS, few),
            f"{WEAK}. Its texts do not gain from more pairs: 150 steps may be too few for it to use them.",
        ),
        Claim(
            "It is better than full fine-tuning from 20% of the data on",
            "Fig. 6",
            compare_all(results, BY_TEXTS, shares),
            f"{WEAK}. Its texts do not gain from more pairs in 300 steps, either.",
        ),
    ]


def claim_costs(results: Results) -> Claim:
    return Claim(
        "It costs less than full fine-tuning",
        "Sec. 5 (0.1% of the numbers), appendix (0.2 h against 0.3 h an epoch, 18% against 50% of a GPU)",
        [
            divide(results, "stored numbers, full / prefix", "stored_numbers", "full", "prefix", 1000),
            divide(results, "speed of training, prefix / full", "tokens_per_second", "prefix", "full", 1.5),
            divide(results, "peak memory, full / prefix", "peak_memory_bytes", "full", "prefix", 2.8),
            *divide_medium(),
        ],
        "The bundled model is so small that memory is mostly that of the process and its libraries.",
    )
