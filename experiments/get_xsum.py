"""Fetch the official XSum archive and turn it into three compact files.

    python experiments/get_xsum.py [FOLDER]

FOLDER is by default the data folder's xsum. Three steps, each of which can be broken off and goes on when the
command is given again: download (255 MB, resumed where it stopped, checked by SHA-256), unpacking into
FOLDER/bbc-summary-data, and conversion to train, dev and test.jsonl.gz in the order of the official split.
What is there already is used: if the site does not answer, put the archive or the folder bbc-summary-data,
and the split's JSON file, into FOLDER. The archive and bbc-summary-data are not needed afterwards.
"""

import gzip
import hashlib
import http.client
import json
import os
import shutil
import sys
import tarfile
import urllib.request
import zlib
from pathlib import Path

from tqdm import tqdm

from minprefix.checks import InputError, explain
from minprefix.store import write_atomically
from tasks import data_folder

# The links of the authors' repository (EdinburghNLP/XSum, its README and issue 20) and the SHA-256 that the
# dataset's page at Hugging Face has recorded for both files (dataset_infos.json).
ARCHIVE = (
    "http://bollin.inf.ed.ac.uk/public/direct/XSUM-EMNLP18-Summary-Data-Original.tar.gz",
    "10b48aa187fc9c904b30f76ca97e2da0de8d3a1238acc26acadef93e2001af90",
)
SPLIT = (
    "https://raw.githubusercontent.com/EdinburghNLP/XSum/master/XSum-Dataset/"
    "XSum-TRAINING-DEV-TEST-SPLIT-90-5-5.json",
    "9c0c5d8f048a90bd68b19a34e4c30577ed270d3247b2119fa06a04ef46292068",
)
PAGE = {  # lines of the page around an article that the official extraction left in it
    *("Share this with", "Email", "Facebook", "Messenger", "Twitter", "Pinterest", "WhatsApp", "Linkedin"),
    *("LinkedIn", "Copy this link", "These are external links and will open in a new window"),
}
NAMES = {"train": "train", "validation": "dev", "test": "test"}  # official -> ours


def download(url: str, digest: str, path: Path) -> None:
    """Fetches what is missing of a file into PATH.part, which becomes PATH when its SHA-256 is right."""
    part = path.with_name(f"{path.name}.part")
    advice = f"try again, or put the file at {path}"
    if not part.exists() or sha256(part) != digest:
        with explain((OSError, http.client.HTTPException), f"{url} broke off", advice):
            resume(url, part)
    if sha256(part) != digest:
        part.unlink()
        raise InputError(f"{url} sent bytes that are not the official file; try again")
    os.replace(part, path)


def resume(url: str, part: Path) -> None:
    """Asks for the bytes that `part` lacks. OSError or HTTPException if they do not all come."""
    start = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        response = urllib.request.urlopen(request, timeout=30)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # more is there than the site has: begin anew the next time
            part.unlink()
        raise
    start = start if response.status == 206 else 0  # 200: the site sends all of it again
    total = start + int(response.headers.get("Content-Length") or 0)
    bar = {"total": total, "initial": start, "unit": "B", "unit_scale": True, "disable": None}
    with open(part, "ab" if start else "wb") as file, tqdm.wrapattr(response, "read", **bar) as stream:
        shutil.copyfileobj(stream, file)
    if part.stat().st_size < total:
        raise OSError(f"{part.stat().st_size:,} of {total:,} bytes came")


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def unpack(archive: Path, folder: Path) -> None:
    """bbc-summary-data, under a temporary name until it is whole."""
    part = folder.with_name(f"{folder.name}.part")
    part.mkdir(exist_ok=True)
    kinds = (OSError, EOFError, tarfile.TarError, zlib.error)
    with explain(kinds, f"cannot unpack {archive}", "is the file whole?"), tarfile.open(archive) as tar:
        for member in tqdm(tar, unit="file", desc="unpack", disable=None):
            if member.isfile() and member.name.endswith(".summary"):
                (part / Path(member.name).name).write_bytes(tar.extractfile(member).read())
    os.replace(part, folder)


def read_article(path: Path) -> dict[str, str]:
    """id, document, summary and url of an official file; {} if it has no text, as some have not.

    Its sections stand after lines such as [SN]RESTBODY[SN].
    """
    with explain((OSError, UnicodeDecodeError), f"cannot read {path}", "unpack the archive anew"):
        parts = path.read_text(encoding="utf-8").split("[SN]")[1:]  # name, section, name, section, ...
    sections = {name: body.strip() for name, body in zip(parts[::2], parts[1::2])}
    lines = [line for line in sections.get("RESTBODY", "").split("\n") if line.strip() not in PAGE]
    row = {"id": path.stem, "document": "\n".join(lines), "summary": sections.get("FIRST-SENTENCE")}
    return row | {"url": sections.get("URL", "")} if all(row.values()) else {}


def convert(articles: Path, ids: list[str], path: Path) -> int:
    """Writes the articles with these ids, in their order, into one file -> how many had a text."""
    written = []

    def write(part: Path) -> None:
        with gzip.open(part, "wt", encoding="utf-8", newline="\n") as file:
            for id in tqdm(ids, unit="article", desc=path.name, disable=None):
                if row := read_article(articles / f"{id}.summary"):
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
                    written.append(id)

    write_atomically(path, write)
    return len(written)


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    articles = folder / "bbc-summary-data"
    archive, split = (folder / Path(url).name for url, _ in (ARCHIVE, SPLIT))
    if not split.exists():
        download(*SPLIT, split)
    if not articles.exists() and not archive.exists():
        download(*ARCHIVE, archive)
    if not articles.exists():
        unpack(archive, articles)
    ids = json.loads(split.read_text())
    for official, ours in NAMES.items():
        path = folder / f"{ours}.jsonl.gz"
        if not path.exists():
            count = convert(articles, ids[official], path)
            print(f"{path}: {count:,} articles, {len(ids[official]) - count} without text left out")


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]) if len(sys.argv) > 1 else data_folder() / "xsum")
    except InputError as error:
        print(f"get_xsum.py: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
