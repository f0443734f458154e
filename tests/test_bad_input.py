"""Wrong input is one sentence and exit code 2, at once, and the user's files stay as they are.

Each row of the table spoils one thing in a folder where everything works, and names the command and words of
its message. What else a file may hold is in test_hub, test_store, test_tokenizer and test_tasks.
"""

import hashlib
import json
import shlex
import shutil
import subprocess
import sys
import time
import tomllib
import zipfile
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import sample
import train
from minprefix import InputError, from_peft, generate, load_lm, load_prefix, save_prefix, to_peft
from minprefix.methods import make_theta
from tests.runs import ROOT, make_folder, stop_in_evaluation

COMMANDS = {"train": train.main, "sample": sample.main}
SAMPLE = "sample --prefix good.pt --input in.txt"
DESCRIBE = "sample --prefix good.pt"
TRAIN = "train model=model data=data batch_size=4 lr=0.01 prefix_len=3 mlp_hidden=0 max_steps=2 eval_limit=1"
TRAIN += " beams=2 max_new_tokens=4 out=new.pt"
WEIGHTS, CONFIG = "model/model.safetensors", "model/config.json"
VOCAB, MERGES = "model/vocab.json", "model/merges.txt"
STATE = "run/e2e.state.pt"
RESUME = f"train resume={STATE}"


# --- the folder where everything works ---


@pytest.fixture(scope="module")
def good(tiny_folder, tmp_path_factory) -> Path:
    """model/, data/, in.txt, good.pt, and run/ with the state of a run that was stopped in its evaluation."""
    folder = make_folder(tiny_folder, tmp_path_factory.mktemp("good"))
    (folder / "in.txt").write_text("name : Blue Fig | food : Thai\n")
    (folder / "run").mkdir()
    arguments = shlex.split(TRAIN)[1:-1]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        train.main([*arguments, "out=good.pt"])
        Path("good.jsonl").unlink()
        stop_in_evaluation([*arguments, "out=run/e2e.pt"])
    return folder


@pytest.fixture
def scratch(good, tmp_path, monkeypatch) -> Path:
    shutil.copytree(good, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def take_digests(folder: Path) -> dict[str, str]:
    """Of every file; a folder has an empty one."""
    paths = folder.rglob("*")
    return {str(p): hashlib.sha256(p.read_bytes()).hexdigest() if p.is_file() else "" for p in paths}


# --- what spoils it ---


def put(path: str, content: str | bytes) -> None:
    Path(path).write_bytes(content if isinstance(content, bytes) else content.encode())


def cut(path: str, keep: float) -> None:
    put(path, Path(path).read_bytes()[: int(keep * Path(path).stat().st_size)])


def make_directory(path: str) -> None:
    """A folder where a file should be."""
    Path(path).unlink()
    Path(path).mkdir()


def edit_json(path: str, **changes) -> None:
    put(path, json.dumps(json.loads(Path(path).read_text()) | changes))


def edit_weights(name: str, change) -> None:
    tensors = load_file(WEIGHTS)
    save_file(tensors | {name: change(tensors[name]).contiguous()}, WEIGHTS)


def edit_pt(path: str, **values) -> None:
    torch.save(torch.load(path, weights_only=True) | values, path)


def edit_part(path: str, part: str, values: dict) -> None:
    edit_pt(path, **{part: torch.load(path, weights_only=True)[part] | values})


def edit_run(**values) -> None:
    """The settings in the state of a run that left nothing else."""
    Path("run/e2e.pt").unlink()
    edit_part(STATE, "config", values)


def add_line(path: str, line: str) -> None:
    put(path, Path(path).read_bytes() + line.encode())


def shard(name: str) -> None:
    """An index that names a file in place of model.safetensors."""
    Path(WEIGHTS).unlink()
    put(WEIGHTS + ".index.json", json.dumps({"weight_map": {"wte.weight": name}}))


class Code:
    """Unpickled, it would leave a file behind."""

    def __reduce__(self):
        return Path.touch, (Path("exploded"),)


def make_bomb() -> None:
    """A .pt file of a few kilobytes that unpacks to 300 MB."""
    with zipfile.ZipFile("good.pt") as old:
        entries = {info.filename: old.read(info) for info in old.infolist()}
    with zipfile.ZipFile("good.pt", "w", zipfile.ZIP_DEFLATED) as new:
        for name, content in entries.items():
            new.writestr(name, bytes(300_000_000) if name.endswith("data/0") else content)


do, nan = partial, float("nan")
TYPED = tomllib.loads((ROOT / "tests/data/bad_input.toml").read_text())

# --- the table: {what is wrong: (what spoils the folder, words of the message)} ---

LN, MAP = "transformer.ln_f.bias", "transformer.h.0.attn.c_attn.weight"
NO_FLOATS = "ln_f.bias is damaged (must hold finite floats)"
WEIGHTS_ROWS = {
    "missing": (Path(WEIGHTS).unlink, "missing or damaged"),
    "a folder": (do(make_directory, WEIGHTS), "missing or damaged"),
    "empty": (do(put, WEIGHTS, b""), "missing or damaged"),
    "a byte short": (do(cut, WEIGHTS, 0.99999), "missing or damaged"),
    "a byte more": (do(add_line, WEIGHTS, "\0"), "missing or damaged"),
    "header of 2^40": (do(put, WEIGHTS, (2**40).to_bytes(8, "little") + b"{}"), "missing or damaged"),
    "header of 90 MB": (do(put, WEIGHTS, (9 * 10**7).to_bytes(8, "little") + b"{}"), "missing or damaged"),
    "header deep": (do(put, WEIGHTS, (9000).to_bytes(8, "little") + b"[" * 9000), "missing or damaged"),
    "transposed": (do(edit_weights, MAP, lambda t: t.T), "h.0.attn.c_attn.weight"),
    "integers": (do(edit_weights, LN, lambda t: t.int()), NO_FLOATS),
    "complex": (do(edit_weights, LN, lambda t: t * 1j), NO_FLOATS),
    "NaN": (do(edit_weights, LN, lambda t: t * nan), NO_FLOATS),
    "infinity in float16": (do(edit_weights, LN, lambda t: t.half() / 0), NO_FLOATS),
    "shard missing": (do(shard, "two.safetensors"), "two.safetensors"),
    "shard outside": (do(shard, "../good.pt"), "good.pt"),
}

CONFIG_ROWS = {
    "missing": (Path(CONFIG).unlink, "config.json"),
    "a key twice": (do(put, CONFIG, '{"n_layer": 1, "n_layer": 2}'), "'n_layer' is there twice"),
    "huge": (do(edit_json, CONFIG, n_embd=2**20, n_layer=200), "do not fit"),
    "untied without a head": (do(edit_json, CONFIG, tie_word_embeddings=False), "lm_head.weight"),
    "GPT-2's keys called BART": (do(edit_json, CONFIG, model_type="bart"), "max_position_embeddings"),
    "of generation a list": (do(put, "model/generation_config.json", "[]"), "generation_config.json"),
    "without ends": (do(put, "model/generation_config.json", '{"eos_token_id": []}'), "eos_token_id"),
}
for text in ("", "{", "[]", "null", "[" * 100_000, '{"n_layer": ' + "9" * 5000 + "}", b"\xff\xfe{\0}\0"):
    CONFIG_ROWS[f"{text[:9]!r}"] = (do(put, CONFIG, text), "config.json")
for key in ("model_type", "vocab_size", "n_embd", "n_layer", "n_head"):
    CONFIG_ROWS[f"{key} absent"] = (do(edit_json, CONFIG, **{key: None}), key)
for key, value in ((key, value) for key, values in TYPED["config"].items() for value in values):
    CONFIG_ROWS[f"{key} {value!r}"] = (do(edit_json, CONFIG, **{key: value}), key)

TOKENIZER_ROWS = {
    "vocab missing": (Path(VOCAB).unlink, "vocab.json"),
    "vocab cut": (do(cut, VOCAB, 0.9), "vocab.json"),
    "a token twice": (do(put, VOCAB, '{"a": 1, "a": 2}'), "'a' is there twice"),
    "an id past the model": (do(edit_json, VOCAB, th=10**15), "vocab_size 257"),
    "a fraction as id": (do(edit_json, VOCAB, a=65.5), "65.5"),
    "merges a program": (do(put, MERGES, bytes(range(256)) * 4), "merges.txt"),
    "merge into nothing": (do(put, MERGES, "#version: 0.2\nt h\n"), "merge"),
}

PREFIX_FIELDS = [  # what cannot be, and words of the message
    ({"format": torch.ones(2)}, "is not a prefix of format"),
    ({"method": Code()}, "nothing in it was run"),
    ({"config": {"lr": Code()}}, "nothing in it was run"),
    ({"method": "ia3"}, "method"),
    ({"method": "infix"}, "'infix' with sites ['decoder']"),
    ({"method": "full", "sites": {}}, "either sites or tensors"),
    ({"method": "full", "sites": {}, "tensors": {"x": torch.ones(1)}}, "not those of method full"),
    ({"tensors": {"wte.weight": torch.ones(1)}}, "either sites or tensors"),
    ({"positions": "unshifted"}, "unshifted"),
    ({"sites": {}}, "sites"),
    ({"sites": {3: torch.ones(3, 32)}}, "sites"),
    ({"sites": {"encoder": torch.ones(3, 32)}}, "does not fit"),
    ({"sites": {"decoder": torch.ones(0, 32)}}, "decoder"),
    ({"sites": {"decoder": torch.ones(3, 32, device="meta")}}, "decoder"),
    ({"sites": {"decoder": torch.ones(3, 32).to(torch.float8_e4m3fn)}}, "decoder"),
    ({"sites": {"decoder": torch.ones(1, 1).expand(10**9, 32)}}, "decoder"),
    ({"sites": {"decoder": torch.ones(3, 32) / 0}}, "finite"),
    ({"sites": {"decoder": torch.ones(3, 30)}}, "does not fit"),
    ({"sites": {"decoder": torch.ones(600, 32)}}, "positions (prefix 600"),
]
PREFIX_PARTS = [
    ("base", {"fingerprint": "0" * 16}, "--model"),
    ("base", {"name": "gone/model"}, "'gone/model'"),
    ("base", {"name": 3}, "base"),
    ("config", {"beams": "five"}, "beams"),
    ("config", {"max_new_tokens": 2.5}, "max_new_tokens"),
    ("config", {"length_penalty": [1.0]}, "length_penalty"),
    ("config", {"dataset": 3}, "dataset"),
]
PREFIX_ROWS = {
    "missing": (Path("good.pt").unlink, "good.pt"),
    "a folder": (do(make_directory, "good.pt"), "good.pt"),
    "a byte short": (do(cut, "good.pt", 0.9999), "damaged"),
    "zip without content": (do(put, "good.pt", b"PK\5\6" + bytes(18)), "good.pt"),
    "a bomb": (make_bomb, "unpack"),
    "code as a key": (do(torch.save, {Path("x"): 1}, "good.pt"), "nothing in it was run"),
    "a list": (do(torch.save, [1], "good.pt"), "is not a prefix of format"),
    "a state": (do(shutil.copy, STATE, "good.pt"), "is not a prefix of format"),
}
for number, (values, words) in enumerate(PREFIX_FIELDS):
    PREFIX_ROWS[f"field {number}"] = (do(edit_pt, "good.pt", **values), words)
for number, (part, values, words) in enumerate(PREFIX_PARTS):
    PREFIX_ROWS[f"part {number}"] = (do(edit_part, "good.pt", part, values), words)

LONG = "mr,ref\nname[" + "a" * 600 + "],good\n"
DATA_ROWS = {
    "dev missing": (Path("data/dev.csv").unlink, "data=data is not auto"),
    "only a header": (do(put, "data/train.csv", "mr,ref\n"), "train.csv has no train records"),
    "a comma too many": (do(add_line, "data/dev.csv", "name[A],Cheap, by the river."), "dev.csv, line 6"),
    "unknown key": (do(put, "data/train.csv", "mr,ref\nnome[A],good\n"), "did you mean 'name'"),
    "a long text": (do(put, "data/train.csv", LONG), "training or dev pair 1 needs"),
    "a long test record": (do(put, "data/test.csv", LONG), "test record 1 needs"),
}
INPUT_ROWS = {
    "missing": (Path("in.txt").unlink, "--input in.txt cannot be read"),
    "a folder": (do(make_directory, "in.txt"), "--input in.txt cannot be read"),
    "empty": (do(put, "in.txt", "\n \n\t\n"), "--input in.txt is empty"),
    "Latin-1": (do(put, "in.txt", b"name : Caf\xe9"), "UTF-8"),
    "unknown key": (do(put, "in.txt", 'name : A\n{"nme": "B"}\n'), "line 2"),
    "a long record": (do(put, "in.txt", "name : B\nname : " + "A" * 600), "source 2 needs"),
}

NO_BEST = ({"step": 99}, {"step": "one"}, {"dev_loss": "low"}, {"theta": {"decoder.P": torch.ones(3, 31)}})
STATES = {  # what its parts cannot be
    "theta": [{}, [1], {"decoder.P": torch.ones(3, 31)}, {"decoder.P": torch.ones(3, 32) * nan}],
    "optimizer": [{}, {"state": {0: {"step": torch.tensor(1.0)}}}],
    "step": [-1, "two", 10**9, torch.ones(3)],
    "best": [[1], {}, *({"step": 1, "dev_loss": 1.0, "theta": {}} | bad for bad in NO_BEST)],
    "config": [[]],
    "format": ["minprefix-state/9"],
    "mlp": [1],
}
RUNS = [{"colour": "red"}, {"batch_size": "four"}, {"batch_size": -4}, {"lr": nan}]  # settings likewise
RESUME_ROWS = {
    "missing": (Path(STATE).unlink, STATE),
    "a folder": (do(make_directory, STATE), "damaged"),
    "cut": (do(cut, STATE, 0.7), "damaged"),
    "code": (do(edit_pt, STATE, step=Code()), "nothing in it was run"),
    "a list": (do(torch.save, [1], STATE), "is no training state"),
    "method of another run": (do(edit_run, method="full"), "damaged"),
    "length of another run": (do(edit_run, prefix_len=4), "damaged"),
    "another model": (do(edit_pt, STATE, fingerprint="0" * 16), "began with fingerprint"),
    "other data": (do(add_line, "data/train.csv", "name[A],good\n"), "began with data"),
    "another run's result": (do(shutil.copy, "good.pt", "run/e2e.pt"), "of another run"),
    "a damaged result": (do(cut, "run/e2e.pt", 0.5), "damaged"),
}
for key, value in ((key, value) for key, values in STATES.items() for value in values):
    RESUME_ROWS[f"{key} {str(value)[:20]!r}"] = (do(edit_pt, STATE, **{key: value}), "state")
for values in RUNS:
    RESUME_ROWS[f"{values}"] = (do(edit_run, **values), next(iter(values)))
for content in ("hello\n", "[1]\n", b"\xff\xfe\n"):
    RESUME_ROWS[f"log {content}"] = (do(put, "run/e2e.jsonl", content), "e2e.jsonl")

for key, values in TYPED["settings"].items():
    TYPED["train"] |= {shlex.quote(f"{key}={value}"): key for value in values}


def name_rows(group: str, command: str, rows: dict) -> list:
    """(change, command, words), with an id."""
    return [pytest.param(rows[name][0], command, rows[name][1], id=f"{group}: {name}") for name in rows]


def name_typed(group: str, command: str) -> list:
    """The same for what stands behind a command, in place of a key that it has: nothing is spoilt."""
    table = []
    for more, words in TYPED[group].items():
        keys = {word.partition("=")[0] for word in shlex.split(more) if "=" in word}
        kept = [word for word in command.split() if word.partition("=")[0] not in keys]
        table.append(pytest.param(None, " ".join([*kept, more]), words, id=f"{group} {more!r}"))
    return table


TABLE = [
    *name_rows("weights", SAMPLE, WEIGHTS_ROWS),
    *name_rows("config", SAMPLE, CONFIG_ROWS),
    *name_rows("tokenizer", SAMPLE, TOKENIZER_ROWS),
    *name_rows("prefix", SAMPLE, PREFIX_ROWS),
    *name_rows("data", TRAIN, DATA_ROWS),
    *name_rows("input", SAMPLE, INPUT_ROWS),
    *name_rows("resume", RESUME, RESUME_ROWS),
    *name_typed("train", TRAIN),
    *name_typed("sample", DESCRIBE),
    *name_typed("resume", RESUME),
]


def assert_one_sentence(message: str, words: str) -> None:
    assert words in message
    assert max(map(message.count, ("put the", " again", "cannot be"))) <= 1, message  # not one in another
    assert "\n" not in message and not message.endswith(".") and len(message) < 1000


@pytest.mark.parametrize("command", [SAMPLE, DESCRIBE, TRAIN, RESUME])
def test_without_a_fault_everything_works(command, scratch):
    script, *arguments = shlex.split(command)
    COMMANDS[script](arguments)


@pytest.mark.parametrize(("change", "command", "words"), TABLE)
def test_bad_input_is_one_sentence_and_touches_nothing(change, command, words, scratch):
    if change:
        change()
    before, began = take_digests(scratch), time.process_time()
    script, *arguments = shlex.split(command)
    with pytest.raises((InputError, OSError)) as refused:
        COMMANDS[script](arguments)
    assert_one_sentence(str(refused.value), words)
    assert time.process_time() - began < 5  # seconds: nothing is tried at length
    assert take_digests(scratch) == before


# --- what the library refuses, with no command around it ---

CALLS = {
    "source 1 is empty": lambda lm: generate(lm, [[]]),
    "2 prefixes for 1 sources": lambda lm: generate(lm, [[5]], [None, None]),
    "an ensemble needs": lambda lm: generate(lm, [[5]], [], ensemble=True),
    "source 1 needs": lambda lm: generate(lm, [[5]], max_new_tokens=512),
    "min_new_tokens is 5": lambda lm: generate(lm, [[5]], max_new_tokens=4, min_new_tokens=5),
    "banned holds every id": lambda lm: generate(lm, [[5]], banned=list(range(257))),
    "method=lora2": lambda lm: make_theta(lm, "lora2", 3, 0, []),
    "model cannot be written": lambda lm: save_prefix(load_prefix("good.pt"), "model"),
    "gone/a.pt cannot be written": lambda lm: save_prefix(load_prefix("good.pt"), "gone/a.pt"),
}
# The public functions, arguments that are right, and what else each may not be.
PUBLIC = {
    load_lm: {"folder_or_hub_id": "model", "dtype": torch.float32, "device": "cpu"},
    load_prefix: {"path": "good.pt"},
    save_prefix: {"obj": None, "path": "new.pt", "dtype": None},
    to_peft: {"path": "good.pt", "folder": "new"},
    from_peft: {"folder": "peft"},
    generate: {"sources": [[5]], "prefix": None, "banned": (), "batch_size": 2},
}
ODD = [3, 1.5, b"a", {}, {"a": 1}, [3], [None], torch.ones(2), torch.ones(1, 2).long(), object(), load_lm]
ODD_VALUES = {
    "dtype": ["float32", torch.int8, torch.float8_e4m3fn, "", 0, *ODD],
    "device": ["abacus", "meta", "cuda:99", -1, *ODD],
    "banned": [None, [-1], [257], (0, 10**9), "ab", [1.0], [True], {3}, 0, *ODD[:4], *ODD[6:]],
    "batch_size": [0, -1, None, True, 2.0, "2", *ODD[1:]],
    "prefix": [
        "",
        "good.pt",
        Path("good.pt"),
        0,
        False,
        (),
        [],
        [None, None],
        {},
        [{}],
        ["good.pt"],
        *ODD[:6],
        *ODD[7:],
    ],
    "sources": [
        None,
        [5],
        [[]],
        [[257]],
        [[-1]],
        [["5"]],
        [[True]],
        [[[5]]],
        "ab",
        [None],
        (),
        ((5,),),
        *ODD,
    ],
    "obj": [None, "good.pt", *ODD],
}
CASES = [
    # The same name in every process: no address.
    pytest.param(function, name, value, id=f"{function.__name__} {name} {value!r}".partition(" at 0x")[0])
    for function, given in PUBLIC.items()
    for name in given
    for value in ODD_VALUES.get(name, [None, "", *ODD])
]


@pytest.mark.parametrize("words", CALLS)
def test_a_bad_call_is_an_input_error(words, scratch):
    lm, before = load_lm("model")[0], take_digests(scratch)
    with pytest.raises(InputError) as refused:
        CALLS[words](lm)
    assert_one_sentence(str(refused.value), words)
    assert take_digests(scratch) == before


@pytest.fixture(scope="module")
def called(good, tmp_path_factory) -> tuple:
    """A folder to work in with a PEFT folder, its model and its prefix."""
    home = shutil.copytree(good, tmp_path_factory.mktemp("called"), dirs_exist_ok=True)
    to_peft(home / "good.pt", home / "peft")
    return home, load_lm(home / "model")[0], load_prefix(home / "good.pt")


@pytest.mark.parametrize(("function", "name", "value"), CASES)
def test_an_argument_of_another_kind_is_an_input_error(function, name, value, called, monkeypatch):
    home, lm, prefix = called
    monkeypatch.chdir(home)
    given = PUBLIC[function] | {"obj": prefix} if function is save_prefix else PUBLIC[function]
    before, first = take_digests(home), (lm,) if function is generate else ()
    with pytest.raises(InputError) as refused:
        function(*first, **given | {name: value})
    assert_one_sentence(str(refused.value), "")
    assert take_digests(home) == before


def test_a_tokenizer_says_what_it_does_not_read(called):
    tokenizer = load_lm(called[0] / "model")[1]
    for value in (None, b"a", 3, ["a"]):
        with pytest.raises(InputError, match="must be a string"):
            tokenizer.encode(value)
    for value in (None, 3, "a", ["a"], [[3]], [None]):
        with pytest.raises(InputError, match="no list of ids"):
            tokenizer.decode(value)
    assert tokenizer.decode(torch.tensor([66, 67])) == tokenizer.decode((66, 67))


# --- the commands themselves, as processes ---

PROCESSES = ["config: a key twice", "data: a comma too many", "sample '--beams'"]


@pytest.mark.parametrize(("change", "command", "words"), [row for row in TABLE if row.id in PROCESSES])
def test_the_commands_say_it_in_one_line_and_exit_with_2(change, command, words, scratch):
    if change:
        change()
    before = take_digests(scratch)
    script, *arguments = shlex.split(command)
    line = [sys.executable, str(ROOT / f"{script}.py"), *arguments]
    run = subprocess.run(line, capture_output=True, text=True, timeout=120)
    assert run.returncode == 2 and run.stderr.count("\n") == 1, run.stderr
    assert run.stderr.startswith(f"{script}.py: ") and words in run.stderr
    assert take_digests(scratch) == before
