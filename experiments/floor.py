"""The floor under a case of speed.py: the bytes it must read and the operations it must compute, at the best
rates that were measured."""

import time
import timeit
from collections.abc import Callable
from dataclasses import dataclass

import torch

from experiments.keep import wait_for
from experiments.sides import HIDDEN, PREFIX, Work

Phases = list[tuple[float, float]]  # bytes and operations; phases cannot overlap
C, VOCABULARY = 1024, 50257  # of GPT-2 medium and BART-large, up to 8 ids
BART_ENCODER, BART_DECODER, BART_SOURCE = 12 * 12 * C * C, 12 * 14 * C * C, 12 * 2 * C * C
HEAD = VOCABULARY * C
WIDE = 2**14  # of a square of 1 GB, far more than caches hold
SIDE = {"cpu": 3000, "cuda": 8192}  # of the squares that are multiplied
ADAM = 7 * 4  # bytes a trained weight: reads it, its gradient and both moments, writes three of them


@dataclass(frozen=True)
class Decoder:
    """Weights of the blocks and of the head, numbers of a prefix's MLP, and keys and values of one token."""

    blocks: int
    head: int
    theta: int
    cache: int


def count_weights(width: int, layers: int, block: int, kv_width: int, vocabulary: int) -> Decoder:
    cache = layers * 2 * kv_width
    return Decoder(layers * block, vocabulary * width, HIDDEN * (width + cache), cache)


LLAMA_BLOCK = 2 * 576 * 576 + 2 * 576 * 192 + 3 * 576 * 1536  # three heads of keys and values, SwiGLU
DECODERS = {
    "gpt2-medium": count_weights(C, 24, 12 * C * C, C, VOCABULARY),
    "smollm2-135m": count_weights(576, 30, LLAMA_BLOCK, 192, 49152),
}


def count_step(lm: Decoder, work: Work, trains_all: bool) -> Phases:
    """Two operations a weight and token forward, two backward to the activations, two to trained weights."""
    products = lm.blocks * work.rows * (work.source + work.target) + lm.head * work.rows * work.target
    if trains_all:
        return [(0, 6 * products), (ADAM * (lm.blocks + lm.head), 0)]
    return [(0, 4 * products + 6 * PREFIX * lm.theta), (ADAM * lm.theta, 0)]


def count_decoder(lm: Decoder, work: Work, size: int) -> Phases:
    """x once; then, for each new token, all weights and the cache once, and all beams' operations."""
    read, weights = work.rows * (work.source - 1), lm.blocks + lm.head
    cache = work.rows * (PREFIX + work.source) * lm.cache
    tokens = count_tokens(work, size * (weights + cache), 2 * weights)
    return [(size * lm.blocks, 2 * lm.blocks * read), *tokens]


def count_bart(work: Work, size: int) -> Phases:
    read = work.rows * work.source
    attention = 12 * 4 * C * work.source * read
    encode = 2 * (BART_ENCODER + BART_SOURCE) * read + attention
    cache = read * 2 * 12 * C
    tokens = count_tokens(work, size * (BART_DECODER + HEAD + cache), 2 * (BART_DECODER + HEAD))
    return [(0, encode), *tokens]


def count_tokens(work: Work, read: float, operations: float) -> Phases:
    """The new tokens; beams differ after the first one."""
    first = (read, operations * work.rows)
    return [first, *[(read, first[1] * work.beams)] * (work.target - 1)]


@torch.inference_mode()
def measure_rates(
    dtype: torch.dtype, clock: Callable = time.perf_counter, device: str = "cpu"
) -> dict[str, float]:
    """Bytes and operations a second of a clock: the best of two kernels each; none is the best everywhere."""
    side = SIDE[device]
    weights = torch.ones(WIDE, WIDE, device=device)
    square = torch.randn(side, side, device=device).to(dtype)

    def multiply(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:  # oneDNN's
        return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")

    readers, products = [weights.sum], [lambda: square @ square]
    if device == "cpu" and torch.backends.mkldnn.is_available():
        readers.append(lambda: multiply(weights[:1], weights))
        if dtype == torch.float32:  # in bfloat16, @ is oneDNN's where the processor has it
            products.append(lambda: multiply(square, square))
    reading, multiplying = (
        min(time_best(call, clock, device) for call in calls) for calls in (readers, products)
    )
    return {"bytes": 4 * weights.numel() / reading, "operations": 2 * side**3 / multiplying}


def time_best(call: Callable, clock: Callable, device: str) -> float:
    """Seconds of the fastest of five calls."""

    def read_clock() -> float:
        wait_for(device)
        return clock()

    return min(timeit.repeat(call, timer=read_clock, number=1, repeat=5))
