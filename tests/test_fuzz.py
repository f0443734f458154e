"""Whatever the bytes, a reader gives a valid result or an InputError: valid files, mutated at random.

The examples are the same in each run; MINPREFIX_FUZZ=1000 tries so many of each instead. What stands in data
files is mutated in test_tasks.py.
"""

import itertools
import json
import os
import shutil
import string
import time
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import sample
from minprefix import InputError, load_lm, load_prefix, save_prefix
from minprefix.config import Config, parse_config
from minprefix.prefix import SavedPrefix
from tasks import choose_presets, find_task, parse_input

fuzz = settings(
    max_examples=int(os.environ.get("MINPREFIX_FUZZ", "60")),
    derandomize="MINPREFIX_FUZZ" not in os.environ,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
# A place as a fraction of the file, how much of it to cut, what to put: damage, and what confuses parsers.
ODD = [b"", b'"', *b"\0 \xff , [ } -1 1e999 NaN 999999999999999999999999999999 null true".split(), b"\n"]
NEW = st.sampled_from(ODD) | st.binary(max_size=4)
EDIT = st.tuples(st.floats(0, 1), st.sampled_from([0, 1, 2, 8, 10**6]), NEW)
EDITS = st.lists(EDIT, min_size=1, max_size=4)


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
    """model/ and its prefix a.pt."""
    home = tmp_path_factory.mktemp("fuzz")
    shutil.copytree(tiny_folder, home / "model")
    lm, _ = load_lm(home / "model")
    base = {"name": str(home / "model"), "config": {}, "fingerprint": lm.config.fingerprint}
    sites = {"decoder": torch.arange(64.0).reshape(2, 32)}
    save_prefix(SavedPrefix("prefix", sites, "shifted", base, {"beams": 5}, {}, "e2e"), home / "a.pt")
    return home


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "vocab.json", "merges.txt"])
@fuzz
@given(edits=EDITS)
def test_a_mutated_checkpoint(name, edits, tiny_folder, folder):
    good = (tiny_folder / name).read_bytes()
    head = good[:2000]  # of the weights: the header, where a change matters
    (folder / "model" / name).write_bytes(mutate(head, edits) + good[2000:])
    try:
        if loaded := read_or_refuse(load_lm, folder / "model"):
            lm, tokenizer = loaded
            logits = lm(torch.tensor([tokenizer.encode("a b")]))
            # A changed weight may be finite and absurd.
            assert name == "model.safetensors" or logits.isfinite().all()
    finally:
        (folder / "model" / name).write_bytes(good)


@fuzz
@given(edits=EDITS)
def test_a_mutated_prefix(edits, folder):
    (folder / "b.pt").write_bytes(mutate((folder / "a.pt").read_bytes(), edits))
    prefix = read_or_refuse(load_prefix, folder / "b.pt")
    assert prefix is None or all(P.ndim == 2 and P.isfinite().all() for P in prefix.sites.values())


INPUT = b'name : Blue Fig | food : Thai\nname[Blue Fig], food[Thai]\n{"name": "Caf\xc3\xa9"}\n'


@fuzz
@given(edits=EDITS)
def test_a_mutated_input_of_sample(edits, folder):
    (folder / "in.txt").write_bytes(mutate(INPUT, edits))
    out, quick = folder / "out.jsonl", ["--beams", "1", "--max-new-tokens", "1"]
    paths = ["--prefix", str(folder / "a.pt"), "--input", str(folder / "in.txt"), "--output", str(out)]
    read_or_refuse(sample.main, paths + quick)
    if out.exists():
        assert all(json.loads(line)["source"].strip() for line in out.read_text().splitlines())
        out.unlink()


# What stands around a long text: in each kind of file as it should be, and where it should not.
FRAMES = {
    "in.txt": ["{}", "name : {}", "name[{}]", "{}[A]", "name[A], {}", "name[A]\n{}\n"],
    "in.json": ['{{"name": "{}"}}', '{{"{}": "A"}}', "[{}]", '[{{"name": "A"}}, {}', "{}", '{{"name": {}}}'],
    "in.jsonl": ['{{"name": "A"}}\n{}', '{{"name": "{}"}}', '{{"name": "A", "{}": 1}}\n', "{}"],
    "in.csv": ["name\n{}", 'name\n"{}"', "{}\nA", "name,food\nA,{}\n", 'name\n"{}', 'name\nA\n"B"{}'],
}
UNITS = [
    "a",
    "1",
    " ",
    "\n",
    " \n",
    "(",
    "[",
    "{",
    "]",
    "}",
    "'",
    '"',
    ",",
    "|",
    ":",
    "é",
    "a ",
    "[]",
    '",',
    "\\",
    "-",
]
UNITS += [
    "a[b], ",
    '{"name": "A"}\n',
    '{"name": "A"},',
    "A,B\n",
    "name : A | ",
    '"a": 1, ',
    "name[A]\n",
    "a-b--",
]


@pytest.mark.parametrize("dataset", ["e2e", "xsum"])
@pytest.mark.parametrize("name", FRAMES)
def test_reading_takes_time_in_proportion_to_the_text(name, dataset):
    """A million characters of anything are read in seconds; where time grew with their square, in hours."""
    for unit, frame in itertools.product(UNITS, FRAMES[name]):
        text, began = frame.format(unit * (1_000_000 // len(unit))), time.process_time()
        read_or_refuse(parse_input, text, name, find_task(dataset))
        took = time.process_time() - began
        assert took < 20, f"{unit!r} in {frame!r} took {took:.0f} s"


WORDS = st.sampled_from(["", "0", "-1", "1e400", "nan", "٣", "1_0", "9" * 5000, "true", "a.pt", "\ud800"])
KEYS = st.sampled_from([*Config.__dataclass_fields__, "", "--lr"])
PAIR = st.tuples(KEYS, WORDS | st.text(string.printable)).map("=".join)


@fuzz
@given(arguments=st.lists(PAIR | st.text(max_size=20), max_size=5))
def test_any_arguments_of_train(arguments):
    config = read_or_refuse(parse_config, arguments, choose_presets)
    assert config is None or (config.batch_size >= 1 and 0 < config.lr <= 1000 and config.out.endswith(".pt"))
