"""Data of one's own: texts, and what should be written for them.

They stand in one file, or in one for each split, under names as below or as source_key= and target_key= say.
"""

from functools import partial
from hashlib import sha256

from tasks import SPLITS, DataFiles, Record, Task, merge
from tasks.metrics import bleu, rouge_l
from tasks.rows import read_rows, tidy

SOURCES = ("source", "prompt", "input", "document", "question")
TARGETS = ("target", "completion", "output", "summary", "answer")


def read(files: DataFiles, split: str) -> list[Record]:
    """One record for each source, with all its targets. Raises InputError with file and line."""
    records = merge(read_rows(partial(make, keys=files.keys), files.paths[split]))
    sharing = [other for other in SPLITS[::-1] if files.paths[other] == files.paths[split]]
    return take_share(records, sharing.index(split), len(sharing))


def make(row: dict, keys: tuple[str, str]) -> Record:
    return Record(take(row, keys[0], SOURCES), (take(row, keys[1], TARGETS),))


def linearise(row: dict) -> str:
    return take(row, "", SOURCES)


def take(row: dict, key: str, known: tuple[str, ...]) -> str:
    """The text under `key`, or under the one name of those known that a row has. ValueError."""
    if not isinstance(row, dict):
        raise ValueError("it has no names: give a .jsonl, .csv or .tsv")
    names = [key] if key else [name for name in row if name.lower() in known]
    if len(names) != 1 or names[0] not in row:
        wanted = key or f"one of {', '.join(known)} (or what source_key= or target_key= says)"
        raise ValueError(f"it needs {wanted}, and has {', '.join(row)[:100]}")
    return tidy(row[names[0]])


def take_share(records: list[Record], number: int, shares: int) -> list[Record]:
    """Of the records in the order of their sources' SHA-256 the tenth of that number; the last share is all
    that the others leave. They stay in the order of the file."""
    tenth = max(1, len(records) // 10)
    order = sorted((record.source for record in records), key=lambda text: sha256(text.encode()).digest())
    end = (number + 1) * tenth if number + 1 < shares else None
    chosen = set(order[number * tenth : end])
    return [record for record in records if record.source in chosen]


PAIRS = Task(
    name="pairs",
    files=tuple(tuple(split + ending for ending in (".jsonl", ".json", ".csv", ".tsv")) for split in SPLITS),
    splits=True,
    advice="give data=FILE, a .jsonl, .csv or .tsv with a source and a target in each row, or a folder",
    read=read,
    linearise=linearise,
    metrics=(bleu, rouge_l),
)
