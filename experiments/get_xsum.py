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
import sys
import tarfile
import urllib.request
from pathlib import Path

from tqdm import tqdm

from minprefix.data import data_folder
from minprefix.errors import InputError
from minprefix.store import write_atomically

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
    if not part.exists() or sha256(part) != digest:
        resume(url, part, path)
    if sha256(part) != digest:
        part.unlink()
        raise InputError(f"{url} sent bytes that are not the official file; try again")
    os.replace(part, path)


def resume(url: str, part: Path, path: Path) -> None:
    start = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            start = start if response.status == 206 else 0  # 200: the site sends all of it again
            copy(response, part, start)
    except (OSError, http.client.HTTPException) as error:
        if getattr(error, "code", None) == 416:  # more is there than the site has: begin anew the next time
            part.unlink()
        raise InputError(f"{url} broke off ({error}); try again, or put the file at {path}") from error


def copy(response, part: Path, start: int) -> None:
    total = start + int(response.headers.get("Content-Length") or 0)
    bar = tqdm(total=total, initial=start, unit="B", unit_scale=True, desc=part.stem, disable=None)
    with bar, open(part, "ab" if start else "wb") as file:
        while block := response.read(1 << 20):
            file.write(block)
            bar.update(len(block))
    if part.stat().st_size < total:
        raise OSError(f"{part.stat().st_size:,} of {total:,} bytes came")


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def unpack(archive: Path, folder: Path) -> None:
    """bbc-summary-data, under a temporary name until it is whole."""
    part = folder.with_name(f"{folder.name}.part")
    part.mkdir(exist_ok=True)
    try:
        with tarfile.open(archive) as tar:
            for member in tqdm(tar, unit="file", desc="unpack", disable=None):
                if member.isfile() and member.name.endswith(".summary"):
                    (part / Path(member.name).name).write_bytes(tar.extractfile(member).read())
    except (OSError, EOFError, tarfile.TarError) as error:
        raise InputError(f"cannot unpack {archive} ({error}); is the file whole?") from error
    os.replace(part, folder)


def parse(text: str) -> dict[str, str]:
    """document, summary and url of an official file: sections after lines such as [SN]RESTBODY[SN]."""
    parts = text.split("[SN]")[1:]  # name, section, name, section, ...
    sections = {name: body.strip() for name, body in zip(parts[::2], parts[1::2])}
    lines = [line for line in sections.get("RESTBODY", "").split("\n") if line.strip() not in PAGE]
    row = {"document": "\n".join(lines), "summary": sections.get("FIRST-SENTENCE")}
    if not all(row.values()):
        raise InputError("no text under [SN]FIRST-SENTENCE[SN] or [SN]RESTBODY[SN]; take the official file")
    return row | {"url": sections.get("URL", "")}


def convert(folder: Path, ids: list[str], path: Path) -> int:
    """Streams the articles with these ids, in their order, into one file -> how many were left out: some
    official articles have no text. The file gets its name when it is whole."""
    left_out = 0

    def stream(part: Path) -> None:
        nonlocal left_out
        with gzip.open(part, "wt", encoding="utf-8", newline="\n") as file:
            for id in tqdm(ids, unit="article", desc=path.name, disable=None):
                article = folder / f"{id}.summary"
                try:
                    row = {"id": id} | parse(article.read_text(encoding="utf-8"))
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")
                except InputError:
                    left_out += 1
                except (OSError, UnicodeDecodeError) as error:
                    raise InputError(f"cannot read {article} ({error}); unpack the archive anew") from error

    write_atomically(path, stream)
    return left_out


def main(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    articles, archive, split = (
        folder / name for name in ("bbc-summary-data", Path(ARCHIVE[0]).name, Path(SPLIT[0]).name)
    )
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
            left_out = convert(articles, ids[official], path)
            print(f"{path}: {len(ids[official]) - left_out:,} articles, {left_out} without text left out")


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]) if len(sys.argv) > 1 else data_folder() / "xsum")
    except InputError as error:
        print(f"get_xsum.py: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
