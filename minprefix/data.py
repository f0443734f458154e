"""Data sets as records (a source, all its references), and records as batches.

A data set is one file per split in the official format: from a folder, from its authors' site, or the sample
that comes with the package.
"""

import csv
import difflib
import gzip
import hashlib
import http.client
import io
import os
import random
import re
import urllib.request
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from minprefix.errors import InputError

TIMEOUT = 10  # seconds without an answer; short, so that a machine without network goes on quickly
ADVICE = "try again, or give data=sample, or data=PATH with the files in it"
SAMPLES = Path(__file__).parent / "samples"
URLS = {"e2e": "https://raw.githubusercontent.com/tuetschek/e2e-dataset/master/"}
OFFICIAL = {  # file name and SHA-256 of the official bytes; it pins what the URL's branch name does not
    "e2e": {
        "train": ("trainset.csv", "f27d48df45815288ab15619d47a79028c300fbb7f42e373668aba0b98c1d57c6"),
        "dev": ("devset.csv", "fc26b78cdb849c80545f513b223d1e051138b43882eeb79e3eb153e689c864f9"),
        "test": ("testset_w_refs.csv", "edc8db685e39bb9824d5bd70c18b1c9b0412d14b527aa960e2d1c8251ee15ccd"),
    }
}
E2E_KEYS = ("name", "Type", "food", "price", "customer rating", "area", "family friendly", "near")
RENAMED = {"eatType": "Type", "priceRange": "price", "familyFriendly": "family friendly"}  # official -> ours
ATTRIBUTE = re.compile(r"\s*([^\[\],]+)\[([^\[\]]+)\]\s*(?:,|$)")  # key[value]; a value may hold commas


@dataclass(frozen=True)
class Record:
    """One source, all that people wrote about it, and its part of the data set (E2E has no parts)."""

    source: str
    references: tuple[str, ...]
    group: str = ""


@dataclass(frozen=True)
class DataFiles:
    """One file per split, all from one place. `origin` says what they are, `detail` where or why."""

    dataset: str
    paths: dict[str, Path]
    origin: str
    detail: str
    is_sample: bool = False


def find_files(dataset: str, data: str = "auto") -> DataFiles:
    """The files of every split. `data` is "auto" (the data folder, else download, else bundled sample),
    "download", "sample", or a folder with the files. Raises InputError where that cannot be met."""
    if dataset not in READERS:
        raise InputError(f"unknown data set '{dataset}'; {_nearest(dataset, READERS)}")
    if data not in ("auto", "download", "sample"):
        return _given_files(dataset, Path(data))
    if data == "sample":
        return _bundled_sample(dataset, "as data=sample asks")
    home = data_folder() / dataset
    if data == "auto" and (files := _files_in(dataset, home)):
        return files
    try:
        return _download(dataset, home)
    except OSError as error:
        reason = f"{URLS[dataset]} cannot be reached ({error})"
        if data == "download":
            raise InputError(f"{reason}; {ADVICE}") from error
        return _bundled_sample(dataset, f"for {home} has no complete set and {reason}")


def read_split(files: DataFiles, split: str) -> list[Record]:
    """The records of "train", "dev" or "test" in official order."""
    return READERS[files.dataset](files.paths[split])


def data_folder() -> Path:
    """Where data sets are kept: MINPREFIX_DATA, or ~/.cache/minprefix."""
    return Path(os.environ.get("MINPREFIX_DATA") or Path.home() / ".cache" / "minprefix")


def _bundled_sample(dataset: str, reason: str) -> DataFiles:
    origin = f"bundled sample (made-up records, not the {dataset} data)"
    return DataFiles(dataset, _files_in(dataset, SAMPLES / dataset).paths, origin, reason, is_sample=True)


def _given_files(dataset: str, root: Path) -> DataFiles:
    if files := _files_in(dataset, root / dataset) or _files_in(dataset, root):
        return files
    names = ", ".join(f"{name} (or {split}.csv)" for split, (name, _) in OFFICIAL[dataset].items())
    raise InputError(f"data={root} is not auto, download, sample or a folder with {names}, plain or .gz")


def _files_in(dataset: str, folder: Path) -> DataFiles | None:
    paths = {split: _find_split(folder, split, name) for split, (name, _) in OFFICIAL[dataset].items()}
    if not all(paths.values()):
        return None
    digests = [_sha256(_read_bytes(path)) for path in paths.values()]
    official = digests == [digest for _, digest in OFFICIAL[dataset].values()]
    other = f"other {dataset} files (SHA-256 {_sha256(' '.join(digests).encode())[:8]})"
    return DataFiles(dataset, paths, f"official {dataset} files" if official else other, f"in {folder}")


def _find_split(folder: Path, split: str, name: str) -> Path | None:
    candidates = [folder / (stem + end) for stem in (name, f"{split}.csv") for end in ("", ".gz")]
    try:
        return next((path for path in candidates if path.is_file()), None)
    except OSError as error:
        raise InputError(
            f"cannot read {folder} ({error.strerror}); give a folder that you may read"
        ) from None


def _download(dataset: str, folder: Path) -> DataFiles:
    """Fetch what `folder` lacks, touch nothing that it has. Raises OSError if the site cannot be reached."""
    for name, digest in OFFICIAL[dataset].values():
        if not (folder / name).exists():
            _write(folder / name, _fetch(URLS[dataset] + name, digest))
        elif _sha256(_read_bytes(folder / name)) != digest:
            raise InputError(f"{folder / name} is not the official file; move it away, or give data={folder}")
    return _files_in(dataset, folder)


def _fetch(url: str, digest: str) -> bytes:
    with urllib.request.urlopen(url, timeout=TIMEOUT) as response:
        try:
            content = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise InputError(f"the download of {url} broke off ({error!r}); {ADVICE}") from error
    if _sha256(content) != digest:
        raise InputError(f"{url} sent {len(content)} bytes that are not the official file; {ADVICE}")
    return content


def _write(path: Path, content: bytes) -> None:
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(content)
        os.replace(part, path)
    except OSError as error:
        raise InputError(f"cannot write {path} ({error}); set MINPREFIX_DATA to another folder") from error
    finally:
        if part.exists():
            part.unlink()


def _read_bytes(path: Path) -> bytes:
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if path.suffix == ".gz" else content
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"cannot read {path} ({error}); is the file whole?") from error


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _nearest(word: str, known: Iterable[str]) -> str:
    match = difflib.get_close_matches(word, known, 1)
    return f"did you mean '{match[0]}'?" if match else f"known are {', '.join(known)}"


def read_e2e(path: Path) -> list[Record]:
    """The records of an E2E file (CSV, columns mr and ref): one per MR, in order of first appearance, with
    all references, white space collapsed (some hold line breaks). Raises InputError with file and line."""
    references: dict[str, list[str]] = {}
    rows = csv.DictReader(io.StringIO(_read_text(path), newline=""), strict=True)
    try:
        if missing := {"mr", "ref"} - set(rows.fieldnames or ()):
            raise InputError(f"no column {' and '.join(sorted(missing))}; the first line must be mr,ref")
        for row in rows:
            if not (row["ref"] or "").strip():
                raise InputError("the reference is empty; fill it in, or delete the line")
            references.setdefault(linearise_mr(row["mr"]), []).append(" ".join(row["ref"].split()))
    except (csv.Error, InputError) as error:
        raise InputError(f"{path}, line {rows.reader.line_num}: {error}") from error
    if not references:
        raise InputError(f"{path} has a header but no records")
    return [Record(source, tuple(texts)) for source, texts in references.items()]


def _read_text(path: Path) -> str:
    content = _read_bytes(path)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise InputError(f"{path}, line {line}: not UTF-8; save the file as UTF-8") from error


READERS = {"e2e": read_e2e}  # data set -> what reads one of its files


def linearise_mr(mr: str) -> str:
    """`name[Blue Spice], eatType[pub]` becomes `name : Blue Spice | Type : pub`, the authors' format, keys in
    the order given. Raises InputError for anything but key[value], key[value], ..."""
    attributes = ATTRIBUTE.findall(mr)
    if not attributes or ATTRIBUTE.sub("", mr) or len(dict(attributes)) < len(attributes):
        raise InputError(f"malformed record {mr!r}; write name[...], food[...], each key once")
    return linearise_record(dict(attributes))


def linearise_record(record: Mapping[str, object]) -> str:
    """The source for a mapping whose keys are E2E's official or linearised names; empty values are left out.
    Raises InputError for an unknown key and for a value that is neither text nor a number."""
    parts = {}
    for key, value in record.items():
        name = RENAMED.get(key, key)
        if name not in E2E_KEYS:
            raise InputError(f"unknown key '{key}'; {_nearest(str(key), [*E2E_KEYS, *RENAMED])}")
        if isinstance(value, bool) or not isinstance(value, str | int | float | None):
            raise InputError(f"the value of '{key}' is {value!r}; write it as text")
        if name in parts:
            raise InputError(f"'{name}' is given twice; leave one out")
        if text := " ".join(str("" if value is None else value).split()):
            parts[name] = text
    if not parts:
        raise InputError("the record is empty; give it at least a name")
    return " | ".join(f"{name} : {text}" for name, text in parts.items())


def pairs(records: list[Record]) -> list[tuple[str, str]]:
    """(source, reference) for every reference: what one trains on."""
    return [(record.source, reference) for record in records for reference in record.references]


def pick(items: list, limit: int) -> list:
    """All (limit 0), or `limit` of them spread evenly: test sets are sorted, their head is no sample."""
    return items if not 0 < limit < len(items) else [items[i * len(items) // limit] for i in range(limit)]


def make_batches(lengths: list[int], batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """Every index of `lengths` once, in batches of similar lengths and random order. A pure function of its
    arguments: that is what lets training resume at any batch."""
    rng = random.Random(f"{seed} {epoch}")
    order = list(range(len(lengths)))
    rng.shuffle(order)
    bucket = 50 * batch_size  # sorting within buckets saves most of the padding and keeps the batches random
    chunks = [sorted(order[i : i + bucket], key=lengths.__getitem__) for i in range(0, len(order), bucket)]
    batches = [chunk[i : i + batch_size] for chunk in chunks for i in range(0, len(chunk), batch_size)]
    rng.shuffle(batches)
    return batches
