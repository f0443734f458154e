"""Bytes from a disk or a site: whole and checked, or one sentence about what is wrong with them."""

import gzip
import hashlib
import http.client
import io
import tarfile
import urllib.request
import zlib
from pathlib import Path

from minprefix.errors import InputError, explain
from minprefix.store import write_atomically

TIMEOUT = 10  # seconds without an answer; short, so that a machine without network goes on quickly
ADVICE = "try again, or give data=sample, or data=PATH with the files in it"


def read_members(path: Path) -> dict[str, bytes]:
    """Name -> content, in order of names: of the one file (unpacked, if it ends in .gz), or of each .xml file
    in a folder or a .tar. Raises InputError if something cannot be read or is cut short."""
    kinds = (OSError, EOFError, zlib.error, tarfile.TarError)
    with explain(kinds, f"cannot read {path}", "is the file whole?"):
        if path.is_dir():
            files = path.rglob("*.xml")
            members = {file.relative_to(path.parent).as_posix(): file.read_bytes() for file in files}
        else:
            content = path.read_bytes()
            members = {path.name: gzip.decompress(content) if path.suffix == ".gz" else content}
        # gzip comes first, because tarfile never reads as far as its checksum
        if ".tar" in path.suffixes and path.is_file():
            with tarfile.open(fileobj=io.BytesIO(members.pop(path.name))) as tar:
                files = (file for file in tar if file.isfile() and file.name.endswith(".xml"))
                members = {file.name: tar.extractfile(file).read() for file in files}
    return dict(sorted(members.items()))


def read_bytes(path: Path) -> bytes:
    return b"".join(read_members(path).values())


def decode(content: bytes, place: object) -> str:
    """The text of UTF-8 bytes, without a byte order mark. Raises InputError with place and line."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise InputError(f"{place}, line {line}: not UTF-8; save the file as UTF-8") from error


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def fetch(url: str, digest: str) -> bytes:
    """What the site sends, if it has that SHA-256. Raises OSError if the site cannot be reached."""
    kinds, what = (OSError, http.client.HTTPException), f"the download of {url} broke off"
    with urllib.request.urlopen(url, timeout=TIMEOUT) as response, explain(kinds, what, ADVICE):
        content = response.read()
    if sha256(content) != digest:
        raise InputError(f"{url} sent {len(content)} bytes that are not the official file; {ADVICE}")
    return content


def write(path: Path, content: bytes) -> None:
    """The whole file or nothing, in a folder that is made where it is missing."""
    with explain(OSError, f"cannot write {path}", "set MINPREFIX_DATA to another folder"):
        path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, lambda part: part.write_bytes(content))
