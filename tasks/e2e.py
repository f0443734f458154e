"""E2E NLG Challenge (Novikova et al. 2017): restaurants, with up to 46 texts each.

`name[Blue Spice], eatType[pub]` becomes `name : Blue Spice | Type : pub`, the authors' format.
"""

import re

from minprefix.checks import nearest, refuse_twins
from tasks import DataFiles, Record, Task, merge
from tasks.metrics import bleu, cider, nist, rouge_l
from tasks.rows import read_rows, tidy

KEYS = ("name", "Type", "food", "price", "customer rating", "area", "family friendly", "near")
RENAMED = {"eatType": "Type", "priceRange": "price", "familyFriendly": "family friendly"}  # official -> ours
IGNORED = ("ref", "references")
# key[value]; a value may hold commas. A + behind a + never gives back: odd texts take no longer than others.
ATTRIBUTE = r"\s*+([^\[\],]++)\[([^\[\]]++)\]\s*+(?:,|$)"


def read(files: DataFiles, split: str) -> list[Record]:
    """One record per MR, with all references. Raises InputError with file and line."""
    return merge(read_rows(make, files.paths[split]))


def make(row: dict) -> Record:
    return Record(linearise(row), (tidy(row["ref"]),))


def linearise(row: dict) -> str:
    """The source for a row with an mr, or with E2E's official or our keys; empty values and references are
    left out. ValueError for an unknown key and for a value that is neither text nor a number."""
    filled = [(key, value) for key, value in row.items() if value is not None and str(value).strip()]
    filled = [(key, value) for key, value in filled if key or not str(value).isdigit()]  # pandas' numbers
    ours = [(RENAMED.get(key, key), value) for key, value in filled if key.lower() not in IGNORED]
    given = refuse_twins(ours)
    if [key.lower() for key in given] == ["mr"]:
        return parse_mr(*given.values())
    if unknown := [key for key in given if key not in KEYS]:
        hint = nearest(unknown[0], ["mr", *KEYS, *RENAMED])
        raise ValueError(f"unknown key {unknown[0][:100]!r}; {hint}")
    if not given:
        raise ValueError("the record is empty; give it at least a name")
    texts = {key: tidy(str(value) if type(value) in (int, float) else value) for key, value in given.items()}
    return " | ".join(f"{name} : {text}" for name, text in texts.items())


def parse_mr(mr: str) -> str:
    """The source for key[value], key[value], ..., in that order; ValueError for anything else."""
    if not re.fullmatch(f"({ATTRIBUTE})+", mr):
        raise ValueError(f"malformed record {mr[:100]!r}; write name[...], food[...]")
    return linearise(refuse_twins(re.findall(ATTRIBUTE, mr)))


def parse_line(text: str) -> str:
    """A typed MR, or a text as it stands."""
    return parse_mr(text) if "[" in text else tidy(text)


E2E = Task(
    name="e2e",
    files=(("trainset.csv", "train.csv"), ("devset.csv", "dev.csv"), ("testset_w_refs.csv", "test.csv")),
    digests=(
        "f27d48df45815288ab15619d47a79028c300fbb7f42e373668aba0b98c1d57c6",
        "fc26b78cdb849c80545f513b223d1e051138b43882eeb79e3eb153e689c864f9",
        "edc8db685e39bb9824d5bd70c18b1c9b0412d14b527aa960e2d1c8251ee15ccd",
    ),
    url="https://raw.githubusercontent.com/tuetschek/e2e-dataset/master/",
    read=read,
    linearise=linearise,
    parse_line=parse_line,
    metrics=(bleu, nist, rouge_l, cider),
    paper={"lr": 8e-5, "epochs": 5, "batch_size": 10, "prefix_len": 5},
)
