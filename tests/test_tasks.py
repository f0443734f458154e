"""tasks: where files come from, which records are in them, what is refused and how that is said."""

import dataclasses
import gzip
import hashlib
import http.server
import io
import itertools
import json
import os
import socket
import tarfile
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tasks
from minprefix.checks import InputError
from tasks import SPLITS, Record, e2e, find_files, find_task, parse_input, read_input, read_split
from tasks.pairs import SOURCES, TARGETS
from tasks.webnlg import UNSEEN

MR = '"name[Blue Spice], area[riverside]",Blue Spice is by the river.\n'
CSV = "mr,ref\n" + MR
BLUE = Record("name : Blue Spice | area : riverside", ("Blue Spice is by the river.",))
TRIPLES = {"tripleset": [["Mars Hill", "JOINED", "1973"], ["[TABLECONTEXT]", "[TITLE]", "Jeff  Daniels"]]}
TEXTS = {"annotations": [{"source": "x", "text": "It joined.\n"}, {"source": "y", "text": " "}]}
DART = json.dumps([TRIPLES | TEXTS])
ARTICLE = {"document": "First.\nSecond\u2028 part.", "summary": "All  of it."}


def entry(triples: list[str], texts: list[str], category: str = "Airport") -> str:
    modified = "".join(f"<mtriple>{triple}</mtriple>" for triple in triples)
    lexes = "".join(f'<lex comment="good" lid="Id1">{text}</lex>' for text in texts)
    original = "<originaltripleset><otriple>no | no | no</otriple></originaltripleset>"
    modified = f"<modifiedtripleset>{modified}</modifiedtripleset>"
    return f'<entry category="{category}" eid="Id1" size="1">{original}{modified}{lexes}</entry>'


def benchmark(*entries: str) -> str:
    return f"<?xml version='1.0'?><benchmark><entries>{''.join(entries)}</entries></benchmark>"


QUOTED = entry(['Aarhus_Airport | cityServed | "Aarhus,  Denmark"'], ["It serves  Aarhus.", "In A. &amp; B."])
AARHUS = 'Aarhus_Airport : cityServed : "Aarhus, Denmark"'
PLAYER = entry(["Piotr | club | AZAL_PFK"], ["Piotr plays there."], "Athlete")


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = content.encode() if isinstance(content, str) else content
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def write_splits(folder: Path, content: str | bytes, name: str) -> None:
    for split in SPLITS:
        write(folder / name.format(split), content)


def write_webnlg(folder: Path) -> Path:
    """Two training files, one dev file, and the three test files of the challenge."""
    root = folder / "webnlg_challenge_2017"
    two = entry(["A | b | C_(d)", "A | leaderName | É"], ["A is C."], "City")
    write(root / "train/2triples/2triples_City_train_challenge.xml", benchmark(two))
    write(root / "train/1triples/1triple_allSolutions_Airport_train_challenge.xml", benchmark(QUOTED))
    write(root / "dev/1triples/1triple_dev_challenge.xml", benchmark(QUOTED))
    write(root / "test/testdata_with_lex.xml", benchmark(PLAYER, QUOTED))
    write(root / "test/testdata_unseen_with_lex.xml", benchmark(PLAYER))
    write(root / "test/testdata_no_lex.xml", benchmark(entry(["Piotr | club | AZAL_PFK"], [])))
    return root


def pack(root: Path, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w:gz") as tar:
        tar.add(root, root.name)
    return path


def read_all(dataset: str, data: Path | str, keys=("", "")) -> dict[str, list[Record]]:
    files = find_files(dataset, str(data), keys)
    return {split: read_split(files, split) for split in SPLITS}


def refuse(words: str, call, *arguments) -> str:
    with pytest.raises(InputError, match=words) as refused:
        call(*arguments)
    message = str(refused.value)
    assert "\n" not in message and len(message) < 1000
    return message


def change_e2e(monkeypatch, **fields) -> None:
    monkeypatch.setattr(e2e, "E2E", dataclasses.replace(e2e.E2E, **fields))


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """An empty data folder, and no site: no test may reach the network or the user's files by accident."""
    monkeypatch.setenv("MINPREFIX_DATA", str(tmp_path / "home"))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/"
    change_e2e(monkeypatch, url=url)
    return tmp_path / "home" / "e2e"


# --- one row or line -> a source ---

GIVEN = [
    (
        "e2e",
        "near[Café Adriatic], name[Ham, Eggs & Co], eatType[pub], priceRange[more than £30],"
        " customer rating[5 out of 5], familyFriendly[yes]",
        "near : Café Adriatic | name : Ham, Eggs & Co | Type : pub | price : more than £30"
        " | customer rating : 5 out of 5 | family friendly : yes",
    ),
    ("e2e", "name : Blue Fig  | food : Thai", "name : Blue Fig | food : Thai"),
    ("e2e", {"eatType": "pub", "priceRange": "", "near": " The\nMill "}, "Type : pub | near : The Mill"),
    ("e2e", {"name": "A", "price": 3, "familyFriendly": None, "ref": "x", "": 0}, "name : A | price : 3"),
    ("e2e", {"MR": "name[A], food[B]", "ref": "x"}, "name : A | food : B"),
    ("dart", TRIPLES, "Mars Hill : joined : 1973 | [TABLECONTEXT] : [title] : Jeff Daniels"),
    ("dart", "[TABLECONTEXT] : [title] : Jeff", "[TABLECONTEXT] : [title] : Jeff"),
    ("webnlg", {"modifiedtripleset": [["A_B", "livesIn", "C"]]}, "A_B : livesIn : C"),
    ("xsum", ARTICLE, "First. Second part."),
    ("bbc", 'He said [sic] "no". {it}', 'He said [sic] "no". {it}'),
    ("pairs", {"Prompt": "a\n b", "id": 3}, "a b"),
]


@pytest.mark.parametrize(("dataset", "given", "source"), GIVEN)
def test_a_row_becomes_its_source(dataset, given, source):
    task = find_task(dataset)
    assert (task.parse_line(given) if isinstance(given, str) else task.linearise(given)) == source
    text = given if isinstance(given, str) else json.dumps(given)
    assert parse_input(text, "-", task) == [Record(source, ())]


BAD_ROWS = [
    *(("e2e", mr, "malformed") for mr in ("name[A", "name[]", "[pub]", "name[A] area[B]")),
    *(("e2e", mr, "malformed") for mr in ("name[A], pub", "name[A[B]]")),
    ("e2e", "name[A], name[B]", "'name' is there twice"),
    ("e2e", "nam[A]", "unknown key 'nam'; did you mean 'name'"),
    ("e2e", {"name": "A", "familyfriendly": "yes"}, "did you mean 'family friendly'"),
    ("e2e", {"name": "A", "xyzzy": "yes"}, "known are mr, name, Type"),
    ("e2e", {"name": ["A"]}, "stands where a text should"),
    ("e2e", {"name": "A", "familyFriendly": True}, "True stands where"),
    ("e2e", {"name": "A", "price": "high", "priceRange": "cheap"}, "'price' is there twice"),
    ("e2e", {"name": ""}, "the record is empty"),
    ("e2e", {"name": "A", "": "B"}, "unknown key ''"),
    *(("dart", {"tripleset": x}, "are no triples") for x in (5, None, ["abc"], [[]], {})),
    ("dart", {"tripleset": [["a", "b", 3]]}, "3 stands where"),
    ("xsum", {"name": "A"}, "'document'"),
    ("pairs", {"text": "A"}, "needs one of source, prompt.* and has text"),
    ("pairs", {"source": "A", "input": "B"}, "has source, input"),
]


@pytest.mark.parametrize(("dataset", "given", "words"), BAD_ROWS)
def test_a_bad_row_is_one_sentence(dataset, given, words):
    text = given if isinstance(given, str) else json.dumps(given)
    assert refuse(words, parse_input, text, "-", find_task(dataset)).startswith("-, line 1 ")


# --- files and what is typed: one behaviour everywhere ---

FORMS = {  # name of an input -> the same two records in that form
    "a.csv": 'name,food\nBlue Fig,"Thai\nand more"\n\n \nB,\n',
    "a.TSV": 'name\tfood\nBlue Fig\t"Thai\nand more"\nB\t\n',
    "b.csv": '"MR",ref\n"name[Blue Fig], food[Thai and more]",good\n\nname[B],"It is\ngood."\n',
    "a.json": '[{"name": "Blue Fig",\n "food": "Thai and more"}, {"name": "B"}]',
    "b.json": '{"name": "Blue Fig", "food": "Thai and more"}\n\n{"name": "B"}\n',
    "a.jsonl": '{"name": "Blue Fig", "food": "Thai and more"}\n  \n{"name": "B"}',
    "a.txt": "\n  name[Blue Fig], food[Thai and more] \n\t\nname[B]",
    "b.txt": 'name : Blue Fig | food : Thai and more\n{"name": "B"}\n',
}


@pytest.mark.parametrize("name", FORMS)
def test_input_is_read_as_people_write_it(name, tmp_path):
    text = FORMS[name]
    for variant in (text, "\ufeff" + text, text.replace("\n", "\r\n"), text + "\n \n"):
        found = read_input(str(write(tmp_path / name, variant)), "e2e")
        assert [r.source for r in found] == ["name : Blue Fig | food : Thai and more", "name : B"]


def test_one_object_on_several_lines_of_stdin(monkeypatch):
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b'\n{\n "name": "A"\n}\n')))
    assert read_input("-", "e2e") == [Record("name : A", ())]


BAD_FILES = [  # name, content, words; each as an input and, where it has a reference, as E2E's training file
    ("a.csv", 'mr\n"name[Blue\nLantern]"\n\n"name[X], food"\n', r"a\.csv, line 5 .*malformed"),
    ("a.csv", CSV + 'name[A],"a text', r"a\.csv, line 3: unexpected end of data"),
    ("a.csv", 'name\n"A" B\n', "line 2: .*expected after"),
    ("a.csv", "name,food\nA,B,C\n", "line 2: more than 2 values; put those with commas in quotes"),
    ("a.csv", "name,food,name\nA,B,C\n", "'name' is there twice"),
    ("a.csv", MR + MR, r"line 2 \(columns by the first line: name\[Blue Spice\], area"),
    ("a.csv", MR, "below the names of its columns"),
    ("a.csv", "mr;ref\nname[A];good\n", r"line 2 \(columns by the first line: mr;ref\)"),
    *(("a" + ending, text, "is empty") for ending in (".csv", ".json", ".txt") for text in ("", "\n \n\t\n")),
    ("a.csv", "name,food\n", "is empty"),
    ("a.txt", "[ ]", "is empty"),
    ("a.json", '["A", ["B"]]', "record 2 .*stands where a record"),
    *(("a" + ending, "[1, 2]", "record 1 .*stands where a record") for ending in (".txt", ".json", "")),
    ("a.csv", 'name\nA\n""\nB\n', "line 3 .*the record is empty"),
    ("a.txt", "name : A".encode("utf-16-le"), "line 1: UTF-16, not UTF-8"),
    ("a.csv", "name\rA\r\0", "line 3: UTF-16, not UTF-8"),
    ("a.jsonl", '{"name": "A"}\r3', "line 2 .*stands where a record"),
    ("a.jsonl", '{"name": "A"}\n3', "line 2 .*stands where a record"),
    ("a.txt", b"ok\ncaf\xe9", "line 2: not UTF-8; save the file as UTF-8"),
    ("a.csv", CSV.encode("utf-16"), "line 1: UTF-16, not UTF-8; save the file as UTF-8"),
    ("a.txt", b"\xfe\xff\0A", "UTF-16, not UTF-8"),
    ("a.json", "name : A", r"a\.json, line 1 .*Expecting value"),
    ("a.json", '[{"name": "A"}, 2]', "record 2 is incomplete or wrong"),
    ("a.txt", 'name : A\n{"name": "A"', "line 2 .*Expecting"),
    ("a.txt", '{\n "name": "A"\n', "Expecting"),
    ("a.txt", '{"name": "A", "name": "B"}', "line 1 .*'name' is there twice"),
    ("a.json", '[{"name": "A"}, {"name": "A",\n "name": "B"}]', "'name' is there twice"),
    *(("a.txt", f'{{"name": {value}}}', "not JSON compliant") for value in ("NaN", "1e999")),
    ("a.txt", '{"name": "\\ud800"}', "surrogates not allowed"),
    ("a.txt", "[" * 99_999, "recursion"),
    ("a.txt", '{"name": ' * 9_999, "incomplete or wrong"),
]


@pytest.mark.parametrize(("name", "content", "words"), BAD_FILES)
def test_a_bad_input_is_one_sentence_with_its_place(name, content, words, tmp_path):
    path = write(tmp_path / name, content)
    assert refuse(words, read_input, str(path), "e2e").startswith(f"--input {path}")


@pytest.mark.parametrize(
    ("name", "content", "sources"),
    [
        ("a.txt", '[\n"A",\n"B"\n]', ["A", "B"]),
        ("a.json", '["A", "B"]', ["A", "B"]),
        ("a.txt", "[[Main page]] is here", ["[[Main page]] is here"]),
        ("a.txt", "A\rB\r\nC\nD\u2028E", ["A", "B", "C", "D E"]),
        ("a.csv", "document\n \n\nA\n", ["A"]),
    ],
)
def test_an_odd_input_is_what_a_person_would_say_it_is(name, content, sources, tmp_path):
    path = write(tmp_path / name, content)
    assert [record.source for record in read_input(str(path), "xsum")] == sources


def test_a_long_field_of_a_table_is_read():
    assert parse_input("name\n" + "a" * 200_000, "a.csv", find_task("e2e"))[0].source[-9:] == "a" * 9


def test_what_cannot_be_read_is_said(tmp_path):
    refuse("surrogates not allowed", parse_input, "caf\udce9", "-", find_task("xsum"))  # from a terminal
    for name in ("", str(tmp_path), str(tmp_path / "gone.txt")):
        refuse("--input .* cannot be read", read_input, name, "e2e")


@pytest.mark.parametrize("part", ["a", "7", " ", "\n", "[", "]", '"', "{", ",", "name[A], ", "\u2028"])
def test_long_texts_take_linear_time(part):
    began = time.process_time()
    for dataset, name in itertools.product(("e2e", "xsum"), ("a.txt", "a.csv")):
        for text in (part * 300_000, "mr\n" + part * 300_000):
            try:
                parse_input(text, name, find_task(dataset))
            except InputError as error:
                assert len(str(error)) < 1000
    assert time.process_time() - began < 20


# --- E2E's, WebNLG's, DART's and XSum's own files ---


def test_e2e_groups_in_order_of_first_appearance(tmp_path):
    text = "mr,ref\nname[B],b one\nname[A],a one\nname[B],b  two \nname[A],a one\n"
    write_splits(tmp_path, text, "{}.csv")
    records = [Record("name : B", ("b one", "b two")), Record("name : A", ("a one", "a one"))]
    assert read_all("e2e", tmp_path) == dict.fromkeys(SPLITS, records)


@pytest.mark.parametrize("form", ["folder", "tar"])
def test_webnlg_literally(form, tmp_path):
    root = write_webnlg(tmp_path / "folder")
    pack(root, tmp_path / "tar" / "webnlg_challenge_2017_xml.tar.gz")
    records = read_all("webnlg", tmp_path / form)
    aarhus = Record(AARHUS, ("It serves Aarhus.", "In A. & B."), "Airport")
    city = Record("A : b : C_(d) | A : leaderName : É", ("A is C.",), "City")
    player = Record("Piotr : club : AZAL_PFK", ("Piotr plays there.",), "Athlete")
    # by size, as the files are named
    assert records == {"train": [aarhus, city], "dev": [aarhus], "test": [player, aarhus]}
    assert [record.group in UNSEEN for record in records["test"]] == [True, False]
    folder, packed = (find_files("webnlg", str(tmp_path / name)) for name in ("folder", "tar"))
    assert folder.origin == packed.origin and folder.origin.startswith("other webnlg files (SHA-256 ")


@pytest.mark.parametrize("name", ["{}.json", "dart-v1.1.1-full-{}.json", "{}.json.gz"])
def test_dart_literally(name, tmp_path):
    write_splits(tmp_path, f"{DART[:-1]}, {DART[1:]}", name)
    source = "Mars Hill : joined : 1973 | [TABLECONTEXT] : [title] : Jeff Daniels"
    assert read_all("dart", tmp_path)["test"] == [Record(source, ("It joined.",))] * 2  # and no empty text


SECTIONS = [
    {"url": "http://www.bbc.co.uk:80/news/uk-england-kent-38081845", "topic": "news"},
    {"url": "https://www.bbc.com/news/world-us-canada-3"},
    {"url": "http://www.bbc.co.uk/news/technology-3", "topic_guess": "sport"},
    {"url": "http://www.bbc.co.uk/news/10138849"},
    {"url": "http://www.bbc.co.uk/sport/football/38620027"},
    {"url": None, "topic": None, "topic_guess": "sport"},
    {"topic": "news"},
    {},
]


CHOSEN = {  # the rows of train, of test
    "xsum": (range(8), range(8)),
    "xsum-news-to-sports": ([0, 1, 2, 3, 6], [4, 5]),
    "xsum-within-news": ([0, 1], [2]),
}


@pytest.mark.parametrize("dataset", CHOSEN)
def test_xsum_and_its_extrapolation_sets(dataset, tmp_path):
    train, test = CHOSEN[dataset]
    rows = [ARTICLE | row | {"summary": f"No {i}"} for i, row in enumerate(SECTIONS)]
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n"
    write_splits(tmp_path / "xsum", lines, "{}.jsonl.gz")
    records = read_all(dataset, tmp_path)
    chosen = {split: [int(r.references[0][3:]) for r in found] for split, found in records.items()}
    assert chosen == {"train": list(train), "dev": list(train), "test": list(test)}
    assert records["train"][0] == Record("First. Second part.", ("No 0",), "news")
    groups = ["news"] * 4 + ["sport"] * 2 + ["news", ""]
    assert [record.group for record in records["train"]] == [groups[i] for i in train]


def with_row(**changes) -> str:
    return json.dumps([TRIPLES | TEXTS, TRIPLES | TEXTS | changes])


def with_line(line: str) -> str:
    return json.dumps(ARTICLE) + "\n\n" + line


BOMB = '<!DOCTYPE b [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">]><benchmark><entries>&b;</entries></benchmark>'
XML = "webnlg_challenge_2017/test/testdata_with_lex.xml"
NO_TEXT = "stands where a text should"
BAD_SETS = [  # data set, its test file, content, words; what all formats share is in BAD_FILES
    ("e2e", "test.csv", CSV + "name[A],\n", f"line 3 .*'' {NO_TEXT}"),
    ("e2e", "test.csv", CSV + "name[A]\n", f"line 3 .*None {NO_TEXT}"),
    ("e2e", "test.csv", CSV + ",good\n", "line 3 .*the record is empty"),
    ("e2e", "test.csv", CSV + '"nam[A]","a\ntext"\n', "line 3 .*unknown key 'nam'; did you mean 'name'"),
    ("e2e", "test.csv", "mr\nname[A]\n", r"line 2 \(columns by the first line: mr\).*'ref'"),
    ("e2e", "test.csv", "mr,ref,ref\nname[A],good,bad\n", "'ref' is there twice"),
    ("e2e", "test.csv", "mr,ref\n", "has no test records for e2e"),
    ("webnlg", XML, benchmark(QUOTED)[:-20], r"is incomplete or wrong \(.*line 1"),
    ("webnlg", XML, BOMB, "declares a DOCTYPE"),
    ("webnlg", XML, benchmark(QUOTED, entry(["A | b"], ["A."])), r"entry 2 .*no triples; write \[\[subject"),
    ("webnlg", XML, benchmark(QUOTED, entry(["A | b | "], ["A."])), f"entry 2 .*'' {NO_TEXT}"),
    ("webnlg", XML, benchmark(QUOTED, entry([], ["A."])), "entry 2 .*are no triples"),
    ("webnlg", XML, benchmark(QUOTED, entry([""], ["A."])), "entry 2 is incomplete or wrong"),
    ("webnlg", XML, benchmark(QUOTED, entry(["A | b | C"], [" ", ""])), "entry 2 .*no text"),
    ("webnlg", XML, benchmark(QUOTED, QUOTED.replace("category", "kind")), "entry 2 .*'category'"),
    ("webnlg", XML, benchmark(QUOTED).encode() + b"\n\xe9", "line 2: not UTF-8"),
    ("webnlg", XML, benchmark(), "has no test records for webnlg"),
    ("dart", "test.json", DART[:-9], "is incomplete or wrong"),
    ("dart", "test.json", "[]", "has no test records"),
    ("dart", "test.json", json.dumps([TRIPLES | TEXTS, {}]), "record 2 .*'tripleset'"),
    *(("dart", "test.json", with_row(annotations=[{"text": x}]), "record 2") for x in ("", None, 5)),
    ("dart", "test.json", with_row(tripleset=[["a", "b", "\ud800"]]), "surrogates not allowed"),
    ("dart", "test.json", DART.replace('"text"', '"text": "a", "text"', 1), "'text' is there twice"),
    ("xsum", "test.jsonl", with_line('{"document": "a"}'), "line 3 .*'summary'"),
    ("xsum", "test.jsonl", with_line('{"document": " ", "summary": "b"}'), f"line 3 .*' ' {NO_TEXT}"),
    ("xsum", "test.jsonl", with_line('{"document": "a", "summary": null}'), f"line 3 .*None {NO_TEXT}"),
    ("xsum", "test.jsonl", with_line('{"document": "a", "summary": "b", "url": 7}'), "line 3 is incomplete"),
    ("xsum", "test.jsonl", with_line('{"document": "a", "summary": "b", "summary": "c"}'), "line 3 .*twice"),
    ("xsum", "test.jsonl", with_line("[]"), "line 3 is incomplete or wrong"),
    ("xsum-within-news", "test.jsonl", json.dumps(ARTICLE), "has no test records for xsum-within-news"),
]


@pytest.mark.parametrize(("dataset", "name", "content", "words"), BAD_SETS)
def test_a_bad_file_is_one_sentence_with_file_and_place(dataset, name, content, words, tmp_path):
    write_webnlg(tmp_path)
    for good, form in ((CSV, "{}.csv"), (DART, "{}.json"), (json.dumps(ARTICLE), "{}.jsonl")):
        write_splits(tmp_path, good, form)
    write(tmp_path / name, content)
    message = refuse(words, read_split, find_files(dataset, str(tmp_path)), "test")
    assert message.startswith(str(tmp_path / name.split("/")[0]))


@pytest.mark.parametrize("kind", ["e2e", "webnlg"])
def test_what_is_cut_short_or_no_archive_is_refused(kind, tmp_path):
    write_splits(tmp_path, CSV * 99, "{}.csv.gz")
    path = tmp_path / "train.csv.gz"
    if kind == "webnlg":
        path = pack(write_webnlg(tmp_path / "folder"), tmp_path / "webnlg_challenge_2017_xml.tar.gz")
    whole = path.read_bytes()
    damaged = whole[:60] + bytes(8) + whole[68:]
    for content in (whole[:-9], whole[:-30], b"no archive", b"\x1f\x8b\x08\0", damaged):
        path.write_bytes(content)
        refuse(rf"{path.name} .*is the file whole\?", find_files, kind, str(tmp_path))


ODD = [b"", b"\0", b"\xff", b'"', b",", b"\n", b"[", b"}", b"1e999", b"NaN", b"null", b"true"]
PLACES = (st.floats(0, 1), st.sampled_from([0, 1, 2, 8, 10**6]))
EDITS = st.lists(st.tuples(*PLACES, st.sampled_from(ODD) | st.binary(max_size=4)), min_size=1, max_size=4)
TRIES = os.environ.get("MINPREFIX_FUZZ")
fuzz = settings(max_examples=int(TRIES or 60), derandomize=not TRIES, deadline=None, database=None)
GOOD = [
    ("e2e", "train.csv", CSV + 'name[Café],"a\nb"\n'),
    ("dart", "train.json", DART),
    ("xsum", "train.jsonl", json.dumps(ARTICLE | SECTIONS[0]) + "\n"),
    ("pairs", "train.tsv", "source\ttarget\na\tb\nc\td\n"),
    ("webnlg", XML.replace("test/testdata_with_lex", "train/a"), benchmark(QUOTED)),
    *(("input", name, text) for name, text in FORMS.items()),
]


@pytest.mark.parametrize(("dataset", "name", "good"), GOOD, ids=[f"{row[0]} {row[1]}" for row in GOOD])
def test_a_mutated_file_gives_records_or_one_sentence(dataset, name, good, tmp_path):
    path = write(tmp_path / name, good)
    place = tmp_path / "webnlg_challenge_2017" if dataset == "webnlg" else path
    files = tasks.DataFiles(dataset, {"train": place, "dev": Path(), "test": Path()}, "", "")

    def read() -> list[Record]:
        return read_input(str(path), "e2e") if dataset == "input" else read_split(files, "train")

    assert read()

    @fuzz
    @given(EDITS)
    def check(edits):
        content = good.encode()
        for at, length, new in edits:
            start = int(at * len(content))
            content = content[:start] + new + content[start + length :]
        path.write_bytes(content)
        try:
            for record in read():
                assert record.source.strip() and all(text.strip() for text in record.references)
                record.source.encode()
        except InputError as error:
            assert str(error) and "\n" not in str(error)

    check()


# --- pairs ---


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.csv.gz"])
@pytest.mark.parametrize("names", zip(SOURCES, TARGETS))
def test_pairs_of_one_file(name, names, tmp_path):
    rows = [(f"text  {i % 50}", f"answer\n{i}") for i in range(100)]
    table = "".join(f'"{a}",{i},"{b}"\n' for i, (a, b) in enumerate([names, *rows]))
    if "json" in name:
        table = "\n".join(json.dumps({names[0]: a, "id": 1, names[1]: b}) for a, b in rows)
    if name == "a.json":
        table = "[" + table.replace("\n", ",") + "]"
    path = write(tmp_path / name, "\ufeff" + (table.replace(",", "\t") if "tsv" in name else table))
    splits = read_all("pairs", path)
    assert {split: len(records) for split, records in splits.items()} == {"train": 40, "dev": 5, "test": 5}
    merged = {record.source: record.references for records in splits.values() for record in records}
    assert merged == {f"text {i}": (f"answer {i}", f"answer {i + 50}") for i in range(50)}
    assert [int(r.source[5:]) for r in splits["train"]] == sorted(int(r.source[5:]) for r in splits["train"])
    assert "dev and test, where they have no file, get a tenth" in find_files("pairs", str(path)).detail


def test_pairs_of_a_folder_take_the_files_of_each_split(tmp_path):
    keys = ("frage", "antwort")

    def count() -> list[int]:
        return [len(records) for records in read_all("pairs", tmp_path, keys).values()]

    lines = (json.dumps({"frage": f"q {i}", "antwort": "a"}) for i in range(40))
    write(tmp_path / "train.jsonl", "\n".join(lines))
    assert count() == [32, 4, 4]
    write(tmp_path / "test.csv", "frage,antwort\nq 1,a\n")
    assert count() == [36, 4, 1]
    write(tmp_path / "dev.tsv.gz", "frage\tantwort\nq 2\ta\n")
    assert count() == [40, 1, 1] and "tenth" not in find_files("pairs", str(tmp_path)).detail
    refuse("needs one of source, .*source_key= .* and has frage", read_all, "pairs", tmp_path)
    refuse("needs reply, and has frage", read_all, "pairs", tmp_path, ("frage", "reply"))
    assert parse_input('{"frage": "q"}', "-", find_task("pairs"), "frage") == [Record("q", ())]


def test_pairs_errors_name_file_and_line(tmp_path):
    path = write(tmp_path / "a.csv", '\ufeffinput,output\n"a\nb",c\n\nd,\n')
    refuse(r"a\.csv, line 5 .*'' stands where a text should", read_all, "pairs", path)
    refuse("give data=FILE", find_files, "pairs")
    refuse("give data=", find_files, "pairs", "sample")
    refuse("does not exist: give data=FILE", find_files, "pairs", str(tmp_path / "gone.csv"))
    refuse("has no train records", read_all, "pairs", write(tmp_path / "b.csv", "input,output\na,b\n"))


# --- finding ---


@pytest.mark.parametrize("inner", ["e2e", "."])
@pytest.mark.parametrize(
    "names", ["train.csv dev.csv test.csv", "train.csv.gz devset.csv testset_w_refs.csv"]
)
def test_a_folder_takes_both_names_plain_or_gz(inner, names, tmp_path):
    for name in names.split():
        write(tmp_path / "mine" / inner / name, CSV)
    files = find_files("e2e", str(tmp_path / "mine"))
    assert [files.paths[split].name for split in SPLITS] == names.split() and not files.is_sample
    assert files.origin.startswith("other e2e files (SHA-256 ")
    assert read_split(files, "dev") == [BLUE]


@pytest.mark.parametrize(
    ("dataset", "names"),
    [
        ("e2e", "trainset.csv or train.csv, .*testset_w_refs.csv or test.csv, plain or .gz"),
        ("webnlg", "webnlg_challenge_2017 or webnlg_challenge_2017_xml.tar, plain or .gz"),
        ("dart", "dart-v1.1.1-full-train.json or train.json, dart-v1.1.1-full-dev.json"),
        ("xsum", "train.jsonl, dev.jsonl, test.jsonl"),
    ],
)
def test_a_folder_without_all_files_names_them(dataset, names, tmp_path):
    for name in ("train.csv", "dev.csv", "train.jsonl", "dev.json"):
        write(tmp_path / name, CSV)
    refuse(f"is not auto, .*{names}", find_files, dataset, str(tmp_path))
    refuse(f"is not auto, .*{names}", find_files, dataset, str(tmp_path / "train.csv"))


def test_an_unknown_data_set_is_refused_with_the_nearest():
    refuse("unknown data set 'e2'; did you mean 'e2e'", find_files, "e2")


def test_auto_takes_the_data_folder_and_sample_does_not(home):
    write_webnlg(home.parent / "webnlg")
    write_splits(home, CSV, "{}.csv")
    write_splits(home.parent / "dart", DART, "{}.json")
    write_splits(home.parent / "xsum", json.dumps(ARTICLE | SECTIONS[0]), "{}.jsonl")
    write_splits(home.parent / "pairs", '{"input": "a", "output": "b"}', "{}.jsonl")
    for dataset in ("e2e", "webnlg", "dart", "xsum", "xsum-news-to-sports", "pairs"):
        files = find_files(dataset)
        assert not files.is_sample and files.detail.startswith(f"in {home.parent}")
        assert read_split(files, "train")
    assert find_files("e2e", "sample").is_sample


@pytest.mark.parametrize("names", [(), ("train.csv", "dev.csv")])
def test_auto_without_files_or_network_is_all_sample_and_says_so(names, home):
    for name in names:
        write(home / name, CSV)
    files = find_files("e2e")
    assert files.is_sample and files.origin == "bundled sample (made-up records, not the e2e data)"
    assert str(home) in files.detail and "refused" in files.detail
    assert {path.parent for path in files.paths.values()} == {tasks.SAMPLES / "e2e"}
    assert "get_xsum.py" in find_files("xsum").detail


@pytest.mark.parametrize("choice", ["auto", "download", "sample"])
@pytest.mark.parametrize(
    ("dataset", "place"), [("webnlg", "XiangLi1999/PrefixTuning"), ("dart", "Yale-LILY/dart")]
)
def test_sets_without_download_or_sample_say_where_their_files_are(dataset, place, choice):
    refuse("data=PATH" if choice == "sample" else f"{place}.*data=PATH", find_files, dataset, choice)


# --- downloading ---


class Site(http.server.BaseHTTPRequestHandler):
    """Serves `files`; cuts off after `cut` bytes."""

    files: dict[str, bytes]
    asked: list[str]
    cut: int | None = None

    def do_GET(self):
        self.asked.append(self.path)
        content = self.files[self.path.strip("/")]
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content[: self.cut])

    def log_message(self, *args):
        pass


@pytest.fixture
def site(monkeypatch):
    """A local site with a small "official" data set."""
    names = [official for official, *_ in e2e.E2E.files]
    files = {name: (CSV + f"name[{name}],a\n").encode() for name in names}
    handler = type("Handler", (Site,), {"files": files, "asked": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    digests = tuple(hashlib.sha256(files[name]).hexdigest() for name in names)
    change_e2e(monkeypatch, url=f"http://127.0.0.1:{server.server_port}/", digests=digests)
    yield handler
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("choice", ["auto", "download"])
def test_download_fetches_once_what_is_missing(choice, home, site):
    write(home / "trainset.csv", site.files["trainset.csv"])
    files = find_files("e2e", choice)
    assert (files.origin, files.detail, files.is_sample) == ("official e2e files", f"in {home}", False)
    assert sorted(os.listdir(home)) == ["devset.csv", "testset_w_refs.csv", "trainset.csv"]
    assert read_split(files, "dev")[1].source == "name : devset.csv"
    assert find_files("e2e", choice) == files
    assert site.asked == ["/devset.csv", "/testset_w_refs.csv"]


@pytest.mark.parametrize("choice", ["auto", "download"])
def test_wrong_bytes_leave_nothing_behind(choice, home, site):
    site.files = site.files | {"trainset.csv": b"<html>please log in</html>"}
    refuse("not the official file.*data=sample", find_files, "e2e", choice)
    assert not home.exists() or not list(home.iterdir())


def test_a_site_that_breaks_off_or_lacks_a_page_counts_as_unreachable(home, site):
    site.cut = 10
    refuse("10 bytes read.*data=sample", find_files, "e2e", "download")
    assert find_files("e2e").is_sample
    site.do_GET = lambda self: self.send_error(404)
    refuse("404.*data=sample", find_files, "e2e", "download")
    assert find_files("e2e").is_sample
    assert not home.exists() or not list(home.iterdir())


def test_an_interrupt_while_writing_leaves_nothing_behind(home, site, monkeypatch):
    monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        find_files("e2e", "download")
    assert list(home.iterdir()) == []


def test_download_never_overwrites_a_users_file(home, site):
    path = write(home / "devset.csv", CSV)
    refuse(r"devset\.csv is not the official file; move it away", find_files, "e2e")
    assert path.read_text() == CSV


def test_a_folder_that_cannot_be_made_is_said(home, site):
    write(home, "a file where the folder should be")
    refuse("cannot write .*MINPREFIX_DATA", find_files, "e2e")


# --- what is there already ---


def values(records: list[Record], key: str) -> set[str]:
    parts = [part.split(" : ") for record in records for part in record.source.split(" | ")]
    return {value for name, value in parts if name == key}


def test_the_samples_are_unchanged_and_names_in_test_are_new():
    """The fences hold their records, and those of the real data."""
    splits = read_all("e2e", "sample")
    for key in ("name", "near"):
        names = {split: values(records, key) for split, records in splits.items()}
        assert not names["train"] & (names["dev"] | names["test"]) and min(map(len, names.values())) > 10
    assert {record.group for record in read_all("xsum", "sample")["test"]} == {"news", "sport"}
    content = b"".join(path.read_bytes() for path in sorted(tasks.SAMPLES.glob("*/*")))
    assert hashlib.sha256(content).hexdigest()[:16] == "85c5b8d1c785d3a5"


@pytest.mark.parametrize("method", ["prefix", "lora", "full"])
def test_pairs_has_the_presets_of_e2e_on_the_bundled_model_and_none_else(method):
    base = SimpleNamespace(dataset="pairs", model="weights/gpt2-mini", method=method, mlp_hidden=0)
    given = vars(base)
    assert tasks.choose_presets(base) == tasks.choose_presets(SimpleNamespace(**given | {"dataset": "e2e"}))
    assert tasks.choose_presets(SimpleNamespace(**given | {"model": "gpt2-medium"})) == {}


def test_pairs_and_pick():
    assert tasks.list_pairs([Record("s", ("a", "b")), Record("t", ("c",))]) == [
        ("s", "a"),
        ("s", "b"),
        ("t", "c"),
    ]
    assert tasks.pick(list(range(10)), 4) == [0, 2, 5, 7] and tasks.pick([1, 2], 0) == tasks.pick([1, 2], 5)
