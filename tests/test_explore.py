"""notebooks/explore.html: one small file, made of what Python computes today; and it works in a browser."""

import contextlib
import json
import re

import pytest
import torch

from minprefix import generate, load_prefix
from minprefix.texts import encode_source
from notebooks import explore, lecture
from notebooks.lecture import attention

HTML = explore.PAGE.read_text(encoding="utf-8")
DATA = re.search(r'<script type="application/json" id="data">(.*?)</script>', HTML, re.DOTALL)[1]
PAGE = json.loads(DATA)
PHONE = {"viewport": {"width": 360, "height": 740}, "has_touch": True}


def unpack(text: str) -> list[int]:
    return [explore.DIGITS.index(character) for character in text]


def assert_alike(ours, theirs) -> None:
    """Equal, numbers to one unit: another processor may round the other way."""
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        ours, theirs = list(ours.values()), list(theirs.values())
    if isinstance(ours, list):
        assert len(ours) == len(theirs)
        for one, other in zip(ours, theirs):
            assert_alike(one, other)
    else:
        assert ours == theirs or abs(ours - theirs) <= 1, (ours, theirs)


def spread(data: dict) -> dict:
    """With the packed numbers as lists, and a word's probability beside the word in any order."""
    runs = [run for record in data["records"] for run in record["runs"]]
    for run in runs:
        for key in ("attention", "shares"):
            run[key] = [[unpack(head) for head in layer] for layer in run[key]]
        run["next"] = [[top[1::2] for top in step] for step in run["next"]]
    return data


def test_it_is_one_small_file():
    """Nothing is loaded from anywhere."""
    assert len(HTML.encode()) < 1_000_000
    code = HTML.replace(DATA, "").replace("http://www.w3.org/2000/svg", "")  # a name, not a place
    assert not re.search(
        r"https?:|//[a-z]+\.|\bsrc=|@import|url\(|fetch\(|XMLHttp|import\(|<link(?! rel=\"icon)", code
    )


def test_it_is_what_the_generator_makes():
    assert explore.TEMPLATE.read_text(encoding="utf-8").replace("DATA", DATA, 1) == HTML
    assert_alike(spread(json.loads(DATA)), spread(explore.build()))


def test_its_colours_are_the_courses():
    colours = dict(re.findall(r"--(orange|blue|green): (#\w+)", HTML))
    assert colours == {name: getattr(lecture, name.upper()) for name in ("orange", "blue", "green")}


def test_its_prefixes_teach():
    """Each of them names the place, in another text than that of the model alone, and B invites."""
    for record in PAGE["records"]:
        name = record["x"].split(" | ")[0].removeprefix("name : ")
        alone, described, invited = [run["text"] for run in record["runs"]]
        assert name in described and described != alone
        assert invited.startswith(f"Let us go to {name}")


def test_a_beam_search_ends_where_its_tree_leads():
    """The masks alone spell the text that the search returns."""
    lm, tokenizer = lecture.load()
    x = encode_source(lm, tokenizer, explore.RECORDS[0])
    voice = load_prefix(explore.PREFIXES["B"])
    [ids] = generate(lm, [x], voice, beams=explore.BEAMS, max_new_tokens=explore.LONGEST)
    steps = PAGE["records"][0]["runs"][2]["beams"]
    words = [{fate: word for _, word, _, fate in step["candidates"]} for step in steps]
    paths = [[slot for slot, bit in enumerate(row) if bit == "1"] for row in steps[-1]["sees"]]
    texts = ["".join(words[slot // 3][slot % 3] for slot in path) for path in paths]
    assert tokenizer.decode(ids[: len(steps)]) in texts


@pytest.fixture(scope="module")
def browser():
    pytest.importorskip("playwright", reason="the page's tests need playwright: pip install .[test]")
    if explore.CHROMIUM is None:
        pytest.skip("no Chromium or Chrome is installed: the page cannot be tried in a browser")
    with explore.open_browser() as browser:
        yield browser


@contextlib.contextmanager
def open_page(browser, **options):
    """The page, which must load nothing but itself and complain of nothing."""
    page, heard = browser.new_page(**options), []
    page.on("console", lambda message: heard.append(message.text))
    page.on("pageerror", lambda error: heard.append(str(error)))
    page.on("request", lambda request: heard.append(request.url))
    page.goto(explore.PAGE.as_uri())
    yield page
    assert heard == [explore.PAGE.as_uri()]
    page.close()


def choose(page, name: str, value) -> None:
    page.locator(f'input[name="{name}"][value="{value}"]').check()


def shown(page) -> str:
    """All that can be seen, colours included: it must change with each control."""
    return page.evaluate("document.querySelector('main').innerHTML + document.querySelector('#step').value")


def read_numbers(page) -> list[int]:
    return [int(text or 0) for text in page.locator("#tokens small").all_text_contents()]


@torch.no_grad()
def test_its_numbers_are_the_models(browser):
    """Cells of each voice against a fresh run: attention in per cent, next words in tenths of one."""
    lm, tokenizer = lecture.load()
    voices = [None, *map(load_prefix, explore.PREFIXES.values())]
    with open_page(browser) as page:
        for v, record in ((0, 2), (1, 0), (2, 1)):
            choose(page, "voice", v)
            choose(page, "record", record)
            x = encode_source(lm, tokenizer, explore.RECORDS[record])
            [y] = generate(lm, [x], voices[v], beams=1, max_new_tokens=explore.LONGEST)
            assert page.text_content("#text") == tokenizer.decode(y).strip()
            weights = attention(lm, x + y, cache_behind(lm, voices[v]))
            for layer, head, token in ((0, 0, 3), (4, 2, len(x) - 1), (5, 4, len(x) + 3)):
                choose(page, "head", f"{layer} {head}")
                page.focus(f'#tokens button[value="{token}"]')
                row = (
                    weights[layer, head if head < 4 else slice(None), token]
                    .reshape(-1, weights.shape[-1])
                    .mean(0)
                )
                assert_alike(read_numbers(page), (100 * row).round().int().tolist())
            p = [lm(torch.tensor([x + y]), cache_behind(lm, one))[0, token].softmax(-1) for one in voices]
            for column, expected in zip(page.locator("#next ol").all(), p):
                found = [float(text.strip("<%")) for text in column.locator("span").all_text_contents()]
                assert found == pytest.approx((100 * expected.topk(len(found)).values).tolist(), abs=0.11)
                best = explore.name(tokenizer, int(expected.argmax()))
                assert column.locator("b").first.text_content().strip("…") == best.strip()


def cache_behind(lm, voice):
    cache = lm.empty_cache(1)
    if voice:
        cache.splice(voice.sites["decoder"])
    return cache


def test_each_control_changes_what_is_shown(browser):
    with open_page(browser) as page:
        seen = [shown(page)]

        def look() -> None:
            seen.append(shown(page))
            assert seen[-1] not in seen[:-1]

        for name, value in (("voice", 0), ("voice", 2), ("record", 1), ("head", "5 1"), ("beam", 2)):
            choose(page, name, value)
            look()
        for form in ("infix", "embedding", "words"):
            choose(page, "form", form)
            look()
        for button in ("#forth", "#back"):
            page.click(button)
            page.click('#tokens button[value="4"]') if button == "#back" else None
            look()
        page.hover('#tokens button[value="9"]')
        look()
        page.hover("h1")  # back to the chosen word
        assert shown(page) == seen[-2]
        page.hover("#slots td[data-slot='3'] >> nth=0")
        look()


def test_its_slots_are_those_of_the_cache(browser):
    """Free, computed and pale cells, form by form, against what a cache does."""
    lm, _ = lecture.load()
    with open_page(browser) as page:
        for form, (free, layers) in {
            "prefix": (4, 6),
            "infix": (4, 6),
            "embedding": (4, 0),
            "words": (0, 0),
        }.items():
            choose(page, "form", form)
            per_slot = lm.site_widths()["decoder"] if layers else lm.config.n_embd
            assert page.text_content("#free") == f"{free * per_slot:,}"
            assert page.locator("#slots td.free").count() == free * max(layers, 1)
            slots = page.locator("#slots tr").first.locator("td").count()
            for slot in (2, slots - 1):
                page.focus(f'#slots button[value="{slot}"]')
                spliced = page.locator(f'#slots td.none[data-slot="{slot}"]').count()
                seen = 1 if spliced else slot + 1
                assert page.locator("#slots tr").first.locator("td:not(.unseen)").count() == seen
        choose(page, "form", "infix")
        page.focus('#slots button[value="9"]')  # the last of x
        assert page.locator("#slots td.free:not(.unseen)").count() == 0


def test_its_tree_grows_with_its_mask(browser):
    with open_page(browser) as page:
        choose(page, "voice", 1)
        steps = PAGE["records"][0]["runs"][1]["beams"]
        page.focus("#step")
        page.keyboard.press("Home")
        for length, step in enumerate(steps, 1):
            for beam, row in enumerate(step["sees"]):
                cells = page.locator(f'#mask [data-beam="{beam}"] span:not(.prompt)')
                found = cells.evaluate_all(
                    "cells => cells.map(cell => cell.classList.contains('seen') ? 1 : 0).join('')"
                )
                assert found == row and row.count("1") == length
            assert page.locator("#tree .node.own").count() == length
            page.keyboard.press("ArrowRight")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone_and_can_be_read(browser, scheme):
    """No sideways scrolling at 360 px whatever is chosen, a tap chooses, and all text has WCAG's contrast."""
    with open_page(browser, color_scheme=scheme, **PHONE) as page:
        for name, values in {
            "voice": (0, 1, 2),
            "record": (0, 1, 2),
            "form": ("infix", "embedding", "words"),
        }.items():
            for value in values:
                choose(page, name, value)
                assert page.evaluate("document.documentElement.scrollWidth") <= 360
        page.locator('#tokens button[value="6"]').tap()
        assert page.get_attribute('#tokens button[value="6"]', "aria-pressed") == "true"
        dark = page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(19, 21, 25)"
        assert dark == (scheme == "dark")
        page.wait_for_timeout(400)  # for the colours to settle
        assert page.evaluate(FAINT) == []


# Texts whose contrast with what lies behind them is below 4.5, as WCAG AA asks.
FAINT = """() => {
  const parse = (colour) => {
    const parts = colour.match(/[\\d.]+/g).map(Number);
    const scale = colour.startsWith("color(") ? 1 : 255;
    return [...parts.slice(0, 3).map((part) => part / scale), parts[3] ?? 1];
  };
  const light = (colour) => {
    const [r, g, b] = colour.map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const colour = parse(getComputedStyle(e).backgroundColor);
      if (colour[3] === 1) return colour;
    }
  };
  const texts = [...document.querySelectorAll("body *")].filter((e) => e.checkVisibility()
    && [...e.childNodes].some((node) => node.nodeType === 3 && node.data.trim()));
  return texts.filter((e) => !e.closest("script, style, noscript")).map((e) => {
    const [a, b] = [parse(getComputedStyle(e).color), behind(e)].map(light).sort((a, b) => a - b);
    return [e.className, e.textContent.slice(0, 30), (b + 0.05) / (a + 0.05)];
  }).filter(([, , contrast]) => contrast < 4.5);
}"""


def test_it_can_be_used_with_the_keyboard_alone(browser):
    """Tab reaches each control in order, arrows move within it, and what has the focus can be seen."""
    with open_page(browser) as page:
        for stop in STOPS:
            page.keyboard.press("Tab")
            assert page.evaluate("document.activeElement.closest('[id]').id") == stop
            assert page.evaluate(RING) != "none", stop
            before = shown(page)
            page.keyboard.press("ArrowRight")
            assert (shown(page) != before) == (stop not in ("back", "forth", "scroll")), stop


STOPS = ["voice", "record", "tokens", "heads", "form", "slots", "back", "forth", "step", "beam", "scroll"]
RING = """() => {
  const [one, other] = [document.activeElement, document.activeElement.nextElementSibling ?? document.body];
  const ring = (element) => getComputedStyle(element).outlineStyle;
  return getComputedStyle(one).opacity === "0" ? ring(other) : ring(one);
}"""


def test_it_keeps_still_for_those_who_ask(browser):
    with open_page(browser, reduced_motion="reduce") as page:
        for part in (".token", ".split span", ".slots td"):
            style = f"getComputedStyle(document.querySelector('{part}')).transitionDuration"
            assert page.evaluate(style) == "0s"
