"""Draws experiments/results/eq3.svg, the README's picture of Eq. 3: python experiments/draw_eq3.py"""

from pathlib import Path

# The separator is the last token of x: it predicts the first of y. minprefix/texts.py frames them so.
TOKENS = ["P₁", "P₂", "P₃", "name", ": Blue", "Spice", "&lt;eos&gt;", "Blue", "Spice", "is …"]
KINDS = "PPPxxxxyyy"
COLOURS = {"P": "#d55e00", "x": "#9fb4c7", "y": "#dfe7ee"}  # told apart in print and by the colour-blind
LAYERS, WIDTH, HEIGHT, LEFT, TOP = 4, 66, 30, 124, 64


def box(x: float, y: float, kind: str) -> str:
    return (
        f'<rect x="{x}" y="{y}" width="{WIDTH - 8}" height="{HEIGHT - 8}" rx="4" fill="{COLOURS[kind]}" '
        'stroke="#33475b"/>'
    )


def text(x: float, y: float, words: str, size: int = 13, anchor: str = "middle", style: str = "") -> str:
    return f'<text x="{x}" y="{y}" font-size="{size}" text-anchor="{anchor}" {style}>{words}</text>'


def brace(first: int, last: int, words: str) -> list[str]:
    x0, x1, y = LEFT + first * WIDTH, LEFT + (last + 1) * WIDTH - 8, TOP + LAYERS * HEIGHT + 28
    line = f'<path d="M{x0} {y} v6 H{x1} v-6" fill="none" stroke="#33475b"/>'
    return [line, text((x0 + x1) / 2, y + 24, words, style='font-style="italic"')]


def draw() -> str:
    parts = [
        text(LEFT - 14, TOP + (LAYERS - i) * HEIGHT + 16, f"k, v of layer {i}", anchor="end")
        for i in range(1, LAYERS + 1)
    ]
    for column, (token, kind) in enumerate(zip(TOKENS, KINDS)):
        x = LEFT + column * WIDTH
        parts += [box(x, TOP + layer * HEIGHT, kind) for layer in range(LAYERS)]
        parts.append(text(x + WIDTH / 2 - 4, TOP + LAYERS * HEIGHT + 16, token))
    seen, x1 = TOP - 8, LEFT + 9.4 * WIDTH
    parts.append(f'<path d="M{x1} {seen} C{x1 - 90} 24 {LEFT + 190} 24 {LEFT + 30} {seen}" class="sees"/>')
    parts.append(text(LEFT + 5 * WIDTH, 18, "every later step attends to all slots on its left", size=13))
    parts += brace(0, 2, "P_idx: hᵢ = P_θ[i, :]  (trained)")
    parts += brace(3, 6, "X_idx: hᵢ = LM_φ(zᵢ, h&lt;ᵢ)")
    parts += brace(7, 9, "Y_idx: the same; loss: Eq. 2")
    width, height = LEFT + len(TOKENS) * WIDTH + 16, TOP + LAYERS * HEIGHT + 66
    style = "<style>text{font-family:sans-serif;fill:#1b2733}.sees{fill:none;stroke:#33475b}</style>"
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    ground = f'<rect width="{width}" height="{height}" fill="white"/>'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{style}{ground}{"".join(parts)}</svg>\n'


if __name__ == "__main__":
    (Path(__file__).parent / "results" / "eq3.svg").write_text(draw(), encoding="utf-8")
