"""Counts what texts about restaurants leave out, get wrong or make up: python -m experiments.slots

Compares the stored texts of E2E runs with their records, key by key, by the words in tables/slots.toml. A key
of the record is *missing* where no words for it are there, and *wrong* where there are words for another
value; one that the record lacks is *invented* where there are some, as is a place that is not the record's.
Writes experiments/results/SLOTS.md: the counts, and texts side by side. People's own texts, the references of
the same records, show what such a count makes of good ones. Needs the E2E data (MINPREFIX_DATA=FOLDER).
"""

import json
import re
from collections import Counter

from experiments.keep import RESULTS, read_table, start
from minprefix.checks import InputError
from minprefix.store import write_atomically
from tasks import find_files, read_split

SLOTS = read_table("slots")
CELLS = {  # a row of the table: where its runs are, below results/
    "gpt2-mini, nothing trained": "table5/untuned-*",
    "gpt2-mini, prefix 10": "table2/e2e-prefix-*",
    "gpt2-mini, full fine-tuning": "table2/e2e-full-*",
    "SmolLM2-135M, nothing trained": "smollm2/table5/untuned-*",
    "SmolLM2-135M, prefix 10": "smollm2/table2/e2e-prefix-*",
    "SmolLM2-135M, full fine-tuning": "smollm2/table2/e2e-full-*",
    "SmolLM2-135M, prefix 10, five epochs": "smollm2/whole/prefix-*",
    "SmolLM2-135M, full fine-tuning, five epochs": "smollm2/whole/full-*",
}
SHOWN = [name for name in CELLS if "five epochs" in name]
FAULTS = ("missing", "wrong", "invented")
PLACE = "a place"  # what stands for the record's own names in a text


def main(_: list[str]) -> None:
    files = find_files("e2e")
    if files.is_sample:
        raise InputError("the references of E2E are needed: set MINPREFIX_DATA to the folder with its data")
    people = {record.source: record.references for record in read_split(files, "test")}
    texts = {name: read_texts(cells) for name, cells in CELLS.items()}
    sources = {source for pairs in texts.values() for source, _ in pairs}
    texts["people"] = [(source, text) for source in sorted(sources) for text in people[source]]
    places = {record[key] for record in map(parse, people) for key in ("name", "near") if key in record}
    lines = [*write_counts(texts, places), "", *write_texts(texts, places)]
    path = RESULTS / "SLOTS.md"
    write_atomically(path, lambda part: part.write_text("\n".join(lines) + "\n", encoding="utf-8"))
    print(f"wrote {path}")


def read_texts(cells: str) -> list[tuple[str, str]]:
    """(source, text) of all runs of a cell, of the learning rate of which there are most."""
    paths = sorted(RESULTS.glob(f"{cells}.json"))
    rates = Counter(path.stem.rpartition("-")[0] for path in paths)
    chosen = [path for path in paths if path.stem.rpartition("-")[0] == rates.most_common(1)[0][0]]
    runs = [json.loads(path.read_text(encoding="utf-8")) for path in chosen]
    return [(pair["source"], pair["text"]) for run in runs for pair in run["texts"]]


def parse(source: str) -> dict[str, str]:
    """{key: value} of a linearised record."""
    return dict(pair.split(" : ", 1) for pair in source.split(" | "))


def find_faults(source: str, text: str, places: set[str]) -> list[tuple[str, str]]:
    """(what is wrong, with what), key by key."""
    record, faults = parse(source), []
    own = [record[key] for key in ("name", "near") if key in record]
    faults += [("missing", key) for key in ("name", "near") if key in record and not holds(text, record[key])]
    for place in sorted([*own, *places], key=len, reverse=True):  # "Crowne Plaza Hotel" before "Crowne Plaza"
        if place not in own and holds(text, place):
            faults.append(("invented", place))
        text = re.sub(re.escape(place), PLACE, text, flags=re.IGNORECASE)
    for key, groups in SLOTS.items():
        said = set()
        for name, group in groups.items():
            text, count = re.subn(group["words"], "", text, flags=re.IGNORECASE)
            said |= {name} if count else set()
        meant = {name for name, group in groups.items() if record.get(key) in group["values"]}
        faults += judge(key, said, meant, is_given=key in record)
    return faults


def holds(text: str, place: str) -> bool:
    return place.casefold() in text.casefold()


def judge(key: str, said: set[str], meant: set[str], is_given: bool) -> list[tuple[str, str]]:
    """The fault of one key, if there is one."""
    if said - meant:
        return [("wrong" if is_given else "invented", key)]
    return [("missing", key)] if meant - said else []


def write_counts(texts: dict, places: set[str]) -> list[str]:
    lines = ["# What the texts leave out, get wrong or make up", "", __doc__.split("\n\n")[1].strip(), ""]
    lines += ["| a hundred texts have | texts | missing | wrong | invented | texts without a fault |"]
    lines += ["|---|---|---|---|---|---|"]
    for name, pairs in texts.items():
        found = [find_faults(source, text, places) for source, text in pairs]
        counts = Counter(fault for faults in found for fault, _ in faults)
        cells = [f"{100 * counts[fault] / len(pairs):.0f}" for fault in FAULTS]
        faultless = 100 * sum(not faults for faults in found) / len(pairs)
        lines.append(f"| {name} | {len(pairs)} | {' | '.join(cells)} | {faultless:.0f}% |")
    return lines


def write_texts(texts: dict, places: set[str]) -> list[str]:
    """The texts of the two methods, with their faults."""
    lines = ["## SmolLM2's texts after five epochs, side by side", ""]
    prefix, full = (dict(reversed(texts[name])) for name in SHOWN)  # of several runs the first
    for source in list(prefix)[::-1]:
        lines += [f"`{source}`", ""]
        for name, text in (("prefix", prefix[source]), ("full", full.get(source, ""))):
            faults = ", ".join(f"{fault}: {what}" for fault, what in find_faults(source, text, places))
            lines.append(f"- {name}: {text}{f' **({faults})**' if faults else ''}")
        lines.append("")
    return lines[:-1]


if __name__ == "__main__":
    start(main, __doc__)
