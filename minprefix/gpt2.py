"""LM_phi, decoder-only: GPT-2, with the parameter names and layouts of its Hugging Face checkpoints."""

from typing import Literal

import torch.nn as nn
import torch.nn.functional as F
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from minprefix import decoder
from minprefix.cache import Cache
from minprefix.checks import LENIENT
from minprefix.layers import ACTIVATIONS, Activation, Conv1D, Depth, Embedding, Id, Size, check_shape


@dataclass(frozen=True, config=LENIENT)
class GPT2Config:
    """The shape of a GPT-2, keys as in config.json; name and fingerprint say which checkpoint it is."""

    vocab_size: Size
    n_positions: Size
    n_embd: Size
    n_layer: Depth
    n_head: Size
    n_inner: Size | None = None
    layer_norm_epsilon: float = Field(1e-5, gt=0, lt=1)
    activation_function: Activation = "gelu_new"
    tie_word_embeddings: bool = True
    scale_attn_weights: Literal[True] = True
    scale_attn_by_inverse_layer_idx: Literal[False] = False
    bos_token_id: Id = 0
    eos_token_id: Id = 0
    name: str = ""
    fingerprint: str = ""

    def __post_init__(self):
        check_shape(self, "n_embd", "n_head")


class Attention(nn.Module):
    def __init__(self, config: GPT2Config):
        super().__init__()
        self.n_head = config.n_head
        self.c_attn = Conv1D(config.n_embd, 3 * config.n_embd)
        self.c_proj = Conv1D(config.n_embd, config.n_embd)

    def forward(self, x: Tensor, layer: int, cache: Cache, mask: Tensor) -> Tensor:
        qkv = self.c_attn(x).unflatten(-1, (3, self.n_head, -1))  # (B, T, 3, H, D)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (B, H, T, D) each
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
    begins = " "  # y goes on in the text that x began
    forward, logits = decoder.forward, decoder.logits
    split, frame, read, read_words = decoder.split, decoder.frame, decoder.read, decoder.read_words

    def __init__(self, config: GPT2Config):
        super().__init__()
        self.config = config
        self.wte = Embedding(config.vocab_size, config.n_embd)
        self.wpe = Embedding(config.n_positions, config.n_embd)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)

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

    def empty_cache(self, batch: int) -> Cache:
        """h_<0: nothing has been read yet."""
        n_embd, n_head = self.config.n_embd, self.config.n_head
        return Cache(batch, self.config.n_layer, n_head, n_embd // n_head, like=self.wte.weight)

    def site_widths(self) -> dict[str, int]:
        """2·L·C for each place where a P_theta (P, 2·L·C) can be spliced."""
        return dict.fromkeys(("decoder", "infix"), 2 * self.config.n_layer * self.config.n_embd)

    def blocks(self) -> list[nn.Module]:
        """Where the adapters of Sec. 5.2 go: behind each of these."""
        return list(self.h)

    def last_blocks(self) -> list[nn.Module]:
        """What FT-top2 trains: the last two blocks and what normalises them."""
        return [*self.h[-2:], self.ln_f]
