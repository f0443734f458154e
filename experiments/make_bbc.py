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
from pathlib import Path

from minprefix.data import data_folder
from minprefix.errors import InputError
from minprefix.files import read_bytes, write
from minprefix.readers import blame


def choose_split(body: str) -> str:
    tenth = int(hashlib.sha256(" ".join(body.split()).encode()).hexdigest(), 16) % 10
    return {0: "test", 1: "dev"}.get(tenth, "train")


def convert(path: Path, folder: Path) -> dict[str, int]:
    """Writes train, dev and test.jsonl.gz -> how many articles each has."""
    lines: dict[str, list[str]] = {"train": [], "dev": [], "test": []}
    for number, line in enumerate(read_bytes(path).splitlines(), 1):
        with blame(f"{path}, line {number}"):
            row = json.loads(line)
            record = {"document": row["body"], "summary": row["intro"], "topic": row["category"]}
            if not row["duplicate"]:
                lines[choose_split(row["body"])].append(json.dumps(record, ensure_ascii=False) + "\n")
    for split, content in lines.items():
        write(folder / f"{split}.jsonl.gz", gzip.compress("".join(content).encode(), mtime=0))
    return {split: len(content) for split, content in lines.items()}


if __name__ == "__main__":
    try:
        if len(sys.argv) < 2:
            raise InputError("give the file bbc_2004_2005.jsonl.gz, and a folder if you like")
        folder = Path(sys.argv[2]) if len(sys.argv) > 2 else data_folder() / "bbc"
        print(folder, convert(Path(sys.argv[1]), folder))
    except InputError as error:
        print(f"make_bbc.py: {error}", file=sys.stderr)
        sys.exit(2)
