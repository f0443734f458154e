"""What the notebooks share: the bundled model and sample, a training loop, attention weights, and colours.

Nothing here is of the method: that is minprefix, and each notebook links to its lines.
"""

# ruff: noqa: E402 (a warning of an import is silenced before it)

import itertools
import json
import math
import random
import statistics
import sys
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

warnings.filterwarnings("ignore", message="IProgress not found")  # of tqdm, which would like widgets

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from matplotlib.colors import LogNorm
from torch import Tensor

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))  # the editable install has minprefix and tasks, but not experiments

import minprefix
from minprefix.cache import Cache, pad_right
from minprefix.methods import IGNORED, compute_sites, distil_loss, make_theta, target_loss
from minprefix.texts import encode_source, encode_target
from tasks import find_files, list_pairs, pick, read_split

RESULTS = ROOT / "experiments" / "results"
# Told apart by the colour-blind and in grey print; the colours of experiments/figures.py.
ORANGE, YELLOW, BLUE, GREEN, GREY = "#d55e00", "#e69f00", "#0072b2", "#009e73", "#56565a"
plt.rcParams |= {"figure.dpi": 110, "font.size": 9, "axes.spines.top": False, "axes.spines.right": False}
plt.rcParams |= {"legend.frameon": False, "figure.constrained_layout.use": True, "image.cmap": "viridis"}


def load():
    """The bundled GPT-2, frozen, and its tokenizer."""
    return minprefix.load_lm("weights/gpt2-mini")


def read_sample(split: str, limit: int = 0, dataset: str = "e2e") -> list[tuple[str, str]]:
    """(x, y) of a bundled, made-up sample: all pairs, or `limit` of them spread evenly."""
    return pick(list_pairs(read_split(find_files(dataset, "sample"), split)), limit)


def encode(lm, tokenizer, texts: list[tuple[str, str]]) -> list[tuple[list[int], list[int]]]:
    """(x with its separator, y with its EOS) as ids."""
    return [(encode_source(lm, tokenizer, x), encode_target(lm, tokenizer, y)) for x, y in texts]


def words(tokenizer, ids: list[int]) -> list[str]:
    """Each token as it reads, for the axis of a picture."""
    named = {0: "<eos>"}
    return [named.get(id, tokenizer.decode([id])).strip() or "·" for id in ids]


def train(lm, theta, method: str, encoded: list, steps: int, lr: float, batch=4, seed=0, stop=None, ask=None):
    """AdamW, lr falling to 0 in a straight line -> the loss of each step (or of the first `stop`), nats.

    ask: of a batch, what its loss is in sum, and of how many; target_loss where nothing else is given.
    """
    ask = ask or (lambda batch: target_loss(lm, compute_sites(lm, method, theta), batch))
    rng = random.Random(seed)
    optimizer = torch.optim.AdamW(theta.parameters(), lr=lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    losses = []
    for _ in range(stop or steps):
        summed, tokens = ask(rng.sample(encoded, batch))
        optimizer.zero_grad()
        (summed / tokens).backward()
        optimizer.step()
        schedule.step()
        losses.append(summed.item() / tokens)
    return losses


@torch.no_grad()
def measure(lm, sites: dict[str, Tensor], encoded: list) -> float:
    """Mean loss of y's tokens, nats."""
    losses, tokens = zip(*(target_loss(lm, sites, encoded[i : i + 16]) for i in range(0, len(encoded), 16)))
    return float(sum(losses)) / sum(tokens)


@torch.no_grad()
def attention(lm, ids: list[int], cache: Cache) -> Tensor:
    """How much each of T tokens, read behind a one-row cache, attends to each slot: (L, H, T, S).

    The model fuses softmax(q k / sqrt(D)) into a call that keeps no weights; here q is caught on its way in.
    """
    caught: list[Tensor] = []
    hooks = [b.attn.c_attn.register_forward_hook(lambda _, __, out: caught.append(out)) for b in lm.h]
    lm.hidden(torch.tensor([ids]), cache)
    for hook in hooks:
        hook.remove()
    S, T, H = len(cache), len(ids), lm.config.n_head
    sees = torch.ones(T, S, dtype=torch.bool).tril(S - T)
    weights = []
    for qkv, k in zip(caught, cache.keys):
        q = qkv[0].chunk(3, -1)[0].unflatten(-1, (H, -1)).transpose(0, 1)  # (H, T, D)
        scores = q @ k[0].mT / k.shape[-1] ** 0.5  # (H, T, S)
        weights.append(scores.masked_fill(~sees, -torch.inf).softmax(-1))
    return torch.stack(weights)


def spread(values: list[float]) -> str:
    """The mean ± the standard deviation of several runs, or the words "one run"."""
    if len(values) == 1:
        return f"{values[0]:.2f} (one run)"
    return f"{statistics.mean(values):.2f} ± {statistics.stdev(values):.2f} ({len(values)} runs)"


def draw_bare(axes, bare: float, says: str = "no prefix") -> None:
    """The line that every comparison needs."""
    axes.axhline(bare, color=GREY, lw=1.2, ls=(0, (1, 1)))
    where = {"transform": axes.get_yaxis_transform(), "va": "bottom"}  # x from 0 to 1, y in nats
    axes.text(0.01, bare, says, color=GREY, fontsize=8, **where)


# Page 0: what three users' prefixes learn, and what stored runs of whole models reached.


def draw_users(losses: dict[str, list[float]], without: dict[str, float]) -> None:
    """Each user's training loss, and the same user's texts without a prefix as a line across; nats."""
    _, panels = plt.subplots(1, len(losses), figsize=(6.6, 2.2), sharey=True)
    panels[0].set(ylabel="nats a token", ylim=(0, 0.5 + max(without.values())))
    for axes, (user, curve), colour in zip(panels, losses.items(), (ORANGE, BLUE, GREEN)):
        axes.plot(curve, color=colour, lw=1)
        axes.axhline(without[user], color=GREY, ls="--", lw=1)
        axes.text(len(curve), without[user] + 0.1, "no prefix", ha="right", color=GREY)
        axes.set(title=user, xlabel="step of 2 pairs")


def draw_methods(scores: dict[str, dict[str, list[float]]]) -> None:
    """{model: {method: BLEU of each run}}: means as bars, runs as dots; the first method is a line across."""
    _, panels = plt.subplots(1, len(scores), figsize=(7, 2.6), sharey=True)
    for axes, (model, found) in zip(panels, scores.items()):
        means = {method: statistics.mean(values) for method, values in found.items()}
        axes.bar(list(means), list(means.values()), color=[GREY, ORANGE, BLUE], width=0.6)
        for x, values in enumerate(found.values()):
            axes.plot([x] * len(values), values, "o", color="black", ms=3)
            axes.text(x, max(values) + 2, f"{statistics.mean(values):.1f}", ha="center")
        axes.axhline(next(iter(means.values())), color=GREY, lw=1.2, ls=(0, (1, 1)))
        axes.set(title=model, ylim=(0, 80))
    panels[0].set_ylabel("test BLEU (dots: runs)")


# Pages 1 to 5

LOOKS = ((ORANGE, "o-"), (BLUE, "s--"), (GREEN, "^-."), (GREY, "D:"))  # of lines that share a picture


def draw_pieces(apart: dict[str, Tensor], cuts: list[int], changed: dict[str, Tensor]) -> None:
    """Page 1: for each cache, how far logits are apart, (texts, cuts): the median and the range of texts; and
    the share of guesses that are others, (texts,).
    """
    _, (left, right) = plt.subplots(1, 2, figsize=(7.6, 2.7))
    for row, ((name, found), (colour, style)) in enumerate(zip(apart.items(), LOOKS)):
        found = found.clamp(min=1e-6)  # for the axis; some are exactly 0
        left.plot(cuts, found.median(0).values, style, color=colour, label=name)
        left.fill_between(cuts, found.amin(0), found.amax(0), color=colour, alpha=0.15, lw=0)
        right.barh(row, 100 * changed[name].mean(), color=colour, xerr=100 * changed[name].std())
    left.set(yscale="log", xticks=cuts, xlabel="where the text is cut, %", ylim=(3e-7, 50))
    left.set_ylabel("largest change of a logit\nbehind the cut")
    right.set(
        yticks=range(len(apart)), yticklabels=list(apart), xlabel="guesses that change, %", xlim=(0, 100)
    )
    left.legend(fontsize=7, loc="center")
    right.invert_yaxis()


def draw_nats(nats: list[float], labels: list[str], in_y: list[bool]) -> None:
    """Page 2: what each token costs, and which of them are counted."""
    _, axes = plt.subplots(figsize=(7.6, 2.8))
    axes.bar(range(len(nats)), nats, color=[ORANGE if counted else "#c5c5c8" for counted in in_y], width=0.8)
    axes.bar(0, 0, color="#c5c5c8", label="x: read, not counted")
    axes.bar(0, 0, color=ORANGE, label="y: counted, Eq. 2")
    axes.set(xlim=(-0.7, len(labels) - 0.3), ylim=(0, 1.3 * max(nats)), xticks=range(len(nats)))
    axes.set_ylabel("$-\\log p(z_i \\mid h_{<i})$, nats")
    axes.set_xticklabels(labels, rotation=90, fontsize=7.5)
    axes.legend(ncols=2, loc="upper left")


def make_simple_task() -> tuple[list[tuple[str, str]], list[tuple[str, str]]]:
    """(x, y) texts for page 3: 144 known, and 24 new ones, whose names and foods no known one has."""
    names = ["The Blue Lantern", "Aromi", "The Old Mill", "Green Man", "The Harbour Inn", "Bistro Nine"]
    foods = ["French", "Chinese", "Thai", "Greek", "Japanese", "Spanish"]
    new_names, new_foods = ["Café Luna", "The Crown", "The Golden Swan"], ["Turkish", "Mexican"]
    areas = ["riverside", "city centre", "harbour", "old town"]
    known = [(name, food, area) for name in names for food in foods for area in areas]
    new = [(name, food, area) for name in new_names for food in new_foods for area in areas]
    x, y = "name : {} | food : {} | area : {}", "{} is a {} restaurant in the {}."
    return [(x.format(*facts), y.format(*facts)) for facts in known], [
        (x.format(*facts), y.format(*facts)) for facts in new
    ]


def draw_seeds(runs: list[list[float]], bare: float) -> None:
    """Page 3: losses of several seeds, step by step."""
    _, axes = plt.subplots(figsize=(5.6, 2.8))
    for losses, style in zip(runs, ("-", "--", ":")):
        axes.plot(range(1, len(losses) + 1), losses, style, color=ORANGE, lw=1.2)
    draw_bare(axes, bare)
    axes.set(xlabel="step of 4 pairs", ylabel="loss, nats a token of y", ylim=(0, None))
    axes.set_title("three seeds, solid, dashed and dotted", fontsize=9)


@contextmanager
def hide(lm, hidden: Tensor):
    """Within it, tokens do not see those of the first P slots that are hidden, (L, B, H, T, P) or ones for B,
    T.
    """

    def blind(_, given: tuple) -> tuple:
        x, layer, cache, mask = given
        P = hidden.shape[-1]
        seen = mask.expand(-1, lm.config.n_head, -1, -1).clone()  # (B, 1, T, S) -> (B, H, T, S)
        seen[..., :P] &= ~hidden[layer]
        return x, layer, cache, seen

    hooks = [block.attn.register_forward_pre_hook(blind) for block in lm.h]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def ablate(lm, P: Tensor, pairs: list, hidden=None, whom: str = "all", first_position: int = 0) -> Tensor:
    """Page 4: the loss of y's tokens of each pair, (B,), nats, behind a prefix of which a part is not seen.

    hidden (L, H, P): slots in layers and heads. whom: "x", what is read before y's first token is predicted;
    "y", the tokens that predict y; or "all". first_position: where the text begins.
    """
    z, real = pad_right([x + y[:-1] for x, y in pairs])  # (B, T)
    targets, _ = pad_right([[IGNORED] * (len(x) - 1) + y for x, y in pairs], IGNORED)
    in_y = targets != IGNORED  # (B, T)
    cache = lm.empty_cache(len(pairs))
    cache.splice(P)
    cache.next += first_position
    hidden = (
        torch.zeros(1, 1, len(P), dtype=torch.bool).expand(len(lm.h), -1, -1) if hidden is None else hidden
    )
    tokens = {"all": in_y | True, "x": ~in_y, "y": in_y}[whom]
    with hide(lm, hidden[:, None, :, None] & tokens[:, None, :, None]):  # (L, B, H, T, P)
        h = lm.hidden(z, cache, real)
    losses = F.cross_entropy(lm.logits(h[in_y]), targets[in_y], reduction="none")
    return torch.zeros(in_y.shape).masked_scatter(in_y, losses).sum(1) / in_y.sum(1)


@torch.no_grad()
def attend_to_prefix(lm, P: Tensor, pairs: list) -> Tensor:
    """Page 4: the share of attention that a prefix gets from the tokens that predict y: (L, H)."""
    shares = []
    for x, y in pairs:
        cache = lm.empty_cache(1)
        cache.splice(P)
        weights = attention(lm, x + y[:-1], cache)  # (L, H, T, S)
        shares.append(weights[:, :, len(x) - 1 :, : len(P)].sum(-1).mean(-1))
    return torch.stack(shares).mean(0)


def learn_simple_task(lm, tokenizer, seed: int, gaps: tuple[str, ...] = ()) -> Tensor:
    """P_theta (6, 2·L·C) of a prefix trained as on page 3; with gaps, each step hides layer 1 from one of
    them, chosen at random: from "x", "y", "all", or, if it is "", from nobody.
    """
    known = encode(lm, tokenizer, make_simple_task()[0])
    theta, rng = make_theta(lm, "prefix", 6, 0, tokenizer.encode("restaurant")), random.Random(seed)
    first = torch.zeros(len(lm.h), lm.config.n_head, 6, dtype=torch.bool)
    first[0] = True

    def ask(batch: list) -> tuple[Tensor, int]:
        whom = rng.choice(gaps)
        return ablate(lm, theta["decoder"](), batch, first & bool(whom), whom or "all").sum(), len(batch)

    train(lm, theta, "prefix", known, steps=60, lr=0.1, seed=seed, ask=ask if gaps else None)
    return theta["decoder"]().detach()


def rank(values: Tensor) -> Tensor:
    """0 for the smallest, 1 for the next, ..., in one row."""
    return values.flatten().argsort().argsort().float()


def show_error(values: Tensor) -> str:
    """The mean and its standard error."""
    return f"{values.mean():+.2f} ± {values.std() / len(values) ** 0.5:.2f}"


def draw_inside(share: Tensor, of_heads: Tensor, of_layers: Tensor, no_prefix: Tensor) -> None:
    """Page 4: y's attention (L, H), the cost of hiding (L, H), and in whole layers (L, records)."""
    _, axes = plt.subplots(1, 3, figsize=(8, 2.9), width_ratios=(1, 1, 1.3))
    L, H = share.shape
    titles = ("look: share of attention", "measure: cost, nats")
    for ax, numbers, title, form in zip(axes, (share, of_heads), titles, ("{:.0%}", "{:.2f}")):
        ax.imshow(numbers, origin="lower", cmap="cividis", vmin=0, aspect="auto")
        for layer, head in itertools.product(range(L), range(H)):
            colour = "white" if numbers[layer, head] < numbers.max() / 2 else "black"
            text = form.format(numbers[layer, head]).replace("-0.00", "0.00")
            ax.text(head, layer, text, ha="center", va="center", color=colour, fontsize=8)
        ax.set(title=title, xlabel="head", xticks=range(H), xticklabels=range(1, H + 1))
    errors = of_layers.std(1) / of_layers.shape[1] ** 0.5
    axes[2].barh(range(L), of_layers.mean(1), xerr=errors, color=ORANGE, height=0.7)
    axes[2].axvline(no_prefix.mean(), color=GREY, lw=1.2, ls=(0, (1, 1)))
    axes[2].text(no_prefix.mean(), L - 1, " no prefix", color=GREY, va="center")
    axes[2].set(
        title="hidden in one whole layer", xlabel="cost, nats (± standard error)", ylim=(-0.5, L - 0.5)
    )
    for ax in axes:
        ax.set(yticks=range(L), yticklabels=range(1, L + 1))
    axes[0].set_ylabel("layer")


def draw_reach(reached: dict[str, Tensor], orders: dict[str, str], free_layers: dict[str, int]) -> None:
    """Page 5: what moves when the free numbers do, (L + 1, slots) of each method; P_idx has a frame."""
    figure, axes = plt.subplots(1, len(reached), figsize=(7.8, 2.5), sharey=True)
    for ax, (method, change) in zip(axes, reached.items()):
        picture = ax.imshow(change, origin="lower", norm=LogNorm(1e-3, 1), cmap="viridis_r", aspect="auto")
        order = orders[method]
        corner = (order.index("P") - 0.5, -0.5)
        ax.add_patch(
            plt.Rectangle(corner, order.count("P"), free_layers[method], fill=False, ec=ORANGE, lw=2.5)
        )
        ax.set(title=method.replace("embedding", "embedding-only"), xticks=range(len(order)))
        ax.set_xticklabels(order, fontsize=7)
        ax.spines[:].set_visible(False)
    axes[0].set_yticks(range(len(change)), [*range(1, len(change)), "out"])
    axes[0].set_ylabel("layer")
    figure.colorbar(picture, ax=axes, label="relative change; white: 0")


def read_choices() -> tuple[dict[str, list[float]], float]:
    """Page 5: test BLEU on real E2E of each seed (of each prompt, for words), and without a prefix."""
    globs = {"embedding": "table5/embedding-10-0.01-*", "infix": "table5/infix-10-0.002-*"}
    globs = {"words": "table5/words-*-0.json"} | globs | {"prefix": "table2/e2e-prefix-0.002-*"}
    found = {
        choice: [json.loads(path.read_text())["test"]["BLEU"] for path in sorted(RESULTS.glob(pattern))]
        for choice, pattern in globs.items()
    }
    return found, json.loads((RESULTS / "table5/untuned-1e-09-0.json").read_text())["test"]["BLEU"]


def draw_choices(losses: dict[str, list[float]], bare_loss: float, bleu: dict[str, list[float]], bare: float):
    """Page 5: each run a dot, their mean a line; beside them the line without a prefix."""
    _, axes = plt.subplots(1, 2, figsize=(7.4, 2.7))
    panels = ((losses, bare_loss, "dev loss, nats a token"), (bleu, bare, "test BLEU, real E2E"))
    for ax, (found, level, label), arrow in zip(axes, panels, ("lower is better", "higher is better")):
        for place, (values, (colour, style)) in enumerate(zip(found.values(), LOOKS[::-1])):
            ax.plot([place] * len(values), values, style[0], color=colour, alpha=0.7)
            ax.hlines(sum(values) / len(values), place - 0.25, place + 0.25, color=colour, lw=2)
        draw_bare(ax, level)
        top = 1.15 * max(level, *itertools.chain(*found.values()))
        ax.set(ylabel=label, title=arrow, xlim=(-1.2, len(found) - 0.4), ylim=(0, top))
        ax.set_xticks(range(len(found)), [name.replace("embedding", "embedding-\nonly") for name in found])


# Pages 6 to 9


def check_answer(answer, right, hint: str) -> None:
    """Prints whether the answer to an exercise is right; ... is one not given yet."""
    if answer is ...:
        print("put your answer in the place of ...")
    else:
        print("right" if is_right(answer, right) else f"not yet: {hint}")


def is_right(answer, right) -> bool:
    """Numbers within 2%, tensors within a thousandth, words as they are."""
    if torch.is_tensor(right):
        alike = torch.is_tensor(answer) and answer.shape == right.shape
        return alike and torch.allclose(answer, right, rtol=1e-3)
    if isinstance(right, str):
        return isinstance(answer, str) and answer == right
    return isinstance(answer, int | float) and math.isclose(answer, right, rel_tol=0.02)


def draw_spread(axes, values: dict[float, list[float]], label: str, colour: str, style: str) -> None:
    """A line through the mean at each x, with the range of the runs."""
    means = [statistics.mean(found) for found in values.values()]
    axes.plot(list(values), means, style, color=colour, label=label)
    axes.vlines(list(values), list(map(min, values.values())), list(map(max, values.values())), color=colour)


def draw_training(found: dict[str, dict[int, list[float]]], bare: float) -> None:
    """Page 6: dev loss after so many steps, for each way to train."""
    looks = {"mlp, random": (ORANGE, "o--"), "mlp, words": (ORANGE, "o-")}
    looks |= {"direct, random": (YELLOW, "s--"), "direct, words": (YELLOW, "s-")}
    figure, axes = plt.subplots(figsize=(6, 3.2))
    for way, values in found.items():
        draw_spread(axes, values, way, *looks[way])
    steps = list(next(iter(found.values())))
    axes.set(xscale="log", xticks=steps, xticklabels=steps, xlabel="steps of 4 pairs, 100 pairs")
    axes.set(ylabel="dev loss, nats a token\n(mean and range of the seeds)")
    axes.minorticks_off()
    draw_bare(axes, bare)
    figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", fontsize=8, handlelength=4)


def draw_batch(real: Tensor, longest: int, names: list[str]) -> None:
    """Page 7: the slots of a batch, real (B, S): prefixes of at most `longest`, then x; padding is white."""
    kind = real.float() * 2  # padding 0, x 2
    kind[:, :longest] /= 2  # prefix 1
    _, axes = plt.subplots(figsize=(6.4, 1.8))
    axes.imshow(kind, cmap=plt.matplotlib.colors.ListedColormap(["white", ORANGE, "#9fb4c7"]), aspect="auto")
    label_slots(axes, *kind.shape)
    axes.set(xlabel="slot of the cache", yticks=range(len(names)), yticklabels=names)
    axes.set_title("orange: prefix, blue-grey: x, white: padding, seen by nobody", fontsize=9)


def label_slots(axes, rows: int, slots: int) -> None:
    """Counts slots from 1, with white lines between them."""
    axes.set_xticks(range(0, slots, 4), range(1, slots + 1, 4))
    axes.set_xticks([i - 0.5 for i in range(1, slots)], minor=True)
    axes.set_yticks([i - 0.5 for i in range(1, rows)], minor=True)
    axes.grid(which="minor", color="white", lw=0.8)
    axes.tick_params(which="minor", length=0)


def read_ensemble() -> tuple[list[float], float]:
    """Page 7: test BLEU of five seeds one by one, and together, as experiments/ensemble.py left them."""
    systems = json.loads((RESULTS / "ensemble" / "200-40.json").read_text())["systems"]
    found = {name: system["test BLEU"] for name, system in systems.items()}
    return [bleu for name, bleu in found.items() if name != "ensemble"], found["ensemble"]


def draw_two_curves(curves: dict[str, list[float]], bare: float) -> None:
    """Page 9: the losses of two trainings, step by step; the second is dashed, on top of the first."""
    _, axes = plt.subplots(figsize=(5, 2.8))
    looks = ({"color": ORANGE, "lw": 4, "alpha": 0.5}, {"color": "black", "lw": 1.2, "ls": "--"})
    for (name, losses), look in zip(curves.items(), looks):
        axes.plot(range(1, len(losses) + 1), losses, label=name, **look)
    draw_bare(axes, bare)
    axes.set(xlabel="step of 4 pairs", ylabel="loss, nats a token", ylim=(0, None))
    axes.legend()


def show_interval(mean: float, half: float | None, runs: int) -> str:
    """A mean difference and half of its 95% interval, as experiments.claims.summarise gives them."""
    if half is None:
        return f"{mean:+.1f} ({'one run' if runs == 1 else f'{runs} runs'}, no interval)"
    return f"{mean:+.1f} ± {half:.1f} ({runs} runs)"


def draw_paper(curves: dict, none: dict[str, float], paper: dict[str, float], low_data: float) -> None:
    """Page 8: prefix - full fine-tuning in BLEU, over pairs, for each model; hollow: fewer than three runs.

    curves: {model: {pairs, "epochs", "unseen" or "unseen, epochs": (mean, half of the interval or None)}};
    none: {model: with nothing trained}; paper: its differences, of which low_data is that with few pairs.
    """
    _, axes = plt.subplots(figsize=(7.2, 3.8))
    last = {"all": "all,\n300 steps", "epochs": "all, five\nepochs"}
    last |= {"unseen": "unseen,\n300 steps", "unseen, epochs": "unseen,\nfive epochs"}
    places = {pairs: x for x, pairs in enumerate(("50", "100", "200", "500", *last))}
    for shift, (model, curve), colour, mark in zip((-0.06, 0.06), curves.items(), (ORANGE, BLUE), "os"):
        found = [(places[pairs] + shift, *interval) for pairs, interval in curve.items()]
        among = [point for pairs, point in zip(curve, found) if "unseen" not in pairs]
        axes.plot([x for x, *_ in among], [mean for _, mean, _ in among], "-", color=colour, lw=1)
        for x, mean, half in found:
            fill = colour if half else "white"
            axes.errorbar(x, mean, half or 0, fmt=mark, color=colour, mfc=fill, capsize=3)
        axes.plot([], [], f"{mark}-", color=colour, label=model)
        draw_bare(axes, none[model], f"no prefix, {model}, E2E")
    axes.plot([places["50"], places["500"]], [low_data] * 2, color=GREEN, lw=3)
    axes.plot([places[name] for name in paper], list(paper.values()), "D", color=GREEN)
    axes.plot([], [], "D-", color=GREEN, label="GPT-2 medium, the paper's (few pairs: their mean)")
    axes.axhline(0, color="black", lw=0.8)
    axes.set(xticks=list(places.values()), xticklabels=[last.get(name, name) for name in places])
    axes.set_xlabel("training pairs of E2E; on the right WebNLG, unseen categories")
    axes.set_ylabel("BLEU, prefix - full fine-tuning\n(mean and 95% interval)")
    axes.legend(fontsize=8, loc=(0.02, 0.33))


def draw_sites() -> None:
    """Page A: where BART attends, and where a prefix can stand."""
    _, axes = plt.subplots(figsize=(7, 3))
    for x, names in ((1.8, ["self-attention", "MLP"]), (7.2, ["self-attention", "cross-attention", "MLP"])):
        for level, name in enumerate(names):
            draw_box(axes, x, 1.2 + 1.1 * level, name)
            draw_arrow(axes, (x, 0.45 + 1.1 * level), (x, 0.85 + 1.1 * level))
    for x, y, name in ((-0.6, 1.2, "encoder"), (4.75, 1.2, "decoder"), (4.75, 3.1, "cross")):
        draw_box(axes, x, y, f"P: {name}", ORANGE, 1.5, 0.5)
        draw_arrow(axes, (x + 0.75, y), (x + 1.45, 2.45 if name == "cross" else y), color=ORANGE, lw=2)
    draw_arrow(axes, (2.8, 2.25), (6.2, 2.25))
    draw_arrow(axes, (7.2, 3.75), (7.2, 3.95))
    says = ((4.5, 2.35, "of the last layer: keys, values"), (1.8, 2.85, "encoder: 4 such layers"))
    says += ((7.2, 4.5, "decoder: 4 such layers"), (7.2, 4.05, "next token"))
    says += ((1.8, 0.25, "x, read in both directions"), (7.2, 0.25, "y, from left to right"))
    for x, y, text in says:
        axes.text(x, y, text, ha="center", fontsize=8)
    axes.set(xlim=(-1.6, 8.6), ylim=(0, 4.8))
    axes.axis("off")


def draw_box(axes, x: float, y: float, text: str, colour="white", width=2.0, height=0.7) -> None:
    axes.add_patch(plt.Rectangle((x - width / 2, y - height / 2), width, height, fc=colour, ec=GREY, lw=1.2))
    axes.text(x, y, text, ha="center", va="center", fontsize=9)


def draw_arrow(axes, start: tuple[float, float], end: tuple[float, float], **look) -> None:
    axes.annotate("", end, start, arrowprops={"arrowstyle": "->", **look})


def slots_of(cache: Cache, count: int) -> Tensor:
    """The keys and values of the first row's last slots: (L, count, 2·C)."""
    both = [torch.cat((k[0], v[0]), -1) for k, v in zip(cache.keys, cache.values)]  # (H, S, 2D)
    return torch.stack(both).transpose(1, 2).flatten(2)[:, -count:]


def draw_changes(changes: dict[tuple[str, str], Tensor]) -> None:
    """Page A: {(site, part): relative change of its activations (layers, slots)}; white: 0."""
    sites, parts = (list(dict.fromkeys(names)) for names in zip(*changes))
    figure, axes = plt.subplots(len(sites), len(parts), figsize=(7, 4.6))
    for (site, part), change in changes.items():
        ax = axes[sites.index(site), parts.index(part)]
        look = {"norm": LogNorm(1e-4, 0.03), "cmap": "viridis_r", "aspect": "auto", "origin": "lower"}
        picture = ax.imshow(change, **look)
        ax.set(xticks=[], yticks=range(len(change)), yticklabels=range(1, len(change) + 1))
    for ax, part in zip(axes[0], parts):
        ax.set_title(part + ("\noutputs" if part.startswith("encoder") else "\nkeys and values"), fontsize=9)
    for row, site in zip(axes, sites):
        row[0].set_ylabel(f"P: {site}\nlayer")
    for ax in axes[-1]:
        ax.set_xlabel("token")
    figure.colorbar(picture, ax=axes, label="relative change; white: 0")


def draw_site_losses(losses: dict[str, list[float]], bare: float) -> None:
    """Page A: dev loss with a prefix at one site or at all, each seed a dot."""
    _, axes = plt.subplots(figsize=(5, 2.6))
    for i, (found, colour) in enumerate(zip(losses.values(), (BLUE, GREEN, YELLOW, ORANGE))):
        axes.bar(i, statistics.mean(found), 0.6, color=colour)
        axes.plot([i] * len(found), found, "o", color="black", ms=3)
    axes.set_xticks(range(len(losses)), list(losses))
    axes.set(ylabel="dev loss, nats a token\n(dots: seeds)", ylim=(0, 1.2 * bare))
    draw_bare(axes, bare)


def listen(*arguments, **options) -> tuple[list, list]:
    """Page B: runs generate -> for each step the scores, parents and tokens of the best 2K candidates, and
    for each call of the model the positions (K,) of its tokens and what they see, (K, S).
    """
    module = sys.modules["minprefix.generate"]  # the name minprefix.generate is the function
    trace, seen, propose, advance = [], [], module.propose, Cache.advance

    def note_candidates(*given):
        found = propose(*given)
        trace.append([part[0].tolist() for part in found])
        return found

    def note_mask(cache, valid):
        positions, mask = advance(cache, valid)
        seen.append((positions[0], mask[0, 0]))
        return positions, mask

    with patch.object(module, "propose", note_candidates), patch.object(Cache, "advance", note_mask):
        minprefix.generate(*arguments, **options)
    return trace, seen


def draw_tree(axes, trace: list, K: int, name_of: Callable[[int], str], eos: int, start: str) -> None:
    """Page B: candidates from left to right; K of them go on, some end, the others are dropped."""
    parents_at = {0: (0.0, 0.0)}
    box = {"boxstyle": "round", "fc": "white", "lw": 1.5}
    axes.text(0, 0, start, ha="center", va="center", bbox=box | {"ec": GREY})
    for step, candidates in enumerate(trace, 1):
        likely = [c for c in zip(*candidates) if c[0] > -15 and c[1] in parents_at]
        going: dict[int, tuple[float, float]] = {}
        for rank, (score, parent, token) in enumerate(likely):
            place, alive = (step, 1.2 - rank), token != eos and len(going) < K
            colour = BLUE if token == eos else ORANGE if alive else "#b8b8bc"
            axes.plot(*zip(parents_at[parent], place), color=colour, lw=1.8 if alive else 1.0, zorder=0)
            label = {"s": f"{name_of(token)}\n{score:.2f}", "fontsize": 8, "bbox": box | {"ec": colour}}
            axes.text(*place, ha="center", va="center", **label)
            if alive:
                going[len(going)] = place
        parents_at = going
    axes.set(xlim=(-0.4, len(trace) + 0.4), xlabel="step", xticks=range(len(trace) + 1), yticks=[])
    axes.spines["left"].set_visible(False)
    axes.set_title("numbers: sum of log p.  orange: goes on, blue: has ended, grey: dropped", fontsize=9)


def draw_alphas(log_p: dict[str, float], tie: float) -> None:
    """Page B: the score of each text over alpha."""
    alphas = torch.linspace(0, 1.5, 61)
    _, axes = plt.subplots(figsize=(5, 2.8))
    for (text, summed), look in zip(log_p.items(), ((BLUE, "-"), (ORANGE, "--"), (GREY, ":"))):
        score = summed / (len(text.split()) + 1) ** alphas
        axes.plot(alphas, score, color=look[0], ls=look[1], label=text)
    axes.axvline(tie, color="black", lw=0.7)
    axes.text(tie + 0.02, -2.05, f"tie at {tie:.2f}")
    axes.set(xlabel="length penalty α", ylabel="score, $\\sum \\log p\\; / \\,|y|^α$")
    axes.legend()


def draw_mask(mask: Tensor, source: int) -> None:
    """Page B: which slots each of K beams sees, (K, S), behind `source` slots of the prompt."""
    K, slots = mask.shape
    _, axes = plt.subplots(figsize=(6.6, 1.9))
    axes.imshow(mask, cmap="Greys", vmin=0, vmax=1.3, aspect="auto")
    for slot in range(source, slots + 1, K):
        axes.axvline(slot - 0.5, color=ORANGE, lw=1.5)
    label_slots(axes, K, slots)
    axes.set(xlabel="slot of the cache", ylabel="beam", yticks=range(K), yticklabels=range(1, K + 1))
    axes.set_title("dark: seen.  left of the first line the prompt, then K slots a step", fontsize=9)


def draw_scores(drawn: dict[str, list[float]], found: dict[str, float]) -> None:
    """Page B: the mean log p of drawn texts as bars, of searched ones as lines."""
    _, axes = plt.subplots(figsize=(6.2, 2.6))
    bins = torch.linspace(-7, 0, 29).tolist()
    looks = ({"color": "#c5c5c8"}, {"histtype": "step", "color": GREEN, "lw": 1.8})
    for (name, scores), look in zip(drawn.items(), looks):
        axes.hist(scores, bins, label=name, **look)
    for (name, score), colour, style in zip(
        found.items(), ("black", BLUE, ORANGE, YELLOW), ("-", "--", "-.", ":")
    ):
        axes.axvline(score, color=colour, ls=style, lw=1.6, label=f"{name}: {score:.2f}")
    axes.set(xlabel="mean log p of a token, nats", ylabel="texts")
    axes.legend(fontsize=7.5, loc="upper left")


# Page 10


def distil(lm, theta, teacher: dict[str, Tensor], encoded: list, steps: int, lr: float, batch=4, frozen=1):
    """Trains theta to say what the model says behind the teacher's prefix -> the KL of each step, nats.

    The first `frozen` slots stay as they are.
    """
    rng, P = random.Random(0), theta["decoder"].P
    optimizer = torch.optim.AdamW([P], lr=lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    losses = []
    for _ in range(steps):
        kl = distil_loss(lm, compute_sites(lm, "prefix", theta), teacher, rng.sample(encoded, batch)).mean()
        optimizer.zero_grad()
        kl.backward()
        P.grad[:frozen] = 0
        optimizer.step()
        schedule.step()
        losses.append(kl.item())
    return losses


def read_cells(model: str, part: str) -> dict[str, dict]:
    """What `python -m experiments.cartridges PART MODEL` has left: {cell: its figures}."""
    folder = RESULTS / "cartridges" / model / part
    paths = [path for path in sorted(folder.glob("*.json")) if path.stem != "teacher"]
    return {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in paths}


def pool(cells: dict[str, dict], key: str) -> dict[str, dict[int, list[float]]]:
    """{kind: {slots: a figure of each seed}} of read_cells."""
    found: dict[str, dict[int, list[float]]] = {}
    for name, cell in cells.items():
        if key in cell:  # older runs have fewer figures
            found.setdefault(name.split("-")[0], {}).setdefault(cell["slots"], []).append(cell[key])
    return found


FRONTS = {"nothing": GREY, "whole": GREEN}
KINDS = ("first", "every", "distil", "spread", "free", "long", "weighted", "single", "both")
KINDS += ("pairs", "freepairs")
# What trains, by the kinds of experiments/cartridges.py: name, colour and line.
PROMPTS = {"distil": ("distilled", ORANGE, "o-"), "free": ("distilled, first slot free", GREEN, "v-")}
PROMPTS |= {"pairs": ("Eq. 2 on the pairs", BLUE, "s--")}
PROMPTS |= {"freepairs": ("Eq. 2, first slot free", "#56b4e9", "D--")}
DOCUMENTS = {"first": ("first tokens", BLUE, "s--"), "every": ("every k-th token", GREY, "^--")}
DOCUMENTS |= {"distil": ("distilled from the first", ORANGE, "o-")}
DOCUMENTS |= {"spread": ("distilled from every k-th", YELLOW, "D-"), "free": ("first slot free", GREEN, "v-")}
DOCUMENTS |= {"long": ("four times the steps", "black", "x-")}


def draw_by_slots(cells: dict[str, dict], key: str, label: str, kinds: dict[str, tuple], ax) -> None:
    """A figure of read_cells by slots, mean of the seeds ± their deviation; whole and nothing are lines."""
    found, ticks = pool(cells, key), set()
    for kind, (name, colour, style) in kinds.items():
        runs = dict(sorted(found.get(kind, {}).items()))
        means, ticks = [statistics.mean(run) for run in runs.values()], ticks | set(runs)
        deviations = [statistics.stdev(run) if len(run) > 1 else 0 for run in runs.values()]
        if runs:
            ax.errorbar(list(runs), means, deviations, fmt=style, color=colour, label=name, ms=4, capsize=2)
    for kind, colour in FRONTS.items():
        for slots, [value] in found.get(kind, {}).items():
            ax.axhline(value, color=colour, ls=":", label=f"{kind} ({slots} slots)")
    ax.set(xlabel="slots", ylabel=label, xscale="log", xticks=sorted(ticks), xticklabels=sorted(ticks))
    ax.minorticks_off()


def list_figures(cells: dict[str, dict], key: str, form: str = ".2f") -> str:
    """A figure of read_cells: a line for each kind, a column for each number of slots, mean ± deviation."""
    found = pool(cells, key)
    ends = [f"{kind} {value:{form}}" for kind in FRONTS for [value] in found.get(kind, {}).values()]
    kinds = {kind: found[kind] for kind in KINDS if kind in found}
    columns = sorted({slots for runs in kinds.values() for slots in runs})
    lines = [f"{key} ({', '.join(ends)})", f"{'slots':<12}" + "".join(f"{slots:>15}" for slots in columns)]
    for kind, runs in kinds.items():
        texts = [say(runs[slots], form) if slots in runs else "-" for slots in columns]
        lines.append(f"{kind:<12}" + "".join(f"{text:>15}" for text in texts))
    return "\n".join(lines)


def say(runs: list[float], form: str) -> str:
    """The mean of several seeds ± their deviation, or the one figure there is."""
    mean = format(statistics.mean(runs), form)
    return f"{mean} ± {statistics.stdev(runs):{form}}" if len(runs) > 1 else mean
