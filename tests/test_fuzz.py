"""Whatever the bytes, a reader gives a valid result or an InputError: valid files, mutated at random.

The examples are the same in each run; MINPREFIX_FUZZ=1000 tries so many of each instead.
"""

import os
import shutil
import string
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import sample
from minprefix.config import Config, parse_config
from minprefix.data import DATASETS
from minprefix.errors import InputError
from minprefix.hub import load_lm
from minprefix.prefix import SavedPrefix
from minprefix.readers import Record, read_e2e
from minprefix.store import load_prefix, save_prefix

EXAMPLES = int(os.environ.get("MINPREFIX_FUZZ", "60"))
fuzz = settings(
    max_examples=EXAMPLES,
    derandomize="MINPREFIX_FUZZ" not in os.environ,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
# A place as a fraction of the file, how much of it to cut, what to put: damage, and what confuses parsers.
ODD = [
    b"",
    b"\0",
    b"\xff",
    b'"',
    b",",
    b"\n",
    b"[",
    b"}",
    b"-1",
    b"1e999",
    b"NaN",
    b"9" * 30,
    b"null",
    b"true",
]
EDITS = st.lists(
    st.tuples(
        st.floats(0, 1), st.sampled_from([0, 1, 2, 8, 10**6]), st.sampled_from(ODD) | st.binary(max_size=4)
    ),
    min_size=1,
    max_size=4,
)


def mutate(content: bytes, edits: list[tuple[float, int, bytes]]) -> bytes:
    for place, length, new in edits:
        start = int(place * len(content))
        content = content[:start] + new + content[start + length :]
    return content


def read_or_refuse(read, *arguments):
    """What the reader gives, or None where it refuses in one sentence; any other exception is a failure."""
    try:
        return read(*arguments)
    except InputError as error:
        assert str(error) and "\n" not in str(error)
        return None


@pytest.fixture(scope="module")
def folder(tiny_folder, tmp_path_factory) -> Path:
    shutil.copytree(tiny_folder, path := tmp_path_factory.mktemp("fuzz") / "model")
    return path


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "vocab.json", "merges.txt"])
def test_a_mutated_checkpoint(name, folder):
    good = (folder / name).read_bytes()
    head = good[:2000]  # of the weights: the header, where a change matters

    @fuzz
    @given(edits=EDITS)
    def check(edits):
        (folder / name).write_bytes(mutate(head, edits) + good[2000:])
        if loaded := read_or_refuse(load_lm, folder):
            lm, tokenizer = loaded
            assert lm(torch.tensor([tokenizer.encode("a b")])).isfinite().all()

    check()
    (folder / name).write_bytes(good)


def test_a_mutated_prefix(tmp_path):
    base = {"name": "tiny", "config": {}, "fingerprint": "0" * 16}
    site = {"decoder": torch.arange(64.0).reshape(2, 32)}
    save_prefix(SavedPrefix("prefix", site, "shifted", base, {"beams": 5}, {}, "e2e"), tmp_path / "a.pt")
    good = (tmp_path / "a.pt").read_bytes()

    @fuzz
    @given(edits=EDITS)
    def check(edits):
        (tmp_path / "b.pt").write_bytes(mutate(good, edits))
        prefix = read_or_refuse(load_prefix, tmp_path / "b.pt")
        assert prefix is None or all(P.ndim == 2 and P.isfinite().all() for P in prefix.sites.values())

    check()


def assert_records(records: list[Record] | None) -> None:
    for record in records or ():
        assert record.source.strip() and all(text.strip() for text in record.references)
        record.source.encode()


def test_a_mutated_data_file(tmp_path):
    good = 'mr,ref\n"name[Blue Fig], food[Thai]",Thai food.\nname[Café],"a\nb"\n'.encode()

    @fuzz
    @given(edits=EDITS)
    def check(edits):
        (tmp_path / "train.csv").write_bytes(mutate(good, edits))
        assert_records(read_or_refuse(read_e2e, tmp_path / "train.csv"))

    check()


GOOD_INPUTS = {
    "in.txt": b'name : Blue Fig | food : Thai\nname[Blue Fig], food[Thai]\n{"name": "Caf\xc3\xa9"}\n',
    "in.json": b'[{"name": "Blue Fig", "price": 3}, {"name": "B", "near": null}]',
    "in.csv": b'name,food\nBlue Fig,Thai\n"A, B",\n',
}


@pytest.mark.parametrize("name", GOOD_INPUTS)
def test_a_mutated_input(name, tmp_path):
    @fuzz
    @given(edits=EDITS)
    def check(edits):
        (tmp_path / name).write_bytes(mutate(GOOD_INPUTS[name], edits))
        assert_records(read_or_refuse(sample.read_input, str(tmp_path / name), "e2e"))

    check()


WORDS = st.sampled_from(
    ["", "0", "-1", "1e400", "nan", "٣", "1_0", "9" * 5000, "true", "e2e", "a.pt", "\ud800"]
)
ARGUMENTS = st.lists(
    st.tuples(
        st.sampled_from([*Config.__dataclass_fields__, "", "--lr"]), WORDS | st.text(string.printable)
    ).map("=".join)
    | st.text(max_size=20),
    max_size=5,
)


@fuzz
@given(arguments=ARGUMENTS)
def test_any_arguments_of_train(arguments):
    config = read_or_refuse(parse_config, arguments)
    assert config is None or (config.batch_size >= 1 and 0 < config.lr <= 1000 and config.out.endswith(".pt"))


GOOD_SETS = {
    "dart": ("train.json", b'[{"tripleset": [["A", "in", "B"]], "annotations": [{"text": "A is in B."}]}]'),
    "xsum": ("train.jsonl", b'{"document": "A b.", "summary": "B", "url": "https://bbc.co.uk/news/uk-1"}\n'),
    "webnlg": (
        "webnlg/train/a.xml",
        b'<benchmark><entries><entry category="Food" eid="1"><modifiedtripleset><mtriple>A | in | B</mtriple>'
        b"</modifiedtripleset><lex>A is in B.</lex></entry></entries></benchmark>",
    ),
}


@pytest.mark.parametrize("dataset", GOOD_SETS)
def test_a_mutated_file_of_another_data_set(dataset, tmp_path):
    name, good = GOOD_SETS[dataset]
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    read, place = DATASETS[dataset].read, path.parents[1] if dataset == "webnlg" else path
    path.write_bytes(good)
    assert len(read(place, "train")) == 1

    @fuzz
    @given(edits=EDITS)
    def check(edits):
        path.write_bytes(mutate(good, edits))
        assert_records(read_or_refuse(read, place, "train"))

    check()
