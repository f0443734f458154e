"""What models have in common: plain functions that they take as their methods.

They ask the model for `wte`, the embeddings of its tokens, and for `run_blocks`, what it computes of them.
x, y and their prefix are one text for a decoder-only model, so the order of the calls is the order of P_idx.
"""

from torch import Tensor

from minprefix.cache import Cache
from minprefix.layers import linear


def forward(lm, ids: Tensor, cache: Cache | None = None, attention_mask: Tensor | None = None) -> Tensor:
    """Logits (B, T, V) of the token after each of ids (B, T), long. attention_mask (B, T): 0 is padding."""
    return lm.logits(lm.hidden(ids, cache, attention_mask))


def hidden(
    lm,
    ids: Tensor | None,
    cache: Cache | None = None,
    attention_mask: Tensor | None = None,
    embeds: Tensor | None = None,
) -> Tensor:
    """Eq. 1 for new tokens -> the last layer (B, T, C); the other layers are in the cache.

    `embeds` (B, T, C) stand in for the ids' embeddings (Sec. 7.2). InputError past the last position.
    """
    x = lm.wte(ids) if embeds is None else embeds.to(lm.wte.weight.dtype)  # (B, T, C)
    cache = lm.empty_cache(len(x)) if cache is None else cache
    valid = x.new_ones(x.shape[:2]) if attention_mask is None else attention_mask
    positions, mask = cache.advance(valid.bool())  # (B, T), (B, 1, T, S)
    cache.check_positions(lm.config.n_positions)
    # Eq. 1: h_i = LM_phi(z_i, h_<i)
    return lm.run_blocks(x, positions, cache, mask)


def logits(lm, h: Tensor) -> Tensor:
    """Eq. 1: p(z_{i+1} | h_<=i) = softmax(W_phi h_i^(n)); returns W_phi h, (..., C) -> (..., V)."""
    return linear(h, lm.wte.weight if lm.config.tie_word_embeddings else lm.lm_head.weight)


def empty_cache(lm, batch: int) -> Cache:
    """h_<0: nothing has been read yet."""
    return Cache(batch, *lm.cache_shape, like=lm.wte.weight)


def site_widths(lm) -> dict[str, int]:
    """2·L·C for each place where a P_theta (P, 2·L·C) can be spliced."""
    L, H, D = lm.cache_shape
    return dict.fromkeys(("decoder", "infix"), 2 * L * H * D)


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


def move(lm, P_theta: Tensor, by: Tensor) -> Tensor:
    """P_theta as it is: where positions are learned, they are in the activations and cannot be changed."""
    return P_theta


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
