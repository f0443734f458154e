"""Read what a prefix makes the model write: python sample.py --prefix e2e.pt

Without --input it describes records of the test set that the prefix was
trained for, and on a terminal it then asks for more. With several --prefix
every record is answered with each of them, all in one batch, or with
--ensemble by all of them together. A decoding setting that is not given is
that of the first prefix's training.
"""

import argparse
import csv
import io
import itertools
import json
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from minprefix.config import DECODING, Config
from minprefix.data import find_files, pick, read_split
from minprefix.errors import InputError, blame_memory, explain, refuse_twins, wrap
from minprefix.generate import check_base, check_rows
from minprefix.hub import load_lm
from minprefix.methods import apply_tensors
from minprefix.peft import from_peft
from minprefix.prefix import SavedPrefix
from minprefix.readers import Record, linearise_mr, linearise_record, read_rows
from minprefix.store import hold, load_prefix, write_atomically
from minprefix.texts import encode_source, generate_texts


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # argparse would print its usage too
        raise InputError(f"{message}: python sample.py --help lists the flags")


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    usage = "python sample.py --prefix FILE [--prefix FILE ...] [flags]"
    formatter = argparse.RawDescriptionHelpFormatter
    parser = Parser(usage=usage, description=__doc__, formatter_class=formatter)
    add = parser.add_argument
    add(
        "--prefix",
        action="append",
        required=True,
        metavar="FILE",
        help="of train.py, or a PEFT folder; may be given again",
    )
    add("--ensemble", action="store_true", help="one answer: the mean of the prefixes' distributions")
    add("--model", metavar="NAME", help="the frozen LM, if it has moved since the training")
    add("--input", metavar="FILE", help="records: text or JSON lines, a .json, a .csv; - is stdin")
    add("--output", metavar="FILE", help="write JSON lines there instead of text to the terminal")
    add("--data", metavar="D", help="auto, download, sample, a folder (default: training's)")
    add("--records", type=int, default=5, metavar="N", help="test records to describe (default 5; 0: all)")
    add("--device", default="cpu", metavar="D", help="cpu or cuda (default cpu)")
    add = parser.add_argument_group("decoding (defaults: the training's)").add_argument
    add("--beams", type=int, metavar="K", help="of the beam search; 1 is greedy")
    add("--length-penalty", type=float, metavar="A", help="alpha in sum log p / |y|^alpha")
    add("--max-new-tokens", type=int, metavar="N", help="longest text")
    add("--min-new-tokens", type=int, metavar="N", help="shortest text")
    add("--max-source", type=int, metavar="N", help="cut sources to N tokens; 0: uncut")
    add = parser.add_argument_group("sampling").add_argument
    add("--sample", action="store_true", help="draw from the distribution instead of searching")
    add("--temperature", type=float, default=1.0, metavar="T", help="below 1 sharper, above 1 flatter")
    add("--top-k", type=int, default=0, metavar="K", help="only the K likeliest tokens (default 0: all)")
    add("--top-p", type=float, default=1.0, metavar="P", help="only the likeliest of mass P (default 1: all)")
    add("--seed", type=int, default=0, metavar="N", help="of the draws (default 0)")
    return parser.parse_args(arguments)


@blame_memory("lower --beams or --max-new-tokens, or shorten the records")
def main(arguments: list[str]) -> None:
    args = parse_arguments(arguments)
    prefixes = [read_prefix(path) for path in args.prefix]
    if args.ensemble:
        check_members(args.prefix, prefixes)
    refuse_overwriting(args.output)
    dataset, given = read_setting(prefixes[0], "dataset"), args.input is not None
    records = read_input(args.input, dataset) if given else choose_records(args, prefixes[0])
    lm, tokenizer = load_lm(name_model(args, prefixes[0]), device=args.device)
    options = choose_options(args, prefixes[0])
    rows = prepare_prefixes(lm, prefixes)
    sources = [encode_source(lm, tokenizer, record.source, options["max_source"]) for record in records]
    for prefix in rows:  # before the first text is written, so that none is lost
        check_rows(lm, sources, [prefix] * len(records), options["max_new_tokens"])
    answers = answer(args, lm, tokenizer, records, rows, options)
    if args.output:
        lines = (json.dumps(line, ensure_ascii=False) + "\n" for line in answers)
        with hold(args.output):
            refuse_overwriting(args.output)
            write_atomically(args.output, lambda part: write_lines(part, lines))
        return
    show_all(answers, voices=1 if args.ensemble else len(rows))
    if not args.input and sys.stdin and sys.stdin.isatty() and sys.stdout.isatty():
        talk(args, lm, tokenizer, rows, options, dataset)


def refuse_overwriting(output: str | None) -> None:
    if output is not None and Path(output).exists():
        raise InputError(f"--output {output} exists and is not overwritten: give another name")


def read_prefix(name: str) -> SavedPrefix:
    """From a file of train.py, or from a folder that PEFT or to_peft wrote."""
    return from_peft(name) if Path(name).is_dir() else load_prefix(name)


def name_model(args, prefix: SavedPrefix) -> str:
    if args.model is None and not prefix.base["name"]:
        raise InputError(f"{args.prefix[0]} does not name its model: pass --model with the one it is for")
    return prefix.base["name"] if args.model is None else args.model


def prepare_prefixes(lm, prefixes: list[SavedPrefix]) -> list[SavedPrefix | None]:
    """What to hand to generate: tensors change the model instead, and alone."""
    for prefix in prefixes:
        check_base(prefix, lm)
        if prefix.tensors and len(prefixes) > 1:
            raise InputError(f"method {prefix.method} changes the model itself: give it as the only --prefix")
        if prefix.tensors:
            apply_tensors(lm, prefix)
    return [prefix if prefix.sites else None for prefix in prefixes]


def check_members(names: list[str], prefixes: list[SavedPrefix]) -> None:
    """InputError where an ensemble makes no sense."""
    if len(set(names)) < 2:
        raise InputError("--ensemble needs two different --prefix at least: give another one")
    if len(tasks := {str(prefix.config["dataset"]) for prefix in prefixes if "dataset" in prefix.config}) > 1:
        raise InputError(f"--ensemble needs prefixes of one task, not of {' and '.join(sorted(tasks))}")


def answer(args, lm, tokenizer, records: list[Record], rows: list, options: dict) -> Iterator[dict]:
    """For each record and prefix, or the ensemble: the source, who answers, the text, and any references."""
    voices = [("ensemble", None)] if args.ensemble else list(zip(args.prefix, rows))
    jobs = [(record, name, prefix) for record in records for name, prefix in voices]
    for start in tqdm(range(0, len(jobs), 32), unit="batch", disable=None if args.output else True):
        batch = jobs[start : start + 32]
        sources, batch_rows = [record.source for record, _, _ in batch], [prefix for _, _, prefix in batch]
        answering = rows if args.ensemble else batch_rows
        texts = generate_texts(lm, tokenizer, sources, answering, options | {"ensemble": args.ensemble})
        for (record, name, _), text in zip(batch, texts):
            line = {"source": record.source, "prefix": name, "text": text}
            yield line | {"references": list(record.references), "group": record.group}


def show_all(answers: Iterator[dict], voices: int) -> None:
    """Prints each record once, with the text of each voice and a reference."""
    while lines := list(itertools.islice(answers, voices)):
        names = [line["prefix"] for line in lines]
        stems = [Path(name).stem for name in names]
        labels = stems if len(set(stems)) == voices else names
        rows = [("record", lines[0]["source"]), *zip(labels, (line["text"] for line in lines))]
        rows += [("reference", text) for text in lines[0]["references"][:1]]
        width = max(10, *map(len, labels))
        for label, text in rows:
            print(wrap(f"{label:<{width}} ", text, sys.stdout))
        print(flush=True)


def write_lines(path: Path, lines: Iterator[str]) -> None:
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(lines)


def talk(args, lm, tokenizer, rows: list, options: dict, dataset: str) -> None:
    """Describes what is typed until an empty line or the end of the input."""
    example = "\n  name : Blue Lantern | food : Indian | area : riverside"
    print(f"Type a record (an empty line ends), such as {'those above' if dataset != 'e2e' else example}")
    while text := read_line():
        try:
            record = Record(parse_line(text, dataset), ())
            answers = answer(args, lm, tokenizer, [record], rows, options)
            show_all(answers, voices=1 if args.ensemble else len(rows))
        except InputError as error:
            print(wrap("", str(error), sys.stdout), end="\n\n")


def read_line() -> str:
    try:
        return input("> ").strip()
    except EOFError:
        print()  # else the shell goes on in this line
        return ""


def choose_records(args, prefix: SavedPrefix) -> list[Record]:
    """Records of the test set, spread evenly; says so where they are not the data of the training."""
    if args.records < 0:
        raise InputError(f"--records {args.records} must be 0 (all) or more")
    data = read_setting(prefix, "data") if args.data is None else args.data
    files = find_files(read_setting(prefix, "dataset"), data)
    if files.is_sample or files.origin != prefix.data:
        training = "" if files.origin == prefix.data else f"; training: {prefix.data}"
        text = f"records: {files.origin}, {files.detail}{training} !!!"
        print(wrap("!!! ", text, sys.stderr), file=sys.stderr, end="\n\n")
    return pick(read_split(files, "test"), args.records)


def read_input(name: str, dataset: str = "e2e") -> list[Record]:
    """Records from a .csv, a .json or lines of text, MRs or JSON objects; InputError names the place."""
    text = read_text(name)
    if name.lower().endswith(".csv"):
        rows = enumerate(parse_at(f"--input {name}", parse_csv, text), 2)
        sources = [parse_at(f"--input {name}, line {number}", parse_row, row) for number, row in rows]
    elif name.lower().endswith(".json") or re.match(r"\s*\[\s*[\[{]", text):
        rows = enumerate(parse_at(f"--input {name}", parse_list, text), 1)
        sources = [
            parse_at(f"--input {name}, record {number}", linearise_record, row) for number, row in rows
        ]
    else:
        lines = enumerate(text.split("\n"), 1)
        sources = [
            parse_at(f"--input {name}, line {i}", parse_line, s.strip(), dataset)
            for i, s in lines
            if s.strip()
        ]
    if not sources:
        raise InputError(f"--input {name} is empty: write one record a line")
    return [Record(source, ()) for source in sources]


def read_text(name: str) -> str:
    kinds = (OSError, ValueError, AttributeError)  # AttributeError: stdin is closed
    with explain(kinds, f"--input {name} cannot be read", "give a UTF-8 file"):
        content = sys.stdin.buffer.read() if name == "-" else Path(name).read_bytes()
        return content.decode("utf-8-sig")


def parse_at(place: str, parse, *items) -> str | list:
    try:
        return parse(*items)
    except InputError as error:
        raise InputError(f"{place}: {error}") from None


def parse_csv(text: str) -> list[dict]:
    rows = csv.DictReader(io.StringIO(text, newline=""))
    try:
        return list(read_rows(rows))
    except (csv.Error, InputError) as error:
        raise InputError(f"line {rows.reader.line_num}: {error}") from None


def parse_list(text: str) -> list[dict]:
    content = parse_json(text)
    records = content if isinstance(content, list) else [content]
    if not all(isinstance(record, dict) for record in records):
        raise InputError("give a list of JSON objects")
    return records


def parse_row(row: dict) -> str:
    """A source from a CSV row: E2E's mr column, or a column for each key."""
    given = {key: value for key, value in row.items() if key and key.lower() not in ("ref", "references")}
    if [key.lower() for key in given] == ["mr"]:
        return linearise_mr(next(iter(given.values())) or "")
    return linearise_record(given)


def parse_line(line: str, dataset: str) -> str:
    """A source from a JSON object, from E2E's key[value], ... or as it stands."""
    if line.startswith("{"):
        return linearise_record(parse_json(line))
    try:
        line.encode("utf-8")
    except UnicodeEncodeError:
        raise InputError("the text is not valid Unicode (it has half a character): write it anew") from None
    return linearise_mr(line) if dataset == "e2e" and "[" in line else line


def parse_json(text: str) -> object:
    try:
        content = json.loads(text, object_pairs_hook=refuse_twins)
        json.dumps(content, ensure_ascii=False, allow_nan=False).encode("utf-8")
        return content
    except (ValueError, RecursionError) as error:
        raise InputError(f'not JSON in valid Unicode ({error}): write {{"name": ..., "food": ...}}') from None


def read_setting(prefix: SavedPrefix, name: str) -> object:
    """A setting of the training, or its default where the file does not say."""
    value = prefix.config.get(name, getattr(Config, name))
    if type(value) is not type(getattr(Config, name)):
        raise InputError(f"the prefix says {name}={value!r}, which cannot be: train or copy it again")
    return value


def choose_options(args, prefix: SavedPrefix) -> dict:
    """generate's options: the command line's, else those of the training."""
    given = {name: getattr(args, name) for name in DECODING if getattr(args, name) is not None}
    options = {name: read_setting(prefix, name) for name in DECODING} | given
    if args.sample and args.beams is None:
        options["beams"] = 1
    names = ("sample", "temperature", "top_k", "top_p", "seed")
    return options | {name: getattr(args, name) for name in names}


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (InputError, OSError) as error:
        print(wrap("sample.py: ", str(error), sys.stderr), file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
