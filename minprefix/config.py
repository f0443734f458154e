"""The settings of a run: defaults, presets with a source for each number, and key=value on top."""

import dataclasses
import difflib
from dataclasses import dataclass

from minprefix.errors import InputError


def key(default, text: str):
    return dataclasses.field(default=default, metadata={"help": text})


@dataclass(frozen=True)
class Config:
    """What `python train.py key=value ...` understands. The defaults are the paper's (Sec. 5.3) where it has
    one.
    """

    dataset: str = key("e2e", "what to learn: e2e")
    model: str = key("weights/gpt2-mini", "frozen LM: a folder or hub id, such as gpt2-medium")
    method: str = key("prefix", "prefix, infix, embedding or full")
    prefix_len: int = key(10, "|P|, slots of the prefix")
    mlp_hidden: int = key(512, "k of Sec. 4.3; 0 trains P_theta directly, without the MLP")
    init: str = key("random", "random, or words whose activations start the prefix (Sec. 7.4)")
    lr: float = key(5e-5, "learning rate at the start; it falls to 0 in a straight line")
    epochs: int = key(10, "passes over the training pairs")
    max_steps: int = key(0, "stop after so many steps even if epochs remain; 0: no limit")
    batch_size: int = key(5, "training pairs a step")
    loss: str = key("token", "token: mean over y's tokens; sum: summed over tokens, mean over pairs")
    weight_decay: float = key(0.0, "AdamW's")
    clip: float = key(1.0, "largest norm of a step's gradient")
    seed: int = key(0, "of the start and of the order of the data")
    bf16: bool = key(False, "bfloat16 autocast; faster only where the processor has it")
    device: str = key("cpu", "cpu or cuda")
    data: str = key("auto", "auto, download, sample, or a folder with the data set's files")
    n_train: int = key(0, "train on so many pairs; 0: all")
    subset: int = key(0, "which random n_train pairs")
    eval_every: int = key(100, "steps between two looks at the dev loss")
    dev_limit: int = key(200, "dev pairs for the dev loss")
    eval_limit: int = key(0, "test records to describe at the end; 0: all")
    beams: int = key(5, "of the beam search; 1 is greedy")
    length_penalty: float = key(1.0, "alpha in sum log p / |y|^alpha")
    max_new_tokens: int = key(100, "longest text")
    save_seconds: int = key(60, "a killed run loses at most this much time")
    out: str = key("", "where the prefix goes; default DATASET.pt")
    resume: str = key("", "a run's .state.pt: go on with its settings, to the same result")


# Appendix A of the paper, for prefix-tuning GPT-2 medium and large; its other methods have the defaults.
PAPER = {("e2e", "prefix"): {"lr": 8e-5, "epochs": 5, "batch_size": 10, "prefix_len": 5}}

# The bundled model is fifty times smaller than GPT-2 medium and learns at larger rates: those of prefix,
# direct and full were chosen by dev BLEU in experiments/e2e.py, the others are untuned. 800 steps are a third
# of an epoch of E2E, and minutes on two cores.
MINI = {
    ("e2e", "prefix"): {"lr": 2e-3, "epochs": 5, "max_steps": 800, "batch_size": 16},
    ("e2e", "direct"): {"lr": 3e-2, "epochs": 5, "max_steps": 800, "batch_size": 16},
    ("e2e", "infix"): {"lr": 2e-3, "epochs": 5, "max_steps": 800, "batch_size": 16},
    ("e2e", "embedding"): {"lr": 1e-2, "epochs": 5, "max_steps": 800, "batch_size": 16},
    ("e2e", "full"): {"lr": 1e-3, "epochs": 5, "max_steps": 400, "batch_size": 16},
}


def parse_config(arguments: list[str]) -> Config:
    """Config from key=value arguments, over the preset of their data set, model and method."""
    given = dict(parse_argument(argument) for argument in arguments)
    base = Config(**{name: given[name] for name in ("dataset", "model", "method") if name in given})
    presets = MINI if base.model.rstrip("/").endswith("gpt2-mini") else PAPER
    direct = base.method == "prefix" and given.get("mlp_hidden") == 0
    preset = presets.get((base.dataset, "direct" if direct else base.method), {})
    config = dataclasses.replace(base, **(preset | given))
    check(config)
    return config if config.out else dataclasses.replace(config, out=f"{config.dataset}.pt")


def parse_argument(argument: str) -> tuple[str, object]:
    name, equals, value = argument.partition("=")
    name = name.lstrip("-")
    fields = {field.name: field for field in dataclasses.fields(Config)}
    if name not in fields:
        close = difflib.get_close_matches(name, fields, n=1)
        hint = f"did you mean {close[0]}=?" if close else "python train.py --help lists the keys"
        raise InputError(f"unknown key '{name}': {hint}")
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


def check(config: Config) -> None:
    """InputError for a value out of its range, before anything is loaded."""
    at_least = dict.fromkeys(
        ("prefix_len", "epochs", "batch_size", "eval_every", "dev_limit", "beams", "max_new_tokens"), 1
    )
    at_least |= dict.fromkeys(("mlp_hidden", "max_steps", "n_train", "eval_limit", "seed", "subset"), 0)
    for name, least in at_least.items():
        if not least <= getattr(config, name) < 2**20:
            raise InputError(f"{name}={getattr(config, name)} must be at least {least} and below 2^20")
    for name in ("lr", "clip"):
        if not 0 < getattr(config, name) <= 1000:
            raise InputError(f"{name}={getattr(config, name)} must be above 0 and at most 1000")
    if not 0 <= config.weight_decay <= 1:
        raise InputError(f"weight_decay={config.weight_decay} must lie between 0 and 1")
    if not abs(config.length_penalty) <= 20:
        raise InputError(f"length_penalty={config.length_penalty} must lie between -20 and 20")
    if config.device.split(":")[0] not in ("cpu", "cuda"):
        raise InputError(f"device={config.device} must be cpu or cuda")
    if not config.init.strip():
        raise InputError("init= has no words: give random, or words to start from")
    if config.out and not config.out.endswith(".pt"):
        raise InputError(f"out={config.out} must end in .pt")
    if config.loss not in ("token", "sum"):
        raise InputError(f"loss={config.loss} must be token or sum")


def describe_keys() -> str:
    """One line for each key: its default and what it is."""
    lines = (
        (f"{field.name}={field.default}", field.metadata["help"]) for field in dataclasses.fields(Config)
    )
    return "\n".join(f"  {left:<26} {text}" for left, text in lines)
