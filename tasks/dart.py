"""DART v1.1.1 (Nan et al. 2021): open-domain triples and texts; also how triples become a source."""

from tasks import SPLITS, DataFiles, Record, Task
from tasks.metrics import bleu, first_three, ter
from tasks.rows import read_rows, tidy


def read(files: DataFiles, split: str) -> list[Record]:
    """The entries in their order. Raises InputError with file and record."""
    return read_rows(make, files.paths[split])


def make(row: dict) -> Record:
    return Record(linearise(row), tidy_all([annotation["text"] for annotation in row["annotations"]]))


def linearise(row: dict) -> str:
    """`Mars Hill : joined : 1973 | ...`: predicates in lower case, as in the authors' format."""
    return join_triples(row["tripleset"], lower=True)


def join_triples(triples: list, lower: bool = False) -> str:
    """`subject : predicate : object | ...`: underscores and quotation marks as they stand, predicates in
    lower case if `lower`. ValueError for what is not three texts each."""
    rows = triples if isinstance(triples, list) else []
    if not rows or not all(isinstance(row, list) and len(row) == 3 for row in rows):
        raise ValueError(f"{str(triples)[:100]} are no triples; write [[subject, predicate, object], ...]")
    parts = ((tidy(s), tidy(p), tidy(o)) for s, p, o in rows)
    return " | ".join(f"{s} : {p.lower() if lower else p} : {o}" for s, p, o in parts)


def tidy_all(texts: list) -> tuple[str, ...]:
    """The texts that are not empty (the test split has one). ValueError if none is left."""
    if kept := tuple(tidy(text) for text in texts if text is None or text.strip()):
        return kept
    raise ValueError("no text")


DART = Task(
    name="dart",
    files=tuple((f"dart-v1.1.1-full-{split}.json", f"{split}.json") for split in SPLITS),
    advice="take the three dart-v1.1.1-full JSON files of https://github.com/Yale-LILY/dart",
    read=read,
    linearise=linearise,
    metrics=(bleu, ter),
    prepare=first_three,
    paper={"lr": 5e-5, "epochs": 10, "batch_size": 5, "prefix_len": 10},
)
