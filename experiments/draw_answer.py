"""Draws each claim of the paper by model, in three colours and in words, for experiments/report.py."""

import textwrap
from html import escape

from experiments.claims import Claim
from experiments.draw_eq3 import text

# (ground, letters) of a word; told apart in print and by the colour-blind, and the word stands there as well.
COLOURS = {
    "holds": ("#bfe3d3", "#00503a"),
    "partly": ("#fbe3a6", "#5c4300"),
    "not here": ("#f3b79b", "#6b2400"),
    "undecided": ("#e3e6ea", "#33475b"),
    "not run": ("#ffffff", "#6b7785"),
    "": ("#ffffff", "#1b2733"),
}
LEFT, WIDTH, HEIGHT, TOP = 430, 178, 40, 44
BOLD = 'font-weight="bold"'
LEGEND = (
    "not here: measured, and not so · by loss: only the loss says so, the texts are level or undecided "
    "· pale: too few runs for an interval"
)


def draw_answer(claims: dict[str, list[Claim]], paper: str) -> str:
    """An SVG with a row for each claim, a column for each {model: its claims} and one for the paper's."""
    rows = len(next(iter(claims.values())))
    width, height = LEFT + (len(claims) + 1) * WIDTH + 12, TOP + rows * HEIGHT + 30
    names = [*claims, paper]
    parts = [
        text(LEFT + i * WIDTH + WIDTH / 2, TOP - 16, name, 14, style=BOLD) for i, name in enumerate(names)
    ]
    for row, same in enumerate(zip(*claims.values())):
        y = TOP + row * HEIGHT
        parts += write_claim(row, same[0].text, y)
        for column, claim in enumerate(same):
            parts += draw_cell(LEFT + column * WIDTH, y, *claim.answer())
        parts += draw_cell(LEFT + len(same) * WIDTH, y, "", format_paper(same))
    parts.append(text(14, height - 10, LEGEND, 12, "start"))
    style = "<style>text{font-family:sans-serif;fill:#1b2733}</style>"
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    ground = f'<rect width="{width}" height="{height}" rx="8" fill="white"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{style}{ground}{"".join(parts)}</svg>\n'


def write_claim(number: int, words: str, y: float) -> list[str]:
    lines = textwrap.wrap(f"{number}. {words}", 58)[:2]
    start = y + HEIGHT / 2 + 4 - 8 * (len(lines) - 1)
    return [text(14, start + 16 * i, escape(line), 13, "start") for i, line in enumerate(lines)]


def draw_cell(x: float, y: float, word: str, note: str) -> list[str]:
    """A coloured box with the word, and the note in smaller letters; a pale one where a note says "run"."""
    ground, letters = COLOURS[word]
    pale = ' fill-opacity="0.45" stroke-dasharray="4 3"' if "run" in note else ""
    place = f'x="{x + 3}" y="{y + 2}" width="{WIDTH - 6}" height="{HEIGHT - 4}" rx="5"'
    box = f'<rect {place} fill="{ground}" stroke="{letters}" stroke-opacity="0.35"{pale}/>'
    shown = ", ".join(filter(None, (word, note)))
    return [box, text(x + WIDTH / 2, y + HEIGHT / 2 + 5, shown, 14, style=f'style="fill:{letters}"')]


def format_paper(same: tuple[Claim, ...]) -> str:
    """The paper's difference in the first comparison that has one, whichever model made it."""
    found = [(c.paper, c.kind) for claim in same for c in claim.comparisons if c.paper is not None]
    if not found:
        return "yes"
    difference, kind = found[0]
    return f"yes, {difference:g} times" if kind == "times" else f"yes, {difference:+g}"
