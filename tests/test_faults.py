"""Real runs end at any moment: killed, with a full disk, without memory. Nothing half-written is taken for
whole, and what goes on ends with the same bits as if nothing had happened.

MINPREFIX_KILLS=100 kills at so many random moments instead of 20.
"""

import collections
import errno
import fcntl
import hashlib
import http.server
import json
import os
import random
import shutil
import threading
import time
from pathlib import Path

import pytest
import torch

import sample
import train
from minprefix.errors import InputError
from minprefix.store import hold, load_prefix, read_pt
from tests import children

KILLS = int(os.environ.get("MINPREFIX_KILLS", "20"))
ROW = '"name[Blue {}], food[Thai]",Blue {} serves Thai food.\n'
SETTINGS = ["batch_size=4", "lr=0.01", "prefix_len=3", "mlp_hidden=8", "beams=2", "save_seconds=0"]


@pytest.fixture(scope="module")
def folder(tiny_folder, tmp_path_factory) -> Path:
    """model/ and data/: what the runs need, which is little."""
    folder = tmp_path_factory.mktemp("faults")
    shutil.copytree(tiny_folder, folder / "model")
    (folder / "data").mkdir()
    for split, count in (("train", 16), ("dev", 4), ("test", 12)):
        rows = (ROW.format(f"{split}{i}", i) for i in range(count))
        (folder / f"data/{split}.csv").write_text("mr,ref\n" + "".join(rows))
    return folder


@pytest.fixture(autouse=True)
def quick_children(monkeypatch):
    """The process that the others are forked from finds our modules, and computes in one thread."""
    monkeypatch.setenv("PYTHONPATH", str(Path(train.__file__).parent))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def settings_for(folder: Path, out: Path, *more: str) -> list[str]:
    return [*SETTINGS, f"model={folder / 'model'}", f"data={folder / 'data'}", f"out={out}", *more]


def assert_nothing_is_half(out: Path) -> None:
    """Every file that has its own name is whole, up to the log's last line."""
    if out.exists():
        load_prefix(out)
    if train.state_path(out).exists():
        assert read_pt(train.state_path(out))["format"] == train.STATE_FORMAT
    log = train.log_path(out)
    for line in log.read_text().splitlines(keepends=True) if log.exists() else ():
        assert not line.endswith("\n") or json.loads(line)


def go_on(out: Path, arguments: list[str]) -> list[str]:
    """What a user would type next: resume, or the same command where nothing was begun."""
    state = train.state_path(out)
    return [f"resume={state}"] if state.exists() else arguments


def is_finished(out: Path) -> bool:
    return out.exists() and not train.state_path(out).exists()


def assert_same_run(out: Path, whole: Path) -> None:
    """The same bits, metrics and log as the run that nothing befell, and nothing half-written left."""
    one, other = load_prefix(out), load_prefix(whole)
    assert all(torch.equal(one.sites[site], other.sites[site]) for site in other.sites)
    assert one.metrics == other.metrics and one.metrics
    logs = [
        [
            json.loads(line) | {"tokens_per_second": 0}
            for line in train.log_path(path).read_text().splitlines()
        ]
        for path in (out, whole)
    ]
    assert logs[0] == logs[1]
    names = {path.name for path in out.parent.iterdir()}
    assert names - {f".{out.name}.lock"} == {train.log_path(out).name, out.name}  # a dead lock holds nobody


# --- killed ---

SHORT = ("max_steps=3", "eval_every=2", "eval_limit=2", "max_new_tokens=3")


@pytest.fixture(scope="module")
def short(folder, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("short") / "e2e.pt"
    train.main(settings_for(folder, out, *SHORT))
    return out


def test_killed_before_every_change_of_a_file(folder, short, tmp_path):
    """One kill for each file that is opened to write, renamed, removed or locked; the last try has fewer."""
    for number in range(1, 200):
        out = tmp_path / str(number) / "e2e.pt"
        out.parent.mkdir()
        arguments = settings_for(folder, out, *SHORT)
        if children.finish(children.run_train_until, number, arguments, str(out.parent)) == 0:
            break
        assert_nothing_is_half(out)
        if not is_finished(out):
            assert children.finish(children.run_train, go_on(out, arguments)) == 0
        assert_same_run(out, short)
    print(f"killed before each of {number - 1} changes of files")
    assert number > 30


@pytest.mark.parametrize("number", [1, 2, 4, 5, 6])
def test_killed_in_the_middle_of_writing(number, folder, short, tmp_path):
    """The first four files of tensors are states, then comes the prefix, twice."""
    out = tmp_path / "e2e.pt"
    arguments = settings_for(folder, out, *SHORT)
    assert children.finish(children.run_train_to_half_a_save, number, arguments) == -9
    assert_nothing_is_half(out)
    assert [part for part in out.parent.iterdir() if part.suffix == ".tmp"]
    assert children.finish(children.run_train, go_on(out, arguments)) == 0
    assert_same_run(out, short)


def wait_for(process, reached, *arguments) -> None:
    until = time.monotonic() + 120
    while process.is_alive() and not reached(*arguments):
        assert time.monotonic() < until
        time.sleep(0.001)


def count_lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def has_logged(out: Path, lines: int) -> bool:
    """Whether the training is so far, or over."""
    return out.exists() or count_lines(train.log_path(out)) >= lines


LONG = ("max_steps=24", "eval_every=8", "eval_limit=12", "max_new_tokens=24")


def test_killed_at_random_moments(folder, tmp_path):
    """Runs that are killed again and again, some steps or some of the evaluation later each time."""
    whole = tmp_path / "whole" / "e2e.pt"
    whole.parent.mkdir()
    began = time.monotonic()
    assert children.finish(children.run_train, settings_for(folder, whole, *LONG)) == 0
    duration = time.monotonic() - began
    moments, rng = collections.Counter(), random.Random(0)
    while moments.total() < KILLS:
        out = tmp_path / f"killed after {moments.total()}" / "e2e.pt"
        out.parent.mkdir()
        arguments = settings_for(folder, out, *LONG)
        while not is_finished(out):
            process = children.start(children.run_train, go_on(out, arguments))
            pause = duration if out.exists() else 0.05
            lines = count_lines(train.log_path(out)) + rng.randrange(12)
            wait_for(process, has_logged, out, lines)
            if moments.total() < KILLS:
                time.sleep(rng.random() * pause)
                process.kill()
            process.join()
            assert process.exitcode in (0, -9)
            moments[name_moment(out)] += process.exitcode == -9
            assert_nothing_is_half(out)
        assert_same_run(out, whole)
    print(dict(moments))
    assert moments["training"] >= KILLS // 4 and moments["evaluation"] >= KILLS // 20


def name_moment(out: Path) -> str:
    if out.exists():
        return "evaluation"
    return "training" if train.state_path(out).exists() else "start"


# --- two at once ---


def test_two_runs_do_not_write_to_one_place(folder, tmp_path):
    out = tmp_path / "e2e.pt"
    arguments = settings_for(folder, out, "epochs=1000", "save_seconds=60")
    first = children.start(children.run_train, arguments)
    wait_for(first, train.log_path(out).exists)  # it is written last, and then nothing for a minute
    for second in (arguments, [f"resume={train.state_path(out)}"]):
        with pytest.raises(InputError, match=r"another process writes .*e2e\.pt: wait"):
            train.main(second)
    first.kill()
    first.join()
    with hold(out):  # the dead hold nothing
        pass
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e2e.jsonl", "e2e.state.pt"]


@pytest.mark.parametrize("again", [False, True])
def test_a_lock_that_is_removed_while_it_is_taken_is_none(again, tmp_path, monkeypatch):
    """By its former holder, as that ends; `again`: a third process has then made a new one."""
    lock = tmp_path / ".e2e.pt.lock"

    def remove(*_):
        lock.unlink()
        if again:
            lock.touch()

    monkeypatch.setattr(fcntl, "flock", remove)
    with pytest.raises(InputError, match="another process writes"), hold(tmp_path / "e2e.pt"):
        pass


def test_only_a_run_s_own_parts_are_removed(tmp_path):
    for name in (".a[1].pt.7.tmp", ".a1.pt.7.tmp"):
        (tmp_path / name).touch()
    train.remove_parts(tmp_path / "a[1].pt")
    assert [path.name for path in tmp_path.iterdir()] == [".a1.pt.7.tmp"]


# --- full disks, no memory, no good numbers ---


@pytest.mark.parametrize("size", [1000, 2500, 5000])
def test_a_full_disk_is_one_sentence_and_loses_nothing(size, folder, short, tmp_path):
    """Too full for the log, for a state, or for the prefix; with room again the run goes on."""
    out = tmp_path / "run" / "e2e.pt"
    out.parent.mkdir()
    arguments = settings_for(folder, out, *SHORT)
    code = children.finish(children.run_train_with_a_full_disk, arguments, size, str(tmp_path / "errors"))
    assert code == 2
    assert_nothing_is_half(out)
    assert children.finish(children.run_train, go_on(out, arguments)) == 0
    assert_same_run(out, short)


def test_a_folder_that_becomes_read_only_keeps_the_last_state(folder, short, tmp_path, monkeypatch):
    out, replace, left = tmp_path / "e2e.pt", os.replace, [0]

    def refuse_the_fifth(old, new):
        if not left:
            raise OSError(errno.EROFS, "Read-only file system")
        left.pop()
        replace(old, new)

    left += [0] * 3
    with monkeypatch.context() as patch, pytest.raises(InputError, match=r"Read-only .*choose another place"):
        patch.setattr(os, "replace", refuse_the_fifth)
        train.main(settings_for(folder, out, *SHORT))
    assert read_pt(train.state_path(out))["step"] == 2
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


def test_a_loss_that_is_no_number_keeps_the_steps_before_it(folder, short, tmp_path, monkeypatch):
    """Also those since the last save, which was a minute ago."""
    out = tmp_path / "e2e.pt"
    with monkeypatch.context() as patch, pytest.raises(InputError, match=r"is nan: lower lr \(now 0\.01\)"):
        fail_at(3, None, patch)
        train.main(settings_for(folder, out, *SHORT, "save_seconds=60"))
    assert read_pt(train.state_path(out))["step"] == 2
    train.main(go_on(out, []))
    one, other = load_prefix(out), load_prefix(short)
    assert torch.equal(one.sites["decoder"], other.sites["decoder"]) and one.metrics == other.metrics


# The real sentences of each kind, cut short.
NO_MEMORY = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate memory"),
]


@pytest.mark.parametrize("error", NO_MEMORY, ids=["Python", "CUDA", "CPU"])
def test_out_of_memory_names_what_to_lower(error, folder, short, tmp_path, monkeypatch):
    out = tmp_path / "e2e.pt"
    with (
        monkeypatch.context() as patch,
        pytest.raises(InputError, match=r"memory ran out .*: lower batch_size"),
    ):
        fail_at(1, error, patch)
        train.main(settings_for(folder, out, *SHORT))
    assert not list(tmp_path.iterdir())  # nothing is in the way of a smaller run
    with monkeypatch.context() as patch, pytest.raises(InputError, match=r"memory ran out .*fewer --beams"):
        patch.setattr(train, "generate_texts", raise_(error))
        train.main(settings_for(folder, out, *SHORT))
    sample_arguments = ["--prefix", str(out), "--records", "1"]
    with monkeypatch.context() as patch, pytest.raises(InputError, match=r"memory ran out .*lower --beams"):
        patch.setattr(sample, "generate_texts", raise_(error))
        sample.main(sample_arguments)
    sample.main(sample_arguments)


def raise_(error: Exception):
    def call(*_):
        raise error

    return call


def test_another_runtime_error_is_not_called_memory(folder, tmp_path, monkeypatch):
    fail_at(1, RuntimeError("CUDA error: an illegal memory access was encountered"), monkeypatch)
    with pytest.raises(RuntimeError, match="illegal"):
        train.main(settings_for(folder, tmp_path / "e2e.pt", *SHORT))


def test_memory_that_really_runs_out(folder, tmp_path):
    out, errors = tmp_path / "run" / "e2e.pt", tmp_path / "errors"
    out.parent.mkdir()
    arguments = settings_for(folder, out, *SHORT, "mlp_hidden=1000000")
    assert children.finish(children.run_train_with_little_memory, arguments, str(errors)) == 2
    text = errors.read_text().splitlines()
    assert text[-1].startswith("memory ran out (") and text[-1].endswith(train.SMALLER) and len(text) == 1
    assert not list(out.parent.iterdir())


# --- downloads ---

FILES = {
    f"{split}.csv": ("mr,ref\n" + ROW.format(split, split)).encode() for split in ("train", "dev", "test")
}
OFFICIAL = {name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()}


class Site(http.server.BaseHTTPRequestHandler):
    """Sends half of the file that `stalled` names, and no more."""

    stalled = ""
    asked: threading.Event

    def do_GET(self):
        name = self.path.strip("/")
        self.send_response(200)
        self.send_header("Content-Length", str(len(FILES[name])))
        self.end_headers()
        self.wfile.write(FILES[name][:20] if name == self.stalled else FILES[name])
        if name == self.stalled:
            self.asked.set()
            time.sleep(3600)

    def log_message(self, *_):
        pass


@pytest.fixture
def site():
    handler = type("Handler", (Site,), {"asked": threading.Event()})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    handler.url = f"http://127.0.0.1:{server.server_port}/"
    yield handler
    server.shutdown()


def assert_downloads_whole(home: Path, site) -> None:
    """What is there has the official bytes; the next try fetches the rest."""
    for path in (home / "e2e").iterdir() if (home / "e2e").exists() else ():
        assert path.name.startswith(".") or path.read_bytes() == FILES[path.name]
    site.stalled = ""
    assert children.finish(children.download, str(home), site.url, OFFICIAL) == 0
    assert {name: (home / "e2e" / name).read_bytes() for name in FILES} == FILES


@pytest.mark.parametrize("name", FILES)
def test_a_download_killed_half_way(name, site, tmp_path):
    site.stalled = name
    process = children.start(children.download, str(tmp_path), site.url, OFFICIAL)
    assert site.asked.wait(60)
    process.kill()
    process.join()
    assert_downloads_whole(tmp_path, site)


def test_a_download_killed_before_every_change_of_a_file(site, tmp_path):
    for number in range(1, 50):
        home = tmp_path / str(number)
        home.mkdir()
        if children.finish(children.download, str(home), site.url, OFFICIAL, number) == 0:
            break
        assert_downloads_whole(home, site)
    assert number > 6  # three files, each opened and renamed
