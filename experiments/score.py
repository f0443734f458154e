"""Scores a file of texts: python -m experiments.score OUTPUTS [--dataset webnlg | --references FILE]

OUTPUTS is what `sample.py --output` wrote, or has a text a line. In the latter case the references are those
of the data set, record by record, or come from FILE: those of a text on lines of their own, then a blank
line, as in the E2E challenge's files.
"""

import argparse
import json
import re
import sys
from functools import partial
from pathlib import Path

from experiments.meteor import meteor
from minprefix.data import find_files, read_split
from minprefix.errors import InputError
from minprefix.metrics import OFFICIAL, score
from minprefix.readers import UNSEEN, Record
from minprefix.store import write_atomically

# WebNLG's script hands METEOR the words that it has split itself.
METEOR = {"e2e": (meteor,)} | dict.fromkeys(("webnlg", "dart"), (partial(meteor, tokenize=str.split),))


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("outputs", metavar="OUTPUTS")
    parser.add_argument(
        "--dataset", default="e2e", help=f"whose metrics: {', '.join(OFFICIAL)} (default e2e)"
    )
    parser.add_argument("--split", default="test", choices=("train", "dev", "test"))
    parser.add_argument("--data", default="auto", help="auto, download, sample or a folder")
    parser.add_argument("--references", metavar="FILE", help="references other than the data set's")
    parser.add_argument("--json", metavar="FILE", help="write the figures there as well")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> None:
    args = parse_arguments(arguments)
    if args.dataset.partition("-")[0] not in OFFICIAL:
        raise InputError(f"--dataset {args.dataset} is unknown; known are {', '.join(OFFICIAL)}")
    if args.json and Path(args.json).exists():
        raise InputError(f"--json {args.json} exists and is not overwritten: give another name")
    lines = read_lines(args.outputs)
    if lines and lines[0].startswith("{"):
        runs = read_samples(lines, args.outputs)
    else:
        records = read_references(args.references) if args.references else read_records(args)
        check_counts(args, len(lines), len(records))
        runs = {args.outputs: (lines, records)}
    figures = {name: score_records(args.dataset, texts, records) for name, (texts, records) in runs.items()}
    for name in figures:
        show(name, len(runs[name][0]), figures[name])
    if args.json:
        text = json.dumps(figures, indent=2, ensure_ascii=False) + "\n"
        write_atomically(args.json, lambda part: part.write_text(text, encoding="utf-8"))


def read_lines(name: str) -> list[str]:
    """The lines of a file, stripped. A blank one is an empty text."""
    try:
        return [
            line.strip() for line in Path(name).read_text(encoding="utf-8-sig").removesuffix("\n").split("\n")
        ]
    except (OSError, ValueError) as error:
        raise InputError(f"{name} cannot be read ({error}): give a UTF-8 file") from None


def read_samples(lines: list[str], name: str) -> dict[str, tuple[list[str], list[Record]]]:
    """Each prefix's texts and records, from JSON lines with text, references and prefix."""
    runs: dict[str, tuple[list[str], list[Record]]] = {}
    for number, line in enumerate(lines, 1):
        if not line:
            continue
        try:
            row = json.loads(line)
            references = row["references"]
            if not isinstance(references, list):
                raise TypeError("references must be a list")
            record = Record(row.get("source", ""), tuple(references), row.get("group", ""))
            texts, records = runs.setdefault(row.get("prefix", name), ([], []))
            texts.append(row["text"].strip())
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise InputError(
                f"{name}, line {number}: {error!r}; give text and references in each line"
            ) from None
        records.append(record)
    return runs


def read_references(name: str) -> list[Record]:
    """The blocks of lines between blank lines, a record each."""
    blocks = re.split("\n\n+", "\n".join(read_lines(name)).strip("\n"))
    return [Record("", tuple(block.split("\n"))) for block in blocks]


def read_records(args: argparse.Namespace) -> list[Record]:
    files = find_files(args.dataset, args.data)
    print(f"references: {args.dataset} {args.split}, {files.origin}, {files.detail}", file=sys.stderr)
    return read_split(files, args.split)


def check_counts(args: argparse.Namespace, outputs: int, records: int) -> None:
    if outputs != records:
        place = args.references or f"the {args.split} split of {args.dataset}"
        raise InputError(
            f"{args.outputs} has {outputs} texts, {place} has {records} records: one text a record"
        )


def score_records(dataset: str, texts: list[str], records: list[Record]) -> dict:
    """The data set's figures; for WebNLG also of the seen and the unseen categories."""
    groups = [record.group for record in records]
    if dataset == "webnlg" and any(groups):
        groups = ["unseen" if group in UNSEEN else "seen" for group in groups]
    references = [record.references for record in records]
    return score(dataset, texts, references, groups, METEOR.get(dataset, ()))


def show(name: str, count: int, figures: dict) -> None:
    """Prints a table: a row for each metric, a column for all and for each group."""
    columns = {"all": figures} | figures.get("groups", {})
    names = [
        key for key in figures if key not in ("groups", "METEOR missing") and key[-4:] not in (" low", "high")
    ]
    print(f"{Path(name).name}, {count:,} texts\n{'':16}" + "".join(f"{column:>10.10}" for column in columns))
    for key in names:
        cells = "".join(f"{describe(column[key]):>10}" for column in columns.values())
        interval = (
            f"   95%: {figures[f'{key} low']:.2f} to {figures[f'{key} high']:.2f}"
            if f"{key} low" in figures
            else ""
        )
        print(f"{key:16}{cells}{interval}")
    if reason := figures.get("METEOR missing"):
        print(f"METEOR n/a: {reason}")


def describe(figure: float | None) -> str:
    return "n/a" if figure is None else f"{figure:.2f}"


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except (InputError, OSError) as error:
        print(f"score: {error}", file=sys.stderr)
        sys.exit(2)
