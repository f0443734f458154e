"""experiments/get_xsum.py and make_bbc.py: official forms -> the compact files, whole or not at all."""

import gzip
import hashlib
import http.server
import io
import json
import sys
import tarfile
import threading
from pathlib import Path

import pytest

from minprefix import data
from minprefix.errors import InputError

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "experiments"))
import get_xsum
import make_bbc

SPLIT = {"train": ["3", "1"], "validation": ["2"], "test": ["4", "5"]}
URLS = {"1": "http://www.bbc.com/news/uk-1", "4": "http://www.bbc.co.uk/sport/golf/4"}


def official(id: str, body: str = "Share this with\nEmail\nOne  thing.\n\nAnother.\n") -> bytes:
    url = URLS.get(id, "http://www.bbc.co.uk/news/business-9")
    return (
        f"[SN]URL[SN]\n{url}\n\n[SN]TITLE[SN]\nTitle {id}\n\n[SN]FIRST-SENTENCE[SN]\nSummary {id}.\n\n"
        f"[SN]RESTBODY[SN]\n{body}"
    ).encode()


ARTICLES = {id: official(id) for id in "1234"} | {"5": official("5", "\n")}


def write_official(folder: Path) -> None:
    (folder / "bbc-summary-data").mkdir(parents=True)
    for id, content in ARTICLES.items():
        (folder / "bbc-summary-data" / f"{id}.summary").write_bytes(content)
    (folder / Path(get_xsum.SPLIT[0]).name).write_text(json.dumps(SPLIT))


def make_archive() -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w:gz") as tar:
        for id, article in ARTICLES.items():
            member = tarfile.TarInfo(f"bbc-summary-data/{id}.summary")
            member.size = len(article)
            tar.addfile(member, io.BytesIO(article))
    return content.getvalue()


def test_official_folder_becomes_readable_files_in_the_split_s_order(tmp_path, capsys):
    write_official(tmp_path)
    get_xsum.main(tmp_path)
    assert "test.jsonl.gz: 1 articles, 1 without text left out" in capsys.readouterr().out
    files = data.find_files("xsum", str(tmp_path))
    train = data.read_split(files, "train")
    assert [record.references for record in train] == [("Summary 3.",), ("Summary 1.",)]
    assert train[0].source == "One thing. Another." and train[0].group == "news"
    assert data.read_split(files, "test") == [data.Record("One thing. Another.", ("Summary 4.",), "sport")]
    with gzip.open(tmp_path / "dev.jsonl.gz", "rt") as file:
        assert json.loads(file.read())["id"] == "2"


def test_a_broken_conversion_leaves_no_file_and_goes_on(tmp_path):
    write_official(tmp_path)
    lost = tmp_path / "bbc-summary-data" / "2.summary"
    lost.rename(tmp_path / "lost")
    with pytest.raises(InputError, match=r"2\.summary"):
        get_xsum.main(tmp_path)
    assert sorted(path.name for path in tmp_path.glob("*.gz*")) == ["train.jsonl.gz"]
    before = (tmp_path / "train.jsonl.gz").stat().st_mtime_ns
    (tmp_path / "lost").rename(lost)
    get_xsum.main(tmp_path)
    assert (tmp_path / "train.jsonl.gz").stat().st_mtime_ns == before  # not made again
    assert data.find_files("xsum", str(tmp_path))


class Site(http.server.BaseHTTPRequestHandler):
    """Serves `content`, ranges of it too; cuts off after `cut` bytes."""

    content: bytes
    asked: list
    cut: int | None = None

    def do_GET(self):
        start = int((self.headers["Range"] or "bytes=0-")[6:-1])
        self.asked.append(start)
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(self.content) - start))
        self.end_headers()
        self.wfile.write(self.content[start:][: self.cut])

    def log_message(self, *args):
        pass


@pytest.fixture
def site(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    content = make_archive()
    handler = type("Handler", (Site,), {"content": content, "asked": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/archive.tar.gz"
    monkeypatch.setattr(get_xsum, "ARCHIVE", (url, hashlib.sha256(content).hexdigest()))
    yield handler
    server.shutdown()
    server.server_close()


def test_download_is_resumed_checked_and_unpacked(tmp_path, site):
    (tmp_path / Path(get_xsum.SPLIT[0]).name).write_text(json.dumps(SPLIT))
    site.cut = 100
    with pytest.raises(InputError, match=r"broke off.*put the file at .*archive\.tar\.gz"):
        get_xsum.main(tmp_path)
    assert [path.name for path in tmp_path.glob("archive*")] == ["archive.tar.gz.part"]
    site.cut = None
    get_xsum.main(tmp_path)
    assert site.asked == [0, 100]
    assert len(data.read_split(data.find_files("xsum", str(tmp_path)), "train")) == 2


def test_wrong_bytes_are_refused_and_not_kept(tmp_path, site):
    site.content = b"<html>not found</html>"
    (tmp_path / Path(get_xsum.SPLIT[0]).name).write_text(json.dumps(SPLIT))
    with pytest.raises(InputError, match="not the official file"):
        get_xsum.main(tmp_path)
    assert not list(tmp_path.glob("archive*"))


def test_a_damaged_archive_leaves_no_folder(tmp_path):
    (tmp_path / Path(get_xsum.SPLIT[0]).name).write_text(json.dumps(SPLIT))
    (tmp_path / Path(get_xsum.ARCHIVE[0]).name).write_bytes(make_archive()[:-40])
    with pytest.raises(InputError, match="is the file whole"):
        get_xsum.main(tmp_path)
    assert not (tmp_path / "bbc-summary-data").exists()


def bbc(i: int, **fields) -> dict:
    return {"body": f"Body {i}.", "intro": f"Intro {i}.", "category": "tech", "duplicate": False} | fields


def test_bbc_is_split_by_a_hash_and_without_duplicates(tmp_path):
    rows = [bbc(i) for i in range(200)] + [bbc(7, duplicate=True), bbc(300, duplicate=True)]
    path = tmp_path / "bbc.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    counts = make_bbc.convert(path, tmp_path / "bbc")
    files = data.find_files("bbc", str(tmp_path))
    splits = {split: data.read_split(files, split) for split in data.SPLITS}
    assert {split: len(records) for split, records in splits.items()} == counts
    assert counts["train"] > 130 and min(counts.values()) > 9
    sources = [record.source for records in splits.values() for record in records]
    assert sorted(sources) == sorted(f"Body {i}." for i in range(200))
    assert splits["test"][0].group == "tech" and splits["test"][0].references[0].startswith("Intro")


def test_bbc_errors_name_file_and_line(tmp_path):
    path = tmp_path / "bbc.jsonl"
    path.write_text(json.dumps(bbc(1)) + '\n{"body": "a"}\n')
    with pytest.raises(InputError, match=r"bbc\.jsonl, line 2: .*no 'intro'"):
        make_bbc.convert(path, tmp_path / "bbc")
    assert not (tmp_path / "bbc").exists()
