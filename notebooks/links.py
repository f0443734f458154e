"""Moves every link to a line of code to where that line now stands: python notebooks/links.py

Such a link is a piece of the line and the place: [`def splice`](../minprefix/cache.py#L38). The piece stands
once in that file, so the number can always be found again; tests/test_notebooks.py asks for it to be right.
"""

import hashlib
import json
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LINK = re.compile(r"\[`([^`]+)`\]\(([^)#\s]+\.py)#L(\d+)\)")


def find_line(path: Path, piece: str) -> int:
    """The number of the one line that holds the piece; LookupError if none or several do."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    numbers = [number for number, line in enumerate(lines, 1) if piece in line]
    if len(numbers) != 1:
        raise LookupError(f"{piece!r} stands in {len(numbers)} lines of {path}, not in one")
    return numbers[0]


def mend(text: str, folder: Path) -> str:
    """The text with the right line in each link; targets are relative to the folder."""

    def point(link: re.Match) -> str:
        piece, target, _ = link.groups()
        return f"[`{piece}`]({target}#L{find_line(folder / target, piece)})"

    return LINK.sub(point, text)


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
        for cell in notebook["cells"]:
            if cell["cell_type"] == "markdown":
                cell["source"] = mend("".join(cell["source"]), path.parent).splitlines(keepends=True)
        mended = json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n"  # as nbformat
    if mended != text:
        path.write_text(mended, encoding="utf-8")
        print(f"mended {path.relative_to(ROOT)}")


if __name__ == "__main__":
    for path in (ROOT / "README.md", *sorted((ROOT / "notebooks").glob("*.ipynb"))):
        mend_file(path)
