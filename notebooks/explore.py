"""Makes notebooks/explore.html, for people who would rather look than read: python -m notebooks.explore

Every number on it is of a run of the bundled model, made here. `python -m notebooks.explore picture` takes
the README's picture of it, with Chromium; `python -m notebooks.explore train` makes prefix B again.
"""

import contextlib
import io
import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import patch

import torch
from PIL import Image
from torch import Tensor

from minprefix import generate, load_prefix, save_prefix
from minprefix.cache import Cache
from minprefix.checks import InputError, run_command
from minprefix.generate import gather_prefixes
from minprefix.methods import collapse
from minprefix.prefix import DirectPrefix, SavedPrefix, read_activations
from minprefix.texts import encode_source
from notebooks.lecture import attention, encode, load, train
from tasks import find_files, read_split

ROOT = Path(__file__).resolve().parent.parent
search = sys.modules["minprefix.generate"]  # the module; the name minprefix.generate is the function
PAGE, TEMPLATE = ROOT / "notebooks/explore.html", ROOT / "notebooks/explore.template.html"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PREFIXES = {"A": ROOT / "weights/prefixes/e2e.pt", "B": ROOT / "weights/prefixes/invite.pt"}
RECORDS = [
    "name : Silver Thistle | Type : coffee shop | food : French | price : cheap | area : riverside",
    "name : The Velvet Pepper | Type : restaurant | food : Japanese | area : city centre",
    "name : Hidden Barrel | Type : coffee shop | food : Italian | area : riverside | family friendly : no",
]
PARTS = {
    "words": "a place to eat",
    "x": "name : Luna | food : Thai",
    "y": "<|endoftext|> Luna is Thai.",
}
ORDERS = {"prefix": "Pxy", "infix": "xPy", "embedding": "Exy", "words": ("words", "x", "y")}
LONGEST, TOP, BEAMS, STEPS = 32, 6, 3, 12  # tokens of y, words of a distribution, the tree
# One character for each whole per cent from 0 to 100: half a million weights fit into the page.
DIGITS = (
    "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ!#$%()*+,-./:;=?@[]^_{|}~αβγδεζηθικλμνξ"
)


def build() -> dict:
    """All that the page shows; probabilities per mille, attention in per cent, log p in hundredths."""
    lm, tokenizer = load()
    voices = [None, *map(load_prefix, PREFIXES.values())]
    records = []
    for source in RECORDS:
        x = encode_source(lm, tokenizer, source)
        texts = generate(lm, [x] * len(voices), voices, beams=1, max_new_tokens=LONGEST)
        runs = [describe_run(lm, tokenizer, x, y, voices, voice) for y, voice in zip(texts, voices)]
        records.append({"x": source, "runs": runs})
    return {
        "digits": DIGITS,
        "model": sum(p.numel() for p in lm.parameters()),
        "slots": [sum(map(len, voice.sites.values())) if voice else 0 for voice in voices],
        "numbers": [sum(P.numel() for P in voice.sites.values()) if voice else 0 for voice in voices],
        "records": records,
        "forms": trace_forms(lm, tokenizer),
    }


@torch.inference_mode()
def describe_run(lm, tokenizer, x: list[int], y: list[int], voices: list, voice: SavedPrefix | None) -> dict:
    """One text, what each of its tokens attends to, and what each voice would have said next."""
    ids = x + y
    weights = attention(lm, ids, open_cache(lm, voice))  # (L, H, T, S)
    weights = torch.cat((weights, weights.mean(1, keepdim=True)), 1)  # (L, H + 1, T, S): the mean is last
    P, X = weights.shape[3] - len(ids), len(x) - 1  # x without its separator
    shares = torch.stack((weights[..., :P].sum(-1), weights[..., P : P + X].sum(-1)), -1)  # (L, H + 1, T, 2)
    following = [lm(torch.tensor([ids]), open_cache(lm, one))[0, X:].softmax(-1) for one in voices]
    return {
        "tokens": [tokenizer.decode([id]) for id in ids],
        "x": X,
        "text": tokenizer.decode(y).strip(),
        "attention": [[spell(head, P) for head in layer] for layer in weights],
        "shares": [["".join(map(digit, head.flatten().tolist())) for head in layer] for layer in shares],
        "next": [[list_top(tokenizer, p) for p in steps] for steps in zip(*following)],
        "beams": trace_beams(lm, tokenizer, x, voice),
    }


def open_cache(lm, voice: SavedPrefix | None) -> Cache:
    """What stands before x: nothing, or a prefix."""
    none = torch.zeros(1, 0)
    return lm.read(none.long(), none, gather_prefixes([voice]))


def digit(weight: float) -> str:
    return DIGITS[round(100 * weight)]


def spell(weights: Tensor, P: int) -> str:
    """Row t of (T, P + T) up to the slot of token t itself, one row behind the other."""
    return "".join(digit(w) for t, row in enumerate(weights.tolist()) for w in row[: P + t + 1])


def list_top(tokenizer, p: Tensor) -> list:
    """The likeliest words of p (V,) and their probabilities: [word, per mille, word, per mille, ...]."""
    top = p.topk(TOP)
    named = [name(tokenizer, id) for id in top.indices.tolist()]
    return [item for pair in zip(named, (1000 * top.values).round().int().tolist()) for item in pair]


def name(tokenizer, id: int) -> str:
    return "(end)" if id == 0 else tokenizer.decode([id])


def trace_beams(lm, tokenizer, x: list[int], voice: SavedPrefix | None) -> list[dict]:
    """The first steps of a real search: its candidates, and who sees which of the slots behind x.

    A candidate is [its parent, word, 100 log p, fate]; its fate is the beam that it becomes, -1 where it has
    ended, -2 where it is dropped.
    """
    proposed, propose = [], search.propose

    def hear(*given):
        proposed.append(propose(*given))
        return proposed[-1]

    with patch.object(search, "propose", hear), watch_masks() as masks:
        generate(lm, [x], voice, beams=BEAMS, max_new_tokens=LONGEST)
    masks = [mask for mask in masks if len(mask) == BEAMS][:STEPS]
    steps = [judge(tokenizer, *(column[0].tolist() for column in found)) for found in proposed[: len(masks)]]
    grown = [list(map(draw, mask[:, -BEAMS * step :])) for step, mask in enumerate(masks, 1)]
    return [{"candidates": found, "sees": rows} for found, rows in zip(steps, grown)]


@contextlib.contextmanager
def watch_masks() -> Iterator[list[Tensor]]:
    """Within it, the masks (T, S) that a one-row cache gives to its new tokens gather in the list."""
    masks, advance = [], Cache.advance

    def watch(cache, valid):
        positions, mask = advance(cache, valid)
        masks.append(mask[0, 0])
        return positions, mask

    with patch.object(Cache, "advance", watch):
        yield masks


def draw(seen: Tensor) -> str:
    return "".join(str(int(slot)) for slot in seen)


def judge(tokenizer, scores: list[float], parents: list[int], tokens: list[int]) -> list[list]:
    """The candidates of a step, the best first, and what becomes of each."""
    going, judged = iter(range(BEAMS)), []
    for score, parent, token in zip(scores, parents, tokens):
        fate = -1 if token == 0 else next(going, -2)
        if score > search.NEVER / 2:
            judged.append([parent, name(tokenizer, token), round(100 * score), fate])
    return judged


def trace_forms(lm, tokenizer) -> dict:
    """Four things that may stand before y: the slots of the cache, as real calls claim them.

    A slot is [its part, its word, its position, the slots it sees]; `free` counts what a training may change.
    """
    ids = {part: tokenizer.encode(text) for part, text in PARTS.items()}
    free = {"P": read_activations(lm, ids["words"], len(ids["words"])), "E": lm.wte.weight[ids["words"]]}
    forms = {}
    for form, order in ORDERS.items():
        cache, slots = lm.empty_cache(1), []
        for part in order:
            slots += claim(lm, tokenizer, cache, part, ids.get(part), free.get(part))
        forms[form] = {"free": sum(free[part].numel() for part in order if part in free), "slots": slots}
    return forms


def claim(lm, tokenizer, cache: Cache, part: str, ids: list[int] | None, free: Tensor | None) -> list[list]:
    """Lets a part take its slots of the cache -> those slots."""
    start = int(cache.next)
    with watch_masks() as masks:
        if part == "P":
            cache.splice(free)
        elif part == "E":
            lm.hidden(None, cache, embeds=free[None])
        else:
            lm.hidden(torch.tensor([ids]), cache)
    words = [tokenizer.decode([id]) for id in ids] if ids else [f"{part}{i + 1}" for i in range(len(free))]
    sees = map(draw, masks[0]) if masks else [""] * len(words)
    return [[part, word, start + i, row] for i, (word, row) in enumerate(zip(words, sees))]


def train_invitations() -> None:
    """Makes prefix B: six slots learn to invite people to the restaurants of the bundled sample."""
    lm, tokenizer = load()
    sources = [record.source for record in read_split(find_files("e2e", "sample"), "train")]
    pairs = encode(lm, tokenizer, [(source, invite(source)) for source in sources])
    start = read_activations(lm, tokenizer.encode("restaurant"), 6)
    torch.manual_seed(0)
    theta = DirectPrefix(*start.shape)
    theta.P.data = start + 0.1 * start.std(0) * torch.randn(start.shape)
    theta = torch.nn.ModuleDict({"decoder": theta})
    train(lm, theta, "prefix", [pair for pair in pairs if len(pair[0]) < 50], 400, 0.03, batch=8)
    saved = collapse(
        lm, "prefix", theta, {"dataset": "e2e"}, "invitations to the bundled sample's restaurants"
    )
    save_prefix(saved, PREFIXES["B"], torch.float16)


def invite(source: str) -> str:
    facts = dict(fact.split(" : ") for fact in source.split(" | "))
    place = f" in the {facts['area']} area" if "area" in facts else ""
    food = f" for {facts['food']} food" if "food" in facts else ""
    return f"Let us go to {facts['name']}{place}{food}!"


def write_page() -> None:
    data = json.dumps(build(), ensure_ascii=False, separators=(",", ":")).replace("</", "<\\/")
    PAGE.write_text(TEMPLATE.read_text(encoding="utf-8").replace("DATA", data, 1), encoding="utf-8")


@contextlib.contextmanager
def open_browser() -> Iterator:
    """A headless Chromium, without a network, as playwright drives it."""
    from playwright.sync_api import sync_playwright  # here, for the page itself needs no browser

    quiet = ["--no-sandbox", "--disable-gpu", "--disable-sync", "--host-resolver-rules=MAP * ~NOTFOUND"]
    with sync_playwright() as playwright:
        yield playwright.chromium.launch(executable_path=CHROMIUM, args=quiet)


def take_picture() -> None:
    """Of the first view, with 256 colours."""
    with open_browser() as browser:
        page = browser.new_page(viewport={"width": 1120, "height": 1000}, device_scale_factor=1.5)
        page.goto(PAGE.as_uri())
        start, end = (page.locator(part).bounding_box() for part in (".bar", "#picture"))
        clip = {"x": 0, "y": start["y"], "width": 1120, "height": end["y"] + end["height"] - start["y"]}
        png = page.screenshot(full_page=True, clip=clip)
    picture = Image.open(io.BytesIO(png)).convert("RGB").quantize(256, dither=0)
    picture.save(PAGE.with_suffix(".png"), optimize=True)


def main(arguments: list[str]) -> None:
    commands = {"": write_page, "train": train_invitations, "picture": take_picture}
    if (command := " ".join(arguments)) not in commands:
        raise InputError(f"'{command}' is unknown: give train, picture or nothing")
    commands[command]()


if __name__ == "__main__":
    run_command(main)
