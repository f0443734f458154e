"""Mends the links of the README and the pages: python notebooks/links.py

A link to a line of code is a piece of the line and the place: [`def splice`](../minprefix/cache.py#L38). The
piece stands once in that file, or in one beside it if it has moved there, so the place can always be found
again. Links that run a page on a public service name the repository, which is said below and nowhere else:
once it is published, put its owner there and run this file. tests/test_notebooks.py asks for both.
"""

import hashlib
import json
import re
import sys
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
PAGES = [ROOT / "README.md", *NOTEBOOKS]
REPOSITORY = "OWNER/minprefix"  # on GitHub; while it says OWNER, pages say that their links do not work yet
SERVICES = {"Binder": "mybinder.org/v2/gh", "Colab": "colab.research.google.com/github"}
SERVED = re.compile(rf"({'|'.join(map(re.escape, SERVICES.values()))})/[^/]+/[^/]+/")
# The head of a page, folded; Colab brings the page alone, without the files beside it.
HEAD = """<details><summary>▶ Run this page in a browser, without installing anything</summary>

{notice}[Binder](https://{Binder}/{repository}/main?labpath=notebooks%2F{name}) starts by itself. \
[Colab](https://{Colab}/{repository}/blob/main/notebooks/{name}) needs a first cell with two lines:

    !git clone -q https://github.com/{repository} && pip install -q -e minprefix
    %cd minprefix/notebooks
</details>"""
NOTICE = "These links work once the repository is published: until then they have OWNER for its owner.\n\n"
LINK = re.compile(r"\[`([^`]+)`\]\(([^)#\s]+\.py)#L(\d+)\)")


def find_place(path: Path, piece: str) -> tuple[str, int]:
    """(file, number) of the one line that holds the piece: in the file at `path` or, if none does there, in
    the folder around it. LookupError if none or several do.
    """
    around = [(file.name, number) for file in path.parent.glob("*.py") for number in find_lines(file, piece)]
    found = [place for place in around if place[0] == path.name] or around
    if len(found) != 1:
        raise LookupError(f"{piece!r} stands in {len(found)} lines of {path.name} or beside it, not in one")
    return found[0]


def find_lines(path: Path, piece: str) -> list[int]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return [number for number, line in enumerate(lines, 1) if piece in line]


def mend(text: str, folder: Path) -> str:
    """The text with the right place in each link; targets are relative to the folder."""

    def point(link: re.Match) -> str:
        piece, target, _ = link.groups()
        name, number = find_place(folder / target, piece)
        return f"[`{piece}`]({PurePosixPath(target).with_name(name)}#L{number})"

    return LINK.sub(point, SERVED.sub(rf"\1/{REPOSITORY}/", text))


def mend_head(text: str, name: str) -> str:
    """A page's first cell with the links that run it, below the title."""
    bare = re.sub(r"<details><summary>▶.*?</details>\n\n", "", text, count=1, flags=re.DOTALL)
    title, *rest = bare.split("\n\n", 1)
    notice = NOTICE if REPOSITORY.startswith("OWNER/") else ""
    head = HEAD.format(**SERVICES, repository=REPOSITORY, name=name, notice=notice)
    return "\n\n".join([title, head, *rest])


def read_markdown(path: Path) -> str:
    """The text of a .md file, or of all text cells of an .ipynb."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        return text
    cells = json.loads(text)["cells"]
    return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


def digest_code(path: Path) -> str:
    """Of the code cells of an .ipynb. run.py keeps it with the outputs: they are stale where it differs."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    code = "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
    return hashlib.sha256(code.encode()).hexdigest()[:16]


def mend_file(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        mended = mend(text, path.parent)
    else:
        notebook = json.loads(text)
        head = notebook["cells"][0]
        head["source"] = [mend_head("".join(head["source"]), path.name)]
        for cell in notebook["cells"]:
            if cell["cell_type"] == "markdown":
                cell["source"] = mend("".join(cell["source"]), path.parent).splitlines(keepends=True)
        mended = json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n"  # as nbformat
    if mended != text:
        path.write_text(mended, encoding="utf-8")
        print(f"mended {path.relative_to(ROOT)}")


if __name__ == "__main__":
    lost = []
    for path in PAGES:
        try:
            mend_file(path)
        except LookupError as error:
            lost.append(f"{path.name}: {error}")
    sys.exit("\n".join(lost) or None)
