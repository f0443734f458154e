"""data.py: where files come from, what is read from them, and how records become batches."""

import csv
import dataclasses
import functools
import gzip
import hashlib
import http.server
import itertools
import random
import runpy
import socket
import threading
from pathlib import Path

import pytest

from minprefix import data, readers
from minprefix.errors import InputError

ROOT = Path(__file__).resolve().parents[1]
HEADER = "mr,ref\n"
ROW = '"name[Blue Spice], area[riverside]",Blue Spice is by the river.\n'
LINE = "name : Blue Spice | area : riverside"


# Reading


def write(folder: Path, content: str | bytes, name: str = "train.csv") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return folder / name


def test_linearise_mr_literally():
    mr = "name[Blue Spice], eatType[coffee shop], area[city centre]"
    assert readers.linearise_mr(mr) == "name : Blue Spice | Type : coffee shop | area : city centre"


def test_linearise_mr_all_keys_in_given_order_with_commas_and_pounds():
    mr = (
        "near[Café Adriatic], name[Ham, Eggs & Co], eatType[pub], food[Fast food], priceRange[more than £30],"
        " customer rating[5 out of 5], area[riverside], familyFriendly[yes]"
    )
    assert readers.linearise_mr(mr) == (
        "near : Café Adriatic | name : Ham, Eggs & Co | Type : pub | food : Fast food"
        " | price : more than £30 | customer rating : 5 out of 5 | area : riverside | family friendly : yes"
    )


@pytest.mark.parametrize(
    "mr",
    [
        "",
        "Blue Spice",
        "name[Blue Spice",
        "name[]",
        "[pub]",
        "name[A] area[B]",
        "name[A], name[B]",
        "name[A], pub",
        "name[A[B]]",
    ],
)
def test_malformed_mr_is_refused(mr):
    with pytest.raises(InputError, match="malformed record"):
        readers.linearise_mr(mr)


def test_linearise_record_takes_both_spellings_and_leaves_out_empty_values():
    official = {
        "name": "Blue Spice",
        "eatType": "pub",
        "priceRange": "",
        "familyFriendly": None,
        "near": " The\nMill ",
    }
    ours = {"name": "Blue Spice", "Type": "pub", "near": "The Mill"}
    assert readers.linearise_record(official) == readers.linearise_record(ours)
    assert readers.linearise_record(ours) == "name : Blue Spice | Type : pub | near : The Mill"


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"name": "A", "prise": "cheap"}, "unknown key 'prise'; did you mean 'price'"),
        ({"name": "A", "familyfriendly": "yes"}, "did you mean 'family friendly'"),
        ({"name": "A", "xyzzy": "yes"}, "known are name, Type"),
        ({"name": ["A"]}, "value of 'name'"),
        ({"name": "A", "familyFriendly": True}, "value of 'familyFriendly'"),
        ({"name": "A", "price": "high", "priceRange": "cheap"}, "'price' is given twice"),
        ({"name": ""}, "record is empty"),
    ],
)
def test_linearise_record_refuses(record, message):
    with pytest.raises(InputError, match=message):
        readers.linearise_record(record)


def test_read_e2e_groups_in_order_of_first_appearance(tmp_path):
    rows = "name[B],b one\nname[A],a one\nname[B],b  two \nname[A],a one\n"
    assert readers.read_e2e(write(tmp_path, HEADER + rows)) == [
        data.Record("name : B", ("b one", "b two")),
        data.Record("name : A", ("a one", "a one")),
    ]


@pytest.mark.parametrize(
    "content",
    [
        "\ufeff" + HEADER + ROW,
        (HEADER + ROW).replace("\n", "\r\n"),
        HEADER
        + ROW.replace("by the", "by\nthe").replace(
            "Blue Spice is by\nthe river.", '"Blue Spice is by\nthe river."'
        ),
        '"mr","ref"\n' + ROW,
        HEADER + ROW + "\n\n",
    ],
    ids=["bom", "crlf", "line break in quotes", "quoted header", "blank lines at the end"],
)
def test_read_e2e_variants(tmp_path, content):
    assert readers.read_e2e(write(tmp_path, content)) == [data.Record(LINE, ("Blue Spice is by the river.",))]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "no column mr and ref"),
        ("mr\nname[A]\n", "line 1: no column ref"),
        (HEADER + ROW + "name[A],\n", "line 3: '' stands where a text should; fill it in"),
        (HEADER + ROW + "name[A]\n", "line 3: None stands where a text should; fill it in"),
        (HEADER + ROW + "name A,a text\n", "line 3: malformed record 'name A'"),
        (HEADER + ROW + "nam[A],a text\n", "line 3: unknown key 'nam'; did you mean 'name'"),
        (HEADER + ROW + '"name[A],a text', "line 3: unexpected end of data"),
        ((HEADER + ROW).encode() + b"name[Caf\xe9],a text\n", "line 3: not UTF-8"),
    ],
)
def test_read_e2e_errors_name_file_and_line(tmp_path, content, message):
    path = write(tmp_path, content)
    with pytest.raises(InputError, match=message) as error:
        readers.read_e2e(path)
    assert str(path) in str(error.value)


def test_a_file_without_records_is_refused(tmp_path):
    for name in ("train.csv", "dev.csv", "test.csv"):
        write(tmp_path, HEADER, name)
    with pytest.raises(InputError, match=r"dev\.csv has no dev records for e2e"):
        data.read_split(data.find_files("e2e", str(tmp_path)), "dev")


def test_damaged_gzip_is_refused(tmp_path):
    whole = gzip.compress((HEADER + ROW).encode())
    for content in (whole[:-9], b"no gzip at all", whole[:20] + b"\xff" * 8 + whole[28:]):
        with pytest.raises(InputError, match="is the file whole"):
            readers.read_e2e(write(tmp_path, content, "train.csv.gz"))


# Finding


def change_e2e(monkeypatch, **fields) -> None:
    monkeypatch.setitem(data.DATASETS, "e2e", dataclasses.replace(data.DATASETS["e2e"], **fields))


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


def write_set(folder: Path, names=("train.csv", "dev.csv", "test.csv")) -> None:
    for name in names:
        content = (HEADER + ROW).encode()
        write(folder, gzip.compress(content) if name.endswith(".gz") else content, name)


@pytest.mark.parametrize("inner", ["e2e", "."])
@pytest.mark.parametrize(
    "names",
    [
        ("train.csv", "dev.csv", "test.csv"),
        ("trainset.csv", "devset.csv", "testset_w_refs.csv"),
        ("train.csv.gz", "devset.csv.gz", "testset_w_refs.csv"),
    ],
)
def test_path_takes_both_names_plain_or_gz(tmp_path, inner, names):
    write_set(tmp_path / "mine" / inner, names)
    files = data.find_files("e2e", str(tmp_path / "mine"))
    assert {split: path.name for split, path in files.paths.items()} == dict(
        zip(("train", "dev", "test"), names)
    )
    assert not files.is_sample and files.origin.startswith(
        "other e2e files (SHA-256 "
    )  # not the official bytes
    assert data.read_split(files, "dev")[0].source == LINE


@pytest.mark.parametrize("names", [(), ("train.csv", "dev.csv")])
def test_path_without_a_complete_set_names_the_files(tmp_path, names):
    write_set(tmp_path / "mine", names)
    with pytest.raises(
        InputError, match=r"trainset.csv \(or train.csv\), .*testset_w_refs.csv \(or test.csv\)"
    ):
        data.find_files("e2e", str(tmp_path / "mine"))


def test_unknown_data_set_is_refused_with_the_nearest():
    with pytest.raises(InputError, match="unknown data set 'e2'; did you mean 'e2e'"):
        data.find_files("e2")


def test_auto_takes_the_data_folder(home):
    write_set(home)
    assert data.find_files("e2e").paths["test"] == home / "test.csv"
    files = data.find_files("e2e")
    assert [record.source for record in data.read_split(files, "train")] == [LINE]
    assert files.origin.startswith("other e2e files (SHA-256 ")


@pytest.mark.parametrize("names", [(), ("train.csv", "dev.csv")])
def test_auto_without_files_or_network_is_all_sample_and_says_so(home, names):
    write_set(home, names)
    files = data.find_files("e2e")
    assert files.is_sample and files.origin == "bundled sample (made-up records, not the e2e data)"
    assert str(home) in files.detail and "cannot be reached" in files.detail
    assert {path.parent for path in files.paths.values()} == {data.SAMPLES / "e2e"}


def test_data_sample_ignores_the_data_folder(home):
    write_set(home)
    assert data.find_files("e2e", "sample").is_sample


# Downloading


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
    names = [official for official, *_ in data.DATASETS["e2e"].names]
    files = {name: (HEADER + ROW + f"name[{name}],a\n").encode() for name in names}
    handler = type("Handler", (Site,), {"files": files, "asked": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    digests = tuple(hashlib.sha256(files[name]).hexdigest() for name in names)
    change_e2e(monkeypatch, url=f"http://127.0.0.1:{server.server_port}/", digests=digests)
    yield handler
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("choice", ["auto", "download"])
def test_download_once(home, site, choice):
    files = data.find_files("e2e", choice)
    assert (files.origin, files.detail) == ("official e2e files", f"in {home}") and not files.is_sample
    assert sorted(path.name for path in home.iterdir()) == [
        "devset.csv",
        "testset_w_refs.csv",
        "trainset.csv",
    ]
    assert data.read_split(files, "dev")[1].source == "name : devset.csv"
    assert len(site.asked) == 3
    assert data.find_files("e2e", choice) == files
    assert len(site.asked) == 3  # nothing fetched twice


def test_download_fetches_only_what_is_missing(home, site):
    write(home, site.files["trainset.csv"], "trainset.csv")
    data.find_files("e2e", "download")
    assert site.asked == ["/devset.csv", "/testset_w_refs.csv"]


@pytest.mark.parametrize("choice", ["auto", "download"])
def test_wrong_bytes_leave_nothing_behind(home, site, choice):
    site.files = site.files | {"trainset.csv": b"<html>please log in</html>"}
    with pytest.raises(InputError, match=r"not the official file.*data=sample"):
        data.find_files("e2e", choice)
    assert not home.exists() or not list(home.iterdir())


@pytest.mark.parametrize("choice", ["auto", "download"])
def test_truncated_download_leaves_nothing_behind(home, site, choice):
    site.cut = 10
    with pytest.raises(InputError, match=r"broke off.*try again"):
        data.find_files("e2e", choice)
    assert not home.exists() or not list(home.iterdir())


def test_interrupt_while_writing_leaves_nothing_behind(home, site, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(data.os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        data.find_files("e2e", "download")
    assert list(home.iterdir()) == []


def test_refused_connection(home):
    with pytest.raises(InputError, match=r"cannot be reached.*data=sample"):
        data.find_files("e2e", "download")
    assert not home.exists()


def test_a_missing_page_counts_as_unreachable(home, site):
    site.do_GET = lambda self: self.send_error(404)
    assert data.find_files("e2e").is_sample
    with pytest.raises(InputError, match=r"cannot be reached.*404"):
        data.find_files("e2e", "download")


def test_download_never_overwrites_a_users_file(home, site):
    path = write(home, HEADER + ROW, "devset.csv")
    with pytest.raises(InputError, match=r"devset\.csv is not the official file; move it away"):
        data.find_files("e2e")
    assert path.read_text() == HEADER + ROW


def test_unwritable_folder(home, site):
    home.parent.mkdir()
    home.write_text("a file where the folder should be")
    with pytest.raises(InputError, match=r"cannot write .*MINPREFIX_DATA"):
        data.find_files("e2e")


# The bundled sample


def test_sample_is_what_its_script_writes(tmp_path):
    runpy.run_path(str(ROOT / "experiments" / "make_e2e_sample.py"))["write_sample"](tmp_path)
    shipped = sorted((data.SAMPLES / "e2e").iterdir())
    assert [path.name for path in shipped] == ["devset.csv.gz", "testset_w_refs.csv.gz", "trainset.csv.gz"]
    for path in shipped:  # unpacked: zlib's bytes differ between its versions
        assert gzip.decompress((tmp_path / path.name).read_bytes()) == gzip.decompress(path.read_bytes())
    assert sum(path.stat().st_size for path in shipped) < 200_000


@functools.cache
def sample_splits() -> dict[str, list[data.Record]]:
    files = data.find_files("e2e", "sample")
    return {split: data.read_split(files, split) for split in files.paths}


def values(records: list[data.Record], key: str) -> set[str]:
    parts = [part.split(" : ") for record in records for part in record.source.split(" | ")]
    return {value for name, value in parts if name == key}


def test_sample_counts():
    splits = sample_splits()
    assert {split: (len(records), len(data.pairs(records))) for split, records in splits.items()} == {
        "train": (700, 2800),
        "dev": (60, 300),
        "test": (120, 720),
    }
    assert {len(record.source.split(" | ")) for record in splits["train"]} == {3, 4, 5, 6, 7, 8}
    assert all(len(set(record.references)) == len(record.references) for record in splits["test"])


@pytest.mark.parametrize("key", ["name", "near"])
def test_sample_names_of_dev_and_test_are_new(key):
    names = {split: values(records, key) for split, records in sample_splits().items()}
    assert min(map(len, names.values())) > 10
    assert not names["train"] & (names["dev"] | names["test"])


def test_sample_texts_use_the_record_and_are_well_formed():
    for record in itertools.chain(*sample_splits().values()):
        wanted = values([record], "name") | values([record], "near")
        for text in record.references:
            assert all(value in text for value in wanted), (record.source, text)
            assert text[0].isupper() and text.endswith(".")
            assert not {"  ", " ,", ",,", "..", " a a", " a e", " a i"} & {
                text[i : i + 4] for i in range(len(text))
            }
            words = text.rstrip(".").lower().split()
            assert all(a != b for a, b in itertools.pairwise(words)), text
            for article, word in itertools.pairwise(words):
                assert article not in ("a", "an") or (article == "an") == (word[0] in "aeiou"), text


# Batches


def test_pairs_has_one_for_every_reference():
    records = [data.Record("s", ("a", "b")), data.Record("t", ("c",))]
    assert data.pairs(records) == [("s", "a"), ("s", "b"), ("t", "c")]


LENGTHS = random.Random(0).choices(range(5, 80), k=1003)


def test_batches_hold_every_index_once():
    batches = data.make_batches(LENGTHS, 8, seed=1, epoch=2)
    assert sorted(i for batch in batches for i in batch) == list(range(1003))
    assert sorted(map(len, batches))[:2] == [3, 8] and max(map(len, batches)) == 8


def test_batches_are_a_function_of_seed_and_epoch():
    batches = data.make_batches(LENGTHS, 8, seed=1, epoch=2)
    random.random()
    assert data.make_batches(LENGTHS, 8, seed=1, epoch=2) == batches
    assert data.make_batches(LENGTHS, 8, seed=1, epoch=3) != batches
    assert data.make_batches(LENGTHS, 8, seed=2, epoch=2) != batches


def test_batches_waste_little_and_come_in_random_order():
    batches = data.make_batches(LENGTHS, 8, seed=1, epoch=0)
    longest = [max(LENGTHS[i] for i in batch) for batch in batches]
    padded = sum(len(batch) * width for batch, width in zip(batches, longest))
    assert padded < 1.05 * sum(LENGTHS)
    rises = [first <= second for first, second in itertools.pairwise(longest)]
    assert 0.3 < sum(rises) / len(rises) < 0.7  # within a bucket that is not shuffled it would be 1


def test_no_lengths_no_batches():
    assert data.make_batches([], 8, seed=0, epoch=0) == []


# The real data, where a person has it


REAL = data.data_folder()


def test_real_e2e_counts_and_first_record(monkeypatch):
    monkeypatch.setenv("MINPREFIX_DATA", str(REAL))
    files = data.find_files("e2e")
    if files.is_sample:
        pytest.skip(f"no E2E data in {REAL} (set MINPREFIX_DATA)")
    assert files.origin == "official e2e files"
    splits = {split: data.read_split(files, split) for split in files.paths}
    assert {split: (len(data.pairs(records)), len(records)) for split, records in splits.items()} == {
        "train": (42_061, 4_862),
        "dev": (4_672, 547),
        "test": (4_693, 630),
    }
    assert splits["test"][0] == data.Record(
        "name : Blue Spice | Type : coffee shop | area : city centre",
        (
            "A coffee shop in the city centre area called Blue Spice.",
            "Blue Spice is a coffee shop in city centre.",
        ),
    )


def test_real_e2e_shares_no_name_and_no_text_with_the_sample(monkeypatch):
    monkeypatch.setenv("MINPREFIX_DATA", str(REAL))
    files = data.find_files("e2e")
    if files.is_sample:
        pytest.skip(f"no E2E data in {REAL} (set MINPREFIX_DATA)")
    real = [record for split in files.paths for record in data.read_split(files, split)]
    made = [record for records in sample_splits().values() for record in records]
    names = [values(records, "name") | values(records, "near") for records in (real, made)]
    texts = [{text for record in records for text in record.references} for records in (real, made)]
    assert not names[0] & names[1] and not texts[0] & texts[1]


def test_sample_file_is_plain_e2e_csv():
    text = gzip.decompress((data.SAMPLES / "e2e" / "testset_w_refs.csv.gz").read_bytes()).decode()
    rows = list(csv.reader(text.splitlines()))
    assert rows[0] == ["mr", "ref"] and all(len(row) == 2 and row[0].startswith("name[") for row in rows[1:])
