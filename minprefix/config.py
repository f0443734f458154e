"""The settings of a run: each declared once, with its default, bounds and help; key=value sets them."""

import dataclasses
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass

from minprefix.checks import STRICT, InputError, build, explain, refuse_twins
from minprefix.generate import Decoding
from minprefix.prefix import PREFIXES, Method

MOST = 2**20
Dtype = Literal["auto", "float32", "bfloat16"]
DECODING = tuple(Decoding.__pydantic_fields__)
# Keys that mean something only with these values of another one.
NEEDS = [("prefix_len", "method", PREFIXES), ("mlp_hidden", "method", ("prefix", "infix"))]
NEEDS += [("bottleneck", "method", ("adapter", "lora")), ("subset", "n_train", range(1, MOST + 1))]
NEEDS += [(key, "beams", range(2, MOST)) for key in ("length_penalty", "early_stopping")]


@dataclass(frozen=True, config=STRICT)
class Config(Decoding):
    """What `python train.py key=value ...` understands: these, and how texts are decoded in the end.

    The defaults are the paper's (Sec. 5.3) where it has one.
    """

    dataset: str = Field("e2e", description="a file of tasks/, such as e2e, webnlg, dart, xsum or pairs")
    model: str = Field("weights/gpt2-mini", description="frozen LM: a folder or hub id")
    method: Method = Field("prefix", description="prefix, infix, embedding, full, top2, adapter or lora")
    sites: str = Field("", description="where a prefix goes, such as decoder+cross; empty: all places")
    bottleneck: int = Field(6, ge=1, le=MOST, description="inner width of an adapter, or LoRA's rank")
    prefix_len: int = Field(10, ge=1, le=MOST, description="|P|, slots of the prefix")
    mlp_hidden: int = Field(512, ge=0, le=MOST, description="k of Sec. 4.3; 0 trains P_theta without the MLP")
    init: str = Field("random", pattern=r"\S", description="random, or words it starts as (Sec. 7.4)")
    lr: float = Field(5e-5, ge=1e-12, le=1000, description="step size at the start; it falls to 0 in a line")
    epochs: int = Field(10, ge=1, le=MOST, description="passes over the training pairs")
    max_steps: int = Field(0, ge=0, le=MOST, description="stop after so many steps; 0: no limit")
    batch_size: int = Field(5, ge=1, le=MOST, description="training pairs a step")
    loss: Literal["token", "sum"] = Field("token", description="mean over y's tokens; sum: their sum a pair")
    weight_decay: float = Field(0.0, ge=0, le=1, description="AdamW's")
    clip: float = Field(1.0, ge=1e-12, le=1000, description="largest norm of a step's gradient")
    dtype: Dtype = Field("auto", description="of frozen weights; auto: bfloat16 where that gains")
    device: str = Field("cpu", pattern=r"^(cpu|cuda(:\d+)?)$", description="cpu or cuda")
    data: str = Field("auto", description="auto, download, sample, or a file or folder with the data")
    source_key: str = Field("", description="dataset=pairs: the column of x, if it has an unusual name")
    target_key: str = Field("", description="dataset=pairs: the column of y, likewise")
    max_source: int = Field(0, ge=0, le=MOST, description="cut sources to so many tokens; 0: uncut")
    max_target: int = Field(0, ge=0, le=MOST, description="cut training targets likewise")
    n_train: int = Field(0, ge=0, le=MOST, description="train on so many pairs at most; 0: all")
    subset: int = Field(0, ge=0, le=MOST, description="which random n_train pairs")
    eval_every: int = Field(100, ge=1, le=MOST, description="steps between two looks at the dev loss")
    keep: Literal["best", "last"] = Field("best", description="theta of the least dev loss, or the last")
    patience: int = Field(0, ge=0, le=MOST, description="stop after so many looks without gain; 0: never")
    dev_limit: int = Field(200, ge=1, le=MOST, description="dev pairs for the dev loss")
    eval_limit: int = Field(0, ge=0, le=MOST, description="test records to describe at the end; 0: all")
    save_seconds: int = Field(60, ge=0, le=MOST, description="a killed run loses at most this much time")
    out: str = Field("", description="where the prefix goes; default DATASET.pt")
    resume: str = Field("", description="a run's .state.pt: go on with its settings, to the same result")

    def __post_init__(self):
        super().__post_init__()
        if (self.init, self.sites) != ("random", "") and self.method not in PREFIXES:
            raise InputError(f"method={self.method} has no prefix: leave init= and sites= out")
        if self.source_key and self.source_key == self.target_key:
            raise InputError(f"source_key and target_key are both {self.source_key!r}: give two columns")
        if self.out and (Path(self.out).suffix != ".pt" or self.out.endswith(".state.pt")):
            raise InputError(f"out={self.out} must end in .pt, and not in .state.pt, as unfinished runs do")

    def weights(self) -> torch.dtype | None:
        """What `load_lm` takes; None leaves the choice to it."""
        return None if self.dtype == "auto" else getattr(torch, self.dtype)

    def decoding(self) -> dict:
        """What `generate` takes."""
        return {name: getattr(self, name) for name in DECODING}


def parse_config(arguments: list[str], choose_presets: Callable[[Config], dict]) -> Config:
    """Config from key=value arguments, over the presets that suit their data set, model and method."""
    given = parse_arguments(arguments)
    config = overlay(choose_presets(build(Config, given, text=True)), given)
    return config if config.out else dataclasses.replace(config, out=f"{config.dataset}.pt")


def overlay(chosen: dict, given: dict[str, str], needs: list = NEEDS) -> Config:
    """Config of what a person gave, over what was chosen for her, of which the shortest length gives way.

    InputError where a key that is given means nothing; where another method would heed it, a warning, for
    methods that are compared share their settings.
    """
    texts = {name: str(value) for name, value in chosen.items() if value is not None}
    if "max_new_tokens" in given:
        longest = build(Decoding, {"max_new_tokens": given["max_new_tokens"]}, text=True).max_new_tokens
        texts["min_new_tokens"] = str(min(longest, chosen.get("min_new_tokens", 0)))
    config = build(Config, texts | given, text=True)
    for key, other, values in needs:
        if key in given and (value := getattr(config, other)) not in values:
            text = f"{key} means nothing with {other}={value}: leave it out"
            if other != "method":
                raise InputError(text)
            warnings.warn(text, stacklevel=3)
    return config


def parse_arguments(arguments: list[str]) -> dict[str, str]:
    """Key -> value as typed, of key=value or --key=value. InputError for a key without a value, or twice."""
    if bare := [word for word in arguments if "=" not in word or word.lstrip("-") == "resume="]:
        raise InputError(f"'{bare[0]}' has no value: write key=value; python train.py --help lists the keys")
    with explain(ValueError, "each key may be given once", "leave one of them out"):
        given = refuse_twins([argument.lstrip("-").split("=", 1) for argument in arguments])
    return given


def restore_config(values: dict) -> Config:
    """The Config that a file holds; InputError where a key or the type or range of a value is wrong."""
    place = "the state to resume is damaged or of another version, start anew: "
    return build(Config, translate(values), place)


def translate(values: dict) -> dict:
    """Settings of an older file in the words of today: it had bf16 for dtype, and kept the last step."""
    dtype = "bfloat16" if values.get("bf16") is True else "float32"
    added = {} if "keep" in values else {"dtype": dtype, "keep": "last", "patience": 0}
    return added | {name: value for name, value in values.items() if name != "bf16"}


def describe_keys() -> str:
    """Each key, its default and what it is."""
    mine = {name: field for name, field in Config.__pydantic_fields__.items() if name not in DECODING}
    fields = (mine | Config.__pydantic_fields__).items()
    defaults = {name: "" if field.default is None else field.default for name, field in fields}
    return "\n".join(f"  {f'{name}={defaults[name]}':<26} {field.description}" for name, field in fields)
