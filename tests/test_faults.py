"""Real runs end at any moment: killed, with a full disk, without memory. Nothing half-written is taken for
whole, and what goes on ends with the same bits as if nothing had happened.

MINPREFIX_KILLS=100 kills at so many random moments instead of 20.
"""

import collections
import errno
import hashlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from unittest import mock

import pytest
import torch

import sample
import train
from minprefix import InputError, load_prefix
from minprefix.checks import run_command
from minprefix.store import hold, read_pt
from tests import children
from tests.runs import ROOT, assert_same_run, log_of, make_folder, settings_for, state_of

KILLS = int(os.environ.get("MINPREFIX_KILLS", "20"))
SHORT = ("save_seconds=0", "max_steps=3", "eval_every=2", "eval_limit=2", "max_new_tokens=3")
LONG = ("save_seconds=0", "max_steps=24", "eval_every=8", "max_new_tokens=24")


@pytest.fixture(scope="module")
def folder(tiny_folder, tmp_path_factory) -> Path:
    return make_folder(tiny_folder, tmp_path_factory.mktemp("faults"))


@pytest.fixture(scope="module")
def short(folder, tmp_path_factory) -> Path:
    """What a run leaves that nothing befell."""
    out = tmp_path_factory.mktemp("short") / "e2e.pt"
    train.main(settings_for(folder, out, *SHORT))
    return out


@pytest.fixture(autouse=True)
def quick_children(monkeypatch):
    """The process that the others are forked from finds our modules, and computes in one thread."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture
def out(tmp_path) -> Path:
    """Where a run may leave what it likes."""
    (tmp_path / "run").mkdir()
    return tmp_path / "run" / "e2e.pt"


def assert_nothing_is_half(out: Path) -> None:
    """Every file that has its own name is whole, up to the log's last line."""
    if out.exists():
        load_prefix(out)
    if state_of(out).exists():
        assert read_pt(state_of(out))["format"] == "minprefix-state/1"
    for line in log_of(out).read_text().splitlines(keepends=True) if log_of(out).exists() else ():
        assert not line.endswith("\n") or json.loads(line)


def is_finished(out: Path) -> bool:
    return out.exists() and not state_of(out).exists()


def go_on(out: Path, arguments: list[str]) -> list[str]:
    """What a user would type next: resume, or the same command where no step was saved."""
    if state_of(out).exists():
        return [f"resume={state_of(out)}"]
    log_of(out).unlink(missing_ok=True)
    return arguments


def finish(out: Path, arguments: list[str], whole: Path) -> None:
    """It goes on, and leaves what nothing befell."""
    assert_nothing_is_half(out)
    if not is_finished(out):
        assert children.finish(children.run_train, go_on(out, arguments)) == 0
    assert_same_run(out, whole)


# --- killed ---


def test_killed_before_every_change_of_a_file(folder, short, tmp_path):
    """One kill for each file that is opened to write, renamed, removed or locked; the last try has fewer."""
    for number in range(1, 200):
        out = tmp_path / str(number) / "e2e.pt"
        out.parent.mkdir()
        arguments = settings_for(folder, out, *SHORT)
        if children.finish(children.run_train_until, number, arguments, str(out.parent)) == 0:
            break
        finish(out, arguments, short)
    assert number > 25


@pytest.mark.parametrize("number", [1, 2, 3, 4, 5])
def test_killed_in_the_middle_of_writing(number, folder, short, out):
    """The first three files of tensors are states, then comes the prefix, twice."""
    arguments = settings_for(folder, out, *SHORT)
    assert children.finish(children.run_train_to_half_a_save, number, arguments) == -9
    assert [part for part in out.parent.iterdir() if part.suffix == ".tmp"]
    finish(out, arguments, short)


def wait_for(process, reached, *arguments) -> None:
    until = time.monotonic() + 120
    while process.is_alive() and not reached(*arguments):
        assert time.monotonic() < until
        time.sleep(0.001)


def test_killed_at_random_moments(folder, tmp_path, out):
    """Runs that are killed again and again, each time some steps or tokens later, whatever they then do."""
    train.main(settings_for(folder, out, *LONG))
    moments, rng = collections.Counter(), random.Random(0)
    while moments.total() < KILLS:
        part = tmp_path / f"killed after {moments.total()}" / "e2e.pt"
        part.parent.mkdir()
        arguments = settings_for(folder, part, *LONG)
        while not is_finished(part):
            count = rng.randrange(40 if part.exists() else 12) if moments.total() < KILLS else 1000
            run = children.run_train_for, count, rng.random(), go_on(part, arguments)
            code = children.finish(*run)
            assert code in (0, -signal.SIGALRM)
            moments[state_of(part).exists(), part.exists()] += code != 0
            assert_nothing_is_half(part)
        assert_same_run(part, out)
    assert moments[True, False] >= KILLS // 4, "in the training"
    assert moments[True, True] >= KILLS // 20, "in the evaluation"


# --- two at once ---


def test_two_runs_do_not_write_to_one_place(folder, out):
    arguments = settings_for(folder, out, "epochs=1000", "save_seconds=60")
    first = children.start(children.run_train, arguments)
    wait_for(first, state_of(out).exists)  # after it nothing is saved for a minute
    for second in (arguments, [f"resume={state_of(out)}"]):
        with pytest.raises(InputError, match=r"another process writes .*e2e\.pt"):
            train.main(second)
    first.kill()
    first.join()
    with hold(out):  # the dead hold nothing
        pass
    assert sorted(path.name for path in out.parent.iterdir()) == ["e2e.jsonl", "e2e.state.pt"]


def test_only_a_run_s_own_parts_are_removed(folder, tmp_path):
    for name in (".a[1].pt.7.tmp", ".a1.pt.7.tmp"):
        (tmp_path / name).touch()
    with pytest.raises(InputError, match="data=gone"):
        train.main(settings_for(folder, tmp_path / "a[1].pt", "data=gone"))
    assert [path.name for path in tmp_path.iterdir()] == [".a1.pt.7.tmp"]


# --- full disks, no memory, no good numbers ---


def test_a_full_disk_is_one_sentence_and_loses_nothing(folder, short, out, tmp_path):
    """Too full for a state; with room again the run goes on."""
    arguments, errors = settings_for(folder, out, *SHORT), tmp_path / "errors"
    assert children.finish(children.run_train_with_a_full_disk, arguments, 1000, str(errors)) == 2
    (line,) = errors.read_text().splitlines()
    assert "e2e.state.pt cannot be written" in line and line.endswith("make room, then resume or start again")
    finish(out, arguments, short)


def test_a_folder_that_becomes_read_only_keeps_the_last_state(folder, short, out, monkeypatch):
    replace, left = os.replace, [0] * 3

    def refuse_the_third(old, new):
        left.pop()
        if not left:
            raise OSError(errno.EROFS, "Read-only file system")
        replace(old, new)

    with (
        monkeypatch.context() as patch,
        pytest.raises(InputError, match=r"Read-only .*make room, then resume"),
    ):
        patch.setattr(os, "replace", refuse_the_third)
        train.main(settings_for(folder, out, *SHORT))
    assert read_pt(state_of(out))["step"] == 2
    train.main(go_on(out, []))
    assert_same_run(out, short)


def fail_at(step: int, error: Exception | None, patch: pytest.MonkeyPatch) -> None:
    """The step-th loss is NaN, or raises the error."""
    target_loss, left = train.target_loss, list(range(step))

    def compute(*arguments):
        summed, tokens = target_loss(*arguments)
        if torch.is_grad_enabled() and left:
            left.pop()
            if not left and error:
                raise error
            summed = summed if left else summed * torch.nan
        return summed, tokens

    patch.setattr(train, "target_loss", compute)


def run_here(main, arguments: list[str], patch: pytest.MonkeyPatch) -> object:
    """The exit code of a command."""
    patch.setattr(sys, "argv", ["command.py", *arguments])
    with pytest.raises(SystemExit) as end:
        run_command(main)
    return end.value.code


NO_MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has")


@pytest.mark.parametrize("step", [1, 3])
@pytest.mark.parametrize(
    ("error", "words", "kept"),
    [
        (None, "is nan: lower lr (now 0.01)", 2),
        (NO_MEMORY, "memory ran out (CUDA out of memory", 1),
        (MemoryError(), "memory ran out (MemoryError): lower batch_size", 1),
    ],
)
def test_a_step_that_fails(error, words, kept, step, folder, short, out, monkeypatch, capsys):
    """The last save was the first step's, a minute ago; with a loss that is no number, nothing is lost."""
    with monkeypatch.context() as patch:
        fail_at(step, error, patch)
        assert run_here(train.main, settings_for(folder, out, *SHORT, "save_seconds=60"), patch) == 2
    assert words in capsys.readouterr().err
    if step == 1:
        assert not list(out.parent.iterdir())  # nothing is in the way of a better run
        return
    assert read_pt(state_of(out))["step"] == kept
    train.main(go_on(out, []))
    one, other = load_prefix(out), load_prefix(short)
    assert torch.equal(one.sites["decoder"], other.sites["decoder"]) and one.metrics == other.metrics


def test_out_of_memory_in_the_evaluation_keeps_the_prefix(folder, out, monkeypatch, capsys):
    asked = ["--prefix", str(out), "--records", "1"]
    for command, arguments in ((train, settings_for(folder, out, *SHORT)), (sample, asked)):
        with monkeypatch.context() as patch:
            patch.setattr(command, "generate_texts", mock.Mock(side_effect=NO_MEMORY))
            assert run_here(command.main, arguments, patch) == 2
        assert "memory ran out" in capsys.readouterr().err
    sample.main(asked)


def test_memory_that_really_runs_out(folder, out, tmp_path):
    errors, arguments = tmp_path / "errors", settings_for(folder, out, *SHORT, "mlp_hidden=1000000")
    assert children.finish(children.run_train_with_little_memory, arguments, str(errors)) == 2
    (line,) = errors.read_text().splitlines()
    assert "memory ran out (" in line and "lower batch_size" in line
    assert not list(out.parent.iterdir())


# --- downloads ---


def test_a_download_killed_before_every_change_of_a_file(tmp_path):
    """What is there has the official bytes; the next try fetches the rest."""
    files = {f"{split}.csv": f"mr,ref\nname[A],{split}\n".encode() for split in ("train", "dev", "test")}
    official = {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    for number in range(1, 50):
        home, url = tmp_path / str(number), f"{tmp_path.as_uri()}/"
        home.mkdir()
        if children.finish(children.download, str(home), url, official, number) == 0:
            break
        for path in (home / "e2e").iterdir() if (home / "e2e").exists() else ():
            assert path.name.startswith(".") or path.read_bytes() == files[path.name]
        assert children.finish(children.download, str(home), url, official) == 0
        assert {name: (home / "e2e" / name).read_bytes() for name in files} == files
    assert number > 6  # three files, each opened and renamed
