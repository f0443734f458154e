"""Scores a file of texts: python -m experiments.score OUTPUTS [--dataset webnlg | --references FILE]

OUTPUTS is what `sample.py --output` wrote, or has a text a line. In the latter case the references are those
of the data set, record by record, or come from FILE: those of a text on lines of their own, then a blank
line, as in the E2E challenge's files.
"""

import argparse
import contextlib
import json
import re
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from experiments.keep import write_result
from experiments.meteor import meteor
from minprefix.checks import InputError, run_command
from tasks import Record, find_files, find_task, read_split, score

# WebNLG's script hands METEOR the words that it has split itself.
METEOR = {"e2e": (meteor,)} | dict.fromkeys(("webnlg", "dart"), (partial(meteor, tokenize=str.split),))


def make_parser() -> argparse.ArgumentParser:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("outputs", metavar="OUTPUTS")
    parser.add_argument(
        "--dataset", default="e2e", help="whose metrics: e2e (default), webnlg, dart, xsum ..."
    )
    parser.add_argument("--split", default="test", choices=("train", "dev", "test"))
    parser.add_argument("--data", default="auto", help="auto, download, sample or a folder")
    parser.add_argument("--references", metavar="FILE", help="references other than the data set's")
    parser.add_argument("--json", metavar="FILE", help="write the figures there as well")
    return parser


def main(arguments: list[str]) -> None:
    args = make_parser().parse_args(arguments)
    find_task(args.dataset)  # InputError if it is unknown
    if args.json and Path(args.json).exists():
        raise InputError(f"--json {args.json} exists and is not overwritten: give another name")
    lines = read_lines(args.outputs)
    is_sample = bool(lines) and lines[0].startswith("{")
    runs = read_samples(lines, args.outputs) if is_sample else {args.outputs: (lines, read_records(args))}
    figures = {}
    for name, (texts, records) in runs.items():
        if len(texts) != len(records):
            place = args.references or f"the {args.split} split of {args.dataset}"
            counts = f"{name} has {len(texts)} texts, {place} has {len(records)} records"
            raise InputError(f"{counts}: one text a record")
        figures[name] = score_records(args.dataset, texts, records)
        show(name, len(texts), figures[name])
    if args.json:
        write_result(Path(args.json), figures)


def read_lines(name: str) -> list[str]:
    """The lines of a file, stripped. A blank one is an empty text."""
    try:
        text = Path(name).read_text(encoding="utf-8-sig")
    except (OSError, ValueError) as error:
        raise InputError(f"{name} cannot be read ({error}): give a UTF-8 file") from None
    return [line.strip() for line in text.removesuffix("\n").split("\n")]


def read_samples(lines: list[str], name: str) -> dict[str, tuple[list[str], list[Record]]]:
    """Each prefix's texts and records, from JSON lines with text, references and prefix."""
    runs: dict[str, tuple[list[str], list[Record]]] = {}
    for number, line in enumerate(lines, 1):
        if line:
            with blame(f"{name}, line {number}"):
                row = json.loads(line)
                text, references = row["text"].strip(), row["references"]
                if not isinstance(references, list):
                    raise TypeError("references must be a list")
                texts, records = runs.setdefault(row.get("prefix", name), ([], []))
                texts.append(text)
                records.append(Record(row.get("source", ""), tuple(references), row.get("group", "")))
    return runs


@contextlib.contextmanager
def blame(place: str) -> Iterator[None]:
    try:
        yield
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{place}: {error!r}; give text and references in each line") from None


def read_records(args: argparse.Namespace) -> list[Record]:
    """Those of --references, whose blocks between blank lines are a record each, or the data set's."""
    if args.references:
        blocks = re.split("\n\n+", "\n".join(read_lines(args.references)).strip("\n"))
        return [Record("", tuple(block.split("\n"))) for block in blocks]
    files = find_files(args.dataset, args.data)
    print(f"references: {args.dataset} {args.split}, {files.origin}, {files.detail}", file=sys.stderr)
    return read_split(files, args.split)


def score_records(dataset: str, texts: list[str], records: list[Record]) -> dict:
    """The data set's figures, also by parts where it has some; WebNLG's are seen and unseen categories."""
    task = find_task(dataset)
    groups = [task.part(record.group) or record.group for record in records]
    references = [record.references for record in records]
    return score(dataset, texts, references, groups, METEOR.get(dataset, ()))


def show(name: str, count: int, figures: dict) -> None:
    """Prints a table: a row for each metric, a column for all and for each group."""
    columns = {"all": figures} | figures.get("groups", {})
    print(f"{Path(name).name}, {count:,} texts\n{'':16}" + "".join(f"{column:>10.10}" for column in columns))
    for key in figures:
        if key not in ("groups", "METEOR missing") and not key.endswith((" low", " high")):
            cells = "".join(f"{describe(column[key]):>10}" for column in columns.values())
            print(f"{key:16}{cells}{describe_interval(figures, key)}")
    if reason := figures.get("METEOR missing"):
        print(f"METEOR n/a: {reason}")


def describe_interval(figures: dict, key: str) -> str:
    low, high = figures.get(f"{key} low"), figures.get(f"{key} high")
    return "" if low is None else f"   95%: {low:.2f} to {high:.2f}"


def describe(figure: float | None) -> str:
    return "n/a" if figure is None else f"{figure:.2f}"


if __name__ == "__main__":
    run_command(main)
