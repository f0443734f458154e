"""The .pt file: what a training leaves, written whole or not at all, and read without trusting it."""

import contextlib
import fcntl
import os
import pickle
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from minprefix.errors import InputError, explain, first_line
from minprefix.prefix import CHANGES, SavedPrefix

FORMAT = "minprefix/1"
FIELDS = {"method": str, "sites": dict, "positions": str, "base": dict, "config": dict, "metrics": dict}
FIELDS |= {"data": str, "tensors": dict}  # what a .pt file holds beside its format
SELF_AND_CROSS = {"encoder", "decoder", "cross"}
SITES = {"prefix": SELF_AND_CROSS, "embedding": SELF_AND_CROSS, "infix": {"infix"}}
SITES |= {method: set() for method in CHANGES}  # they have tensors instead
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
BASE_FIELDS = {"name": str, "config": dict, "fingerprint": str}


def write_atomically(path: str | Path, write: Callable[[Path], None]) -> None:
    """`write(temporary)`, then rename to `path`: there never is half a file. InputError if this fails."""
    path = Path(path)
    temporary = path.parent / f".{path.name}.{os.getpid()}.tmp"
    try:
        with explain(OSError, f"{path} cannot be written", "choose another place for it"):
            write(temporary)
            with open(temporary, "rb") as file:
                os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:  # also on Ctrl-C; after os.replace there is nothing left to remove
        with contextlib.suppress(OSError):
            temporary.unlink()


@contextlib.contextmanager
def hold(path: str | Path) -> Iterator[None]:
    """Refuses other processes that would write to `path`, until this one ends or is killed. InputError."""
    path = Path(path)
    lock = path.parent / f".{path.name}.lock"
    with explain(OSError, f"{path} cannot be written", "choose another place for it"):
        file = open(lock, "w")  # noqa: SIM115 (closed below)
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Its former holder may have removed the file since we opened it: a third process locks another.
            if not os.path.samestat(os.fstat(file.fileno()), os.stat(lock)):
                raise FileNotFoundError
        except (BlockingIOError, FileNotFoundError):
            raise InputError(f"another process writes {path}: wait, or give another name") from None
        try:
            yield
        finally:
            lock.unlink()


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
    content = read_pt(Path(path))
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(f"{path} is not a prefix of format {FORMAT}: give a file that train.py wrote")
    content = {key: value for key, value in ({"tensors": {}} | content).items() if key != "format"}
    if wrong := _find_wrong(content):
        raise InputError(f"{path} is a damaged prefix file ({wrong}): train or copy it again")
    content["sites"] = {site: P_theta.float() for site, P_theta in content["sites"].items()}
    return SavedPrefix(**content)


def read_pt(path: Path) -> object:
    """The tensors and plain values in a .pt file; InputError if it is damaged or holds code (never run)."""
    try:
        if zipfile.is_zipfile(path):  # unlike torch's own, a compressed or folded one may unpack to any size
            with zipfile.ZipFile(path) as file:
                if sum(info.file_size for info in file.infolist()) > path.stat().st_size:
                    raise ValueError("it would unpack to more than its size")
        with warnings.catch_warnings(action="ignore"):  # about odd pickles, which are refused below
            return torch.load(path, weights_only=True, map_location="cpu")
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: give a file that train.py wrote") from None
    except pickle.UnpicklingError:
        raise InputError(
            f"{path} is refused, and nothing in it was run: it holds code or objects, where only tensors and "
            "plain values belong; do not trust it"
        ) from None
    except Exception as error:  # damaged files fail in many ways
        reason = first_line(error).partition(". ")[0]
        raise InputError(f"{path} is damaged or no .pt file ({reason}): train or copy it again") from None


def _find_wrong(content: dict) -> str:
    """What is wrong with the fields of a .pt file, in words; "" if nothing is."""
    if set(content) != set(FIELDS):
        return f"keys missing or unexpected: {', '.join(sorted(map(str, set(content) ^ set(FIELDS))))}"
    for key, kind in FIELDS.items():
        if not isinstance(content[key], kind):
            return f"{key} must be of type {kind.__name__}"
    if not all(isinstance(content["base"].get(key), kind) for key, kind in BASE_FIELDS.items()):
        return f"base must hold {', '.join(BASE_FIELDS)}"
    sites, allowed = set(content["sites"]), SITES.get(content["method"])
    if allowed is None or not sites <= allowed or bool(sites) != bool(allowed):
        return f"method {content['method']!r} with sites {sorted(sites)} is unknown"
    if bool(content["tensors"]) == bool(sites):
        return "it must hold either sites or tensors"
    if flat := [name for name, site in content["sites"].items() if getattr(site, "ndim", None) != 2]:
        return f"site {flat[0]} must be a tensor (P, 2·L·C)"
    for name, tensor in (content["sites"] | content["tensors"]).items():
        # Only a contiguous tensor is as large as it says: others may show one stored number a million times.
        if not isinstance(tensor, Tensor) or tensor.dtype not in FLOATS or not tensor.is_contiguous():
            return f"{name} must be a tensor of floats"
        if tensor.is_meta or not tensor.numel():
            return f"{name} has no values"
        if not tensor.isfinite().all():
            return f"{name} holds values that are not finite"
    return ""
