"""LM_phi, decoder-only: GPT-2, with the parameter names and layouts of its Hugging Face checkpoints."""

from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from minprefix.activations import ACTIVATIONS
from minprefix.cache import Cache
from minprefix.linear import linear, make_embedding, make_weight


@dataclass(frozen=True)
class GPT2Config:
    """The shape of a GPT-2, keys as in config.json; name and fingerprint say which checkpoint it is."""

    vocab_size: int
    n_positions: int
    n_embd: int
    n_layer: int
    n_head: int
    n_inner: int | None = None
    layer_norm_epsilon: float = 1e-5
    activation_function: str = "gelu_new"
    tie_word_embeddings: bool = True
    bos_token_id: int = 0
    eos_token_id: int = 0
    name: str = ""
    fingerprint: str = ""


class Conv1D(nn.Module):
    """A linear map that stores its weight as (in, out), as GPT-2's checkpoints do."""

    def __init__(self, n_in: int, n_out: int):
        super().__init__()
        self.weight = make_weight(n_in, n_out)
        self.bias = nn.Parameter(torch.zeros(n_out))

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight.T, self.bias)


class Attention(nn.Module):
    def __init__(self, config: GPT2Config):
        super().__init__()
        self.n_head = config.n_head
        self.c_attn = Conv1D(config.n_embd, 3 * config.n_embd)
        self.c_proj = Conv1D(config.n_embd, config.n_embd)

    def forward(self, x: Tensor, layer: int, cache: Cache, mask: Tensor) -> Tensor:
        q, k, v = (
            self.c_attn(x).unflatten(-1, (3, self.n_head, -1)).permute(2, 0, 3, 1, 4)
        )  # (B, H, T, D) each
        k, v = cache.append(layer, k, v)  # (B, H, S, D)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)  # (B, H, T, D)
        return self.c_proj(y.transpose(1, 2).flatten(2))  # (B, T, C)


class MLP(nn.Module):
    def __init__(self, config: GPT2Config):
        super().__init__()
        n_inner = config.n_inner or 4 * config.n_embd
        self.c_fc = Conv1D(config.n_embd, n_inner)
        self.c_proj = Conv1D(n_inner, config.n_embd)
        self.activation = ACTIVATIONS[config.activation_function]

    def forward(self, x: Tensor) -> Tensor:
        return self.c_proj(self.activation(self.c_fc(x)))


class Block(nn.Module):
    def __init__(self, config: GPT2Config):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.attn = Attention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, layer: int, cache: Cache, mask: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x), layer, cache, mask)
        return x + self.mlp(self.ln_2(x))


class GPT2(nn.Module):
    """GPT-2 as the recurrence of Eq. 1: a call reads new tokens and adds what they compute to the cache.

    Prefix sites: "decoder" (before x) and "infix" (between x and y).
    """

    positions = "shifted"  # a prefix takes |P| positions, as the words would whose place it takes

    def __init__(self, config: GPT2Config):
        super().__init__()
        self.config = config
        self.wte = make_embedding(config.vocab_size, config.n_embd)
        self.wpe = make_embedding(config.n_positions, config.n_embd)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)

    def forward(
        self, ids: Tensor, cache: Cache | None = None, attention_mask: Tensor | None = None
    ) -> Tensor:
        """Logits (B, T, V) of the token after each of ids (B, T), long. attention_mask (B, T): 0 marks
        padding.
        """
        return self.logits(self.hidden(ids, cache, attention_mask))

    def hidden(
        self,
        ids: Tensor | None,
        cache: Cache | None = None,
        attention_mask: Tensor | None = None,
        embeds: Tensor | None = None,
    ) -> Tensor:
        """Eq. 1, h_i = LM_phi(z_i, h_<i) -> its last layer (B, T, C); the other layers are in the cache.

        `embeds` (B, T, C) stand in for the ids' embeddings (Sec. 7.2). InputError past the last position.
        """
        x = self.wte(ids) if embeds is None else embeds.to(self.wte.weight.dtype)  # (B, T, C)
        cache = self.empty_cache(len(x)) if cache is None else cache
        valid = x.new_ones(x.shape[:2]) if attention_mask is None else attention_mask
        positions, mask = cache.advance(valid.bool())  # (B, T), (B, 1, T, S)
        cache.check_positions(self.config.n_positions)
        x = x + self.wpe(positions)
        # Eq. 1: h_i = LM_phi(z_i, h_<i)
        for layer, block in enumerate(self.h):
            x = block(x, layer, cache, mask)
        return self.ln_f(x)

    def logits(self, h: Tensor) -> Tensor:
        """Eq. 1: p(z_{i+1} | h_<=i) = softmax(W_phi h_i^(n)); returns W_phi h, (..., C) -> (..., V)."""
        return linear(h, self.wte.weight if self.config.tie_word_embeddings else self.lm_head.weight)

    def empty_cache(self, batch: int) -> Cache:
        """h_<0: nothing has been read yet."""
        n_embd, n_head = self.config.n_embd, self.config.n_head
        return Cache(batch, self.config.n_layer, n_head, n_embd // n_head, like=self.wte.weight)

    def split(self, source: list[int]) -> tuple[list[int], list[int]]:
        """What to read, and the token from which to continue: the source's last, so that an infix lies before
        it.
        """
        return source[:-1], source[-1:]

    def read(self, x: Tensor, mask: Tensor, prefixes: dict[str, tuple[Tensor, Tensor | None]]) -> Cache:
        """Reads a condition, x (B, T) with its mask (B, T) and prefixes -> the cache from which y is
        continued.

        The order of the calls is the order of P_idx: [PREFIX; x; y] (Eq. 3) and [x; INFIX; y] (Sec. 7.3).
        """
        cache = self.empty_cache(len(x))
        if "decoder" in prefixes:
            cache.splice(*prefixes["decoder"])
        if x.shape[1]:
            self.hidden(x, cache, mask)
        if "infix" in prefixes:
            cache.splice(*prefixes["infix"])
        return cache

    def read_words(self, embeds: Tensor) -> dict[str, Cache]:
        """Reads words alone, given as embeds (P, C) -> for each prefix site, a cache that holds them."""
        cache = self.empty_cache(1)
        self.hidden(None, cache, embeds=embeds[None])
        return {"decoder": cache, "infix": cache}

    def site_widths(self) -> dict[str, int]:
        """2·L·C for each place where a P_theta (P, 2·L·C) can be spliced."""
        return dict.fromkeys(("decoder", "infix"), 2 * self.config.n_layer * self.config.n_embd)

    def count_positions(self, prefix: int, source: int, target: int) -> int:
        """How many positions a text takes whose parts are so long."""
        return prefix + source + target
