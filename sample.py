"""Read what a prefix makes the model write: python sample.py --prefix e2e.pt

Without --input it describes records of the test set that the prefix was trained for, and on a terminal it
then asks for more. With several --prefix every input is answered with each prefix, all in one batch.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from minprefix.data import Record, find_files, linearise_mr, linearise_record, read_e2e, read_split
from minprefix.errors import InputError
from minprefix.generate import check_base
from minprefix.hub import load_lm
from minprefix.prefix import SavedPrefix
from minprefix.store import load_prefix, write_atomically
from minprefix.texts import generate_texts


def parse_arguments(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--prefix",
        action="append",
        required=True,
        metavar="FILE",
        help="a .pt file of train.py; may be given again",
    )
    add("--model", metavar="NAME", help="the frozen LM, where it no longer lies where the prefix was trained")
    add(
        "--input",
        metavar="FILE",
        help="what to describe, one a line: a record as text or JSON, or E2E's CSV; - is stdin",
    )
    add("--output", metavar="FILE", help="write JSON lines there instead of text to the terminal")
    add("--data", help="auto, download, sample or a folder; default: as in the training")
    add("--records", type=int, default=5, metavar="N", help="test records to describe (default 5; 0: all)")
    add("--beams", type=int, metavar="K", help="default: as in the training")
    add("--length-penalty", type=float, metavar="A", help="default: as in the training")
    add("--max-new-tokens", type=int, metavar="N", help="default: as in the training")
    add("--min-new-tokens", type=int, default=0, metavar="N")
    add("--sample", action="store_true", help="draw from the distribution instead of searching")
    add("--temperature", type=float, default=1.0)
    add("--top-k", type=int, default=0)
    add("--top-p", type=float, default=1.0)
    add("--seed", type=int, default=0)
    add("--device", default="cpu")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> None:
    args = parse_arguments(arguments)
    prefixes = [load_prefix(path) for path in args.prefix]
    if args.output and Path(args.output).exists():
        raise InputError(f"--output {args.output} exists and is not overwritten: give another name")
    records = choose_records(args, prefixes[0])
    lm, tokenizer = load_lm(args.model or prefixes[0].base["name"], device=args.device)
    for prefix in prefixes:
        check_base(prefix, lm)
    apply_tensors(lm, prefixes)
    options = choose_options(args, prefixes[0])
    answers = answer(args, lm, tokenizer, records, prefixes, options)
    if args.output:
        lines = [json.dumps(line, ensure_ascii=False) + "\n" for line in answers]
        write_atomically(Path(args.output), lambda part: part.write_text("".join(lines), encoding="utf-8"))
        return
    for line in answers:
        show(line)
    if not args.input and sys.stdin.isatty() and sys.stdout.isatty():
        talk(args, lm, tokenizer, prefixes, options)


def answer(args, lm, tokenizer, records: list[Record], prefixes: list, options: dict) -> Iterator[dict]:
    """For each record and prefix: the source, the prefix's file, its text, and the references where there are
    any.
    """
    jobs = [(record, name, prefix) for record in records for name, prefix in zip(args.prefix, prefixes)]
    for start in tqdm(range(0, len(jobs), 32), unit="batch", disable=None if args.output else True):
        batch = jobs[start : start + 32]
        rows = [prefix if prefix.sites else None for _, _, prefix in batch]
        texts = generate_texts(lm, tokenizer, [record.source for record, _, _ in batch], rows, options)
        for (record, name, _), text in zip(batch, texts):
            yield {
                "source": record.source,
                "prefix": name,
                "text": text,
                "references": list(record.references),
            }


def show(line: dict) -> None:
    print(f"record     {line['source']}\n{Path(line['prefix']).stem:<10} {line['text']}")
    if line["references"]:
        print(f"reference  {line['references'][0]}")
    print(flush=True)


def talk(args, lm, tokenizer, prefixes: list, options: dict) -> None:
    """Describes what is typed until an empty line or the end of the input."""
    print("Type a record, such as  name : The Fig Tree | food : Indian | area : riverside  (empty: stop)")
    while text := read_line():
        try:
            for line in answer(args, lm, tokenizer, [Record(parse_line(text), ())], prefixes, options):
                show(line)
        except InputError as error:
            print(f"{error}\n")


def read_line() -> str:
    try:
        return input("> ").strip()
    except EOFError:
        return ""


def choose_records(args, prefix: SavedPrefix) -> list[Record]:
    """The records to describe: of --input, or of the test set, spread evenly."""
    if args.input:
        return read_input(args.input)
    files = find_files(prefix.config["dataset"], args.data or prefix.config["data"])
    if files.is_sample:
        print(
            f"!!! NOT THE {files.dataset.upper()} DATA !!! {files.origin}, {files.detail}\n", file=sys.stderr
        )
    records = read_split(files, "test")
    count = min(args.records, len(records)) if args.records > 0 else len(records)
    return [records[i * len(records) // count] for i in range(count)]


def read_input(name: str) -> list[Record]:
    """Records from E2E's CSV, or from lines of text, MRs or JSON objects; InputError names the line."""
    if name.endswith((".csv", ".csv.gz")):
        return read_e2e(Path(name))
    try:
        lines = (
            sys.stdin.read().splitlines()
            if name == "-"
            else Path(name).read_text(encoding="utf-8").splitlines()
        )
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(
            f"--input {name} cannot be read ({error}): give a UTF-8 text, JSON-lines or CSV file"
        ) from None
    records = []
    for number, line in enumerate(lines, 1):
        try:
            if line.strip():
                records.append(Record(parse_line(line.strip()), ()))
        except InputError as error:
            raise InputError(f"--input {name}, line {number}: {error}") from None
    if not records:
        raise InputError(f"--input {name} is empty: write one record a line")
    return records


def parse_line(line: str) -> str:
    """A source from a JSON object, from E2E's key[value], ... or as it stands."""
    if line.startswith("{"):
        try:
            return linearise_record(json.loads(line))
        except json.JSONDecodeError as error:
            raise InputError(f"not a JSON object ({error})") from None
    return linearise_mr(line) if "[" in line else line


def apply_tensors(lm, prefixes: list[SavedPrefix]) -> None:
    """Puts a fully fine-tuned model's tensors in place; it has no prefix and cannot share a batch with
    others.
    """
    changed = [prefix for prefix in prefixes if prefix.tensors]
    if changed and len(prefixes) > 1:
        raise InputError(f"method {changed[0].method} changes the model itself: give it as the only --prefix")
    for prefix in changed:
        lm.load_state_dict(prefix.tensors)


def choose_options(args, prefix: SavedPrefix) -> dict:
    """generate's options: the command line's, else those of the training."""
    given = {
        "beams": args.beams,
        "length_penalty": args.length_penalty,
        "max_new_tokens": args.max_new_tokens,
    }
    options = {name: prefix.config[name] if value is None else value for name, value in given.items()}
    if args.sample and args.beams is None:
        options["beams"] = 1
    names = ("min_new_tokens", "sample", "temperature", "top_k", "top_p", "seed")
    return options | {name: getattr(args, name) for name in names}


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except InputError as error:
        print(f"sample.py: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
