"""The settings of a run: defaults, presets with a source for each number, and key=value on top."""

import dataclasses
import textwrap
from dataclasses import dataclass

from minprefix.errors import InputError, check_range, nearest
from minprefix.prefix import CHANGES

# How a text is written: the keys that sample.py takes from the training where it is told nothing else.
DECODING = ("beams", "length_penalty", "max_new_tokens", "min_new_tokens", "max_source")


def key(default, text: str, least: float = 0, most: float = 2**20):
    return dataclasses.field(default=default, metadata={"help": text, "range": (least, most)})


@dataclass(frozen=True)
class Config:
    """What `python train.py key=value ...` understands. The defaults are the paper's (Sec. 5.3) where it has
    one.
    """

    dataset: str = key("e2e", "e2e, webnlg, dart, xsum, xsum-news-to-sports, xsum-within-news or bbc")
    model: str = key("weights/gpt2-mini", "frozen LM: a folder or hub id (for xsum: weights/bart-mini)")
    method: str = key("prefix", "prefix, infix, embedding, full, top2, adapter or lora")
    sites: str = key("", "where a prefix goes, such as decoder+cross; empty: all places")
    bottleneck: int = key(6, "inner width of an adapter, or LoRA's rank", least=1)
    prefix_len: int = key(10, "|P|, slots of the prefix", least=1)
    mlp_hidden: int = key(512, "k of Sec. 4.3; 0 trains P_theta directly, without the MLP")
    init: str = key("random", "random, or words whose activations start the prefix (Sec. 7.4)")
    lr: float = key(5e-5, "step size at the start; it falls to 0 in a line", least=1e-12, most=1000)
    epochs: int = key(10, "passes over the training pairs", least=1)
    max_steps: int = key(0, "stop after so many steps even if epochs remain; 0: no limit")
    batch_size: int = key(5, "training pairs a step", least=1)
    loss: str = key("token", "token: mean over y's tokens; sum: summed over tokens, mean over pairs")
    weight_decay: float = key(0.0, "AdamW's", most=1)
    clip: float = key(1.0, "largest norm of a step's gradient", least=1e-12, most=1000)
    seed: int = key(0, "of the start and of the order of the data")
    bf16: bool = key(False, "bfloat16 autocast; faster only where the processor has it")
    device: str = key("cpu", "cpu or cuda")
    data: str = key("auto", "auto, download, sample, or a folder with the data set's files")
    max_source: int = key(0, "cut sources to so many tokens, BOS and EOS included; 0: uncut")
    max_target: int = key(0, "cut training targets likewise")
    n_train: int = key(0, "train on so many pairs; 0: all")
    subset: int = key(0, "which random n_train pairs")
    eval_every: int = key(100, "steps between two looks at the dev loss", least=1)
    dev_limit: int = key(200, "dev pairs for the dev loss", least=1)
    eval_limit: int = key(0, "test records to describe at the end; 0: all")
    beams: int = key(5, "of the beam search; 1 is greedy", least=1, most=1000)
    length_penalty: float = key(1.0, "alpha in sum log p / |y|^alpha", least=-20, most=20)
    max_new_tokens: int = key(100, "longest text", least=1)
    min_new_tokens: int = key(0, "shortest text")
    save_seconds: int = key(60, "a killed run loses at most this much time")
    out: str = key("", "where the prefix goes; default DATASET.pt")
    resume: str = key("", "a run's .state.pt: go on with its settings, to the same result")


# Presets are looked up by data set, by method, and by both; the later ones win.

# How the paper cuts and decodes XSum (Sec. 5.3), whatever the model and method.
XSUM = {"max_source": 512, "max_target": 60, "min_new_tokens": 11, "max_new_tokens": 62}
XSUM |= {"beams": 6, "length_penalty": 0.8}

# Appendix A of the paper: prefix-tuning GPT-2 medium and large, and BART-large. Other methods: the defaults.
PAPER = {
    "xsum": XSUM,
    ("e2e", "prefix"): {"lr": 8e-5, "epochs": 5, "batch_size": 10, "prefix_len": 5},
    ("webnlg", "prefix"): {"lr": 5e-5, "epochs": 5, "batch_size": 5, "prefix_len": 5},
    ("dart", "prefix"): {"lr": 5e-5, "epochs": 10, "batch_size": 5, "prefix_len": 10},
    ("xsum", "prefix"): {"lr": 5e-5, "epochs": 30, "batch_size": 14, "prefix_len": 100, "mlp_hidden": 800},
}

# The bundled models are fifty times smaller and learn at larger rates: of E2E's grids in experiments/, or
# near them (an adapter's falls with its width). 800 steps are a third of an epoch of E2E, and minutes on two
# cores.
MINI = {name: {"epochs": 5, "max_steps": 800, "batch_size": 16} for name in ("e2e", "webnlg", "dart")}
MINI |= {
    "xsum": XSUM | {"max_steps": 300, "batch_size": 16, "max_source": 128},
    "prefix": {"lr": 2e-3},
    "direct": {"lr": 3e-2},  # prefix with mlp_hidden=0
    "infix": {"lr": 2e-3},
    "embedding": {"lr": 1e-2},
    "full": {"lr": 1e-3, "max_steps": 400},  # a step costs twice one of prefix
    "top2": {"lr": 2e-3},
    "adapter": {"lr": 2e-2},
    "lora": {"lr": 1e-2},
}


def parse_config(arguments: list[str]) -> Config:
    """Config from key=value arguments, over the presets of their data set, model and method."""
    given = dict(parse_argument(argument) for argument in arguments)
    task = find_task(given.get("dataset", Config.dataset))
    if task == "xsum":
        given = {"model": "weights/bart-mini"} | given
    base = Config(**{name: given[name] for name in ("dataset", "model", "method") if name in given})
    presets = MINI if base.model.rstrip("/").endswith(("gpt2-mini", "bart-mini")) else PAPER
    method = "direct" if base.method == "prefix" and given.get("mlp_hidden") == 0 else base.method
    preset = {}
    for name in (task, method, (task, method)):
        preset |= presets.get(name, {})
    config = dataclasses.replace(base, **(preset | given))
    check(config)
    return config if config.out else dataclasses.replace(config, out=f"{config.dataset}.pt")


def find_task(dataset: str) -> str:
    """The data set whose presets and metrics count: xsum for its parts and for bbc, else itself."""
    name = dataset.partition("-")[0]
    return "xsum" if name == "bbc" else name


def parse_argument(argument: str) -> tuple[str, object]:
    name, equals, value = argument.partition("=")
    name = name.lstrip("-")
    fields = {field.name: field for field in dataclasses.fields(Config)}
    if name not in fields:
        raise InputError(f"unknown key '{name}'; {nearest(name, fields)}")
    if not equals:
        raise InputError(f"'{argument}' has no value: write {name}=VALUE")
    return name, parse_value(name, fields[name].type, value)


def parse_value(name: str, kind: type, value: str) -> object:
    if kind is bool:
        if value.lower() not in ("true", "false", "1", "0"):
            raise InputError(f"{name}={value} must be true or false")
        return value.lower() in ("true", "1")
    try:
        return kind(value)
    except ValueError:
        wanted = {int: "a whole number", float: "a number"}[kind]
        raise InputError(f"{name}={value} must be {wanted}") from None


def restore_config(values: dict) -> Config:
    """The Config that a file holds; InputError where a key or the type or range of a value is wrong."""
    kinds = {field.name: field.type for field in dataclasses.fields(Config)}
    if {name: type(value) for name, value in values.items()} != kinds:
        raise InputError("the state to resume is damaged or of another version: start anew")
    check(config := Config(**values))
    return config


def check(c: Config) -> None:
    """InputError for a value out of its range, before anything is loaded."""
    for field in dataclasses.fields(Config):
        if field.type in (int, float):
            check_range(field.name, getattr(c, field.name), *field.metadata["range"])
    checks = (
        (c.min_new_tokens <= c.max_new_tokens, f"min_new_tokens={c.min_new_tokens} is above max_new_tokens"),
        (c.device.split(":")[0] in ("cpu", "cuda"), f"device={c.device} must be cpu or cuda"),
        (c.init.strip(), "init= has no words: give random, or words to start from"),
        (c.init == "random" or c.method not in CHANGES, f"method={c.method} has no prefix: leave init= out"),
        (not c.sites or c.method not in CHANGES, f"method={c.method} has no prefix: leave sites= out"),
        (not c.out or c.out.endswith(".pt"), f"out={c.out} must end in .pt"),
        (not c.out.endswith(".state.pt"), f"out={c.out} is the name of a state: choose another one"),
        (c.loss in ("token", "sum"), f"loss={c.loss} must be token or sum"),
    )
    for good, problem in checks:
        if not good:
            raise InputError(problem)


def describe_keys() -> str:
    """Each key, its default and what it is, in lines of at most 79 columns."""
    lines = []
    for field in dataclasses.fields(Config):
        left, text = f"  {field.name}={field.default}", field.metadata["help"]
        lines += [textwrap.fill(text, 79, initial_indent=f"{left:<28} ", subsequent_indent=" " * 29)]
    return "\n".join(lines)
