"""What the notebooks share: the bundled model and sample, a training loop, attention weights, and colours.

Nothing here is of the method: that is minprefix, and each notebook links to its lines.
"""

# ruff: noqa: E402 (a warning of an import is silenced before it)

import random
import warnings

warnings.filterwarnings("ignore", message="IProgress not found")  # of tqdm, which would like widgets

import matplotlib.pyplot as plt
import torch
from torch import Tensor

import minprefix
from minprefix.cache import Cache
from minprefix.methods import compute_sites, target_loss
from minprefix.texts import encode_source, encode_target
from tasks import find_files, list_pairs, pick, read_split

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


def train(lm, theta, method: str, encoded: list, steps: int, lr: float, batch=4, seed=0, stop=None):
    """AdamW, lr falling to 0 in a straight line -> the loss of each step (or of the first `stop`), nats."""
    rng = random.Random(seed)
    optimizer = torch.optim.AdamW(theta.parameters(), lr=lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, steps)
    losses = []
    for _ in range(stop or steps):
        summed, tokens = target_loss(lm, compute_sites(lm, method, theta), rng.sample(encoded, batch))
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
