"""What decoder-only models have in common: methods of theirs that ask for `hidden`, `wte` and an empty cache.

x, y and their prefix are one text for them, so the order of the calls is the order of P_idx.
"""

from torch import Tensor

from minprefix.cache import Cache
from minprefix.layers import linear


def forward(lm, ids: Tensor, cache: Cache | None = None, attention_mask: Tensor | None = None) -> Tensor:
    """Logits (B, T, V) of the token after each of ids (B, T), long. attention_mask (B, T): 0 is padding."""
    return lm.logits(lm.hidden(ids, cache, attention_mask))


def logits(lm, h: Tensor) -> Tensor:
    """Eq. 1: p(z_{i+1} | h_<=i) = softmax(W_phi h_i^(n)); returns W_phi h, (..., C) -> (..., V)."""
    return linear(h, lm.wte.weight if lm.config.tie_word_embeddings else lm.lm_head.weight)


def read(lm, x: Tensor, mask: Tensor, prefixes: dict[str, tuple[Tensor, Tensor | None]]) -> Cache:
    """Reads a condition, x (B, T) with its mask (B, T) and prefixes -> the cache from which y is continued:
    [PREFIX; x; y] (Eq. 3) or [x; INFIX; y] (Sec. 7.3).
    """
    cache = lm.empty_cache(len(x))
    if "decoder" in prefixes:
        cache.splice(*prefixes["decoder"])
    if x.shape[1]:
        lm.hidden(x, cache, mask)
    if "infix" in prefixes:
        cache.splice(*prefixes["infix"])
    return cache


def read_words(lm, embeds: Tensor) -> dict[str, Cache]:
    """Reads words alone, given as embeds (P, C) -> for each prefix site, a cache that holds them."""
    cache = lm.empty_cache(1)
    lm.hidden(None, cache, embeds=embeds[None])
    return {"decoder": cache, "infix": cache}


def split(lm, source: list[int], apart: bool = True) -> tuple[list[int], list[int]]:
    """What to read, and what to go on from: the last token, so that an infix lies before it.

    Where nothing has to come between (`apart` is False) the source is not read by itself, but with y in one
    call: every call reads all weights.
    """
    end = len(source) - 1 if apart else 0
    return source[:end], source[end:]


def frame(lm, ids: list[int], is_target: bool) -> list[int]:
    """Around a source: ids(x), BOS, the separator from which y goes on; around y: ids(" " + y), EOS."""
    return [*ids, lm.config.eos_token_id if is_target else lm.config.bos_token_id]
