"""Begin a BART with what a GPT-2 of the same width has learnt: its embeddings and its blocks.

GPT-2 adds to a stream that grows and normalises what each part reads; BART normalises the stream itself. A
block's maps can move all the same: they read normalised input on both sides, and what they write is divided
by the size that GPT-2's stream has there. Attention to the source begins as attention to the past: to GPT-2 a
source is just that, and from its past it has learnt to copy.
"""

import torch
from denoising import EOS, SHIFT
from torch import Tensor, nn

from minprefix.bart import BART
from minprefix.gpt2 import GPT2, Block
from minprefix.gpt2 import Attention as GPT2Attention

SCALE = 0.02  # of token embeddings: BART's output is as large as its input is, and tied to them


@torch.no_grad()
def transplant(start: GPT2, lm: BART, ids: Tensor) -> None:
    """Fills lm's tensors in place. ids (B, T): any text, on which the size of the stream is measured."""
    factor = SCALE / start.wte.weight.std()
    # GPT-2's <|endoftext|> becomes </s>; the other special tokens stay random.
    known = start.wte.weight * factor
    lm.shared.weight[EOS], lm.shared.weight[SHIFT + 1 : -1] = known[0], known[1:]
    sizes = measure_stream(start, ids)
    n, first = len(lm.encoder.layers), (len(lm.decoder.layers) + 1) // 2
    last = len(start.h) - (len(lm.decoder.layers) - first)
    first_and_last = [*range(first), *range(last, len(start.h))]
    for stack, chosen in ((lm.encoder, range(n)), (lm.decoder, first_and_last)):
        positions = stack.embed_positions.weight[2:]
        positions.copy_(start.wpe.weight[: len(positions)] * factor)
        for layer, i in zip(stack.layers, chosen):
            before_attention, before_mlp = sizes[i]
            for attention in [layer.self_attn, *([layer.encoder_attn] if stack is lm.decoder else [])]:
                move_attention(start.h[i].attn, start.h[i].ln_1, attention, before_attention)
            move_mlp(start.h[i], layer, before_mlp)


def measure_stream(start: GPT2, ids: Tensor) -> list[tuple[float, float]]:
    """For each block, the standard deviation of the residual stream before attention and before the MLP."""
    sizes: list[float] = []
    norms = [norm for block in start.h for norm in (block.ln_1, block.ln_2)]

    def note(_, inputs: tuple[Tensor]) -> None:
        sizes.append(inputs[0].std(-1).mean().item())

    hooks = [norm.register_forward_pre_hook(note) for norm in norms]
    start.hidden(ids)
    for hook in hooks:
        hook.remove()
    return list(zip(sizes[::2], sizes[1::2]))


def move_attention(theirs: GPT2Attention, norm: nn.LayerNorm, ours, size: float) -> None:
    weights, biases = fold(theirs.c_attn, norm)  # (3C, C), (3C,)
    for proj, weight, bias in zip((ours.q_proj, ours.k_proj, ours.v_proj), weights.chunk(3), biases.chunk(3)):
        proj.weight.copy_(weight)
        proj.bias.copy_(bias)
    ours.out_proj.weight.copy_(theirs.c_proj.weight.T / size)
    ours.out_proj.bias.copy_(theirs.c_proj.bias / size)


def move_mlp(block: Block, layer, size: float) -> None:
    weight, bias = fold(block.mlp.c_fc, block.ln_2)
    layer.fc1.weight.copy_(weight)
    layer.fc1.bias.copy_(bias)
    layer.fc2.weight.copy_(block.mlp.c_proj.weight.T / size)
    layer.fc2.bias.copy_(block.mlp.c_proj.bias / size)


def fold(conv, norm: nn.LayerNorm) -> tuple[Tensor, Tensor]:
    """A Conv1D behind a LayerNorm as weight (out, in) and bias of a Linear behind a plain normalisation."""
    return (conv.weight * norm.weight[:, None]).T, conv.bias + norm.bias @ conv.weight
