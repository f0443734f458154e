"""What the pages tell their readers: the checkers of exercises, and the ablation of page 4."""

import re

import pytest
import torch

from minprefix.cache import Cache
from minprefix.methods import target_loss
from notebooks.checkers import IGNORED, JUDGES, TODO, check, find_fault
from notebooks.lecture import ablate
from notebooks.links import ROOT, read_markdown
from tests.models import make_gpt2

NAMES = ("1_cache", "2_loss", "3_prefix", "4_inside", "5_what_is_free")
PAGES = [ROOT / "notebooks" / f"{name}.ipynb" for name in NAMES]
FOLDED = "\n".join(re.findall(r"<details>.*?</details>", "\n".join(map(read_markdown, PAGES)), re.DOTALL))
SOLUTIONS = {name: code for code, name in re.findall(r"```python\n(def (\w+)\(.*?)```", FOLDED, re.DOTALL)}
FUNCTIONS = {"1.1": "sight", "2.1": "mean_loss", "splice": "splice", "targets": "make_targets"}
FUNCTIONS |= {"4.1": "without", "5.1": "read_infix"}
OTHERS = {
    "1.2": 100.7,
    "1.3": "h",
    "2.2": 9.01,
    "2.3": "never stop",
    "3.1": 245_760,
    "3.2": "same",
    "3.3": 36_864,
}
OTHERS |= {"4.2": "different", "4.3": "the head does not look at x", "5.2": 10_240, "5.3": "none"}


def write(name: str, *changes: tuple[str, str]):
    """A page's own solution, as a reader would have it, with each piece of its text changed."""
    code = SOLUTIONS[FUNCTIONS[name]]
    for old, new in changes:
        assert old in code, old
        code = code.replace(old, new)
    space = {"torch": torch, "IGNORED": IGNORED}
    exec(code, space)
    return space[FUNCTIONS[name]]


@pytest.mark.parametrize("name", JUDGES)
def test_the_folded_solution_is_right(name):
    answer = write(name) if name in FUNCTIONS else OTHERS[name]
    assert find_fault(JUDGES[name], answer) == ""


KEYS = ("torch.cat((cache.keys[layer], k), 2)", "k")
VALUES_LINE = "        cache.values[layer] = torch.cat((cache.values[layer], v), 2)\n"
REAL_LINE = "    cache.real = torch.cat((cache.real, torch.ones(B, len(P), dtype=torch.bool)), 1)\n"
WRONG = {
    "splice": {
        "keys and values are swapped": [
            ("2 * layer + 1", "Q"),
            ("2 * layer]", "2 * layer + 1]"),
            ("Q", "2 * layer"),
        ],
        "first half of a row is not all keys": [("2 * layer + 1", "L + layer"), ("2 * layer]", "layer]")],
        "layers are in reverse order": [("2 * layer", "2 * (L - 1 - layer)")],
        "all layers got the numbers of the first": [("2 * layer + 1", "1"), ("2 * layer]", "0]")],
        "values are copies of the keys": [("2 * layer + 1", "2 * layer")],
        "layer l begins at part 2l": [("2 * layer", "layer")],
        "slots and heads are mixed up": [("transpose(0, 1)", "reshape(H, len(P), D)")],
        "slots stand in reverse order": [("P.unflatten", "P.flip(0).unflatten")],
        "went to the wrong layers": [("2 * layer + 1", "2 * L - 1 - 2 * layer")],
        "do not hold the numbers of P": [("P.unflatten", "(2 * P).unflatten")],
        "lost its past": [KEYS],
        "the past stays in front": [("(cache.keys[layer], k)", "(k, cache.keys[layer])")],
        "cache.values[0] has not grown": [(VALUES_LINE, "")],
        "cache.keys[1] has not grown": [("range(L)", "range(1)")],
        "has shape": [("k), 2)", "k, k), 2)")],
        "nobody can see the new slots": [(REAL_LINE, "")],
        "nobody would see these slots": [("torch.ones", "torch.zeros")],
        "padding": [
            (
                "torch.cat((cache.real, torch.ones(B, len(P)",
                "torch.cat((torch.ones_like(cache.real), torch.ones(B, len(P)",
            )
        ],
        "must hold True and False": [(", dtype=torch.bool", "")],
        "cache.real lost its past": [("torch.cat((cache.real, ", "("), ("), 1)", ")")],
        "cache.real has shape (2, 7)": [("torch.ones(B, len(P)", "torch.ones(B, len(P) + 1")],
        "cache.real must stay a tensor": [(REAL_LINE, "    cache.real = [[True] * 6] * B\n")],
        "cache.next must stay a tensor": [("cache.next + len(P)", "len(P)")],
        "positions are not shifted": [("cache.next + len(P)", "cache.next")],
        "cache.next is [2, 1]": [("cache.next + len(P)", "cache.next + 1")],
        "cache.next is [6, 6]": [("cache.next + len(P)", "torch.full((B,), len(P) + 1)")],
        "whole numbers": [("cache.next + len(P)", "cache.next + float(len(P))")],
        "cut off from its gradient": [("P.unflatten", "P.detach().unflatten")],
        "the shapes do not fit: k and v must be": [(".expand(B, -1, -1, -1)", "")],
        "it stops with NameError": [("2 * layer]", "2 * l]")],
        "nothing was put behind": [("range(L)", "range(0)")],
    },
    "targets": {
        "counts x too": [("[IGNORED] * (len(x) - 1)", "x[1:]")],
        "asked for itself, and x is counted": [("[IGNORED] * (len(x) - 1) + y", "x + y[:-1]")],
        "off by one": [("(len(x) - 1) + y", "len(x) + y[:-1]")],
        "8 targets for 7 tokens": [("(len(x) - 1)", "len(x)")],
        "first token of y is not counted": [("(len(x) - 1) + y", "len(x) + y[1:]")],
        "never learn to stop": [("+ y", "+ y[:-1] + [IGNORED]")],
        "the end is missing": [("+ y", "+ y[:-1]")],
        "is part of x": [("(len(x) - 1) + y", "(len(x) - 2) + y + [IGNORED]")],
        "must be a target for each token": [("len(x) - 1", "len(x) - 2")],
        "depends on x": [("len(x) - 1", "len(y) - 1")],
        "a token like the others": [("[IGNORED]", "[0]")],
        "nothing is counted": [("+ y", "+ [IGNORED] * len(y)")],
        "not yet: [": [("+ y", "+ y[::-1]")],
        "3 targets for the 7 tokens of z": [("[IGNORED] * (len(x) - 1) + ", "")],
        "not True, False or None": [("+ y", "+ [True] * 3")],
        "must return a list": [("return", "found =")],
    },
    "1.1": {
        "positions start again": [("past + t for t", "t for t")],
        "one too far": [("past + t for t", "past + t + 1 for t")],
        "one position after": [("past + t for t", "past for t")],
        "the positions are": [("past + t for t", "2 * t for t")],
        "upper left": [("s <= past + t", "s <= t")],
        "what comes after them": [("s <= past + t", "True")],
        "see itself": [("s <= past + t", "s < past + t")],
        "the new ones before it": [("s <= past + t", "s < past or s == past + t")],
        "past is hidden": [("s <= past + t", "past <= s <= past + t")],
        "a column for each slot": [("range(past + new)", "range(new)")],
        "up to its own": [("s <= past + t", "s > past + t")],
    },
    "2.1": {
        "x and the padding": [("nats[in_y].mean", "nats.mean")],
        "that is the sum": [("mean()", "sum()")],
        "all places": [("nats[in_y].mean()", "(nats * in_y).mean()")],
        "rows' means": [("nats[in_y].mean()", "((nats * in_y).sum(1) / in_y.sum(1)).mean()")],
        "number of texts": [("nats[in_y].mean()", "nats[in_y].sum() / len(nats)")],
        "a tensor of shape (4,)": [(".mean()", "")],
    },
    "4.1": {
        "work on a copy": [(".clone()", "")],
        "these must become False": [("slots] = False", "[0, 2, 4, 5, 6]] = False")],
        "nothing is hidden": [("slots] = False", "slots] &= True")],
        "did not see before": [("mask.clone()", "torch.ones_like(mask)")],
        "a hidden slot stays": [("return mask", "return mask[..., :5]")],
        "attention adds a mask of numbers": [("return mask", "return mask.float()")],
        "the last dimension counts slots": [("[..., slots]", "[:, :, 1]")],
    },
    "5.1": {
        "that is a prefix: x was read behind it.": [
            ("torch.tensor([x[:-1]]), cache", "torch.tensor([[8]]), lm.empty_cache(1)"),
            ("return", "lm.hidden(torch.tensor([x[:-1]]), cache)\n    return"),
        ],
        "and the separator too": [
            ("torch.tensor([x[:-1]]), cache", "torch.tensor([[8]]), lm.empty_cache(1)"),
            ("return", "lm.hidden(torch.tensor([x]), cache)\n    return"),
        ],
        "would not see it": [("x[:-1]", "x")],
        "left to the caller": [("return", "lm.hidden(torch.tensor([x[-1:]]), cache)\n    return")],
        "infix is missing": [("    cache.splice(P)\n", "")],
        "x is missing": [("    lm.hidden(torch.tensor([x[:-1]]), cache)\n", "")],
        "return the cache": [("return cache", "return")],
        "slots, 6 are": [("splice(P)", "splice(P[:2])")],
    },
}
CASES = [(name, said, changes) for name, slips in WRONG.items() for said, changes in slips.items()]


@pytest.mark.parametrize("name, said, changes", CASES, ids=[f"{name}: {said}" for name, said, _ in CASES])
def test_a_wrong_answer_is_told_by_its_sentence(name, said, changes):
    assert said in find_fault(JUDGES[name], write(name, *changes))


@pytest.mark.parametrize("name", WRONG)
def test_each_wrong_answer_has_a_sentence_of_its_own(name):
    told = [find_fault(JUDGES[name], write(name, *changes)) for changes in WRONG[name].values()]
    assert len(set(told)) == len(told) and "" not in told


@pytest.mark.parametrize(
    "name, answer, said",
    [
        ("1.2", 50.3, "keys and values"),
        ("1.2", 7, "more than 7"),
        ("1.2", 100_663_296, "that is bytes"),
        ("2.2", torch.tensor(-9.01), "the loss is -log p"),
        ("1.3", "z", "the same ids"),
        ("1.3", "w", "write one of 'h', 'phi', 'z'"),
        ("2.2", 13.0, "bits"),
        ("3.1", "many", "without quotes"),
        ("5.3", "all", "attention looks to the left"),
    ],
)
def test_a_wrong_number_or_word_gets_a_hint(name, answer, said):
    assert said in find_fault(JUDGES[name], answer)


def half_done(cache: Cache, P: torch.Tensor) -> None:
    for layer in range(len(cache.keys)):
        cache.keys[layer] = torch.cat((cache.keys[layer], P[None, None]), 2)
    cache.next = ...


def test_a_gap_is_something_to_do_and_no_error(capsys):
    assert check("splice", half_done, otherwise=Cache.splice) is Cache.splice
    assert check("1.2", ...) is None
    assert check("1.2", 100.7) == 100.7
    assert capsys.readouterr().out == f"splice  {TODO}\n1.2  {TODO}\n1.2  right.\n"


def test_each_judge_is_asked_by_a_page():
    asked = [name for path in PAGES for name in re.findall(r'check\(\\"([\w.]+)\\"', path.read_text())]
    assert sorted(asked) == sorted(JUDGES)


PAIRS = [([5, 6, 7, 0], [8, 9, 0]), ([3, 0], [4, 0])]


def test_an_ablation_of_nothing_is_the_loss():
    lm, P = make_gpt2(), torch.randn(3, 2 * 2 * 32)
    alone = [target_loss(lm, {"decoder": P}, [pair]) for pair in PAIRS]
    assert torch.allclose(ablate(lm, P, PAIRS), torch.stack([loss / n for loss, n in alone]), atol=1e-4)


def test_a_hidden_slot_is_as_if_it_were_not_there():
    """But for the positions, which count it."""
    lm, P = make_gpt2(), torch.randn(3, 2 * 2 * 32)
    hidden = torch.zeros(2, 2, 3, dtype=torch.bool)
    hidden[..., 1] = True
    without = ablate(lm, P[[0, 2]], PAIRS, first_position=1)
    assert torch.allclose(ablate(lm, P, PAIRS, hidden), without, atol=1e-4)
    assert torch.allclose(
        ablate(lm, P, PAIRS), ablate(lm, P, PAIRS, ~hidden & hidden), atol=1e-4
    )  # hooks are gone


def test_what_is_hidden_from_x_alone_reaches_y_by_itself():
    """In the last layer nobody reads what x became, so there only y can miss something."""
    lm, P = make_gpt2(), torch.randn(3, 2 * 2 * 32)
    last = torch.zeros(2, 2, 3, dtype=torch.bool)
    last[-1] = True
    nothing = ablate(lm, P, PAIRS)
    assert torch.allclose(ablate(lm, P, PAIRS, last, "x"), nothing, atol=1e-5)
    assert torch.allclose(ablate(lm, P, PAIRS, last, "y"), ablate(lm, P, PAIRS, last), atol=1e-5)
    head = last & torch.tensor([True, False])[None, :, None]
    for hidden, whom in ((~last, "x"), (last, "y"), (head, "y"), (last & ~head, "y")):
        assert (ablate(lm, P, PAIRS, hidden, whom) - nothing).abs().min() > 1e-3
    assert (ablate(lm, P, PAIRS, head) - ablate(lm, P, PAIRS, last)).abs().min() > 1e-3
