"""train.py and sample.py as a user meets them, on the bundled sample and a tiny random model."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

import sample
import train
from minprefix.config import Config
from minprefix.errors import InputError
from minprefix.store import load_prefix

REPOSITORY = Path(__file__).resolve().parent.parent
SHORT = ["dataset=e2e", "data=sample", "batch_size=4", "lr=0.01", "n_train=40", "dev_limit=8", "prefix_len=3"]
SHORT += ["epochs=9", "eval_limit=3", "max_new_tokens=8", "beams=2", "eval_every=4", "mlp_hidden=16"]


def run(script: str, *arguments: str, **options) -> subprocess.CompletedProcess:
    command = [sys.executable, str(REPOSITORY / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, **options)


def train_quickly(tiny_folder: Path, out: Path, *more: str) -> Path:
    train.main([*SHORT, f"model={tiny_folder}", f"out={out}", *more])
    return out


@pytest.fixture(scope="module")
def trained(tiny_folder, tmp_path_factory) -> Path:
    return train_quickly(tiny_folder, tmp_path_factory.mktemp("run") / "e2e.pt", "max_steps=8")


def test_a_run_leaves_a_small_prefix_and_a_log(trained):
    saved = load_prefix(trained)
    assert trained.stat().st_size < 1_000_000
    assert {name: tuple(P.shape) for name, P in saved.sites.items()} == {"decoder": (3, 2 * 16)}
    assert saved.data.startswith("bundled sample") and saved.metrics["records"] == 3
    lines = [json.loads(line) for line in trained.with_suffix(".jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == list(range(1, 9))
    assert [line["step"] for line in lines if "dev_loss" in line] == [4, 8]
    assert not trained.with_suffix(".state.pt").exists()


def test_the_same_seed_gives_the_same_prefix(trained, tiny_folder, tmp_path):
    again = load_prefix(train_quickly(tiny_folder, tmp_path / "e2e.pt", "max_steps=8"))
    other = load_prefix(train_quickly(tiny_folder, tmp_path / "other.pt", "max_steps=8", "seed=1"))
    expected = load_prefix(trained).sites["decoder"]
    assert torch.equal(again.sites["decoder"], expected)
    assert not torch.equal(other.sites["decoder"], expected)


def wait_for_steps(log: Path, steps: int, process: subprocess.Popen) -> None:
    until = time.monotonic() + 120
    while not log.exists() or log.read_text().count('"lr"') < steps:
        assert process.poll() is None and time.monotonic() < until, process.communicate()
        time.sleep(0.01)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_run_resumes_to_the_same_bits(number, tiny_folder, tmp_path):
    settings = [*SHORT, f"model={tiny_folder}", "max_steps=60", "save_seconds=0", "n_train=200"]
    train.main([*settings, f"out={tmp_path / 'whole.pt'}"])
    command = [sys.executable, str(REPOSITORY / "train.py"), *settings, f"out={tmp_path / 'part.pt'}"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for_steps(tmp_path / "part.jsonl", 3, process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    if number != signal.SIGKILL:
        assert process.returncode == 130 and f"resume={tmp_path / 'part.state.pt'}" in errors
    assert not (tmp_path / "part.pt").exists()
    train.main([f"resume={tmp_path / 'part.state.pt'}"])
    whole, part = load_prefix(tmp_path / "whole.pt"), load_prefix(tmp_path / "part.pt")
    assert torch.equal(whole.sites["decoder"], part.sites["decoder"]) and whole.metrics == part.metrics
    logs = [(tmp_path / name).read_text().splitlines() for name in ("whole.jsonl", "part.jsonl")]
    losses = [[line["loss"] for line in map(json.loads, log) if "loss" in line] for log in logs]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("method", ["infix", "embedding", "full", "top2", "adapter", "lora", "prefix"])
def test_every_method_trains_is_saved_and_sampled(method, tiny_folder, tmp_path, capsys):
    out = train_quickly(tiny_folder, tmp_path / "e2e.pt", "max_steps=3", f"method={method}", "mlp_hidden=0")
    trained_text = capsys.readouterr().out
    sample.main(["--prefix", str(out), "--records", "3"])
    sampled = [line[11:] for line in capsys.readouterr().out.splitlines() if line.startswith("e2e ")]
    texts = [line[11:] for line in trained_text.splitlines() if line.startswith("text ")]
    assert sampled == texts and len(texts) == 3


def test_texts_are_cut_and_stretched_as_in_the_training(tiny_folder, tmp_path, capsys):
    cut = ["max_source=12", "max_target=6", "min_new_tokens=5", "max_steps=3"]
    out = train_quickly(tiny_folder, tmp_path / "e2e.pt", *cut)
    trained = [line[11:] for line in capsys.readouterr().out.splitlines() if line.startswith("text ")]

    def describe(*more: str) -> list[str]:
        sample.main(["--prefix", str(out), "--records", "3", *more])
        return [line[11:] for line in capsys.readouterr().out.splitlines() if line.startswith("e2e ")]

    assert describe() == trained and describe("--max-source", "0") != trained
    (tmp_path / "a.txt").write_text("name : Blue Fig\nname : Blue Spice\n")  # one, if cut: they differ later
    assert len(set(describe("--input", str(tmp_path / "a.txt")))) == 1
    with pytest.raises(InputError, match="cannot be cut to 1"):
        describe("--max-source", "1")
    lm, tokenizer = train.load_lm(str(tiny_folder))
    (source, target), *_ = train.encode_pairs(
        Config(**load_prefix(out).config), lm, tokenizer, [("name : Blue Fig", "Blue Fig.")]
    )
    assert tokenizer.decode(source[:-1]) == "name : Blue"[:11] and source[-1] == lm.config.bos_token_id
    assert tokenizer.decode(target[:-1]) == " Blue" and target[-1] == lm.config.eos_token_id


def test_input_may_be_text_json_or_mr_and_output_is_json_lines(trained, tmp_path):
    same = [
        "name : Blue Fig | food : Thai",
        '{"name": "Blue Fig", "food": "Thai"}',
        "name[Blue Fig], food[Thai]",
    ]
    (tmp_path / "in.txt").write_text("\n".join([*same, ""]))
    out = tmp_path / "out.jsonl"
    sample.main(["--prefix", str(trained), "--input", str(tmp_path / "in.txt"), "--output", str(out)])
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["source"] for line in lines] == ["name : Blue Fig | food : Thai"] * 3
    assert len({line["text"] for line in lines}) == 1


def test_several_prefixes_answer_each_input(trained, tiny_folder, tmp_path, capsys):
    other = train_quickly(tiny_folder, tmp_path / "longer.pt", "max_steps=3", "prefix_len=6", "method=infix")
    capsys.readouterr()
    alone = []
    for prefix in (trained, other):
        sample.main(["--prefix", str(prefix), "--records", "2"])
        alone += [line for line in capsys.readouterr().out.splitlines() if line.startswith(prefix.stem)]
    sample.main(["--prefix", str(trained), "--prefix", str(other), "--records", "2"])
    together = [line for line in capsys.readouterr().out.splitlines() if line.startswith(("e2e ", "longer "))]
    assert sorted(together) == sorted(alone) and len(together) == 4


def test_a_terminal_gets_lines_of_its_width_and_a_pipe_whole_ones(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    pipe, terminal, text = io.StringIO(), io.StringIO(), " ".join(["word"] * 60)
    monkeypatch.setattr(terminal, "isatty", lambda: True, raising=False)
    assert sample.wrap("record     ", text, pipe) == "record     " + text
    first, *others = sample.wrap("record     ", text, terminal).split("\n")
    assert first.startswith("record     word") and len(others) > 2
    assert all(line.startswith(" " * 11 + "word") and len(line) <= 80 for line in others)
    assert sample.wrap("e2e        ", "", terminal) == "e2e        "


def test_the_help_fits_a_terminal_of_80_columns(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        sample.main(["--help"])
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


class Bomb:
    def __reduce__(self):
        return (Path.touch, (Path(os.environ["BOMB"]),))


def make_bad_prefix(kind: str, trained: Path, tmp_path: Path) -> Path:
    path = tmp_path / "bad.pt"
    if kind == "truncated":
        path.write_bytes(trained.read_bytes()[:1500])
    elif kind == "code":
        torch.save({"format": "minprefix/1", "method": Bomb()}, path)
    elif kind == "other model":
        content = torch.load(trained, weights_only=True)
        content["base"]["fingerprint"] = "0" * 16
        torch.save(content, path)
    return path


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("missing", "does not exist"),
        ("truncated", "damaged"),
        ("code", "nothing in it was run"),
        ("other model", "pass --model"),
    ],
)
def test_bad_prefixes_are_refused(kind, words, trained, tmp_path, monkeypatch):
    monkeypatch.setenv("BOMB", str(tmp_path / "exploded"))
    path = make_bad_prefix(kind, trained, tmp_path)
    with pytest.raises(InputError, match=words):
        sample.main(["--prefix", str(path)])
    assert not (tmp_path / "exploded").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["prefix_length=5"], "did you mean 'prefix_len'"),
        (["dataset=e3e"], "did you mean 'e2e'"),
        (["method=prefixx"], "choose one of prefix"),
        (["lr=fast"], "must be a number"),
        (["lr=-1"], "lr is -1.0: it must lie between 1e-12 and"),
        (["epochs=2.5"], "must be a whole number"),
        (["bf16=perhaps"], "true or false"),
        (["beams"], "has no value"),
        (["loss=squared"], "token or sum"),
        (["device=abacus"], "device=abacus"),
        (["model=weights/nowhere"], "there is no model folder"),
        (["data=/nowhere"], "/nowhere"),
        (["out=/nowhere/e2e.pt"], "cannot be written"),
        (["out=e2e.txt"], "must end in .pt"),
        (["resume=nowhere.state.pt"], "does not exist"),
    ],
)
def test_bad_settings_are_refused(arguments, words, tiny_folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=words):
        train.main([*SHORT, f"model={tiny_folder}", "max_steps=2", *arguments])
    assert not list(tmp_path.glob("*.pt"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--input", "empty.txt"], "is empty"),
        (["--input", "nowhere.txt"], "cannot be read"),
        (["--input", "bad.txt"], "line 2: unknown key 'nme'; did you mean 'name'"),
        (["--input", "long.txt"], "source 2 needs"),
        (["--records", "-1"], "--records -1"),
        (["--top-k", "3"], "set sample too"),
        (["--length-penalty", "1000"], "length_penalty is 1000"),
        (["--sample", "--seed", "-1"], "seed is -1"),
        (["--output", "empty.txt"], "not overwritten"),
        (["--sample", "--beams", "3"], "set beams to 1"),
        (["--top-p", "0"], "top_p"),
        (["--model", "nowhere/at/all"], "there is no model folder"),
    ],
)
def test_bad_inputs_are_refused(arguments, words, trained, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("empty.txt").write_text("\n")
    Path("bad.txt").write_text('name : A\n{"nme": "B"}\n')
    Path("long.txt").write_text("name : B\nname : " + "A" * 600)
    with pytest.raises(InputError, match=words):
        sample.main(["--prefix", str(trained), *arguments])
    assert Path("empty.txt").read_text() == "\n"


def test_nothing_of_the_user_s_is_overwritten(trained, tiny_folder):
    before = trained.read_bytes()
    with pytest.raises(InputError, match="not overwritten"):
        train_quickly(tiny_folder, trained, "max_steps=2")
    assert trained.read_bytes() == before


def test_a_diverged_run_says_so_and_keeps_its_last_state(tiny_folder, tmp_path):
    settings = ["max_steps=40", "lr=1000", "save_seconds=0", "method=full", "clip=1000"]
    with pytest.raises(InputError, match="lower lr"):
        train_quickly(tiny_folder, tmp_path / "e2e.pt", *settings)
    state = torch.load(tmp_path / "e2e.state.pt", weights_only=True)
    assert state["step"] >= 1 and all(tensor.isfinite().all() for tensor in state["theta"].values())


@pytest.mark.parametrize("bad", ["method=prefixx", "prefix_len=600", "max_new_tokens=500", "init= "])
def test_a_run_that_cannot_work_leaves_nothing_in_the_way(bad, tiny_folder, tmp_path):
    with pytest.raises(InputError):
        train_quickly(tiny_folder, tmp_path / "e2e.pt", "max_steps=2", bad)
    assert not list(tmp_path.iterdir())


@pytest.fixture
def stopped(tiny_folder, tmp_path, monkeypatch) -> Path:
    """The state of a run that was stopped in its evaluation."""
    out = tmp_path / "a" / "e2e.pt"
    out.parent.mkdir()
    with monkeypatch.context() as patch, pytest.raises(SystemExit) as end:
        patch.setattr(train, "describe_split", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        train_quickly(tiny_folder, out, "max_steps=2")
    assert end.value.code == 130
    return out.with_suffix(".state.pt")


def test_resume_goes_on_beside_its_state(stopped, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "e2e.pt").write_text("another run's")
    train.main([f"resume={stopped}"])
    assert load_prefix(stopped.parent / "e2e.pt").metrics["records"] == 3
    assert not stopped.exists() and (tmp_path / "e2e.pt").read_text() == "another run's"


def test_resume_refuses_what_is_not_its_own(stopped, trained, tiny_folder, tmp_path):
    good = torch.load(stopped, weights_only=True)
    stopped.parent.joinpath("e2e.pt").write_bytes(trained.read_bytes())
    with pytest.raises(InputError, match="of another run"):
        train.main([f"resume={stopped}"])
    stopped.parent.joinpath("e2e.pt").unlink()
    changes = [
        ({"fingerprint": "0" * 16}, "began with fingerprint"),
        ({"data": "official e2e files"}, "began with data"),
        ({"theta": {}}, "damaged"),
        ({"config": good["config"] | {"colour": "red"}}, "another version"),
    ]
    for change, words in changes:
        torch.save(good | change, stopped)
        with pytest.raises(InputError, match=words):
            train.main([f"resume={stopped}"])
    with pytest.raises(InputError, match="leave seed= out"):
        train.main([f"resume={stopped}", "seed=5"])


@pytest.mark.parametrize(
    "change",
    [
        {"method": "foo"},
        {"positions": "unshifted"},
        {"sites": {}},
        {"sites": {"encoder": torch.zeros(3, 32)}},
        {"method": "full"},
        {"tensors": {"wte.weight": torch.zeros(2, 2)}},
    ],
)
def test_a_file_that_says_what_we_cannot_do_is_refused(change, trained, tmp_path):
    torch.save(torch.load(trained, weights_only=True) | change, tmp_path / "odd.pt")
    with pytest.raises(
        InputError, match=r"damaged prefix file|does not fit|trained with .unshifted. positions"
    ):
        sample.main(["--prefix", str(tmp_path / "odd.pt"), "--records", "1"])


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.json", '[{"name": "Blue Fig",\n "food": "Thai"}]'),
        ("a.json", '{"name": "Blue Fig", "food": "Thai"}'),
        ("a.CSV", "name,food\nBlue Fig,Thai\n"),
        ("a.csv", 'MR\n"name[Blue Fig], food[Thai]"\n'),
        ("a.csv", 'mr,ref\n"name[Blue Fig], food[Thai]",It is good.\n'),
        ("a.txt", '\ufeff{"name": "Blue Fig", "food": "Thai"}'),
        ("a.txt", "\n  name[Blue Fig], food[Thai]\r\n"),
    ],
)
def test_input_is_read_as_people_write_it(name, text, tmp_path):
    (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    assert [record.source for record in sample.read_input(str(tmp_path / name))] == [
        "name : Blue Fig | food : Thai"
    ]


@pytest.mark.parametrize("line", ['{"name": "\\ud800"}', '{"name": ' * 3000, "[" * 99_999, "{}"])
def test_odd_json_is_one_sentence(line, tmp_path):
    (tmp_path / "odd.txt").write_text(line)
    with pytest.raises(InputError, match=r"odd\.txt"):
        sample.read_input(str(tmp_path / "odd.txt"))


@pytest.mark.parametrize(
    ("script", "arguments"), [("train.py", ["dataset=e3e"]), ("sample.py", ["--prefix", "no.pt"])]
)
def test_errors_are_one_line_and_exit_code_2(script, arguments, tmp_path):
    result = run(script, *arguments, cwd=tmp_path)
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.count("\n") == 1 and "Traceback" not in result.stderr


def test_help_names_every_key():
    result = run("train.py", "--help")
    assert result.returncode == 0 and "prefix_len=10" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 79
