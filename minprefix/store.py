"""The .pt file: what a training leaves, written whole or not at all, and read without trusting it."""

import contextlib
import os
import pickle
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from minprefix.checks import InputError, build, explain, read_path
from minprefix.prefix import FLOATS, SavedPrefix

FORMAT = "minprefix/1"
ELSEWHERE = "make room or choose another place for it"
FULL = "make room, then resume or start again"  # for what stands beside a run's other files


def refuse_to_write(path: Path, advice: str = ELSEWHERE) -> contextlib.AbstractContextManager:
    """Within it, what the system refuses is an InputError about this file or folder."""
    return explain(OSError, f"{path} cannot be written", advice)


def write_atomically(path: str | Path, write: Callable[[Path], None], advice: str = ELSEWHERE) -> None:
    """`write(temporary)`, then rename to `path`: there never is half a file. InputError if this fails."""
    path = read_path(path)
    temporary = path.parent / f".{path.name}.{os.getpid()}.tmp"
    with refuse_to_write(path, advice):
        try:
            write(temporary)
            with open(temporary, "rb+") as file:  # Windows syncs only what is open for writing
                os.fsync(file.fileno())
            os.replace(temporary, path)
        finally:  # also on Ctrl-C; after os.replace there is nothing left to remove
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def hold(path: str | Path) -> Iterator[None]:
    """Refuses other processes that would write to `path`, until this one ends or is killed. InputError."""
    path = Path(path)
    taken = explain(Timeout, f"another process writes {path}", "wait, or give another name")
    with refuse_to_write(path), taken:
        folder = path.parent.resolve(strict=True)  # FileLock would make one that is missing
        lock = FileLock(folder / f".{path.name}.lock", timeout=0)
        lock.acquire()
    try:
        yield
    finally:
        with contextlib.suppress(OSError):  # Windows removes no file that is open
            os.unlink(lock.lock_file)  # before it is free: filelock locks no file that has lost its name
        lock.release()


def write_pt(content: dict, path: Path) -> None:
    """torch.save, but a full disk is an OSError."""
    with open(path, "wb") as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # about the zip file that it could not end: the cause is behind it
            raise error.__context__ or error from None


def save_prefix(obj: SavedPrefix, path: str | Path, dtype: torch.dtype | None = None) -> None:
    """Writes `obj` as a .pt file, which is read once before it gets its name. InputError if it cannot be.

    dtype: of the stored numbers, such as torch.float16 for half the bytes; None leaves them as they are.
    """
    if not isinstance(obj, SavedPrefix) or dtype not in (None, *FLOATS):
        raise InputError(f"{type(obj).__name__} as {dtype} cannot be saved: give a SavedPrefix and a dtype")
    content = {"format": FORMAT, **vars(obj)}
    for key in ("sites", "tensors"):  # copies, because torch.save writes all of what a slice is a view of
        content[key] = {
            name: tensor.detach().to("cpu", dtype).clone(memory_format=torch.contiguous_format)
            for name, tensor in content[key].items()
        }

    def write(temporary: Path) -> None:
        write_pt(content, temporary)
        load_prefix(temporary)

    write_atomically(path, write)


def load_prefix(path: str | Path) -> SavedPrefix:
    """Reads a .pt file -> its P_theta as floats, on the CPU. InputError if it is damaged, foreign or code."""
    content = read_pt(read_path(path))
    if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
        raise InputError(f"{path} is not a prefix of format {FORMAT}: give a file that train.py wrote")
    return restore_prefix(content, f"{path} is a damaged prefix file, train or copy it again: ")


def restore_prefix(content: dict, place: str) -> SavedPrefix:
    """What a file holds -> its P_theta as floats. InputError, which starts with place, if it is no prefix."""
    saved = build(SavedPrefix, content, place)
    return replace(saved, sites={site: P_theta.float() for site, P_theta in saved.sites.items()})


def read_pt(path: Path, allow_old: bool = False) -> object:
    """The tensors and plain values in a .pt file; InputError if it is damaged or holds code (never run).

    allow_old: a file without a zip archive's frame, as before PyTorch 1.6, will do.
    """
    # damaged files fail in many ways
    with explain(Exception, f"{path} is missing, damaged or no .pt file", "train or copy it again"):
        if not allow_old or zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as file:  # unlike torch's own, a compressed one may unpack to any size
                if sum(info.file_size for info in file.infolist()) > path.stat().st_size:
                    raise ValueError("it would unpack to more than its size")
        try:
            return torch.load(path, weights_only=True, map_location="cpu")
        except pickle.UnpicklingError:  # whose own advice is to run the code
            refused = "is refused, and nothing in it was run: it holds more than tensors and plain values"
            raise InputError(f"{path} {refused}; do not trust it") from None
