"""Draws experiments/results/card.svg, the README's before and after: python experiments/draw_card.py

The same record and the same frozen model, without a prefix and with one that lies in weights/prefixes. BLEU
is of all stored runs with the learning rate that was chosen, the texts are of the first of them. Needs the
extra `experiments`.
"""

import sys
import textwrap
from html import escape
from pathlib import Path

import pandas as pd

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the editable install has minprefix only

from experiments.artefacts import SCALES
from experiments.claims import Results
from experiments.draw_eq3 import text
from experiments.keep import RESULTS

RECORD = 21  # of the 30 whose texts a run keeps: one with all keys
WIDTH, LINE, GREY, ORANGE, BLUE = 820, 21, "#6b7785", "#a84300", "#0b5394"


def say_score(runs: pd.DataFrame) -> str:
    count = "one run" if len(runs) == 1 else f"mean of {len(runs)} runs"
    return f"{runs['BLEU'].mean():.1f} BLEU on {runs['records'].iloc[0]} test records ({count})"


def write_block(y: float, head: str, colour: str, words: str) -> tuple[list[str], float]:
    """A coloured heading and at most three lines below it, and where the next block begins."""
    lines = textwrap.wrap(words, 98, max_lines=3, placeholder=" …")
    parts = [text(24, y, escape(head), 14, "start", f'style="fill:{colour}" font-weight="bold"')]
    parts += [text(24, y + LINE * (i + 1), escape(line), 15, "start") for i, line in enumerate(lines)]
    return parts, y + LINE * (len(lines) + 2)


def draw(before: pd.DataFrame, after: pd.DataFrame) -> str:
    """An SVG on a white card, which reads on a dark page as well."""
    source, written = (after["texts"].iloc[0][RECORD][key] for key in ("source", "text"))
    bare = {kept["source"]: kept["text"] for kept in before["texts"].iloc[0]}[source]
    numbers, model = (int(runs["stored_numbers"].iloc[0]) for runs in (after, before))  # all are stored
    blocks = [
        (f"The record that SmolLM2 reads ({model / 1e6:.0f} million numbers, all frozen)", GREY, source),
        (f"Nothing in front of it: {say_score(before)}", ORANGE, bare),
        (f"{numbers:,} numbers ({numbers / model:.2%}) in front: {say_score(after)}", BLUE, written),
    ]
    parts, y = [], 38.0
    for block in blocks:
        added, y = write_block(y, *block)
        parts += added
    note = "BLEU, 0 to 100: how many word sequences a text shares with people's. The texts: of the first run."
    parts.append(text(24, y - 4, note, 13, "start", f'style="fill:{GREY}"'))
    height = y + LINE
    style = "<style>text{font-family:sans-serif;fill:#1b2733}</style>"
    ground = (
        f'<rect x="1" y="1" width="{WIDTH - 2}" height="{height - 2}" rx="10" fill="white" stroke="#c3ccd5"/>'
    )
    box = f'viewBox="0 0 {WIDTH} {height:g}" width="{WIDTH}" height="{height:g}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {box}>{style}{ground}{"".join(parts)}</svg>\n'


if __name__ == "__main__":
    results = Results(SCALES["smollm2"])
    before, after = (results.list_runs(place) for place in ("table5/untuned", "whole/prefix"))
    (RESULTS / "card.svg").write_text(draw(before, after), encoding="utf-8")
