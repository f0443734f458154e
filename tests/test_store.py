"""The .pt file: what comes back, what is refused; files that are written whole or not at all; locks."""

import contextlib
import os
import pickle
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path
from unittest import mock

import pytest
import torch

from minprefix import load_prefix, save_prefix
from minprefix.generate import check_base
from minprefix.prefix import SavedPrefix
from minprefix.store import hold, write_atomically
from tests.conftest import assert_refused
from tests.models import make_gpt2

ROOT = Path(__file__).resolve().parent.parent
FULL = {"method": "full", "sites": {}}


def make_prefix(**changes) -> SavedPrefix:
    """As a training leaves it, for the model that make_gpt2 makes."""
    content = dict(method="prefix", sites={"decoder": torch.arange(5 * 128.0).reshape(5, 128)})
    content |= dict(positions="shifted", base={"name": "tiny", "config": {}, "fingerprint": "made up"})
    content |= dict(config={"lr": 1e-3, "seeds": [1, 2]}, metrics={"BLEU": 50.5}, data="e2e")
    return SavedPrefix(**content | changes)


# --- what comes back ---


@pytest.mark.parametrize("changes", [{}, FULL | {"tensors": {"ln_f.bias": torch.ones(16)}}])
def test_what_was_trained_comes_back_as_it_was(changes, tmp_path):
    prefix = make_prefix(**changes)
    save_prefix(prefix, tmp_path / "a.pt")
    back, plain = vars(load_prefix(str(tmp_path / "a.pt"))), vars(prefix)
    for key in ("sites", "tensors"):
        torch.testing.assert_close(back.pop(key), plain[key], rtol=0, atol=0)
    assert back == {key: plain[key] for key in back}
    content = torch.load(tmp_path / "a.pt", weights_only=True)
    assert content["format"] == "minprefix/1" and set(content) == {"format", *plain}
    assert os.listdir(tmp_path) == ["a.pt"]


def test_only_plain_numbers_are_stored_and_not_what_they_are_a_view_of(tmp_path):
    large = torch.nn.Parameter(torch.randn(5, 200_000))
    save_prefix(make_prefix(sites={"decoder": large[:, :64] * 1, "cross": large[:, :64]}), tmp_path / "a.pt")
    assert (tmp_path / "a.pt").stat().st_size < 10_000
    for P_theta in load_prefix(tmp_path / "a.pt").sites.values():
        assert torch.equal(P_theta, large[:, :64])
        assert type(P_theta) is torch.Tensor and not P_theta.requires_grad


def test_half_precision_takes_half_the_bytes_and_comes_back_as_floats(tmp_path):
    P_theta = torch.randn(50, 512)
    for name, dtype in (("whole.pt", None), ("half.pt", torch.float16)):
        save_prefix(make_prefix(sites={"decoder": P_theta}), tmp_path / name, dtype)
    sizes = [(tmp_path / name).stat().st_size for name in ("whole.pt", "half.pt")]
    assert sizes[0] - sizes[1] == 2 * P_theta.numel()
    back = load_prefix(tmp_path / "half.pt").sites["decoder"]
    assert back.dtype == torch.float32 and torch.equal(back, P_theta.half().float())
    too_large, odd = make_prefix(sites={"decoder": P_theta * 1e5}), make_prefix(config={"path": Path("a")})
    for prefix in (too_large, odd):  # what could not be read back does not take the place of what was there
        assert_refused(lambda prefix=prefix: save_prefix(prefix, tmp_path / "half.pt", torch.float16))
        assert torch.equal(load_prefix(tmp_path / "half.pt").sites["decoder"], back)
    assert sorted(os.listdir(tmp_path)) == ["half.pt", "whole.pt"]


def test_a_prefix_fits_only_its_base():
    check_base(make_prefix(), make_gpt2())
    for changes in ({"n_layer": 3}, {"n_embd": 16}):
        assert_refused(
            lambda changes=changes: check_base(make_prefix(), make_gpt2(**changes)), "pass --model"
        )
    base = {"name": "another", "config": {}, "fingerprint": "0123"}  # of the same shapes
    assert_refused(
        lambda: check_base(make_prefix(base=base), make_gpt2()), "'another'", "0123", "pass --model"
    )


# --- what is refused ---


class Code:
    """Unpickled, it would leave a file behind."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("kind", ["zip", "plain pickle", "old torch format", "in a field", "as a key"])
def test_a_file_that_would_run_code_is_refused_and_not_run(kind, tmp_path):
    path, code = tmp_path / "evil.pt", Code(tmp_path / "trace")
    content = {"in a field": vars(make_prefix()) | {"data": code}, "as a key": {code: 1}}.get(kind, code)
    if kind == "plain pickle":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind != "old torch format")
    with warnings.catch_warnings(action="error"):
        words = "no .pt file" if kind in ("plain pickle", "old torch format") else "nothing in it was run"
        message = assert_refused(lambda: load_prefix(path), "evil.pt", words)
    assert "weights_only" not in message and not code.path.exists()
    pickle.loads(pickle.dumps(code)).close()  # the trap works: this is what was not run
    assert code.path.exists()


NAN, ONES = torch.full((5, 128), torch.nan), torch.ones(5, 128)
BAD_SITES = [3, torch.ones(128), ONES.long(), ONES * 1j, ONES.to_sparse(), ONES[:1].expand(10**9, 128)]
BAD_SITES += [ONES.to("meta"), ONES[:0], NAN, ONES / 0, ONES.to(torch.float8_e4m3fn)]
FOREIGN, EITHER = "is not a prefix of format minprefix/1", "either sites or tensors"
NO_BASE = {"name": "a", "config": {}, "fingerprint": 3}
BAD_FIELDS = {
    "site": [{"sites": {"decoder": P_theta}} for P_theta in BAD_SITES],
    "sites": [{"sites": [NAN]}, {"sites": {}}, {"sites": {3: ONES}}, {"method": "infix"}],
    FOREIGN: [{"format": "minprefix/2"}, {"format": ONES}],
    "method": [{"method": 3}, {"method": "lora2"}],
    "mlp": [{"mlp": 1}],
    "3": [{3: 1}],
    "config": [{"config": None}],
    "base": [{"base": {}}, {"base": NO_BASE}],
    EITHER: [FULL, {"tensors": {"ln_f.bias": ONES}}],
    "ln_f.bias": [FULL | {"tensors": {"ln_f.bias": NAN}}, FULL | {"tensors": {"ln_f.bias": "x"}}],
}


@pytest.mark.parametrize("words", BAD_FIELDS)
def test_a_foreign_or_damaged_field_is_refused(words, tmp_path):
    for changes in BAD_FIELDS[words]:
        with warnings.catch_warnings(action="ignore"):
            torch.save({"format": "minprefix/1", **vars(make_prefix())} | changes, tmp_path / "a.pt")
        assert_refused(lambda: load_prefix(tmp_path / "a.pt"), "a.pt", words)


def test_a_file_that_is_no_prefix_is_refused(tmp_path):
    save_prefix(make_prefix(), tmp_path / "a.pt")
    good, path = (tmp_path / "a.pt").read_bytes(), tmp_path / "b.pt"
    assert_refused(lambda: load_prefix(path), "b.pt", "missing")
    assert_refused(lambda: load_prefix(tmp_path), str(tmp_path))
    ends = {*range(0, len(good), 97), 1, 2, 4, len(good) - 1}
    others = [b"hello world", b"PK\x03\x04" + bytes(50), b"PK\5\6" + bytes(18), b"\x80\x02}", bytes(1000)]
    for content in [*others, *(good[:end] for end in ends)]:
        path.write_bytes(content)
        assert_refused(lambda: load_prefix(path), "b.pt")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as bomb:
        bomb.writestr("b/data/0", bytes(100_000_000))
    assert_refused(lambda: load_prefix(path), "b.pt", "unpack")
    for content in ([1, 2], torch.ones(3), {"sites": {}}):
        torch.save(content, path)
        assert_refused(lambda: load_prefix(path), FOREIGN)
    content = {"format": "minprefix/1", **vars(make_prefix())}
    del content["sites"]
    torch.save(content, path)
    assert_refused(lambda: load_prefix(path), "b.pt", "sites")


# --- whole files ---


@pytest.mark.parametrize("error", [None, KeyboardInterrupt, OSError(28, "No space left"), ZeroDivisionError])
def test_a_write_replaces_the_old_file_in_one_step_or_leaves_it_and_nothing_else(error, tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write(temporary: Path) -> None:
        assert temporary.parent == tmp_path
        temporary.write_text("new")
        assert path.read_text() == "old"
        if error:
            raise error

    if isinstance(error, OSError):
        assert_refused(lambda: write_atomically(path, write), f"{path} cannot be written (No space left")
    else:
        with pytest.raises(error) if error else contextlib.nullcontext():
            write_atomically(path, write)
    assert path.read_text() == ("old" if error else "new") and os.listdir(tmp_path) == ["a.txt"]


def test_a_disk_that_fills_up_under_torch_is_one_sentence(tmp_path, monkeypatch):
    error = RuntimeError("unexpected pos 64 vs 0")  # what torch says as it cannot end the zip file
    error.__context__ = OSError(28, "No space left on device")
    monkeypatch.setattr(torch, "save", mock.Mock(side_effect=error))
    assert_refused(lambda: save_prefix(make_prefix(), tmp_path / "a.pt"), "a.pt cannot be written (No space")
    assert not os.listdir(tmp_path)


@pytest.mark.parametrize("place", ["gone/a.pt", "file/a.pt", "folder", "a" * 300 + ".pt"])
def test_a_place_that_cannot_be_written_is_named(place, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "folder").mkdir()
    path = tmp_path / place
    assert_refused(lambda: save_prefix(make_prefix(), path), f"{path} cannot be written")
    if place == "gone/a.pt":
        assert_refused(hold(path).__enter__, f"{path} cannot be written")
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


# --- locks ---

HOLD = (
    "import sys; from minprefix.store import hold\nwith hold(sys.argv[1]): print('held', flush=True); input()"
)


def test_one_process_at_a_time_holds_a_file_and_the_dead_hold_nothing(tmp_path):
    path = tmp_path / "a.pt"
    command = [sys.executable, "-c", HOLD, str(path)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline().strip() == b"held"
        assert_refused(hold(path).__enter__, f"another process writes {path}", "wait")
        other.kill()
    for _ in range(2):
        with hold(path):
            assert_refused(hold(path).__enter__, "another process writes")
    assert os.name == "nt" or not os.listdir(tmp_path)  # Windows removes no file that is open


@pytest.mark.parametrize("again", [False, True])
def test_a_lock_that_is_removed_while_it_is_taken_is_none(again, tmp_path, monkeypatch):
    """By its former holder, as that ends; `again`: a third process has then made a new one."""
    fcntl = pytest.importorskip("fcntl", reason="Windows removes no file that is open")
    lock = tmp_path / ".a.pt.lock"

    def remove(*_) -> None:
        lock.unlink()
        if again:
            lock.touch()

    monkeypatch.setattr(fcntl, "flock", remove)
    assert_refused(hold(tmp_path / "a.pt").__enter__, "another process writes")
