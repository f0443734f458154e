"""Judges of what a reader writes into pages 1 to 5: each says in one sentence what is wrong.

`check("1.1", sight)` in a page prints the verdict. A judge returns "" for what is right.
"""

import ast
import inspect
import math
import textwrap
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from minprefix.cache import Cache
from minprefix.gpt2 import GPT2, GPT2Config
from minprefix.methods import IGNORED
from minprefix.prefix import pack

TODO = "nothing to check yet: put your own in the place of each `...`, and run this cell again."


def check(name: str, answer, otherwise=None):
    """Prints what the judge of that exercise finds, and never raises.

    Returns the answer if it is right and `otherwise` if not, so that a page can go on without it.
    """
    fault = find_fault(JUDGES[name], answer)
    print(f"{name}  {fault or 'right.'}")
    return otherwise if fault else answer


def find_fault(judge: Callable[..., str], answer) -> str:
    """One sentence, or "" for a right answer."""
    if has_gaps(answer):
        return TODO
    try:
        return judge(answer)
    except Exception as error:  # whatever a reader's code may raise
        return f"not yet: it stops with {type(error).__name__}: {error}"


def has_gaps(answer) -> bool:
    """Whether it is `...`, or a function in which something still is set to `...`."""
    if not callable(answer):
        return answer is ...
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(answer)))
    except (OSError, SyntaxError):  # made by exec, so there is no source to look at
        return False
    filled = ast.Assign | ast.AugAssign | ast.Return
    values = [node.value for node in ast.walk(tree) if isinstance(node, filled)]
    return any(isinstance(value, ast.Constant) and value.value is ... for value in values)


def judge_number(right: float, slips: dict[float, str], answer: float) -> str:
    """Numbers within 2%. slips: what a wrong one tells of how it came about."""
    if torch.is_tensor(answer) and answer.numel() == 1:
        answer = answer.item()
    if not isinstance(answer, int | float):
        return f"write one number, without quotes: this is a {type(answer).__name__}."
    if math.isclose(answer, right, rel_tol=0.02):
        return ""
    told = [hint for slip, hint in slips.items() if math.isclose(answer, slip, rel_tol=0.02)]
    return told[0] if told else f"not yet: it is {'less' if answer > right else 'more'} than {answer:,}."


def judge_choice(right: str, wrong: dict[str, str], answer: str) -> str:
    """One of some words; each wrong one has its sentence."""
    if answer == right:
        return ""
    return wrong.get(answer, f"write one of {', '.join(map(repr, sorted([right, *wrong])))}.")


# Page 1


def judge_sight(sight: Callable[[int, int], tuple[list[int], list[list[bool]]]]) -> str:
    """Of positions and mask for 3 tokens behind 4 slots."""
    past, new = 4, 3
    positions, mask = sight(past, new)
    positions, mask = list(positions), [[bool(seen) for seen in row] for row in mask]
    if positions != [4, 5, 6]:
        return POSITIONS.get(
            tuple(positions), f"not yet: the positions are {positions}; 4 tokens came before."
        )
    if [len(row) for row in mask] != [past + new] * new:
        return "not yet: the mask needs a row for each new token, and a column for each slot, old and new."
    sees = {  # what new token t might see of slot s
        "the mask is in the upper left corner: all of the past is seen.": lambda t, s: s <= t,
        "the new tokens see what comes after them: token t sees nothing behind itself.": lambda t, s: True,
        "a token must see itself too: its own slot is there when it looks.": lambda t, s: s < past + t,
        "a new token sees the new ones before it as well.": lambda t, s: s < past or s == past + t,
        "the past is hidden: its slots are seen by all.": lambda t, s: past <= s <= past + t,
    }
    for fault, rule in sees.items():
        if mask == [[rule(t, s) for s in range(past + new)] for t in range(new)]:
            return fault
    right = mask == [[s <= past + t for s in range(past + new)] for t in range(new)]
    return "" if right else "not yet: token t sees all slots of the past, and the new ones up to its own."


POSITIONS = {
    (0, 1, 2): "the positions start again: 4 tokens came before, so the first new one has position 4.",
    (5, 6, 7): "the positions are one too far: the first token of all has position 0.",
    (4, 4, 4): "each new token comes one position after the one before it.",
}

# Page 2


def judge_mean(mean_loss: Callable[[Tensor, Tensor], Tensor]) -> str:
    """Of the mean over y's tokens in a padded batch, whose rows differ in length."""
    nats = torch.tensor([[9.0, 2.0, 4.0, 6.0], [9.0, 1.0, 7.0, 7.0]])
    in_y = torch.tensor([[False, True, True, True], [False, True, False, False]])
    found = mean_loss(nats, in_y)
    if torch.is_tensor(found):
        if found.dim():
            return f"that is a tensor of shape {tuple(found.shape)}: give one mean of all counted tokens."
        found = found.item()
    slips = {
        45 / 8: "you count x and the padding: only where in_y is True.",
        13.0: "that is the sum: divide by the number of tokens that are counted.",
        13 / 8: "you divide by all places of the batch: only those of y count.",
        2.5: "that is the mean of the rows' means: it gives the tokens of short texts more weight.",
        6.5: "you divide by the number of texts: the mean is over tokens.",
    }
    return judge_number(13 / 4, slips, found)


# Page 3


def judge_splice(splice: Callable[[Cache, Tensor], None]) -> str:
    """Of Eq. 3, first case, on a cache so small that each number of P_theta can be told from all others."""
    B, L, H, D, P = 2, 3, 2, 4, 5
    cache = Cache(B, L, H, D, like=torch.zeros(1))
    cache.splice(-torch.ones(1, 2 * L * H * D))  # one slot is there already: in the second row it is padding
    cache.real, cache.next = torch.tensor([[True], [False]]), torch.tensor([1, 0])
    theta = torch.arange(P * 2.0 * L * H * D).view(P, -1).requires_grad_()
    try:
        splice(cache, theta)
    except RuntimeError as error:  # most of torch.cat
        wanted = f"k and v must be (B, H, |P|, D), {(B, H, P, D)} here, and the new marks (B, |P|)"
        return f"the shapes do not fit: {wanted}. PyTorch says: {error}"
    held = [part for pair in zip(cache.keys, cache.values) for part in pair]  # of layer 0, of layer 1, ...
    rows = theta.detach().unflatten(1, (2 * L, H, D))  # (P, 2L, H, D)
    return (
        judge_shapes(held, (B, H, 1 + P, D))
        or judge_numbers(torch.stack(held)[:, 0, :, 1:], rows.permute(1, 2, 0, 3))
        or judge_rest(cache, P)
        or ("" if all(tensor.requires_grad for tensor in held) else DETACHED)
    )


def judge_shapes(held: list[Tensor], shape: tuple[int, ...]) -> str:
    """Of each layer's keys and values in turn, which held one slot of -1 before."""
    if all(tensor.shape[2] == 1 for tensor in held):
        return "the cache holds what it held before: nothing was put behind its keys and values."
    for place, tensor in enumerate(held):
        name = f"cache.{('keys', 'values')[place % 2]}[{place // 2}]"
        if tensor.shape[2:3] == (1,):
            return f"{name} has not grown: every layer needs its keys and its values."
        if tensor.shape[2:3] == (shape[2] - 1,):
            return f"{name} lost its past: put the new slots behind the old ones, torch.cat((old, new), 2)."
        if tensor.shape != shape:
            return f"{name} has shape {tuple(tensor.shape)}, not {shape}, which is (B, H, 1 + |P|, D) here."
        if (tensor[:, :, 0] != -1).any():
            return f"in {name} the slot that was there is not the first any more: the past stays in front."
    return ""


def judge_numbers(got: Tensor, wanted: Tensor) -> str:
    """Keys and values (2L, H, P, D) as spliced and as P_theta has them: where has each come from?"""
    if torch.equal(got, wanted):
        return ""
    if torch.equal(got, wanted.flip(2)):
        return "the slots stand in reverse order: row i of P is slot i."
    found = [[place for place, part in enumerate(wanted) if torch.equal(part, tensor)] for tensor in got]
    if all(found):
        order = tuple(place for (place,) in found)
        return ORDERS.get(order, f"the parts of a row went to the wrong layers, in the order {order}.")
    if torch.equal(got.flatten().sort()[0], wanted.flatten().sort()[0]):
        return "the numbers are P's, but slots and heads are mixed up: swap them by transpose, not by view."
    return "the new slots do not hold the numbers of P, each of them once, as they are."


ORDERS = {  # which of a row's 2L parts became the keys of layer 0, its values, the keys of layer 1, ...
    (1, 0, 3, 2, 5, 4): "keys and values are swapped: the keys of a layer come first.",
    (0, 3, 1, 4, 2, 5): "the first half of a row is not all keys: a layer's keys and values alternate.",
    (4, 5, 2, 3, 0, 1): "the layers are in reverse order: a row begins with layer 0.",
    (0, 1, 0, 1, 0, 1): "all layers got the numbers of the first one: layer l has the parts 2l and 2l + 1.",
    (0, 0, 2, 2, 4, 4): "the values are copies of the keys: part 2l + 1 holds the values.",
    (0, 1, 1, 2, 2, 3): "layer l begins at part 2l, not at l: each layer has two.",
}
DETACHED = "the prefix was cut off from its gradient (detach, no_grad or .data): it could never learn."


def judge_rest(cache: Cache, P: int) -> str:
    """Of what a cache knows beside keys and values, behind one slot, padding in one row, and P more."""
    B, before = len(cache.keys[0]), torch.tensor([[True], [False]])
    for name, tensor in (("real", cache.real), ("next", cache.next)):
        if not torch.is_tensor(tensor):
            return (
                f"cache.{name} must stay a tensor with a row for each text: it is a {type(tensor).__name__}."
            )
    if cache.real.shape == (B, 1):
        return "nobody can see the new slots: cache.real needs a True for each of them."
    if cache.real.shape == (B, P):
        return "cache.real lost its past: put the new marks behind the old ones, torch.cat((old, new), 1)."
    if cache.real.shape != (B, 1 + P):
        return (
            f"cache.real has shape {tuple(cache.real.shape)}, not {(B, 1 + P)}, which is (B, 1 + |P|) here."
        )
    if cache.real.dtype != torch.bool:
        return f"cache.real holds {cache.real.dtype}: it must hold True and False, dtype=torch.bool."
    if not cache.real[:, 1:].all():
        return "cache.real has False for new slots: nobody would see these slots. Each needs a True."
    if not torch.equal(cache.real[:, :1], before):
        return (
            "cache.real has changed what it held: a slot of padding, False in row 1 here, must stay unseen."
        )
    if cache.next.tolist() == [1, 0]:
        return "positions are not shifted: a prefix takes |P| positions, so cache.next must grow by |P|."
    if cache.next.tolist() != [1 + P, P]:
        return f"cache.next is {cache.next.tolist()}: it must grow by |P| = {P} in each row, and was [1, 0]."
    if cache.next.is_floating_point():
        return f"cache.next holds {cache.next.dtype}: positions are whole numbers."
    return ""


def targets_of(x: list[int], y: list[int]) -> list[int]:
    """The right answer to "targets", for a page whose reader has none yet."""
    return [IGNORED] * (len(x) - 1) + y


def judge_targets(make_targets: Callable[[list[int], list[int]], list[int]]) -> str:
    """Of Eq. 2 as a mask: for each token of z = x + y[:-1], what it has to predict, or IGNORED."""
    x, y = [4, 5, 6, 7, 1], [8, 9, 2]  # 1 separates, 2 ends; x and y differ in length
    found = make_targets(list(x), list(y))
    if not isinstance(found, list | tuple | Tensor):
        return f"it must return a list: this is a {type(found).__name__}."
    if any(isinstance(target, bool) or target is None for target in found):
        return "a target is a token, or IGNORED where nothing is counted: not True, False or None."
    found = [int(target) for target in found]
    if found == targets_of(x, y):
        return ""
    length = "" if len(found) == 7 else f"{len(found)} targets for the 7 tokens of z: "
    return TARGETS.get(tuple(found), f"not yet: {length}{found} for z = {x + y[:-1]}.")


off = IGNORED
TARGETS = {
    (5, 6, 7, 1, 8, 9, 2): "the loss counts x too: what x's tokens predict within x is IGNORED.",
    (4, 5, 6, 7, 1, 8, 9): "each token is asked for itself, and x is counted: the target is the next token.",
    (off, off, off, off, off, 8, 9): "off by one: each token is asked for itself, not for the next one.",
    (
        off,
        off,
        off,
        off,
        off,
        8,
        9,
        2,
    ): "8 targets for 7 tokens: the last token of x predicts the first of y.",
    (
        off,
        off,
        off,
        off,
        off,
        9,
        2,
    ): "the first token of y is not counted: the last token of x has to predict it.",
    (off, off, off, off, 8, 9, off): "the end is not counted: the model would never learn to stop.",
    (off, off, off, off, 8, 9): "the end is missing: the last token of z has to predict it.",
    (off, off, off, 8, 9, 2, off): "one too early: 7 has to predict the separator, which is part of x.",
    (off, off, 8, 9, 2): "5 targets for 7 tokens: how many are IGNORED depends on x, not on y.",
    (off, off, off, 8, 9, 2): "one too early: there must be a target for each token of z.",
    (0, 0, 0, 0, 8, 9, 2): "0 is a token like the others: write IGNORED where nothing is counted.",
    (off,) * 7: "nothing is counted: y's tokens are the targets.",
}


# Page 4


def judge_without(without: Callable[[Tensor, list[int]], Tensor]) -> str:
    """Of hiding slots 1 and 3 from the 3 tokens behind 4 slots."""
    mask = torch.ones(2, 1, 3, 7, dtype=torch.bool).tril(4)
    given, slots = mask.clone(), [1, 3]
    found = without(given, list(slots))
    hidden = torch.zeros(7, dtype=torch.bool).index_fill(0, torch.tensor(slots), True)
    if not torch.equal(given, mask):
        return "the mask that was given has changed: work on a copy, mask.clone()."
    if found.dtype != torch.bool:
        return f"the mask must stay True and False, not {found.dtype}: attention adds a mask of numbers."
    if found.shape != mask.shape:
        return f"the mask is {tuple(found.shape)}, not {tuple(mask.shape)}: a hidden slot stays, unseen."
    if torch.equal(found, mask & ~hidden):
        return ""
    if torch.equal(found, mask & hidden):
        return "that hides all other slots: these must become False."
    if torch.equal(found, mask):
        return "nothing is hidden."
    if (found & ~mask).any():
        return "tokens see slots that they did not see before."
    return "not yet: the last dimension counts slots; of all others nothing may change."


# Page 5


def judge_infix(read_infix: Callable[[GPT2, list[int], Tensor], Cache]) -> str:
    """Of [x; INFIX] in a tiny random model, whose separator is 0."""
    torch.manual_seed(0)
    lm = GPT2(GPT2Config(vocab_size=9, n_positions=20, n_embd=8, n_layer=2, n_head=2)).eval()
    for parameter in lm.parameters():
        parameter.data.normal_().requires_grad_(False)
    x, P = [5, 6, 7, 0], torch.randn(3, 2 * 2 * 8)
    cache = read_infix(lm, list(x), P)
    if not isinstance(cache, Cache):
        return "it must return the cache."

    def holds(*order: list[int] | Tensor) -> bool:
        wanted = lm.empty_cache(1)
        for part in order:
            wanted.splice(part) if isinstance(part, Tensor) else lm.hidden(torch.tensor([part]), wanted)
        return len(wanted) == len(cache) and torch.allclose(pack(wanted), pack(cache), atol=1e-4)

    if holds(x[:-1], P):
        return ""
    slips = {
        "that is a prefix: x was read behind it.": (P, x[:-1]),
        "that is a prefix: x was read behind it, and the separator too.": (P, x),
        "the separator was read before the infix: it predicts the first of y, and would not see it.": (x, P),
        "the separator is left to the caller, who reads it with y.": (x[:-1], P, x[-1:]),
        "the infix is missing.": (x[:-1],),
        "x is missing.": (P,),
    }
    told = [fault for fault, order in slips.items() if holds(*order)]
    return (
        told[0]
        if told
        else f"not yet: the cache has {len(cache)} slots, 6 are x's first three and the infix."
    )


JUDGES: dict[str, Callable[..., str]] = {
    "1.1": judge_sight,
    "1.2": partial(
        judge_number,
        100.66,
        {
            50.33: "half of it: a slot holds keys and values.",
            96: "that is with 2^20 bytes a megabyte: take 10^6.",
            100_663_296: "that is bytes: a megabyte has 10^6.",
            201.3: "twice too much: a number takes 2 bytes here.",
            0.0983: "that is one token: the text has 1024.",
            4.19: "that is one layer: there are 24.",
        },
    ),
    "1.3": partial(
        judge_choice,
        "h",
        {
            "z": "the tokens are the same ids.",
            "phi": "reading changes no weight: ask the optimizer to do that.",
        },
    ),
    "2.1": judge_mean,
    "2.2": partial(
        judge_number,
        9.011,
        {
            13: "that is bits: nats take the natural logarithm.",
            3.913: "that is the logarithm to the base 10: nats take the natural one.",
            -9.011: "that is log p: the loss is -log p.",
            8192: "that is how many tokens there are: each has the probability 1/8192.",
        },
    ),
    "2.3": partial(
        judge_choice,
        "never stop",
        {
            "stop at once": "it stops where <eos> is likely: what has taught it to say so?",
            "nothing": "which token would then tell it to stop?",
        },
    ),
    "splice": judge_splice,
    "targets": judge_targets,
    "3.1": partial(
        judge_number,
        245_760,
        {
            122_880: "half of it: a slot has keys and values.",
            49_152: "that is one slot: there are 5.",
            10_240: "that is one layer: there are 24.",
            491_520: "twice too much: 2 · 24 · 1024 numbers a slot.",
            983_040: "that is bytes, with 4 for a number.",
        },
    ),
    "3.2": partial(judge_choice, "same", {"different": "not yet: try it with P[[1, 0, *range(2, 10)]]."}),
    "3.3": partial(
        judge_number,
        36_864,
        {
            18_432: "that is one for each: Adam keeps two.",
            55_296: "two more, not three.",
            13_934_592: "that is for full fine-tuning: here only the prefix trains.",
        },
    ),
    "4.1": judge_without,
    "4.2": partial(
        judge_choice,
        "different",
        {"same": "not yet: try it; a slot whose value is zero still gets its share of attention."},
    ),
    "4.3": partial(
        judge_choice,
        "the head does not look at x",
        {
            "the values there are small": "attention times value is added: small values add little.",
            "other heads do the same": "what others do as well is not missed.",
        },
    ),
    "5.1": judge_infix,
    "5.2": partial(
        judge_number,
        10_240,
        {
            491_520: "that is a prefix: here only the embeddings are free.",
            1024: "that is one slot: there are 10.",
            245_760: "embeddings stand at the bottom only, not in each layer.",
        },
    ),
    "5.3": partial(
        judge_choice,
        "none",
        {
            "those of y": "y was read before the suffix came, and attention looks to the left.",
            "all": "x and y were read before the suffix came, and attention looks to the left.",
        },
    ),
}
