"""LM_phi, decoder-only: Llama (SmolLM2 is one), with the parameter names of its Hugging Face checkpoints."""

from operator import attrgetter
from typing import Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from minprefix import decoder, layers
from minprefix.cache import Cache
from minprefix.checks import LENIENT, STRICT, InputError, build
from minprefix.layers import Activation, Checkpoint, Depth, Embedding, Id, Linear, Size, check_shape


@dataclass(frozen=True, config=STRICT)
class Rotary:
    """How newer files write rope_theta; any scaling of positions would be one more key."""

    rope_theta: float = Field(10000.0, ge=1, le=1e12)
    rope_type: Literal["default"] = "default"


@dataclass(frozen=True, config=LENIENT)
class LlamaConfig(Checkpoint):
    """The shape of a Llama, keys as in config.json.

    Without num_key_value_heads each head has its own keys; without head_dim the heads divide C.
    """

    vocab_size: Size
    hidden_size: Size
    intermediate_size: Size
    num_hidden_layers: Depth
    num_attention_heads: Size
    num_key_value_heads: Size = Field(default_factory=lambda given: given["num_attention_heads"])
    head_dim: Size = Field(default_factory=lambda given: given["hidden_size"] // given["num_attention_heads"])
    max_position_embeddings: Size = 2048
    rms_norm_eps: float = Field(1e-6, gt=0, lt=1)
    rope_theta: float = Field(10000.0, ge=1, le=1e12)
    rope_parameters: dict | None = None
    rope_scaling: Literal[None] = None
    sliding_window: Literal[None] = None
    hidden_act: Activation = "silu"
    attention_bias: Literal[False] = False
    mlp_bias: Literal[False] = False
    pretraining_tp: Literal[1] = 1
    tie_word_embeddings: bool = False
    bos_token_id: Id = Field(1, kw_only=True)
    eos_token_id: Id = Field(2, kw_only=True)

    def __post_init__(self):
        build(Rotary, self.rope_parameters or {}, "of rope_parameters, ")
        check_shape(self, "hidden_size", "num_attention_heads")
        check_shape(self, "num_attention_heads", "num_key_value_heads")
        if self.head_dim % 2:
            raise InputError(f"head_dim {self.head_dim} must be even: numbers are turned in pairs")

    # By the names that GPT-2's config has for them.
    n_positions = property(attrgetter("max_position_embeddings"))
    n_embd = property(attrgetter("hidden_size"))


def compute_turns(positions: Tensor, config: LlamaConfig) -> Tensor:
    """Su et al. (2021): pair i of a head turns by position · theta^(-2i/D) -> cos, sin (2, B, 1, T, D)."""
    D = config.head_dim
    theta = (config.rope_parameters or {}).get("rope_theta", config.rope_theta)
    speeds = 1 / theta ** (torch.arange(0, D, 2, dtype=torch.float32, device=positions.device) / D)  # (D/2,)
    angles = (positions[:, None, :, None].float() * speeds).repeat(1, 1, 1, 2)  # (B, 1, T, D)
    return torch.stack((angles.cos(), angles.sin()))


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Queries or keys (B, H, T, D), turned to their positions: a pair is number i and number i + D/2."""
    first, second = x.chunk(2, -1)
    return x * cos + torch.cat((-second, first), -1) * sin


class Attention(nn.Module):
    """Grouped queries (Ainslie et al., 2023): H / H_kv heads share the keys and values of one."""

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.D = D = config.head_dim
        width, kv_width = config.num_attention_heads * D, config.num_key_value_heads * D
        self.q_proj = Linear(config.hidden_size, width, bias=False)
        self.k_proj = Linear(config.hidden_size, kv_width, bias=False)
        self.v_proj = Linear(config.hidden_size, kv_width, bias=False)
        self.o_proj = Linear(width, config.hidden_size, bias=False)

    def forward(self, x: Tensor, layer: int, cache: Cache, mask: Tensor, turns: Tensor) -> Tensor:
        maps = (self.q_proj, self.k_proj, self.v_proj)
        q, k, v = (W(x).unflatten(-1, (-1, self.D)).transpose(1, 2) for W in maps)
        # (B, H, T, D), (B, H_kv, T, D) twice. The cache holds keys as they are attended to: already turned.
        k, v = cache.append(layer, turn(k, *turns), v)  # (B, H_kv, S, D)
        return self.o_proj(layers.attend(turn(q, *turns), k, v, mask))  # (B, T, C)


class MLP(nn.Module):
    """SwiGLU (Shazeer, 2020): one map gates the other."""

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.act = layers.ACTIVATIONS[config.hidden_act]
        self.gate_proj = Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.act(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.input_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor, layer: int, cache: Cache, mask: Tensor, turns: Tensor) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), layer, cache, mask, turns)
        return x + self.mlp(self.post_attention_layernorm(x))


class Llama(nn.Module):
    """Llama as the recurrence of Eq. 1. Prefix sites: "decoder" (before x) and "infix" (between x and y).

    Positions are turns of queries and keys, so a prefix is spliced as it stands, as in GPT-2.
    """

    positions = "shifted"  # a prefix takes |P| positions, as the words would whose place it takes
    begins = " "  # y goes on in the text that x began
    embedding, always_tied, biases = "embed_tokens.weight", False, ()  # in files
    wte = property(attrgetter("embed_tokens"))  # by the name that it has in GPT-2
    forward, hidden, logits = decoder.forward, decoder.hidden, decoder.logits
    empty_cache, site_widths = decoder.empty_cache, decoder.site_widths
    split, frame, read, read_words = decoder.split, decoder.frame, decoder.read, decoder.read_words

    def __init__(self, config: LlamaConfig):
        super().__init__()
        self.config = config
        self.cache_shape = config.num_hidden_layers, config.num_key_value_heads, config.head_dim  # L, H, D
        self.embed_tokens = Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, config.rms_norm_eps)
        if not config.tie_word_embeddings:
            self.lm_head = Linear(config.hidden_size, config.vocab_size, bias=False)

    def run_blocks(self, x: Tensor, positions: Tensor, cache: Cache, mask: Tensor) -> Tensor:
        """x (B, T, C) at positions (B, T), whose tokens see mask (B, 1, T, S) -> the last layer (B, T, C)."""
        turns = compute_turns(positions, self.config).to(x.dtype)
        for layer, block in enumerate(self.layers):
            x = block(x, layer, cache, mask, turns)
        return self.norm(x)

    def move(self, P_theta: Tensor, by: Tensor) -> Tensor:
        """P_theta (P, 2·L·C) as it would be `by` (P,) positions later: each key is turned on by these."""
        L, H, D = self.cache_shape
        k, v = P_theta.unflatten(1, (L, 2, H, D)).unbind(2)  # (P, L, H, D) each
        turns = compute_turns(by[None], self.config)  # (2, 1, 1, P, D)
        k = turn(k.permute(1, 2, 0, 3), *turns).permute(2, 0, 1, 3)
        return torch.stack((k, v), 2).flatten(1)

    def blocks(self) -> list[nn.Module]:
        """Where the adapters of Sec. 5.2 go: behind each of these."""
        return list(self.layers)

    def last_blocks(self) -> list[nn.Module]:
        """What FT-top2 trains: the last two blocks and what normalises them."""
        return [*self.layers[-2:], self.norm]
