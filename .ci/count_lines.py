"""Prints the code lines of each folder, of each file of the package, and fails where there are too many.

Blank lines, comments and docstrings do not count.
"""

import ast
import io
import sys
import tokenize
from pathlib import Path

LIMITS = {  # a folder, all below it counted, or a file -> its most code lines
    "minprefix": 1717,
    "tasks": 581,
    "train.py": 304,
    "sample.py": 154,
    "experiments": 2501,
    "tests": 6908,
    "weights": 900,
    "notebooks": 1158,
}
LAYOUT = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}
DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def docstring_lines(text: str) -> set[int]:
    lines: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node) is not None:
            lines.update(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return lines


def count_code_lines(path: Path) -> int:
    text = path.read_text(encoding="utf-8")
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    code = {line for t in tokens if t.type not in LAYOUT for line in range(t.start[0], t.end[0] + 1)}
    return len(code - docstring_lines(text))


def count_below(place: str) -> dict[Path, int]:
    """{file: its code lines} of one Python file, or of those at any depth of a folder."""
    root = Path(place)
    paths = [root] if root.suffix == ".py" else sorted(root.rglob("*.py"))
    if not paths:
        sys.exit(f"{place} has no Python file: mend the table in {__file__}")
    return {path: count_code_lines(path) for path in paths}


counts = {place: count_below(place) for place in LIMITS}
for path, lines in counts["minprefix"].items():
    print(f"{lines:6d}  {path}")
totals = {place: sum(files.values()) for place, files in counts.items()}
for place, limit in LIMITS.items():
    mark = ": too many" if totals[place] > limit else ""
    print(f"{totals[place]:6d}  code lines in {place}, of at most {limit}{mark}")
sys.exit(any(totals[place] > limit for place, limit in LIMITS.items()))
