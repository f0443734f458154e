"""Prints the code lines of each file of the package: blank lines, comments and docstrings do not count."""

import ast
import io
import sys
import tokenize
from pathlib import Path

LAYOUT = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}


def docstring_lines(text: str) -> set[int]:
    lines: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if (
            isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
            and ast.get_docstring(node) is not None
        ):
            lines.update(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return lines


def count_code_lines(path: Path) -> int:
    text = path.read_text()
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    code = {line for t in tokens if t.type not in LAYOUT for line in range(t.start[0], t.end[0] + 1)}
    return len(code - docstring_lines(text))


counts = {path: count_code_lines(path) for path in sorted(Path("minprefix").glob("*.py"))}
for path, count in counts.items():
    print(f"{count:6d}  {path}")
print(f"{sum(counts.values()):6d}  code lines in minprefix/, of at most {sys.argv[1]}")
sys.exit(sum(counts.values()) > int(sys.argv[1]))
