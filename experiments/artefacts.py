"""What the tables and figures of the paper are made of here: cells, each a list of settings for train.py.

Which there are stands in tables/cells.toml; with which models, and how large, in mini.toml, smollm2.toml and
paper.toml.
"""

import itertools
import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from experiments.keep import RESULTS, read_table


@dataclass(frozen=True)
class Cell:
    """One entry of a table, or one point of a curve.

    settings: train.py's, without lr and seed. rates: the learning rates, of which the dev loss chooses (none:
    nothing is trained). runs: seeds 0, 1, ... of the chosen one. alphas: the length penalties, of which dev
    chooses by its texts. dev: records for these texts, all if 0. subsets: so many seeds share a random subset
    of the training pairs; 0: all have the same pairs. meteor: whether seed 0 is measured by METEOR, too.
    examples: so many pairs are in front of a record, and nothing is trained. frame: words around it, for
    texts that are lines; none: the tokens of a training pair. folder: where its results are, which cells of
    equal settings share.
    """

    name: str
    settings: tuple[str, ...]
    rates: tuple[float, ...]
    folder: Path
    runs: int = 1
    alphas: tuple[float, ...] = ()
    dev: int = 0
    subsets: int = 0
    meteor: bool = False
    examples: int = 0
    frame: str = ""

    def path(self, lr: float, seed: int) -> Path:
        return self.folder / f"{self.name}-{lr:g}-{seed}.json"

    def arguments(self, lr: float, seed: int) -> list[str]:
        """What train.py is given: each key once, of settings that come again the last."""
        rate = [f"lr={lr:g}"] if lr else []
        subset = [f"subset={seed // self.subsets}"] if self.subsets else []
        settings = [*self.settings, *rate, *subset, f"seed={seed}"]
        return [f"{key}={value}" for key, value in dict(text.split("=", 1) for text in settings).items()]


@dataclass(frozen=True)
class Scale:
    """How large the experiments are: a file of tables/, whose comments explain the fields."""

    folder: Path
    artefacts: list[str]
    runs: int
    own: str
    tuned: list[str]
    lists: dict[str, list]
    settings: dict[str, list[str]]
    methods: dict[str, list[str]]
    rates: dict[str, list[float]]
    cells: list[dict] = field(default_factory=list)
    about: str = ""


def read_scale(name: str) -> Scale:
    values = read_table(name)
    return Scale(**values | {"folder": RESULTS / values["folder"]})


SCALES = {name: read_scale(name) for name in ("mini", "smollm2", "paper")}
MINI, PAPER = SCALES["mini"], SCALES["paper"]


def make_artefacts(scale: Scale) -> dict[str, dict[str, Cell]]:
    """Every table and figure as {name of the cell: cell}."""
    shared = [spec for spec in read_table("cells")["cells"] if spec["place"].split("/")[0] in scale.artefacts]
    artefacts: dict[str, dict[str, Cell]] = {}
    homes: dict[tuple, Cell] = {}
    for cell in (cell for spec in [*scale.cells, *shared] for cell in make_cells(scale, spec)):
        # prefix-10 of Table 5 is a point of Fig. 4, too: it is run once
        settings = frozenset(dict(setting.split("=", 1) for setting in cell.settings).items())
        alike = (settings, bool(cell.rates), cell.alphas, cell.dev, cell.subsets, cell.examples)
        home = homes.setdefault(alike, cell)
        taken = {key: getattr(home, key) for key in ("name", "folder", "rates", "meteor")}
        artefacts.setdefault(cell.folder.name, {})[cell.name] = replace(cell, **taken)
    return artefacts


def make_cells(scale: Scale, spec: dict) -> Iterator[Cell]:
    """The cells of one entry of cells.toml: a cell for each combination of its `each`."""
    each = spec.get("each", {})
    lists = [scale.lists[listed] if isinstance(listed, str) else listed for listed in each.values()]
    for combination in itertools.product(*lists):
        yield make_cell(scale, spec, scale.lists | spec | dict(zip(each, combination)))


def make_cell(scale: Scale, spec: dict, values: dict) -> Cell:
    place = spec["place"].format(**values).replace(":", "")  # of "table-to-text:"
    home, name = place.split("/")
    groups = [scale.settings[group.format(**values)] for group in spec["base"]]
    own = [text.format(**values) for text in ("dataset=" + values["dataset"], *spec.get("settings", []))]
    settings = (*itertools.chain(*groups), *scale.methods[values["method"]], *own)
    grid = scale.rates[spec.get("grid", values["method"]).format(**values)]
    rates = spec.get("rates", grid if {home, place} & set(scale.tuned) else grid[:1])
    names = ("dev", "subsets", "meteor", "examples", "frame")
    options = {key: values[key] for key in names if key in values}
    alphas = tuple(spec.get("alphas", ()))
    runs = spec.get("runs", scale.runs)
    return Cell(name, settings, tuple(rates), scale.folder / home, runs, alphas, **options)


def read_runs(cell: Cell) -> dict[tuple[float, int], dict]:
    """What there is of a cell at its learning rates: {(rate, seed): content of its JSON file}."""
    paths = {(lr, seed): cell.path(lr, seed) for lr in cell.rates or (0.0,) for seed in range(cell.runs)}
    return {key: json.loads(path.read_text("utf-8")) for key, path in paths.items() if path.exists()}


def choose_rate(runs: dict[tuple[float, int], dict]) -> float | None:
    """The learning rate with the least dev loss, the mean of the seeds that all rates have, 0 at least; None
    if there is no such run."""
    seeds = {rate: {seed for lr, seed in runs if lr == rate} for rate, seed in runs if seed == 0}
    shared = set.intersection(*seeds.values()) if seeds else set()
    return min(seeds, key=lambda lr: sum(read_dev_loss(runs[lr, seed]) for seed in shared), default=None)


def read_dev_loss(run: dict) -> float:
    """Of the theta that was kept; it chooses a learning rate, for BLEU of some dozen records is a lottery."""
    looks = dict(run.get("dev_loss", []))  # older runs kept the last
    return looks.get(run.get("kept_step", max(looks, default=0)), math.inf)


def merit(metrics: dict) -> float:
    """What dev chooses a length penalty by."""
    return metrics.get("BLEU", metrics.get("ROUGE-L", -math.inf))
