"""readers.py: WebNLG, DART and XSum as records, and what is refused."""

import gzip
import itertools
import json
import re
import runpy
import tarfile
from pathlib import Path

import pytest

import sample
from minprefix import data, readers
from minprefix.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
REAL = data.data_folder()


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("MINPREFIX_DATA", str(tmp_path / "home"))
    return tmp_path / "home"


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


# WebNLG


def entry(triples: list[str], texts: list[str], category: str = "Airport") -> str:
    modified = "".join(f"<mtriple>{triple}</mtriple>" for triple in triples)
    lexes = "".join(f'<lex comment="good" lid="Id1">{text}</lex>' for text in texts)
    return (
        f'<entry category="{category}" eid="Id1" size="1"><originaltripleset><otriple>no | no | no</otriple>'
        f"</originaltripleset><modifiedtripleset>{modified}</modifiedtripleset>{lexes}</entry>"
    )


def benchmark(*entries: str) -> str:
    body = "".join(entries)
    return f"<?xml version='1.0' encoding='UTF-8'?><benchmark><entries>{body}</entries></benchmark>"


QUOTED = entry(
    ['Aarhus_Airport | cityServed | "Aarhus,  Denmark"'], ["It serves  Aarhus.", "In Aarhus &amp; co."]
)


def write_webnlg(folder: Path) -> Path:
    """Two training files, one dev file, and the three test files of the challenge."""
    root = folder / "webnlg_challenge_2017"
    two = entry(["A | b | C_(d)", "A | leaderName | É"], ["A is C."], "City")
    write(root / "train" / "2triples" / "2triples_City_train_challenge.xml", benchmark(two))
    write(root / "train" / "1triples" / "1triple_allSolutions_Airport_train_challenge.xml", benchmark(QUOTED))
    write(root / "dev" / "1triples" / "1triple_dev_challenge.xml", benchmark(QUOTED))
    unseen = entry(["Piotr | club | AZAL_PFK"], ["Piotr plays there."], "Athlete")
    write(root / "test" / "testdata_with_lex.xml", benchmark(unseen, QUOTED))
    write(root / "test" / "testdata_unseen_with_lex.xml", benchmark(unseen))
    write(root / "test" / "testdata_no_lex.xml", benchmark(entry(["Piotr | club | AZAL_PFK"], [])))
    return root


def test_webnlg_literally(tmp_path):
    write_webnlg(tmp_path)
    files = data.find_files("webnlg", str(tmp_path))
    aarhus = data.Record(
        'Aarhus_Airport : cityServed : "Aarhus, Denmark"', ("It serves Aarhus.", "In Aarhus & co."), "Airport"
    )
    city = data.Record("A : b : C_(d) | A : leaderName : É", ("A is C.",), "City")
    assert data.read_split(files, "train") == [aarhus, city]  # by size, as the files are named
    assert data.read_split(files, "dev") == [aarhus]
    test = data.read_split(files, "test")  # one file of three, in its order
    assert [record.source for record in test] == ["Piotr : club : AZAL_PFK", aarhus.source]
    assert [record.group in readers.UNSEEN for record in test] == [True, False]


def test_webnlg_tar_equals_the_folder(tmp_path):
    root = write_webnlg(tmp_path / "folder")
    (tmp_path / "tar").mkdir()
    with tarfile.open(tmp_path / "tar" / "webnlg_challenge_2017_xml.tar.gz", "w:gz") as tar:
        tar.add(root, root.name)
    folder, packed = (data.find_files("webnlg", str(tmp_path / form)) for form in ("folder", "tar"))
    assert folder.origin == packed.origin and folder.origin.startswith("other webnlg files (SHA-256 ")
    for split in data.SPLITS:
        assert data.read_split(folder, split) == data.read_split(packed, split)


BOMB = '<!DOCTYPE b [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;">]><benchmark><entries>&b;</entries></benchmark>'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (benchmark(QUOTED)[:-20], r"not in the data set's format \(.*line 1.*is the file whole"),
        ("", "not in the data set's format"),
        (BOMB, "declares a DOCTYPE"),
        (benchmark(QUOTED, entry(["A | b"], ["A."])), r"entry 2: .*are no triples; write \[\[subject"),
        (benchmark(QUOTED, entry(["A | b | "], ["A."])), "entry 2: '' stands where a text should"),
        (benchmark(QUOTED, entry([], ["A."])), "entry 2: .*are no triples"),
        (benchmark(QUOTED, entry([""], ["A."])), "entry 2: not in the data set's format"),
        (benchmark(QUOTED, entry(["A | b | C"], [])), "entry 2: no text"),
        (benchmark(QUOTED, entry(["A | b | C"], [" ", ""])), "entry 2: no text"),
        (benchmark(QUOTED, QUOTED.replace("category", "kind")), r"entry 2: .*no 'category'"),
        (benchmark(QUOTED).encode() + b"\n\xe9", "line 2: not UTF-8"),
        (benchmark(), "has no test records for webnlg"),
    ],
)
def test_webnlg_errors_name_file_and_entry(tmp_path, content, message):
    path = write(write_webnlg(tmp_path) / "test" / "testdata_with_lex.xml", content)
    with pytest.raises(InputError, match=message) as error:
        data.read_split(data.find_files("webnlg", str(tmp_path)), "test")
    assert str(path.parents[1]) in str(error.value) and "\n" not in str(error.value)


def test_webnlg_damaged_tar_is_refused(tmp_path):
    root = write_webnlg(tmp_path / "folder")
    path = tmp_path / "webnlg_challenge_2017_xml.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        tar.add(root, root.name)
    for content in (path.read_bytes()[:-30], b"no tar", b""):
        path.write_bytes(content)
        with pytest.raises(InputError, match="is the file whole"):
            data.find_files("webnlg", str(tmp_path))


# DART


DART = {
    "tripleset": [["Mars Hill", "JOINED", "1973"], ["[TABLECONTEXT]", "[TITLE]", "Jeff  Daniels"]],
    "subtree_was_extended": True,
    "annotations": [{"source": "x", "text": "It joined.\n"}, {"source": "y", "text": " "}],
}


def write_dart(folder: Path, content: str | bytes, name: str = "{}.json") -> None:
    for split in data.SPLITS:
        write(folder / name.format(split), content)


@pytest.mark.parametrize("name", ["{}.json", "dart-v1.1.1-full-{}.json", "{}.json.gz"])
def test_dart_literally(tmp_path, name):
    content = json.dumps([DART, DART]).encode()
    write_dart(tmp_path, gzip.compress(content) if name.endswith("gz") else content, name)
    files = data.find_files("dart", str(tmp_path))
    source = "Mars Hill : joined : 1973 | [TABLECONTEXT] : [title] : Jeff Daniels"
    assert data.read_split(files, "test") == [data.Record(source, ("It joined.",))] * 2  # no empty text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (json.dumps([DART])[:-9], "not in the data set's format"),
        ("", "not in the data set's format"),
        ("[]", "has no test records"),
        (json.dumps(DART), "entry 1: not in the data set's format"),
        (json.dumps([DART, {}]), r"entry 2: .*no 'annotations'"),
        (json.dumps([DART, DART | {"annotations": [{"text": ""}]}]), "entry 2: no text"),
        (json.dumps([DART, DART | {"annotations": [{"text": None}]}]), "entry 2: None stands where"),
        (json.dumps([DART, DART | {"annotations": [{"text": 5}]}]), "entry 2: not in the data set's"),
        (json.dumps([DART, DART | {"tripleset": []}]), "entry 2: .*are no triples"),
        (json.dumps([DART, DART | {"tripleset": ["abc"]}]), "entry 2: .*are no triples"),
        (json.dumps([DART, DART | {"tripleset": [["a", "b"]]}]), "entry 2: .*are no triples"),
        (json.dumps([DART, DART | {"tripleset": [["a", "b", 3]]}]), "entry 2: 3 stands where"),
        (json.dumps([DART, DART | {"tripleset": [["a", "b", "\ud800"]]}]), "entry 2: not in the data set's"),
        (b'[{"tripleset": "\xe9"}]', "not in the data set's format"),
        ("[" * 99_999, "not in the data set's format"),
    ],
)
def test_dart_errors_name_file_and_entry(tmp_path, content, message):
    write_dart(tmp_path, content)
    with pytest.raises(InputError, match=message) as error:
        data.read_split(data.find_files("dart", str(tmp_path)), "test")
    assert str(tmp_path / "test.json") in str(error.value) and "\n" not in str(error.value)


# XSum


def row(**fields) -> dict:
    return {"document": "First.\nSecond\u2028 part.", "summary": "All  of it."} | fields


ROWS = [
    row(url="http://www.bbc.co.uk:80/news/uk-england-kent-38081845", topic="news"),
    row(url="https://www.bbc.com/news/world-us-canada-3"),
    row(url="http://www.bbc.co.uk/news/technology-3", topic_guess="sport"),
    row(url="http://www.bbc.co.uk/news/10138849"),
    row(url="http://www.bbc.co.uk/sport/football/38620027"),
    row(url=None, topic=None, topic_guess="sport"),
    row(topic="news"),
    row(),
]


def write_xsum(folder: Path, rows: list[dict]) -> None:
    content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
    for split in data.SPLITS:
        write(folder / "xsum" / f"{split}.jsonl.gz", gzip.compress(content))


def test_xsum_literally(tmp_path):
    write_xsum(tmp_path, ROWS)
    records = data.read_split(data.find_files("xsum", str(tmp_path)), "train")
    assert records[0] == data.Record("First. Second part.", ("All of it.",), "news")
    assert [record.group for record in records] == ["news"] * 4 + ["sport"] * 2 + ["news", ""]


@pytest.mark.parametrize(
    ("dataset", "train", "test"),
    [
        ("xsum", range(8), range(8)),
        ("xsum-news-to-sports", [0, 1, 2, 3, 6], [4, 5]),
        ("xsum-within-news", [0, 1], [2]),
    ],
)
def test_extrapolation_sets_take_their_sections(tmp_path, dataset, train, test):
    write_xsum(tmp_path, [row | {"summary": str(i)} for i, row in enumerate(ROWS)])
    files = data.find_files(dataset, str(tmp_path))
    chosen = {
        split: [int(record.references[0]) for record in data.read_split(files, split)]
        for split in data.SPLITS
    }
    assert chosen == {"train": list(train), "dev": list(train), "test": list(test)}


def test_an_extrapolation_set_without_known_sections_is_refused(tmp_path):
    write_xsum(tmp_path, [row(topic="news")])
    with pytest.raises(InputError, match="has no test records for xsum-within-news"):
        data.read_split(data.find_files("xsum-within-news", str(tmp_path)), "test")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b'{"document": "a", "sum', "not in the data set's format"),
        (b'{"document": "a"}', "no 'summary'"),
        (b'{"document": " ", "summary": "b"}', "' ' stands where a text should"),
        (b'{"document": "a", "summary": null}', "None stands where a text should"),
        (b'{"document": "caf\xe9", "summary": "b"}', "not in the data set's format"),
        (b'{"document": "a", "summary": "\\ud800"}', "not in the data set's format"),
        (b'{"document": "a", "summary": "b", "url": 7}', "not in the data set's format"),
        (b"[]", "not in the data set's format"),
        (b"", "not in the data set's format"),
    ],
)
def test_xsum_errors_name_file_and_line(tmp_path, line, message):
    path = write(tmp_path / "test.jsonl", json.dumps(row()).encode() + b"\n" + line + b"\n")
    with pytest.raises(InputError, match=message) as error:
        readers.read_xsum(path)
    assert f"{path}, line 2: " in str(error.value) and "\n" not in str(error.value)


def test_truncated_gzip_is_refused(tmp_path):
    write_xsum(tmp_path, ROWS)
    path = tmp_path / "xsum" / "test.jsonl.gz"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(InputError, match=r"test\.jsonl\.gz .*is the file whole"):
        data.find_files("xsum", str(tmp_path))


# Finding


def test_auto_takes_the_data_folder(home):
    write_webnlg(home / "webnlg")
    write_dart(home / "dart", json.dumps([DART]))
    write_xsum(home, ROWS)
    for dataset in ("webnlg", "dart", "xsum", "xsum-news-to-sports"):
        files = data.find_files(dataset)
        assert not files.is_sample and files.detail.startswith(f"in {home}")
        assert data.read_split(files, "test")


@pytest.mark.parametrize(
    ("dataset", "place"), [("webnlg", "XiangLi1999/PrefixTuning"), ("dart", "Yale-LILY/dart")]
)
@pytest.mark.parametrize("choice", ["auto", "download", "sample"])
def test_sets_without_download_or_sample_say_where_their_files_are(home, dataset, place, choice):
    with pytest.raises(InputError) as error:
        data.find_files(dataset, choice)
    assert choice == "sample" or place in str(error.value)
    assert "data=PATH" in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("dataset", "names"),
    [
        ("webnlg", r"webnlg_challenge_2017 \(or webnlg_challenge_2017_xml.tar\), plain or .gz"),
        ("dart", r"dart-v1.1.1-full-train.json \(or train.json\), dart-v1.1.1-full-dev.json"),
        ("xsum", "train.jsonl, dev.jsonl, test.jsonl"),
    ],
)
def test_a_folder_without_the_files_names_them(tmp_path, dataset, names):
    with pytest.raises(InputError, match=names):
        data.find_files(dataset, str(tmp_path))


def test_xsum_without_files_is_the_sample_and_says_how_to_get_the_data(home):
    files = data.find_files("xsum")
    assert files.is_sample and files.origin == "bundled sample (made-up records, not the xsum data)"
    assert "get_xsum.py" in files.detail


# The bundled sample


def test_xsum_sample_is_what_its_script_writes(tmp_path):
    runpy.run_path(str(ROOT / "experiments" / "make_xsum_sample.py"))["write_sample"](tmp_path)
    shipped = sorted((data.SAMPLES / "xsum").iterdir())
    assert [path.name for path in shipped] == ["dev.jsonl.gz", "test.jsonl.gz", "train.jsonl.gz"]
    for path in shipped:  # unpacked: zlib's bytes differ between its versions
        assert gzip.decompress((tmp_path / path.name).read_bytes()) == gzip.decompress(path.read_bytes())
    assert sum(path.stat().st_size for path in shipped) < 150_000


def names_in(text: str) -> set[str]:
    """Words with a capital that do not start a sentence."""
    words = text.replace('"', "").replace("'s", "").split()
    pairs = itertools.pairwise(words)
    return {
        word.strip(".,:") for before, word in pairs if word[0].isupper() and not before.endswith((".", ":"))
    }


def test_xsum_sample_is_well_formed():
    splits = {split: data.read_split(data.find_files("xsum", "sample"), split) for split in data.SPLITS}
    assert {split: len(records) for split, records in splits.items()} == {"train": 400, "dev": 60, "test": 60}
    assert {record.group for record in splits["test"]} == {"news", "sport"}
    for record in itertools.chain(*splits.values()):
        document, (summary,) = record.source, record.references
        assert all(name in document for name in names_in(summary)), record
        assert not {"{", "}"} & {*document, *summary} and summary not in document
        assert len(re.findall(r"[.]\"?(?: |$)", document)) >= 3 and summary.endswith(".")
    texts = [record.source for record in itertools.chain(*splits.values())]
    assert len(set(texts)) == len(texts)


# Input typed by a person


@pytest.mark.parametrize(
    ("dataset", "name", "text", "source"),
    [
        ("dart", "a.txt", "[TABLECONTEXT] : [title] : Jeff", "[TABLECONTEXT] : [title] : Jeff"),
        ("xsum", "a.txt", 'He said [sic] "no". {it}', 'He said [sic] "no". {it}'),
        ("xsum", "a.jsonl", '{"id": 1, "document": "One.\\n\\nTwo.", "summary": "It."}', "One. Two."),
        ("dart", "a.txt", '{"tripleset": [["A", "LIVES IN", "B"]]}', "A : lives in : B"),
        ("webnlg", "a.json", '[{"modifiedtripleset": [["A_B", "livesIn", "C"]]}]', "A_B : livesIn : C"),
        ("webnlg", "a.txt", "A_B : livesIn : C | C : x : D", "A_B : livesIn : C | C : x : D"),
    ],
)
def test_input_of_each_set(tmp_path, dataset, name, text, source):
    path = write(tmp_path / name, text)
    assert [record.source for record in sample.read_input(str(path), dataset)] == [source]


@pytest.mark.parametrize("triples", ["5", "null", '["abc"]', "[[]]", '[["a", "b", 3]]', "{}"])
def test_odd_triples_are_one_sentence(tmp_path, triples):
    path = write(tmp_path / "a.txt", f'{{"tripleset": {triples}}}')
    with pytest.raises(InputError, match=r"a\.txt, line 1: .*(are no triples|stands where)"):
        sample.read_input(str(path), "dart")


# The real data, where a person has it


def real(monkeypatch, dataset: str) -> dict[str, list[data.Record]]:
    monkeypatch.setenv("MINPREFIX_DATA", str(REAL))
    try:
        files = data.find_files(dataset)
    except InputError:
        pytest.skip(f"no {dataset} data in {REAL} (set MINPREFIX_DATA)")
    if files.is_sample:
        pytest.skip(f"no {dataset} data in {REAL} (set MINPREFIX_DATA)")
    return {split: data.read_split(files, split) for split in data.SPLITS}


def count(records: list[data.Record]) -> tuple[int, int]:
    return len(records), len(data.pairs(records))


def test_real_webnlg_counts(monkeypatch):
    splits = real(monkeypatch, "webnlg")
    assert data.find_files("webnlg").origin == "official webnlg files"
    assert {split: count(records) for split, records in splits.items()} == {
        "train": (6_940, 18_102),
        "dev": (872, 2_268),
        "test": (1_862, 4_928),
    }
    unseen = [record for record in splits["test"] if record.group in readers.UNSEEN]
    seen = [record for record in splits["test"] if record.group not in readers.UNSEEN]
    assert (count(seen), count(unseen)) == ((971, 2_495), (891, 2_433))
    assert {record.group for record in unseen} == readers.UNSEEN
    assert {record.group for record in seen} == {record.group for record in splits["train"]}
    assert splits["train"][0].source == 'Aarhus_Airport : cityServed : "Aarhus, Denmark"'
    assert splits["test"][0].source == "Abilene_Regional_Airport : cityServed : Abilene,_Texas"


def test_real_dart_counts(monkeypatch):
    splits = real(monkeypatch, "dart")
    assert {split: count(records)[1] for split, records in splits.items()} == {
        "train": 62_659,
        "dev": 6_980,
        "test": 12_552 - 1,  # one of the official texts is empty
    }
    assert (len(splits["dev"]), len(splits["test"])) == (2_768, 5_097)
    assert splits["dev"][0] == data.Record(
        "Mars Hill College : joined : 1973 | Mars Hill College : location : Mars Hill, North Carolina",
        ("A school from Mars Hill, North Carolina, joined in 1973.",),
    )


def test_real_xsum_records_are_whole(monkeypatch):
    splits = real(monkeypatch, "xsum")
    for records in splits.values():
        assert {record.group for record in records} >= {"news", "sport"}
        assert all(len(record.references) == 1 and "\n" not in record.source for record in records)
    sports = real(monkeypatch, "xsum-news-to-sports")
    assert count(sports["test"]) == count([record for record in splits["test"] if record.group == "sport"])
    assert not {record.source for record in sports["train"]} & {record.source for record in sports["test"]}
