"""Short runs on a tiny model and made-up data: what the tests of commands, faults and ranks share."""

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import pytest
from torch.testing import assert_close

import train
from minprefix import load_prefix

ROOT = Path(train.__file__).resolve().parent
TRAIN = [sys.executable, str(ROOT / "train.py")]
QUICK = ["lr=0.01", "prefix_len=3", "beams=2", "batch_size=4", "mlp_hidden=8"]


def make_folder(tiny_folder: Path, home: Path) -> Path:
    """model/ and data/, whose references differ in length, so that no two ranks have as many tokens."""
    shutil.copytree(tiny_folder, home / "model")
    (home / "data").mkdir()
    for split, count in (("train", 16), ("dev", 4), ("test", 12)):
        names = [chr(97 + i) * (3 * i + 1) for i in range(count)]  # unlike enough to get unlike texts
        rows = [f'"name[{name}]",{name} is{" very" * (len(name) % 5)} good.\n' for name in names]
        (home / f"data/{split}.csv").write_text("mr,ref\n" + "".join(rows))
    return home


def merge(*settings: str) -> list[str]:
    """Each key once, with the value that came last: train.py refuses a key that is there twice."""
    return [f"{key}={value}" for key, value in dict(text.split("=", 1) for text in settings).items()]


def settings_for(folder: Path, out: object, *more: str) -> list[str]:
    return merge(*QUICK, f"model={folder / 'model'}", f"data={folder / 'data'}", f"out={out}", *more)


def stop_in_evaluation(arguments: list[str]) -> None:
    """The prefix is there by then, and the state still is."""
    evaluation = mock.patch.object(train, "generate_texts", side_effect=KeyboardInterrupt)
    with evaluation, pytest.raises(SystemExit) as end:
        train.main(arguments)
    assert end.value.code == 130


def stop_at_third_step(command: list[str], out: Path, number: int) -> tuple[int, str]:
    """A process gets a signal then -> its exit code, and what it said."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until = time.monotonic() + 120
    while not log_of(out).exists() or log_of(out).read_text().count('"lr"') < 3:
        assert process.poll() is None and time.monotonic() < until, process.communicate()
        time.sleep(0.01)
    process.send_signal(number)
    _, errors = process.communicate(timeout=60)
    return process.returncode, errors


def state_of(out: Path) -> Path:
    return out.with_suffix(".state.pt")


def log_of(out: Path) -> Path:
    return out.with_suffix(".jsonl")


def read_log(out: Path) -> list[dict]:
    """Its lines, without what differs from run to run."""
    lines = map(json.loads, log_of(out).read_text().splitlines())
    return [{key: value for key, value in line.items() if key != "tokens_per_second"} for line in lines]


def assert_same_run(out: Path, whole: Path, atol: float = 0.0) -> None:
    """The numbers, metrics and log of another run, and nothing beside them that holds up the next one."""
    one, other = load_prefix(out), load_prefix(whole)
    for mine, theirs in ((one.sites, other.sites), (one.tensors, other.tensors)):
        assert mine.keys() == theirs.keys()
        for name, tensor in theirs.items():
            assert_close(mine[name], tensor, rtol=0, atol=atol)
    assert one.metrics == other.metrics and one.metrics
    assert_same_log(read_log(out), read_log(whole), rel=1e-6 if atol else 0)
    names = {path.name for path in out.parent.iterdir()}
    assert names - {f".{out.name}.lock"} == {log_of(out).name, out.name}  # a dead lock holds nobody


def assert_same_log(mine: list[dict], theirs: list[dict], rel: float) -> None:
    assert [line.keys() for line in mine] == [line.keys() for line in theirs]
    for line, expected in zip(mine, theirs):
        for key, value in expected.items():
            assert line[key] == value or line[key] == pytest.approx(value, rel=rel)
