"""Turn the BBC News articles of 2004-2005 into a small set for lead generation: body -> first paragraph.

    python experiments/make_bbc.py bbc_2004_2005.jsonl.gz [FOLDER]

The input has an article a line, as JSON with body, intro, category and duplicate (from Greene and Cunningham
2006); its first paragraph, the intro, is what XSum takes as the summary. Duplicates are left out. A hash of
the body says which split an article is in: 8 in 10 train, 1 dev, 1 test. Then: python train.py dataset=bbc
"""

import gzip
import hashlib
import json
import sys
from functools import partial
from pathlib import Path

from minprefix.checks import InputError
from minprefix.store import write_atomically
from tasks import SPLITS, data_folder
from tasks.rows import read_rows


def choose_split(body: str) -> str:
    tenth = int(hashlib.sha256(" ".join(body.split()).encode()).hexdigest(), 16) % 10
    return {0: "test", 1: "dev"}.get(tenth, "train")


def make_line(row: dict) -> tuple[str, str] | None:
    """(split, JSON line) of an article; None for a duplicate."""
    record = {"document": row["body"], "summary": row["intro"], "topic": row["category"]}
    return None if row["duplicate"] else (choose_split(row["body"]), json.dumps(record, ensure_ascii=False))


def convert(path: Path, folder: Path) -> dict[str, int]:
    """Writes train, dev and test.jsonl.gz -> how many articles each has."""
    lines = read_rows(make_line, path)
    splits = {split: [line for place, line in lines if place == split] for split in SPLITS}
    folder.mkdir(parents=True, exist_ok=True)
    for split, content in splits.items():
        packed = gzip.compress("".join(f"{line}\n" for line in content).encode(), mtime=0)
        write_atomically(folder / f"{split}.jsonl.gz", partial(Path.write_bytes, data=packed))
    return {split: len(content) for split, content in splits.items()}


if __name__ == "__main__":
    try:
        if len(sys.argv) < 2:
            raise InputError("give the file bbc_2004_2005.jsonl.gz, and a folder if you like")
        folder = Path(sys.argv[2]) if len(sys.argv) > 2 else data_folder() / "bbc"
        print(folder, convert(Path(sys.argv[1]), folder))
    except InputError as error:
        print(f"make_bbc.py: {error}", file=sys.stderr)
        sys.exit(2)
