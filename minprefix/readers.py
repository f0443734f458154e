"""The files of each data set -> records: a source, all that people wrote about it, its part of the set."""

import contextlib
import csv
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from minprefix.errors import InputError, nearest
from minprefix.files import decode, read_bytes, read_members

E2E_KEYS = ("name", "Type", "food", "price", "customer rating", "area", "family friendly", "near")
RENAMED = {"eatType": "Type", "priceRange": "price", "familyFriendly": "family friendly"}  # official -> ours
ATTRIBUTE = re.compile(r"\s*([^\[\],]+)\[([^\[\]]+)\]\s*(?:,|$)")  # key[value]; a value may hold commas

# WebNLG 2017: where each split lies, and the categories that only its test split has (U; the others are S).
WEBNLG = {"train": "/train/", "dev": "/dev/", "test": "/test/testdata_with_lex.xml"}
UNSEEN = frozenset({"Artist", "Athlete", "CelestialBody", "MeanOfTransportation", "Politician"})

SECTION = re.compile(r"/((?:news|sport)/[a-z]*)")  # of a BBC address: news/uk, sport/football


@dataclass(frozen=True)
class Record:
    """One source, all that people wrote about it, and its part of the data set: WebNLG's category, XSum's
    sport or news; E2E and DART have no parts."""

    source: str
    references: tuple[str, ...]
    group: str = ""


def read_e2e(path: Path) -> list[Record]:
    """The records of an E2E file (CSV, columns mr and ref): one per MR, in order of first appearance, with
    all references, white space collapsed (some hold line breaks). Raises InputError with file and line."""
    references: dict[str, list[str]] = {}
    rows = csv.DictReader(io.StringIO(decode(read_bytes(path), path), newline=""), strict=True)
    try:
        if missing := {"mr", "ref"} - set(rows.fieldnames or ()):
            raise InputError(f"no column {' and '.join(sorted(missing))}; the first line must be mr,ref")
        for row in read_rows(rows):
            references.setdefault(linearise_mr(row["mr"]), []).append(tidy(row["ref"]))
    except (csv.Error, InputError) as error:
        raise InputError(f"{path}, line {rows.reader.line_num}: {error}") from error
    return [Record(source, tuple(texts)) for source, texts in references.items()]


def read_rows(rows: csv.DictReader) -> Iterator[dict]:
    """The rows of a CSV, none of them with a value that csv would silently drop. InputError, csv.Error."""
    names = rows.fieldnames or ()
    if twins := [name for name in names if names.count(name) > 1]:
        raise InputError(f"column '{twins[0]}' is there twice; leave one out")
    for row in rows:
        if None in row:
            raise InputError(f"more than {len(names)} values; put those with commas in quotes")
        yield row


def read_webnlg(path: Path, split: str) -> list[Record]:
    """The entries of a split of WebNLG 2017, from the folder webnlg_challenge_2017 or a .tar.gz of it, in the
    order of the files' names (size, then category) and within a file; the group is the category. Raises
    InputError with file and entry."""
    files = [item for item in read_members(path).items() if WEBNLG[split] in f"/{item[0]}"]
    return [record for name, content in files for record in _read_xml(content, f"{path}, {name}")]


def _read_xml(content: bytes, place: str) -> list[Record]:
    text = decode(content, place)
    if "<!DOCTYPE" in text:  # a few lines of entities can grow to gigabytes
        raise InputError(f"{place} declares a DOCTYPE, as no file of WebNLG does; take the official file")
    with blame(place):
        entries = ElementTree.fromstring(text).iter("entry")
    return make_each(_make_webnlg, entries, f"{place}, entry")


def _make_webnlg(entry: ElementTree.Element) -> Record:
    triples = [triple.text.split(" | ") for triple in entry.iterfind("modifiedtripleset/mtriple")]
    texts = [lex.text or "" for lex in entry.iterfind("lex")]
    return Record(linearise_triples(triples), tidy_all(texts), entry.attrib["category"])


def read_dart(path: Path) -> list[Record]:
    """The entries of one of DART's JSON files in their order, predicates in lower case as in the authors'
    format. Empty texts are left out (the test split has one). Raises InputError with file and entry."""
    with blame(path):
        entries = list(json.loads(read_bytes(path)))
    return make_each(_make_dart, entries, f"{path}, entry")


def _make_dart(entry: dict) -> Record:
    texts = [annotation["text"] for annotation in entry["annotations"]]
    return Record(linearise_triples(entry["tripleset"], lower=True), tidy_all(texts))


def read_xsum(path: Path, sections: str = "") -> list[Record]:
    """Article -> summary, from JSON lines with document, summary and any of url, topic, topic_guess, which
    give the group (sport, news). `sections` is a pattern that the section must match: the url's, such as
    news/uk, else the topic. Raises InputError with file and line."""

    def make(line: bytes) -> Record | None:
        row = json.loads(line)
        found = SECTION.search(row.get("url") or "")
        section = found[1].rstrip("/") if found else row.get("topic") or row.get("topic_guess") or ""
        record = Record(tidy(row["document"]), (tidy(row["summary"]),), section.partition("/")[0])
        return record if re.match(sections, section) else None

    return make_each(make, read_bytes(path).splitlines(), f"{path}, line")


def read_news_to_sports(path: Path, split: str) -> list[Record]:
    """XSum's first extrapolation set (Sec. 6.4): trained on news, tested on sport."""
    return read_xsum(path, "sport" if split == "test" else "news")


def read_within_news(path: Path, split: str) -> list[Record]:
    """XSum's second extrapolation set (Sec. 6.4): trained on UK, world and business news, tested on the other
    sections of the news. A record whose section is not known is in neither."""
    common = "(uk|world|business)$"
    return read_xsum(path, f"news/(?!{common})." if split == "test" else f"news/{common}")


def make_each(make: Callable, items: Iterable, place: str) -> list[Record]:
    """`make(item)` of each item, if it is not None; an InputError names the place and the item's number."""
    records = []
    for number, item in enumerate(items, 1):
        with blame(f"{place} {number}"):
            records.append(make(item))
    return [record for record in records if record]


@contextlib.contextmanager
def blame(place: object) -> Iterator[None]:
    """What is wrong with a record becomes an InputError that names its place."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{place}: {error}") from error
    except (LookupError, ValueError, TypeError, AttributeError, RecursionError, SyntaxError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else error
        raise InputError(f"{place}: not in the data set's format ({reason}); is the file whole?") from error


def tidy(text: object) -> str:
    """White space collapsed. Raises InputError for what is empty or no text, UnicodeError for half a
    character, which JSON can hold."""
    if not isinstance(text, str) or not text.strip():
        raise InputError(f"{text!r} stands where a text should; fill it in, or delete the record")
    return " ".join(text.encode().decode().split())


def tidy_all(texts: list) -> tuple[str, ...]:
    """The texts that are not empty. Raises InputError if none is left."""
    if kept := tuple(tidy(text) for text in texts if text is None or text.strip()):
        return kept
    raise InputError("no text; give at least one, or delete the record")


def linearise_triples(triples: list, lower: bool = False) -> str:
    """`Aarhus_Airport : cityServed : Aarhus | ...`: the authors' format, underscores and quotation marks as
    they stand, predicates in lower case if `lower`. Raises InputError for what is not three texts each."""
    rows = triples if isinstance(triples, list) else []
    if not rows or not all(isinstance(row, list) and len(row) == 3 for row in rows):
        raise InputError(f"{triples!r} are no triples; write [[subject, predicate, object], ...]")
    parts = ((tidy(s), tidy(p), tidy(o)) for s, p, o in rows)
    return " | ".join(f"{s} : {p.lower() if lower else p} : {o}" for s, p, o in parts)


def linearise_mr(mr: str) -> str:
    """`name[Blue Spice], eatType[pub]` becomes `name : Blue Spice | Type : pub`, the authors' format, keys in
    the order given. Raises InputError for anything but key[value], key[value], ..."""
    attributes = ATTRIBUTE.findall(mr)
    if not attributes or ATTRIBUTE.sub("", mr) or len(dict(attributes)) < len(attributes):
        raise InputError(f"malformed record {mr!r}; write name[...], food[...], each key once")
    return linearise_record(dict(attributes))


def linearise_record(record: Mapping[str, object]) -> str:
    """The source for a mapping whose keys are E2E's official or linearised names; empty values are left out.
    One with triples has them under tripleset (DART) or modifiedtripleset (WebNLG), an article has its text
    under document (XSum). Raises InputError for an unknown key and for a value that is neither text nor a
    number."""
    if "document" in record:
        return tidy(record["document"])
    for key, lower in (("tripleset", True), ("modifiedtripleset", False)):
        if key in record:
            return linearise_triples(record[key], lower)
    parts = {}
    for key, value in record.items():
        name = RENAMED.get(key, key)
        if name not in E2E_KEYS:
            raise InputError(f"unknown key '{key}'; {nearest(str(key), [*E2E_KEYS, *RENAMED])}")
        if isinstance(value, bool) or not isinstance(value, str | int | float | None):
            raise InputError(f"the value of '{key}' is {value!r}; write it as text")
        if name in parts:
            raise InputError(f"'{name}' is given twice; leave one out")
        if text := " ".join(str("" if value is None else value).split()):
            parts[name] = text
    if not parts:
        raise InputError("the record is empty; give it at least a name")
    return " | ".join(f"{name} : {text}" for name, text in parts.items())
