"""Data sets: where their files are, which of them hold a split, and records as batches.

The files are in the official format: from a folder, from the authors' site, or the sample that comes with the
package. DATASETS describes each set once; readers.py reads the files.
"""

import os
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from minprefix import readers
from minprefix.errors import InputError, explain, nearest
from minprefix.files import ADVICE, fetch, read_bytes, sha256, write
from minprefix.readers import Record

SAMPLES = Path(__file__).parent / "samples"
SPLITS = ("train", "dev", "test")


@dataclass(frozen=True)
class DataSet:
    """`names`: what the file of each of SPLITS may be called, the official name first, or with .gz behind it.
    `read(path, split)`: its records. `advice`: how a person gets the files. `digests`: the SHA-256 of the
    official files, if all are known. `url`: the folder that they can be downloaded from."""

    names: tuple[tuple[str, ...], ...]
    read: Callable[[Path, str], list[Record]]
    advice: str
    digests: tuple[str, ...] = ()
    url: str = ""


XSUM = DataSet(
    (("train.jsonl",), ("dev.jsonl",), ("test.jsonl",)),
    lambda path, split: readers.read_xsum(path),
    "python experiments/get_xsum.py downloads the official archive and converts it",
)
DATASETS = {  # name -> what it is; its files are kept in a folder of that name, less what follows a hyphen
    "e2e": DataSet(
        (("trainset.csv", "train.csv"), ("devset.csv", "dev.csv"), ("testset_w_refs.csv", "test.csv")),
        lambda path, split: readers.read_e2e(path),
        "get them from https://github.com/tuetschek/e2e-dataset",
        (  # they pin what the URL's branch name does not
            "f27d48df45815288ab15619d47a79028c300fbb7f42e373668aba0b98c1d57c6",
            "fc26b78cdb849c80545f513b223d1e051138b43882eeb79e3eb153e689c864f9",
            "edc8db685e39bb9824d5bd70c18b1c9b0412d14b527aa960e2d1c8251ee15ccd",
        ),
        "https://raw.githubusercontent.com/tuetschek/e2e-dataset/master/",
    ),
    "webnlg": DataSet(
        (("webnlg_challenge_2017", "webnlg_challenge_2017_xml.tar"),) * 3,
        readers.read_webnlg,
        "take the folder data/webnlg_challenge_2017 of https://github.com/XiangLi1999/PrefixTuning",
        ("409f41df4ecb7fba1a502e9425e27388740b896556c0bdb7b38cf7315e97c811",) * 3,
    ),
    "dart": DataSet(
        tuple((f"dart-v1.1.1-full-{split}.json", f"{split}.json") for split in SPLITS),
        lambda path, split: readers.read_dart(path),
        "take the three dart-v1.1.1-full JSON files of https://github.com/Yale-LILY/dart",
    ),
    "xsum": XSUM,
    "xsum-news-to-sports": replace(XSUM, read=readers.read_news_to_sports),
    "xsum-within-news": replace(XSUM, read=readers.read_within_news),
    "bbc": replace(XSUM, advice="python experiments/make_bbc.py writes it, from a file that one has to have"),
}


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
    if dataset not in DATASETS:
        raise InputError(f"unknown data set '{dataset}'; {nearest(dataset, DATASETS)}")
    known = DATASETS[dataset]
    if data not in ("auto", "download", "sample"):
        return _given_files(dataset, Path(data))
    if data == "sample":
        return _bundled_sample(dataset, "as data=sample asks")
    home = data_folder() / dataset.partition("-")[0]
    if data == "auto" and (files := _files_in(dataset, home)):
        return files
    reason = f"no download of {dataset} is known whose bytes could be checked: {known.advice}"
    if known.url:
        try:
            return _download(dataset, home)
        except OSError as error:
            reason = f"{known.url} cannot be reached ({error})"
    if data == "download":
        raise InputError(f"{reason}; {ADVICE}")
    return _bundled_sample(dataset, f"for {home} has no complete set and {reason}")


def read_split(files: DataFiles, split: str) -> list[Record]:
    """The records of "train", "dev" or "test" in official order. Raises InputError if there are none."""
    path = files.paths[split]
    if records := DATASETS[files.dataset].read(path, split):
        return records
    raise InputError(f"{path} has no {split} records for {files.dataset}; take the complete files")


def data_folder() -> Path:
    """Where data sets are kept: MINPREFIX_DATA, or ~/.cache/minprefix."""
    return Path(os.environ.get("MINPREFIX_DATA") or Path.home() / ".cache" / "minprefix")


def _bundled_sample(dataset: str, reason: str) -> DataFiles:
    files = _files_in(dataset, SAMPLES / dataset.partition("-")[0])
    if not files:
        raise InputError(f"there is no sample of {dataset}, {reason}; give data=PATH with the files in it")
    origin = f"bundled sample (made-up records, not the {dataset} data)"
    return DataFiles(dataset, files.paths, origin, reason, is_sample=True)


def _given_files(dataset: str, root: Path) -> DataFiles:
    known = DATASETS[dataset]
    if files := _files_in(dataset, root / dataset.partition("-")[0]) or _files_in(dataset, root):
        return files
    wanted = [f"{name} (or {', '.join(others)})" if others else name for name, *others in known.names]
    names = ", ".join(dict.fromkeys(wanted))
    raise InputError(f"data={root} is not auto, download, sample or a folder with {names}, plain or .gz")


def _files_in(dataset: str, folder: Path) -> DataFiles | None:
    known = DATASETS[dataset]
    paths = {split: _find_first(folder, names) for split, names in zip(SPLITS, known.names)}
    if not all(paths.values()):
        return None
    digest_of = {path: sha256(read_bytes(path)) for path in set(paths.values())}
    digests = tuple(digest_of[path] for path in paths.values())
    other = f"other {dataset} files (SHA-256 {sha256(' '.join(digests).encode())[:8]})"
    origin = f"official {dataset} files" if digests == known.digests else other
    return DataFiles(dataset, paths, origin, f"in {folder}")


def _find_first(folder: Path, names: tuple[str, ...]) -> Path | None:
    with explain(OSError, f"cannot read {folder}", "give one that you may read"):
        return next((p for name in names for p in (folder / name, folder / f"{name}.gz") if p.exists()), None)


def _download(dataset: str, folder: Path) -> DataFiles:
    """Fetch what `folder` lacks, touch nothing that it has. Raises OSError if the site cannot be reached."""
    known = DATASETS[dataset]
    for (name, *_), digest in zip(known.names, known.digests):
        if not (folder / name).exists():
            write(folder / name, fetch(known.url + name, digest))
        elif sha256(read_bytes(folder / name)) != digest:
            raise InputError(f"{folder / name} is not the official file; move it away, or give data={folder}")
    return _files_in(dataset, folder)


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
