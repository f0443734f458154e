"""LM_phi, encoder-decoder: BART, with the parameter names of its Hugging Face checkpoints."""

import math
from operator import attrgetter
from typing import Literal

import torch
from pydantic import Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from minprefix import decoder, layers
from minprefix.cache import Cache
from minprefix.checks import LENIENT
from minprefix.layers import Activation, Checkpoint, Depth, Embedding, Id, Linear, Size, check_shape

OFFSET = 2  # the position table's first two rows are never used: BART's first position is 2


@dataclass(frozen=True, config=LENIENT)
class BARTConfig(Checkpoint):
    """The shape of a BART, keys as in config.json, of which some have two names."""

    vocab_size: Size
    max_position_embeddings: Size
    d_model: Size = layers.called("d_model", "hidden_size")
    encoder_layers: Depth = layers.called("encoder_layers", "num_hidden_layers")
    decoder_layers: Depth = Field()  # needed, too, but none without a value may stand behind the others
    encoder_attention_heads: Size = layers.called("encoder_attention_heads", "num_attention_heads")
    decoder_attention_heads: Size = Field()
    encoder_ffn_dim: Size = Field()
    decoder_ffn_dim: Size = Field()
    activation_function: Activation = "gelu"
    scale_embedding: bool = False
    tie_word_embeddings: Literal[True] = True
    eos_token_id: Id = Field(2, kw_only=True)
    decoder_start_token_id: Id = 2
    forced_bos_token_id: Id | None = None

    def __post_init__(self):
        check_shape(self, "d_model", "encoder_attention_heads", "decoder_attention_heads")

    # By the names that GPT-2's config has for them.
    n_positions = property(attrgetter("max_position_embeddings"))
    n_embd = property(attrgetter("d_model"))


class Attention(nn.Module):
    """One attention for self and cross: they differ in where the keys and values were projected from."""

    def __init__(self, d_model: int, n_head: int):
        super().__init__()
        self.n_head = n_head
        self.q_proj = Linear(d_model, d_model)
        self.k_proj = Linear(d_model, d_model)
        self.v_proj = Linear(d_model, d_model)
        self.out_proj = Linear(d_model, d_model)

    def forward(self, x: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        q = self._split_heads(self.q_proj(x))  # (B, H, T, D)
        return self.out_proj(layers.attend(q, k, v, mask))  # (B, T, C)

    def project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What is attended to, x (B, T, C) -> its keys and values (B, H, T, D)."""
        return self._split_heads(self.k_proj(x)), self._split_heads(self.v_proj(x))

    def _split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.n_head, -1)).transpose(1, 2)  # (B, T, C) -> (B, H, T, D)


class Layer(nn.Module):
    """Attention to its own side, in a decoder also to the source, and an MLP; LayerNorm after each sum."""

    def __init__(self, config: BARTConfig, n_head: int, n_inner: int, is_decoder: bool):
        super().__init__()
        d_model = config.d_model
        self.self_attn = Attention(d_model, n_head)
        self.self_attn_layer_norm = nn.LayerNorm(d_model)
        if is_decoder:
            self.encoder_attn = Attention(d_model, n_head)
            self.encoder_attn_layer_norm = nn.LayerNorm(d_model)
        self.fc1 = Linear(d_model, n_inner)
        self.fc2 = Linear(n_inner, d_model)
        self.final_layer_norm = nn.LayerNorm(d_model)
        self.activation = layers.ACTIVATIONS[config.activation_function]

    def forward(self, x: Tensor, layer: int, cache: Cache, mask: Tensor) -> Tensor:
        k, v = cache.append(layer, *self.self_attn.project(x))  # (B, H, S, D)
        x = self.self_attn_layer_norm(x + self.self_attn(x, k, v, mask))
        if (cross := cache.cross) is not None:
            k, v, mask = cross.keys[layer], cross.values[layer], cross.real[:, None, None]  # (B, 1, 1, S)
            x = self.encoder_attn_layer_norm(x + self.encoder_attn(x, k, v, mask))
        return self.final_layer_norm(x + self.fc2(self.activation(self.fc1(x))))


class Stack(nn.Module):
    """The encoder or the decoder."""

    def __init__(self, config: BARTConfig, n_layer: int, n_head: int, n_inner: int, is_decoder: bool):
        super().__init__()
        C, self.n_head = config.d_model, n_head
        self.embed_positions = Embedding(config.max_position_embeddings + OFFSET, C)
        self.layernorm_embedding = nn.LayerNorm(C)
        self.layers = nn.ModuleList(Layer(config, n_head, n_inner, is_decoder) for _ in range(n_layer))

    def start_cache(self, batch: int, prefix: tuple[Tensor, Tensor | None] | None) -> Cache:
        """A cache that holds nothing, or P_theta with its mask. The first token behind it has position 0."""
        weight = self.embed_positions.weight
        cache = Cache(batch, len(self.layers), self.n_head, weight.shape[1] // self.n_head, like=weight)
        if prefix is not None:
            cache.splice(*prefix, shift=False)
        return cache

    def forward(self, x: Tensor, positions: Tensor, cache: Cache, mask: Tensor) -> Tensor:
        """x (B, T, C) at positions (B, T), whose tokens see mask (B, 1, T, S) -> the last layer (B, T, C)."""
        x = self.layernorm_embedding(x + self.embed_positions(positions + OFFSET))
        for layer, block in enumerate(self.layers):
            x = block(x, layer, cache, mask)
        return x


class BART(nn.Module):
    """BART as Eq. 1 for i in Y_idx: x is read once, in both directions, and the decoder begins behind it.

    Prefix sites: "encoder" and "decoder" (self-attention) and "cross" (the decoder's, to the source).
    """

    positions = "unshifted"  # as the authors: a prefix takes no position from x or y
    begins = ""  # y is a text of its own
    # In files; the bias (1, V) they may leave out.
    embedding, always_tied, biases = "shared.weight", True, ("final_logits_bias",)
    wte = property(attrgetter("shared"))  # by the name that it has in GPT-2
    hidden, move = decoder.hidden, decoder.move

    def __init__(self, config: BARTConfig):
        super().__init__()
        self.config = c = config
        self.shared = Embedding(c.vocab_size, c.d_model)
        self.encoder = Stack(c, c.encoder_layers, c.encoder_attention_heads, c.encoder_ffn_dim, False)
        self.decoder = Stack(c, c.decoder_layers, c.decoder_attention_heads, c.decoder_ffn_dim, True)
        self.register_buffer("final_logits_bias", torch.zeros(1, c.vocab_size))
        self.scale = math.sqrt(c.d_model) if c.scale_embedding else 1.0

    def forward(self, source_ids: Tensor, target_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Logits (B, T, V) of the token after each of the decoder's inputs target_ids (B, T).

        source_ids (B, S); attention_mask (B, S) is the source's: 0 marks padding.
        """
        mask = torch.ones_like(source_ids) if attention_mask is None else attention_mask
        return self.logits(self.hidden(target_ids, self.read(source_ids, mask, {})))

    def read(self, x: Tensor, mask: Tensor, prefixes: dict[str, tuple[Tensor, Tensor | None]]) -> Cache:
        """Encodes a source, x (B, S) with its mask (B, S) and prefixes -> the cache from which y is begun.

        Eq. 3 for encoder-decoders, [PREFIX; x; PREFIX'; y]: each site starts from its own P_theta.
        """
        # [0]: the encoder's own keys and values are let go before the source is projected.
        return self._start(self._encode(self.shared(x), mask, prefixes)[0], mask, prefixes)

    def run_blocks(self, x: Tensor, positions: Tensor, cache: Cache, mask: Tensor) -> Tensor:
        """What `hidden` computes of embeddings of y, by the decoder."""
        return self.decoder(x * self.scale, positions, cache, mask)

    def logits(self, h: Tensor) -> Tensor:
        """Eq. 1: p(z_{i+1} | h_<=i) = softmax(W_phi h_i^(n)); returns W_phi h, (..., C) -> (..., V)."""
        return layers.linear(h, self.shared.weight, self.final_logits_bias[0])

    def split(self, source: list[int], apart: bool = True) -> tuple[list[int], list[int]]:
        """What to read, and the token that begins y; source and y are apart in any case."""
        return source, [self.config.decoder_start_token_id]

    def read_words(self, embeds: Tensor) -> dict[str, Cache]:
        """Reads words alone, given as embeds (P, C), as source and target -> each site's cache of them.

        What the decoder computes for words depends on a source; here the words are that as well.
        """
        mask = embeds.new_ones(1, len(embeds))
        memory, encoder = self._encode(embeds[None], mask, {})
        cache = self._start(memory, mask, {})
        self.hidden(None, cache, embeds=embeds[None])
        return {"encoder": encoder, "decoder": cache, "cross": cache.cross}

    def site_widths(self) -> dict[str, int]:
        """2·L·C for each place where a P_theta (P, 2·L·C) can be spliced."""
        stacks = {"encoder": self.encoder, "decoder": self.decoder, "cross": self.decoder}
        return {site: 2 * len(stack.layers) * self.config.d_model for site, stack in stacks.items()}

    def frame(self, ids: list[int], is_target: bool) -> list[int]:
        """BOS, ids, EOS, around either. The decoder starts from EOS and was trained to say BOS next, so
        fine-tuning (and transformers' labels) keep BOS as y's first token; generation may force it.
        """
        return [self.config.bos_token_id, *ids, self.config.eos_token_id]

    def blocks(self) -> list[nn.Module]:
        """Where the adapters of Sec. 5.2 go: behind each layer of both stacks."""
        return [*self.encoder.layers, *self.decoder.layers]

    def last_blocks(self) -> list[nn.Module]:
        """What FT-top2 trains: the decoder's last two layers."""
        return list(self.decoder.layers[-2:])

    def _encode(self, embeds: Tensor, mask: Tensor, prefixes: dict) -> tuple[Tensor, Cache]:
        cache = self.encoder.start_cache(len(embeds), prefixes.get("encoder"))
        positions, _ = cache.advance(mask.bool())
        cache.check_positions(self.config.n_positions)
        whole = cache.real[:, None, None]  # (B, 1, 1, S): all tokens see the prefix and the whole source
        return self.encoder(embeds * self.scale, positions, cache, whole), cache

    def _start(self, memory: Tensor, mask: Tensor, prefixes: dict) -> Cache:
        """The decoder's cache; the source's keys and values beside it are projected once, for all of y."""
        cache = self.decoder.start_cache(len(memory), prefixes.get("decoder"))
        cache.cross = self.decoder.start_cache(len(memory), prefixes.get("cross"))
        cache.cross.advance(mask.bool())
        for layer, block in enumerate(self.decoder.layers):
            cache.cross.append(layer, *block.encoder_attn.project(memory))
        return cache
