"""Read what a prefix makes the model write: python sample.py --prefix e2e.pt

Without --input it describes records of the test set that the prefix was
trained for, and on a terminal it then asks for more. With several --prefix
every record is answered with each of them, all in one batch, or with
--ensemble by all of them together. A decoding setting that is not given is
that of the first prefix's training.
"""

import argparse
import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from minprefix import from_peft, load_lm, load_prefix
from minprefix.checks import InputError, build, explain, refuse_twins, run_command
from minprefix.config import NEEDS, Config, overlay
from minprefix.generate import Decoding, Early, check_base, check_rows
from minprefix.methods import apply_tensors
from minprefix.prefix import SavedPrefix
from minprefix.store import hold, write_atomically
from minprefix.texts import encode_source, generate_texts
from tasks import Record, find_files, find_task, parse_input, pick, read_input, read_split

# Keys of train.py that are flags here.
KEYS = ("model", "data", "device", "dtype", "max_source", *Decoding.__pydantic_fields__)
FIELDS, SWITCHES = Config.__pydantic_fields__, (bool, Early)


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # argparse would print its usage too
        raise InputError(f"{message}: python sample.py --help lists the flags")


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    usage = "python sample.py --prefix FILE [--prefix FILE ...] [flags]"
    raw = argparse.RawDescriptionHelpFormatter
    parser = Parser(usage=usage, description=__doc__, formatter_class=raw, allow_abbrev=False)
    add = parser.add_argument
    add("--prefix", action="append", required=True, help="of train.py, or a PEFT folder; may be given again")
    add("--ensemble", action="store_true", help="one answer: the mean of the prefixes' distributions")
    add("--output", help="write JSON lines there instead of text to the terminal")
    records = parser.add_mutually_exclusive_group().add_argument
    records("--input", help="records: text or JSON lines, a .json, .csv or .tsv; - is stdin")
    records("--records", type=int, default=5, help="test records to describe (default 5; 0: all)")
    title = "settings (defaults: the training's; device: cpu, dtype: auto)"
    add = parser.add_argument_group(title).add_argument
    for name in KEYS:
        action = argparse.BooleanOptionalAction if FIELDS[name].annotation in SWITCHES else "store"
        add(f"--{name.replace('_', '-')}", help=FIELDS[name].description, action=action)
    names = [text.partition("=")[0] for text in arguments if text.startswith("--")]
    with explain(ValueError, "each flag but --prefix may be given once", "leave one of them out"):
        refuse_twins([(name.replace("--no-", "--"), "") for name in names if name != "--prefix"])
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> None:
    args = parse_arguments(arguments)
    prefixes = [from_peft(name) if Path(name).is_dir() else load_prefix(name) for name in args.prefix]
    if args.ensemble:
        check_members(args.prefix, prefixes)
    refuse_overwriting(args.output)
    settings = choose_settings(args, prefixes[0])
    args.frame = read_frame(prefixes)
    records = choose_records(args, settings, prefixes[0])
    lm, tokenizer = load_lm(settings.model, settings.weights(), settings.device)
    if settings.dtype == "auto" and lm.wte.weight.element_size() == 2:
        print("in bfloat16, which is faster here (--dtype float32 is exact)\n", file=sys.stderr)
    rows = prepare_prefixes(lm, prefixes)
    answers = answer(args, lm, tokenizer, records, rows, settings)
    if args.output:
        with hold(args.output):
            refuse_overwriting(args.output)
            lines = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in answers)
            content = lines.encode(errors="backslashreplace")  # a file's name may be no UTF-8
            write_atomically(args.output, lambda part: part.write_bytes(content))
        return
    show_all(args, answers)
    if not args.input and sys.stdin and sys.stdin.isatty() and sys.stdout.isatty():
        talk(args, lm, tokenizer, rows, settings)


def read_frame(prefixes: list) -> str:
    """The words around x that all of them were trained in, or none. InputError where these differ."""
    frame, *others = {str(prefix.config.get("frame", "")): None for prefix in prefixes}
    if others:
        raise InputError(
            f"--prefix: one asks in the words {frame!r}, another in {others[0]!r}: give one a call"
        )
    return frame


def refuse_overwriting(output: str | None) -> None:
    if output is not None and Path(output).exists():
        raise InputError(f"--output {output} exists and is not overwritten: give another name")


def check_members(names: list[str], prefixes: list[SavedPrefix]) -> None:
    """InputError where an ensemble makes no sense."""
    if len({Path(name).resolve() for name in names}) < 2:
        raise InputError("--ensemble needs two different --prefix at least: give another one")
    if len(tasks := {str(prefix.config["dataset"]) for prefix in prefixes if "dataset" in prefix.config}) > 1:
        raise InputError(f"--ensemble needs prefixes of one task, not of {' and '.join(sorted(tasks))}")


def choose_settings(args, prefix: SavedPrefix) -> Config:
    """The command line's settings over those of the training."""
    known = {name: value for name, value in prefix.config.items() if name in FIELDS}
    training = build(Config, known, "the prefix's own settings cannot be, train or copy it again: ")
    given = {name: str(getattr(args, name)) for name in KEYS if getattr(args, name) is not None}
    if given.get("sample") == "True":
        given = {"beams": "1"} | given
    given = {"model": prefix.base["name"], "device": "cpu", "dtype": "auto"} | given
    if not given["model"]:
        raise InputError(f"{args.prefix[0]} does not name its model: pass --model with the one it is for")
    return overlay(vars(training), given, [*NEEDS, ("seed", "sample", (True,))])


def choose_records(args, settings: Config, prefix: SavedPrefix) -> list[Record]:
    """Of --input or of the test set, spread evenly; says so where that is not the data of the training.

    Where the data are not at hand, the bundled sample serves: a first look waits for no download.
    """
    if args.input is not None:
        if args.data is not None:
            raise InputError("--data has the test records: leave it out beside --input")
        return read_input(args.input, settings.dataset, settings.source_key)
    if args.records < 0:
        raise InputError(f"--records {args.records} must be 0 (all) or more")
    keys = (settings.source_key, settings.target_key)
    files = find_files(settings.dataset, settings.data, keys, download=False)
    if files.is_sample or files.origin != prefix.data:
        training = "" if files.origin == prefix.data else f"; training: {prefix.data}"
        print(f"records: {files.origin}{training}\n", file=sys.stderr)
    return pick(read_split(files, "test"), args.records)


def prepare_prefixes(lm, prefixes: list[SavedPrefix]) -> list[SavedPrefix | None]:
    """What to hand to generate: tensors change the model instead, and alone."""
    for prefix in prefixes:
        check_base(prefix, lm)
        if prefix.tensors and len(prefixes) > 1:
            raise InputError(f"method {prefix.method} changes the model itself: give it as the only --prefix")
        if prefix.tensors:
            apply_tensors(lm, prefix)
    return [prefix if prefix.sites else None for prefix in prefixes]


def answer(args, lm, tokenizer, records: list[Record], rows: list, settings: Config) -> Iterator[dict]:
    """For each record and prefix, or the ensemble: the source, who answers, the text, and any references."""
    sources = [
        encode_source(lm, tokenizer, record.source, settings.max_source, args.frame) for record in records
    ]
    for prefix in rows:  # before the first text is written, so that none is lost
        check_rows(lm, sources, [prefix] * len(records), settings.max_new_tokens)
    voices = [("ensemble", None)] if args.ensemble else list(zip(args.prefix, rows))
    jobs = [(*asked, *voice) for asked in zip(records, sources) for voice in voices]
    for start in tqdm(range(0, len(jobs), 32), unit="batch", disable=None if args.output else True):
        batch, sources, names, prefixes = zip(*jobs[start : start + 32])
        answering, how = rows if args.ensemble else prefixes, settings.decoding()
        texts = generate_texts(lm, tokenizer, sources, answering, how, 0, args.ensemble, args.frame)
        for record, name, text in zip(batch, names, texts):
            line = {"source": record.source, "prefix": name, "text": text}
            yield line | {"references": list(record.references), "group": record.group}


def show_all(args, answers: Iterator[dict]) -> None:
    """Prints each record once, with the text of each voice and a reference."""
    voices = 1 if args.ensemble else len(args.prefix)
    while lines := list(itertools.islice(answers, voices)):
        names = [line["prefix"] for line in lines]
        stems = [Path(name).stem for name in names]
        labels = stems if len(set(stems)) == voices else names
        rows = [("record", lines[0]["source"]), *zip(labels, (line["text"] for line in lines))]
        rows += [("reference", text) for text in lines[0]["references"][:1]]
        width = max(10, *map(len, labels))
        for label, text in rows:
            print(f"{label:<{width}} {text}")
        print(flush=True)


def talk(args, lm, tokenizer, rows: list, settings: Config) -> None:
    """Describes what is typed until an empty line or the end of the input."""
    print("Type a record such as those above (an empty line ends)")
    while text := read_line():
        try:
            records = parse_input(text, "the record", find_task(settings.dataset), settings.source_key)
            show_all(args, answer(args, lm, tokenizer, records, rows, settings))
        except InputError as error:
            print(error, end="\n\n")


def read_line() -> str:
    try:
        return input("> ").strip()
    except EOFError:
        print()  # else the shell goes on in this line
        return ""


if __name__ == "__main__":
    run_command(main)
