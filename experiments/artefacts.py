"""What the tables and figures of the paper are made of here: cells, each a list of settings for train.py.

Everything that is smaller than in the paper stands in MINI, and nowhere else.
"""

import json
import math
import re
from dataclasses import dataclass, field, replace
from pathlib import Path

from minprefix.store import write_atomically

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Cell:
    """One entry of a table, or one point of a curve.

    settings: train.py's, without lr and seed. rates: the learning rates, of which the dev loss chooses (none:
    nothing is trained). runs: seeds 0, 1, ... of the chosen one. alphas: the length penalties, of which dev
    chooses by its texts. dev: records for these texts, all if 0. subsets: every two seeds share a random
    subset of the training pairs. meteor: whether seed 0 is measured by METEOR, too. folder: where its results
    are, which cells of equal settings share.
    """

    name: str
    settings: tuple[str, ...]
    rates: tuple[float, ...]
    folder: Path
    runs: int = 1
    alphas: tuple[float, ...] = ()
    dev: int = 0
    subsets: bool = False
    meteor: bool = False

    def path(self, lr: float, seed: int) -> Path:
        return self.folder / f"{self.name}-{lr:g}-{seed}.json"

    def arguments(self, lr: float, seed: int) -> list[str]:
        """What train.py is given."""
        rate = [f"lr={lr:g}"] if lr else []
        subset = [f"subset={seed // 2}"] if self.subsets else []
        return [*self.settings, *rate, *subset, f"seed={seed}"]


@dataclass(frozen=True)
class Scale:
    """How large the experiments are. Later settings of a cell win over earlier ones."""

    folder: Path
    sets: dict[str, list[str]]  # data set -> settings of all its cells
    low: list[str]  # on top of these, for 50 to 500 training pairs
    # method or adapter -> learning rates, the best first; "low-": for few pairs, "share-": for a share of
    # them, "xsum-": BART's
    rates: dict[str, tuple[float, ...]]
    tuned: tuple[str, ...]  # ARTEFACT or ARTEFACT/CELL that try all of these; the others take the first
    adapters: tuple[int, int]  # bottlenecks of 0.1% and 3% of the LM's numbers
    few_slots: int  # |P| with which a prefix has the small adapter's size; 0: the data set's own
    lengths: tuple[int, ...]  # |P| of Fig. 4
    summary_lengths: tuple[int, ...]  # the same for summaries
    summary_pair: tuple[int, int]  # |P| small and large of Table 3
    extrapolations: tuple[str, ...]  # the splits of Table 4
    pool: int  # the training pairs that Fig. 6 takes shares of
    runs: int = 3  # seeds where the claim is a comparison
    timing: list[str] = field(default_factory=list)  # for the costs, where nothing need be learnt


TABLE_TO_TEXT = ["beams=5", "max_new_tokens=100"]
NEWS = ["beams=6", "length_penalty=0.8", "min_new_tokens=11", "max_new_tokens=62", "max_target=60"]
TIMING = ["n_train=640", "max_steps=30", "eval_limit=4", "dev_limit=8"]

# One core takes about 0.25 s for a step of 8 pairs. All methods get the same steps. Their learning rates are
# a factor of about two apart, as many as it took for the dev loss to rise at both ends, on E2E with seed 0
# (for few pairs, and shares of them: at each number); the best one is the first, and goes for other lengths,
# starts and data sets as well. The length penalty is the paper's. The bundled BART has read sequences of 62
# to 254 tokens and copies from short ones best, so articles are cut to their first 128 tokens, about five
# sentences; it has one rate a method.
SMALL = ["model=weights/gpt2-mini", "prefix_len=10", "batch_size=8", "epochs=1000", "max_steps=300"]
SMALL_BART = ["model=weights/bart-mini", "max_source=128", "batch_size=16", "epochs=1000", "max_steps=300"]
MINI = Scale(
    folder=RESULTS,
    sets={name: [*SMALL, *TABLE_TO_TEXT, "eval_limit=100"] for name in ("e2e", "dart")}
    | {"webnlg": [*SMALL, *TABLE_TO_TEXT, "eval_limit=200"]}  # about half of them of unseen categories
    | {"xsum": [*SMALL_BART, *NEWS, "eval_limit=150"]},
    low=["max_steps=150", "eval_limit=60"],
    rates={
        "prefix": (2e-3, 1e-3, 3e-3),
        "infix": (2e-3, 1e-3, 3e-3),
        "embedding": (1e-2, 5e-3, 3e-2),
        "full": (1e-3, 5e-4, 2e-3),
        "top2": (4e-3, 1e-3, 2e-3, 8e-3),
        "adapter-0.1": (6e-2, 2e-3, 4e-3, 8e-3, 1.6e-2, 3e-2, 0.12),
        "adapter-3": (1.6e-2, 2e-3, 4e-3, 8e-3, 3e-2),
        "lora": (2e-2, 2e-3, 5e-3, 1e-2, 4e-2),
        "low-prefix": (2e-3, 1e-3, 4e-3),
        "low-full": (1.25e-4, 6e-5, 2.5e-4, 5e-4, 1e-3),
        "share-prefix": (2e-3, 1e-3, 3e-3),
        "share-full": (1e-3, 5e-4, 2.5e-4, 1.25e-4),
        "xsum-prefix": (2e-3,),
        "xsum-embedding": (1e-2,),
        "xsum-full": (5e-4,),
    },
    tuned=(
        *("table2/e2e-prefix", "table2/e2e-full", "table2/e2e-top2", "table2/e2e-lora"),
        *("table2/e2e-adapter-0.1", "table2/e2e-adapter-3", "table5/embedding-10", "table5/infix-10"),
        *("fig3", "fig6"),
    ),
    adapters=(1, 66),
    few_slots=2,
    lengths=(1, 2, 5, 10, 20, 40),
    summary_lengths=(10, 60),
    summary_pair=(10, 60),
    extrapolations=("news-to-sports",),  # of the XSum part at hand, within-news has 3 test records
    pool=2000,
    timing=TIMING,
)

# Appendix A of the paper, and its defaults for what that leaves open (10 epochs, batch 5). The learning rates
# are the range around its own, and larger ones where few numbers train without an MLP.
MEDIUM = ["model=gpt2-medium", *TABLE_TO_TEXT]
LARGE_BART = ["model=facebook/bart-large", "max_source=512", "batch_size=14", "epochs=30", "mlp_hidden=800"]
NEAR = (5e-5, 8e-5, 2e-5)
FEW_NUMBERS = ("embedding", "xsum-embedding", "adapter-0.1", "adapter-3", "lora")
PAPER = Scale(
    folder=RESULTS / "paper",
    sets={
        "e2e": [*MEDIUM, "prefix_len=5", "batch_size=10", "epochs=5"],
        "webnlg": [*MEDIUM, "prefix_len=5", "batch_size=5", "epochs=5"],
        "dart": [*MEDIUM, "prefix_len=10", "batch_size=5", "epochs=10"],
        "xsum": [*LARGE_BART, *NEWS],
    },
    low=["epochs=100"],
    rates=dict.fromkeys(MINI.rates, NEAR) | dict.fromkeys(FEW_NUMBERS, (2e-4, 1e-3, *NEAR)),
    tuned=("table2", "table3", "table4", "table5", "fig3", "fig4", "fig5", "fig6"),
    adapters=(6, 224),
    few_slots=0,
    lengths=(1, 5, 10, 20, 40),
    summary_lengths=(1, 10, 50, 100, 200, 300),
    summary_pair=(5, 100),  # 0.1% and 2% of BART-large
    extrapolations=("news-to-sports", "within-news"),
    pool=42061,
    timing=TIMING,
)


def make_artefacts(scale: Scale) -> dict[str, dict[str, Cell]]:
    """Every table and figure as {name of the cell: cell}."""
    artefacts = {name: {cell.name: cell for cell in make(scale)} for name, make in MAKERS.items()}
    homes: dict[tuple, Cell] = {}
    for cells in artefacts.values():  # prefix-10 of Table 5 is a point of Fig. 4, too: it is run once
        for name, cell in cells.items():
            settings = frozenset(dict(setting.split("=", 1) for setting in cell.settings).items())
            alike = (settings, bool(cell.rates), cell.alphas, cell.dev, cell.subsets)
            home = homes.setdefault(alike, cell)
            shared = {key: getattr(home, key) for key in ("name", "folder", "rates", "meteor")}
            cells[name] = replace(cell, **shared)
    return artefacts


def make_cell(
    scale: Scale, home: str, name: str, dataset: str, method: str, more=(), grid: str = "", **options
) -> Cell:
    """A cell that trains `method` by the learning rates of `grid`, which is the method if nothing is said."""
    family = dataset.partition("-")[0]
    settings = [f"dataset={dataset}", *scale.sets[family], f"method={method}", *more]
    kind = "xsum-" if family == "xsum" else "low-" if set(scale.low) <= set(more) else ""
    rates = scale.rates[kind + (grid or method)]
    rates = rates if {home, f"{home}/{name}"} & set(scale.tuned) else rates[:1]
    return Cell(name, tuple(settings), rates, scale.folder / home, **options)


def list_methods(scale: Scale) -> list[tuple[str, str, list[str], str]]:
    """(name, method, settings, grid) of what Table 2 compares, and LoRA and a prefix of few slots."""
    small, large = scale.adapters
    few = [(f"prefix-{n}", "prefix", [f"prefix_len={n}"], "prefix") for n in (scale.few_slots,) if n]
    return [
        ("prefix", "prefix", [], "prefix"),
        ("full", "full", [], "full"),
        ("top2", "top2", [], "top2"),
        ("adapter-0.1", "adapter", [f"bottleneck={small}"], "adapter-0.1"),
        ("adapter-3", "adapter", [f"bottleneck={large}"], "adapter-3"),
        ("lora", "lora", ["bottleneck=4"], "lora"),
        *few,
    ]


def make_e2e(scale: Scale) -> list[Cell]:
    """Not the paper's: prefix-tuning in its variants, 800 steps, against full fine-tuning, 400 (a step of
    which takes 1.5 times as long)."""
    if SMALL[0] not in scale.sets["e2e"]:
        return []
    base = ["dataset=e2e", "epochs=5", "batch_size=16", "eval_limit=120", "prefix_len=10"]
    mlp, direct = ["mlp_hidden=512", "max_steps=800"], ["mlp_hidden=0", "max_steps=800"]
    grid = {
        "prefix": (["method=prefix", *mlp], (1e-3, 2e-3, 4e-3)),
        "direct": (["method=prefix", *direct], (3e-2, 1e-2, 1e-1, 3e-1)),
        "sum": (["method=prefix", *mlp, "loss=sum"], (2e-3,)),
        "full": (["method=full", "max_steps=400"], (5e-4, 1e-3)),
    }
    return [
        Cell(name, (*base, *more), rates, scale.folder / "e2e", scale.runs, alphas=(1.0, 2.0, 4.0), dev=120)
        for name, (more, rates) in grid.items()
    ]


def make_table2(scale: Scale) -> list[Cell]:
    options = {"runs": scale.runs, "meteor": True}
    return [
        make_cell(scale, "table2", f"{dataset}-{name}", dataset, method, more, grid, **options)
        for dataset in ("e2e", "webnlg", "dart")
        for name, method, more, grid in list_methods(scale)
    ]


def make_table3(scale: Scale) -> list[Cell]:
    small, large = (f"prefix_len={length}" for length in scale.summary_pair)
    trained = [
        make_cell(scale, "table3", name, "xsum", method, more, runs=scale.runs)
        for name, method, more in (
            ("prefix-small", "prefix", [small]),
            ("prefix-large", "prefix", [large]),
            ("embedding", "embedding", [small]),
            ("full", "full", []),
        )
    ]
    return [*trained, replace(trained[0], name="lead", rates=(), runs=1)]


def make_table4(scale: Scale) -> list[Cell]:
    large = [f"prefix_len={scale.summary_pair[1]}"]
    return [
        make_cell(scale, "table4", f"{part}-{method}", f"xsum-{part}", method, more, runs=scale.runs)
        for part in scale.extrapolations
        for method, more in (("prefix", large), ("full", []))
    ]


# Words as a prefix, three tries at what one would write there; each is repeated, or cut, to ten slots.
PROMPTS = {
    "words-write": "Write a sentence about this restaurant:",
    "words-describe": "Describe the restaurant:",
    "words-is": "The restaurant is",
}
UNMOVED = 1e-9  # a learning rate


def make_table5(scale: Scale) -> list[Cell]:
    options = {"runs": scale.runs, "meteor": True}
    trained = [
        make_cell(scale, "table5", f"{method}-{length}", "e2e", method, [f"prefix_len={length}"], **options)
        for method in ("embedding", "infix", "prefix")
        for length in (1, 10, 20)
    ]
    # Words that are not tuned, and the LM with nothing before x: a step of 1e-9 leaves them what they are.
    still = ["max_steps=1", "prefix_len=10", "mlp_hidden=0"]
    words = [
        make_cell(scale, "table5", name, "e2e", "prefix", [*still, f"init={text}"], **options)
        for name, text in PROMPTS.items()
    ]
    untuned = make_cell(scale, "table5", "untuned", "e2e", "full", still[:1], **options)
    return [*(replace(cell, rates=(UNMOVED,)) for cell in (untuned, *words)), *trained]


FEW = (50, 100, 200, 500)  # training pairs, Fig. 3
PERCENT = (10, 20, 40, 60, 80)  # of them, Fig. 6


def make_fig3(scale: Scale) -> list[Cell]:
    options = {"runs": 10, "subsets": True}  # 5 subsets x 2 seeds
    return [
        make_cell(scale, "fig3", f"{method}-{n}", "e2e", method, [f"n_train={n}", *scale.low], **options)
        for n in FEW
        for method in ("prefix", "full")
    ]


def make_fig4(scale: Scale) -> list[Cell]:
    curves = (("e2e", "prefix", scale.lengths), ("xsum", "xsum", scale.summary_lengths))
    return [
        make_cell(
            scale, "fig4", f"{name}-{length}", dataset, "prefix", [f"prefix_len={length}"], runs=scale.runs
        )
        for dataset, name, lengths in curves
        for length in lengths
    ]


INITS = {"random": "random"}  # Fig. 5: name -> init=
INITS |= {"summarize": "task words", "table-to-text:": "task words"}
INITS |= {"elephant": "unrelated words", "divide": "unrelated words"}


def name_start(init: str, data: str) -> str:
    """The cell of Fig. 5 that starts from `init`, with "100" pairs or "all"."""
    return f"{init.strip(':')}-{data}"


def make_fig5(scale: Scale) -> list[Cell]:
    few = (["n_train=100", *scale.low], {"runs": 6, "subsets": True})
    cells = []
    for data, (more, options) in (("100", few), ("all", ([], {"runs": scale.runs}))):
        for init in INITS:
            start = [] if init == "random" else [f"init={init}"]
            name = name_start(init, data)
            cells.append(make_cell(scale, "fig5", name, "e2e", "prefix", [*start, *more], **options))
    return cells


def make_fig6(scale: Scale) -> list[Cell]:
    pairs = {percent: f"n_train={scale.pool * percent // 100}" for percent in PERCENT}
    return [
        make_cell(scale, "fig6", f"{m}-{percent}", "e2e", m, [pairs[percent]], f"share-{m}", runs=scale.runs)
        for percent in pairs
        for m in ("prefix", "full")
    ]


def make_costs(scale: Scale) -> list[Cell]:
    methods = [*list_methods(scale), *((name, name, [], name) for name in ("infix", "embedding"))]
    return [
        make_cell(scale, "costs", name, "e2e", method, [*more, *scale.timing], grid, runs=scale.runs)
        for name, method, more, grid in methods
    ]


MAKERS = {"e2e": make_e2e, "table2": make_table2, "table3": make_table3, "table4": make_table4}
MAKERS |= {"table5": make_table5, "fig3": make_fig3, "fig4": make_fig4, "fig5": make_fig5}
MAKERS |= {"fig6": make_fig6, "costs": make_costs}


def read_runs(cell: Cell) -> dict[tuple[float, int], dict]:
    """What there is of a cell at its learning rates: {(rate, seed): content of its JSON file}."""
    pattern = re.compile(rf"{re.escape(cell.name)}-(\d[\d.]*(?:e-?\d+)?)-(\d+)\.json")
    found = [(pattern.fullmatch(path.name), path) for path in sorted(cell.folder.glob("*.json"))]
    runs = {(float(m[1]), int(m[2])): path for m, path in found if m}
    return {
        key: json.loads(path.read_text()) for key, path in runs.items() if key[0] in (cell.rates or (0.0,))
    }


def write_result(path: Path, result: dict) -> None:
    content = json.dumps(result, indent=1, ensure_ascii=False) + "\n"
    write_atomically(path, lambda part: part.write_text(content, encoding="utf-8"))


def choose_runs(runs: dict[tuple[float, int], dict]) -> list[dict]:
    """All seeds of the learning rate with the least dev loss with seed 0, in the order of the seeds."""
    rates = [lr for lr, seed in runs if seed == 0]
    best = min(rates, key=lambda lr: read_dev_loss(runs[lr, 0]), default=None)
    return [run for (lr, _), run in sorted(runs.items(), key=lambda item: item[0]) if lr == best]


def read_dev_loss(run: dict) -> float:
    """What chooses a learning rate, in nats; BLEU of some dozen records is a lottery."""
    return run["dev_loss"][-1][1] if run.get("dev_loss") else math.inf


def merit(metrics: dict) -> float:
    """What dev chooses a length penalty by."""
    return metrics.get("BLEU", metrics.get("ROUGE-L", -math.inf))
