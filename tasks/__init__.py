"""The data sets. Each is a Task in a file of its own; here their files are found, read and scored."""

import hashlib
import http.client
import importlib
import os
import pkgutil
import sys
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from minprefix.checks import InputError, explain, nearest
from minprefix.store import write_atomically
from tasks.metrics import check_references
from tasks.rows import decode, make_each, parse_rows, read_bytes, tidy

SAMPLES = Path(__file__).parent / "samples"
SPLITS = ("train", "dev", "test")
ADVICE = "try again, or give data=sample, or data=PATH with the files in it"
# The bundled models are fifty times smaller than the paper's and learn at larger rates: of E2E's grids in
# experiments/, or near them (an adapter's falls with its width). Their 800 steps are a third of an epoch of
# E2E, and minutes on two cores. "direct" is prefix with mlp_hidden=0.
MINI_MODELS = ("gpt2-mini", "bart-mini")
MINI_RATES = {"prefix": 2e-3, "direct": 3e-2, "infix": 2e-3, "embedding": 1e-2, "full": 1e-3, "top2": 2e-3}
MINI_RATES |= {"adapter": 2e-2, "lora": 1e-2}

# SmolLM2-135M knows English and learns at smaller rates; those tried once on E2E, with 300 steps of 10 pairs.
SMOLLM2 = {"epochs": 5, "max_steps": 300, "batch_size": 10}
SMOLLM2_RATES = {"prefix": 1e-3, "infix": 1e-3, "embedding": 1e-2, "full": 1e-4}


@dataclass(frozen=True)
class Record:
    """One source, all that people wrote about it, and its part of the data set: WebNLG's category, XSum's
    sport or news; the others have no parts."""

    source: str
    references: tuple[str, ...]
    group: str = ""


@dataclass(frozen=True)
class DataFiles:
    """A path for each of SPLITS, all from one place. `origin` says what they are, `detail` where or why,
    `keys` what the source and the target are called in them, where a person said so (pairs)."""

    dataset: str
    paths: dict[str, Path]
    origin: str
    detail: str
    keys: tuple[str, str] = ("", "")
    is_sample: bool = False


@dataclass(frozen=True)
class Task:
    """A data set, and what its authors and its official script do with it.

    files: what the file of each of SPLITS may be called, the official name first, or with .gz behind it.
    read(files, split): its records.
    linearise(row): the source for a row of a file or of sample.py's input; parse_line(text): for a typed one.
    Both raise ValueError; what reads makes of it an InputError with the place.
    metrics: what is reported, of texts as prepare(texts) makes them; part(group): and for which part of the
    test set by itself.
    paper: Appendix A's settings for prefix-tuning; decoding: of all methods; mini: of the bundled models.
    digests: the SHA-256 of the official files, if all are known; url: the folder to download them from;
    advice: how else a person gets them; splits: dev and test are split off where they have no file.
    """

    name: str
    files: tuple[tuple[str, ...], ...]
    read: Callable[[DataFiles, str], list[Record]]
    linearise: Callable[[dict], str]
    metrics: tuple[Callable, ...]
    parse_line: Callable[[str], str] = tidy
    prepare: Callable[[Sequence[str]], list[str]] = list
    part: Callable[[str], str] = lambda group: ""
    paper: dict = field(default_factory=dict)
    decoding: dict = field(default_factory=dict)
    mini: dict = field(default_factory=lambda: {"epochs": 5, "max_steps": 800, "batch_size": 16})
    digests: tuple[str, ...] = ()
    url: str = ""
    advice: str = ""
    splits: bool = False


def find_task(dataset: str) -> Task:
    """The task of that name, of all that stand in the files of this folder. Raises InputError."""
    modules = [importlib.import_module(f"tasks.{module.name}") for module in pkgutil.iter_modules(__path__)]
    found = [thing for module in modules for thing in vars(module).values() if isinstance(thing, Task)]
    tasks = {task.name: task for task in found}
    if dataset not in tasks:
        raise InputError(f"unknown data set '{dataset}'; {nearest(dataset, tasks)}")
    return tasks[dataset]


def choose_presets(base) -> dict:
    """Settings for base.dataset, .model, .method and .mlp_hidden: the bundled models', else the paper's."""
    task = find_task(base.dataset)
    method = "direct" if base.method == "prefix" and base.mlp_hidden == 0 else base.method
    if base.model.rstrip("/").endswith("smollm2-135m"):
        rate = {"lr": SMOLLM2_RATES[method]} if method in SMOLLM2_RATES else {}
        return task.decoding | SMOLLM2 | rate
    if not base.model.rstrip("/").endswith(MINI_MODELS):
        return task.decoding | (task.paper if method == "prefix" else {})
    steps = {"max_steps": 400} if method == "full" else {}  # one costs twice one of prefix
    return task.decoding | task.mini | {"lr": MINI_RATES[method]} | steps


def find_files(
    dataset: str, data: str = "auto", keys: tuple[str, str] = ("", ""), download: bool = True
) -> DataFiles:
    """The files of every split. `data` is "auto" (the data folder, else download, else bundled sample),
    "download", "sample", or a folder with the files; for pairs also one file. `keys`: what pairs' source and
    target are called, if not as usual. download=False: auto uses no network. Raises InputError where that
    cannot be met."""
    task = find_task(dataset)
    if any(keys) and not task.splits:
        raise InputError(
            f"source_key= and target_key= are for dataset=pairs, not for {dataset}: leave them out"
        )
    if data == "sample":
        return _find_sample(task, "as data=sample asks")
    if data not in ("auto", "download"):
        return _find_given(task, Path(data), keys)
    home = data_folder() / task.name.partition("-")[0]
    try:
        if data == "auto" and (files := _look_in(task, home, keys)):
            return files
        if data == "auto" and not download:
            return _find_sample(task, f"for {home} has no complete set")
        return _download(task, home)
    except (OSError, http.client.HTTPException) as error:
        if data == "download":
            raise InputError(f"{error}; {ADVICE}") from None
        return _find_sample(task, f"for {home} has no complete set and {error}")


def data_folder() -> Path:
    """Where data sets are kept: MINPREFIX_DATA, or ~/.cache/minprefix."""
    return Path(os.environ.get("MINPREFIX_DATA") or Path.home() / ".cache" / "minprefix")


def _find_sample(task: Task, reason: str) -> DataFiles:
    if task.splits:
        raise InputError(f"dataset={task.name} has no sample: {task.advice}")
    files = _look_in(task, SAMPLES / task.name.partition("-")[0])
    if not files:
        raise InputError(f"there is no sample of {task.name}, {reason}; give data=PATH with the files in it")
    origin = f"bundled sample (made-up records, not the {task.name} data)"
    return replace(files, origin=origin, detail=reason, is_sample=True)


def _find_given(task: Task, root: Path, keys: tuple[str, str]) -> DataFiles:
    for folder in (root / task.name.partition("-")[0], root):
        if files := _look_in(task, folder, keys):
            return files
    if not root.exists():
        raise InputError(
            f"data={root} is not auto, download or sample, and does not exist: {task.advice or ADVICE}"
        )
    wanted = ", ".join(dict.fromkeys(" or ".join(names) for names in task.files))
    raise InputError(f"data={root} is not auto, download, sample or a folder with {wanted}, plain or .gz")


def _look_in(task: Task, folder: Path, keys: tuple[str, str] = ("", "")) -> DataFiles | None:
    """The files there, if they are complete."""
    with explain(OSError, f"cannot read {folder}", "give one that you may read"):
        paths = {split: _find_first(folder, names) for split, names in zip(SPLITS, task.files)}
        whole = folder if folder.is_file() else paths["train"]
    detail = f"in {folder}"
    if task.splits and not all(paths.values()):
        paths = {split: path or whole for split, path in paths.items()}
        detail += "; dev and test, where they have no file, get a tenth of it each, chosen by a hash"
    if not all(paths.values()):
        return None
    digests = tuple(_sha256(read_bytes(path)) for path in paths.values())
    other = f"other {task.name} files (SHA-256 {_sha256(' '.join(digests).encode())[:8]})"
    origin = f"official {task.name} files" if digests == task.digests else other
    return DataFiles(task.name, paths, origin, detail, keys)


def _find_first(folder: Path, names: tuple[str, ...]) -> Path | None:
    return next((p for name in names for p in (folder / name, folder / f"{name}.gz") if p.exists()), None)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _download(task: Task, folder: Path) -> DataFiles:
    """Fetch what `folder` lacks, touch nothing that it has. Raises OSError or HTTPException if the site
    cannot be reached, and InputError if it sends something else."""
    if not task.url:
        raise OSError(f"no download of {task.name} is known whose bytes could be checked: {task.advice}")
    for (name, *_), digest in zip(task.files, task.digests):
        path = folder / name
        if not path.exists():
            _write(path, _fetch(task.url + name, digest))
        elif _sha256(read_bytes(path)) != digest:
            raise InputError(f"{path} is not the official file; move it away, or give data={folder}")
    return _look_in(task, folder)


def _fetch(url: str, digest: str) -> bytes:
    # so many seconds without an answer: short, so that a machine without network goes on quickly
    with urllib.request.urlopen(url, timeout=10) as response:
        content = response.read()
    if _sha256(content) != digest:
        raise InputError(f"{url} sent {len(content)} bytes that are not the official file; {ADVICE}")
    return content


def _write(path: Path, content: bytes) -> None:
    with explain(OSError, f"cannot write {path}", "set MINPREFIX_DATA to another folder"):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda part: part.write_bytes(content))


def read_split(files: DataFiles, split: str) -> list[Record]:
    """The records of "train", "dev" or "test" in official order. Raises InputError if there are none."""
    if records := find_task(files.dataset).read(files, split):
        return records
    raise InputError(f"{files.paths[split]} has no {split} records for {files.dataset}; give complete files")


def read_input(name: str, dataset: str, source_key: str = "") -> list[Record]:
    """The records of sample.py's --input, a file, or stdin for "-". Raises InputError with file and line."""
    place = f"--input {name}"
    with explain((OSError, AttributeError), f"{place} cannot be read", "give a file"):  # stdin may be closed
        content = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
    return parse_input(decode(content, place), place, find_task(dataset), source_key)


def parse_input(text: str, name: str, task: Task, source_key: str = "") -> list[Record]:
    """What a person wants described: a table if `name` ends in .csv or .tsv, else JSON, or a record a line.
    Raises InputError that begins with `name` and says where."""

    def make(row: dict | str) -> Record:
        if isinstance(row, str):
            return Record(task.parse_line(row), ())
        return Record(tidy(row[source_key]) if source_key else task.linearise(row), ())

    if records := make_each(make, parse_rows(text, name)):
        return records
    raise InputError(f"{name} is empty: write one record a line, in a table below the names of its columns")


def merge(records: list[Record]) -> list[Record]:
    """One record for each source, in order of first appearance, with all references."""
    references: dict[str, list[str]] = {}
    for record in records:
        references.setdefault(record.source, []).extend(record.references)
    return [Record(source, tuple(texts)) for source, texts in references.items()]


def list_pairs(records: list[Record]) -> list[tuple[str, str]]:
    """(source, reference) for every reference: what one trains on."""
    return [(record.source, reference) for record in records for reference in record.references]


def pick(items: list, limit: int) -> list:
    """All (limit 0), or `limit` of them spread evenly: test sets are sorted, their head is no sample."""
    return items if not 0 < limit < len(items) else [items[i * len(items) // limit] for i in range(limit)]


def score(dataset: str, outputs: list, references: list, groups: Sequence = (), more: Sequence = ()) -> dict:
    """What the official script of a data set reports, as {name: figure}, with `more` metrics behind; where
    there are several groups, also "groups": the same for each, scored as a test set of its own."""
    task = find_task(dataset)
    texts = [task.prepare(others) for others in check_references(outputs, references)]
    rows = list(zip((task.prepare([output])[0] for output in outputs), texts))
    figures = _apply((*task.metrics, *more), rows)
    if len(set(groups)) > 1:
        figures["groups"] = {}
        for name in sorted(set(groups)):
            part = [row for row, group in zip(rows, groups) if group == name]
            figures["groups"][name] = _apply((*task.metrics, *more), part)
    return figures


def _apply(metrics: Sequence[Callable], rows: list[tuple[str, list[str]]]) -> dict:
    outputs, references = map(list, zip(*rows))
    return {name: figure for metric in metrics for name, figure in metric(outputs, references).items()}
