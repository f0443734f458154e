"""Files and typed text -> rows -> records: one way for all data sets, with file and line in every complaint.

What is wrong with a row is a ValueError (or what Python raises); make_each makes it one InputError.
"""

import csv
import gzip
import io
import json
import re
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from itertools import zip_longest
from pathlib import Path

from minprefix.checks import InputError, explain, refuse_twins

BROKEN = (OSError, EOFError, zlib.error, tarfile.TarError)
ODD = (LookupError, ValueError, TypeError, AttributeError, RecursionError, SyntaxError, csv.Error)
DELIMITERS = {".csv": ",", ".tsv": "\t"}
LINE_END = re.compile(r"\r\n|\r|\n")  # of which an editor may have written any; no other ends a line
csv.field_size_limit(2**31 - 1)  # the usual one, 131,072 characters, refuses long articles


def read_members(path: Path) -> dict[str, bytes]:
    """Name -> content, in order of names: of the one file (unpacked, if it ends in .gz), or of each .xml file
    in a folder or a .tar. Raises InputError if something cannot be read or is cut short."""
    with explain(BROKEN, f"cannot read {path}", "is the file whole?"):
        if path.is_dir():
            files = {file.relative_to(path.parent).as_posix(): file for file in path.rglob("*.xml")}
            return {name: files[name].read_bytes() for name in sorted(files)}
        content = path.read_bytes()
        if path.suffix == ".gz":  # by itself, because tarfile never reads as far as gzip's checksum
            content = gzip.decompress(content)
        if ".tar" not in path.suffixes:
            return {path.name: content}
        with tarfile.open(fileobj=io.BytesIO(content)) as tar:
            files = {file.name: file for file in tar if file.isfile() and file.name.endswith(".xml")}
            return {name: tar.extractfile(files[name]).read() for name in sorted(files)}


def read_bytes(path: Path) -> bytes:
    return b"".join(read_members(path).values())


def decode(content: bytes, place: object) -> str:
    """The text of UTF-8 bytes, without a byte order mark. Raises InputError with place and line."""
    try:
        text, wrong = content.decode("utf-8-sig"), content.find(b"\0")
    except UnicodeDecodeError as error:
        wrong = error.start
    if wrong < 0:
        return text
    line = len((content[:wrong] + b".").splitlines())
    found = (
        "UTF-16, not UTF-8" if b"\0" in content or content[:2] in (b"\xff\xfe", b"\xfe\xff") else "not UTF-8"
    )
    raise InputError(f"{place}, line {line}: {found}; save the file as UTF-8")


def parse_rows(text: str, name: str) -> Iterator[tuple[str, dict | str]]:
    """(place, row) for each row that is not blank: of a table, if `name` ends in .csv or .tsv; of a JSON list
    or object; else of lines, which hold JSON or, unless `name` says JSON, anything. Raises InputError."""
    suffix, head = Path(name.removesuffix(".gz")).suffix.lower(), text.lstrip()
    is_list = suffix != ".jsonl" and holds_list(head)
    # an object that its first line does not end is one object, and no JSON lines
    is_object = head.startswith("{") and not LINE_END.split(head, 1)[0].rstrip().endswith("}")
    if suffix in DELIMITERS:
        yield from parse_table(text, name, DELIMITERS[suffix])
    elif is_list or is_object:
        with blame(name):
            content = parse_json(text)
        rows = content if is_list else [content]
        yield from ((f"{name}, record {number}", row) for number, row in enumerate(rows, 1))
    else:
        for number, line in enumerate(map(str.strip, LINE_END.split(text)), 1):
            if line:
                with blame(place := f"{name}, line {number}"):
                    row = parse_json(line) if suffix in (".json", ".jsonl") or line[0] == "{" else line
                yield place, row


def holds_list(text: str) -> bool:
    """Whether a JSON list begins here: one of records, whole or not, or a whole one of anything else."""
    try:
        return bool(re.match(r"\[\s*[{\]]", text) or (text.startswith("[") and parse_json(text)))
    except ODD as error:
        return isinstance(error, RecursionError)


def parse_table(text: str, name: str, delimiter: str) -> Iterator[tuple[str, dict]]:
    """Rows under the names in the first one, with None for a value that is not there. The place is the line
    where a row begins: in quotes there may be line breaks."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    names, line = [], 1
    try:
        for values in reader:
            if values and not (len(values) == 1 and values[0].isspace()):  # a blank line, and no "" in quotes
                if names:
                    place = f"{name}, line {line} (columns by the first line: {', '.join(names)[:60]})"
                    yield place, name_values(names, values)
                names = names or [key.strip() for key in values]
            line = reader.line_num + 1
    except (csv.Error, ValueError) as error:
        raise InputError(f"{name}, line {line}: {error}") from None


def name_values(names: list[str], values: list[str]) -> dict:
    if len(values) > len(names):
        raise ValueError(f"more than {len(names)} values; put those with commas in quotes")
    return refuse_twins([*zip_longest(names, values)])


def parse_json(text: str) -> object:
    """What JSON says. ValueError or RecursionError for a key that is there twice, NaN, half a character."""
    content = json.loads(text, object_pairs_hook=refuse_twins)
    json.dumps(content, ensure_ascii=False, allow_nan=False).encode()
    return content


def blame(place: str) -> AbstractContextManager[None]:
    """What is wrong with a row becomes an InputError that names its place."""
    return explain(ODD, f"{place} is incomplete or wrong", "mend it or delete it")


def make_each(make: Callable, rows: Iterable[tuple[str, object]]) -> list:
    """`make(row)` of each row, if it is not None; an InputError names the row's place."""
    records = []
    for place, row in rows:
        with blame(place):
            if row is None or isinstance(row, list | int | float):
                raise ValueError(f"{repr(row)[:100]} stands where a record should")
            records.append(make(row))
    return [record for record in records if record]


def read_rows(make: Callable, path: Path) -> list:
    """`make(row)` of each row of a file, if it is not None. Raises InputError with file and line."""
    return make_each(make, parse_rows(decode(read_bytes(path), path), str(path)))


def tidy(text: object) -> str:
    """White space collapsed. ValueError for what is empty or no text, and for half a character."""
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{repr(text)[:100]} stands where a text should")
    return " ".join(text.encode().decode().split())
