"""LM_phi, decoder-only: GPT-2, with the parameter names and layouts of its Hugging Face checkpoints."""

from collections import OrderedDict
from typing import ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from minprefix import decoder, layers
from minprefix.cache import Cache
from minprefix.checks import LENIENT
from minprefix.layers import Activation, Checkpoint, Conv1D, Depth, Embedding, Size, check_shape


@dataclass(frozen=True, config=LENIENT)
class GPT2Config(Checkpoint):
    """The shape of a GPT-2, keys as in config.json, of which some have two names."""

    unsaid: ClassVar = {"bos_token_id": 50256, "eos_token_id": 50256}
    vocab_size: Size
    n_positions: Size = layers.called("n_positions", "max_position_embeddings", default=1024)
    n_embd: Size = layers.called("n_embd", "hidden_size")
    n_layer: Depth = layers.called("n_layer", "num_hidden_layers")
    n_head: Size = layers.called("n_head", "num_attention_heads")
    n_inner: Size | None = None
    layer_norm_epsilon: float = Field(1e-5, gt=0, lt=1)
    activation_function: Activation = "gelu_new"
    tie_word_embeddings: bool = True
    scale_attn_weights: Literal[True] = True
    scale_attn_by_inverse_layer_idx: Literal[False] = False

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
        return self.c_proj(layers.attend(q, k, v, mask))  # (B, T, C)


class Block(nn.Module):
    def __init__(self, config: GPT2Config):
        super().__init__()
        n_embd, n_inner = config.n_embd, config.n_inner or 4 * config.n_embd
        self.ln_1 = nn.LayerNorm(n_embd, eps=config.layer_norm_epsilon)
        self.attn = Attention(config)
        self.ln_2 = nn.LayerNorm(n_embd, eps=config.layer_norm_epsilon)
        activation = layers.ACTIVATIONS[config.activation_function]
        self.mlp = nn.Sequential(
            OrderedDict(c_fc=Conv1D(n_embd, n_inner), act=activation, c_proj=Conv1D(n_inner, n_embd))
        )

    def forward(self, x: Tensor, layer: int, cache: Cache, mask: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x), layer, cache, mask)
        return x + self.mlp(self.ln_2(x))


class GPT2(nn.Module):
    """GPT-2 as the recurrence of Eq. 1: a call reads new tokens and adds what they compute to the cache.

    Prefix sites: "decoder" (before x) and "infix" (between x and y).
    """

    positions = "shifted"  # a prefix takes |P| positions, as the words would whose place it takes
    begins = " "  # y goes on in the text that x began
    embedding, always_tied, biases = "wte.weight", False, ()  # in files
    forward, hidden, logits = decoder.forward, decoder.hidden, decoder.logits
    empty_cache, site_widths, move = decoder.empty_cache, decoder.site_widths, decoder.move
    split, frame, read, read_words = decoder.split, decoder.frame, decoder.read, decoder.read_words

    def __init__(self, config: GPT2Config):
        super().__init__()
        self.config = config
        self.cache_shape = config.n_layer, config.n_head, config.n_embd // config.n_head  # L, H, D
        self.wte = Embedding(config.vocab_size, config.n_embd)
        self.wpe = Embedding(config.n_positions, config.n_embd)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)

    def run_blocks(self, x: Tensor, positions: Tensor, cache: Cache, mask: Tensor) -> Tensor:
        """x (B, T, C) at positions (B, T), whose tokens see mask (B, 1, T, S) -> the last layer (B, T, C)."""
        x = x + self.wpe(positions)
        for layer, block in enumerate(self.h):
            x = block(x, layer, cache, mask)
        return self.ln_f(x)

    def blocks(self) -> list[nn.Module]:
        """Where the adapters of Sec. 5.2 go: behind each of these."""
        return list(self.h)

    def last_blocks(self) -> list[nn.Module]:
        """What FT-top2 trains: the last two blocks and what normalises them."""
        return [*self.h[-2:], self.ln_f]
