"""experiments/get_xsum.py and make_bbc.py: official forms -> the compact files, whole or not at all."""

import hashlib
import http.server
import json
import shutil
import threading
from pathlib import Path

import pytest

import tasks
from experiments import get_xsum, make_bbc
from minprefix.checks import InputError

SPLIT = {"train": ["3", "1"], "validation": ["2"], "test": ["4", "5"]}
BODIES = dict.fromkeys("1234", "Share this with\nEmail\nOne  thing.\n\nAnother.\n") | {"5": "\n"}


def write_official(folder: Path) -> Path:
    """The unpacked archive, and the split's file beside it."""
    articles = folder / "bbc-summary-data"
    articles.mkdir()
    for id, body in BODIES.items():
        url = f"http://www.bbc.co.uk/{'sport/golf' if id == '4' else 'news/business'}/{id}"
        head = f"[SN]URL[SN]\n{url}\n\n[SN]TITLE[SN]\nTitle {id}\n\n[SN]FIRST-SENTENCE[SN]\nSummary {id}.\n\n"
        (articles / f"{id}.summary").write_text(f"{head}[SN]RESTBODY[SN]\n{body}")
    (folder / Path(get_xsum.SPLIT[0]).name).write_text(json.dumps(SPLIT))
    return articles


@pytest.fixture
def archive(tmp_path) -> bytes:
    """The packed archive, and the split's file in tmp_path, without the articles."""
    articles = write_official(tmp_path)
    packed = shutil.make_archive(str(tmp_path / "packed"), "gztar", tmp_path, articles.name)
    shutil.rmtree(articles)
    return Path(packed).read_bytes()


def test_official_folder_becomes_readable_files_in_the_split_s_order(tmp_path, capsys):
    write_official(tmp_path)
    get_xsum.main(tmp_path)
    assert "test.jsonl.gz: 1 articles, 1 without text left out" in capsys.readouterr().out
    files = tasks.find_files("xsum", str(tmp_path))
    train, _, test = (tasks.read_split(files, split) for split in tasks.SPLITS)
    assert [record.references for record in train] == [("Summary 3.",), ("Summary 1.",)]
    assert train[0].source == "One thing. Another." and train[0].group == "news"
    assert test == [tasks.Record("One thing. Another.", ("Summary 4.",), "sport")]


def test_a_broken_conversion_leaves_no_file_and_goes_on(tmp_path):
    lost = write_official(tmp_path) / "2.summary"
    lost.rename(tmp_path / "lost")
    with pytest.raises(InputError, match=r"2\.summary"):
        get_xsum.main(tmp_path)
    assert sorted(path.name for path in tmp_path.glob("*.gz*")) == ["train.jsonl.gz"]
    train = tmp_path / "train.jsonl.gz"
    train.write_bytes(b"as it was")
    (tmp_path / "lost").rename(lost)
    get_xsum.main(tmp_path)
    assert train.read_bytes() == b"as it was" and (tmp_path / "test.jsonl.gz").exists()


class Site(http.server.BaseHTTPRequestHandler):
    """Serves `content`: of the whole no more than 100 bytes, and what is asked for from there on."""

    def do_GET(self):
        start = int((self.headers["Range"] or "bytes=0-")[6:-1])
        self.asked.append(start)
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(self.content) - start))
        self.end_headers()
        self.wfile.write(self.content[start:][: None if start else 100])


@pytest.fixture
def site(archive, monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    handler = type("Handler", (Site,), {"content": archive, "asked": []})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/archive.tar.gz"
        monkeypatch.setattr(get_xsum, "ARCHIVE", (url, hashlib.sha256(archive).hexdigest()))
        yield handler
        server.shutdown()


def test_download_is_resumed_checked_and_unpacked(tmp_path, site):
    with pytest.raises(InputError, match=r"broke off.*put the file at .*archive\.tar\.gz"):
        get_xsum.main(tmp_path)
    assert [path.name for path in tmp_path.glob("archive*")] == ["archive.tar.gz.part"]
    get_xsum.main(tmp_path)
    assert site.asked == [0, 100]
    assert len(tasks.read_split(tasks.find_files("xsum", str(tmp_path)), "train")) == 2


def test_wrong_bytes_are_refused_and_not_kept(tmp_path, site):
    site.content = b"<html>not found</html>"
    with pytest.raises(InputError, match="not the official file"):
        get_xsum.main(tmp_path)
    assert not list(tmp_path.glob("archive*"))


def test_a_damaged_archive_leaves_no_folder(tmp_path, archive):
    (tmp_path / Path(get_xsum.ARCHIVE[0]).name).write_bytes(archive[:-40])
    with pytest.raises(InputError, match="is the file whole"):
        get_xsum.main(tmp_path)
    assert not (tmp_path / "bbc-summary-data").exists()


def bbc(i: int, **more) -> str:
    row = {"body": f"Body {i}.", "intro": f"Intro {i}.", "category": "tech", "duplicate": False}
    return json.dumps(row | more) + "\n"


def test_bbc_is_split_by_a_hash_without_duplicates_and_errors_name_the_line(tmp_path):
    path = tmp_path / "bbc.jsonl"
    path.write_text("".join(map(bbc, range(200))) + bbc(7, duplicate=True) + bbc(300, duplicate=True))
    counts = make_bbc.convert(path, tmp_path / "bbc")
    files = tasks.find_files("bbc", str(tmp_path))
    splits = {split: tasks.read_split(files, split) for split in tasks.SPLITS}
    assert counts == {split: len(records) for split, records in splits.items()} and counts["train"] > 130
    sources = [record.source for records in splits.values() for record in records]
    assert sorted(sources) == sorted(f"Body {i}." for i in range(200))
    assert splits["test"][0].group == "tech" and splits["test"][0].references[0].startswith("Intro")
    path.write_text(bbc(1) + '{"body": "a"}\n')
    with pytest.raises(InputError, match=r"bbc\.jsonl, line 2.*intro"):
        make_bbc.convert(path, tmp_path / "other")
    assert not (tmp_path / "other").exists()
