"""The floor under a case of speed.py: the bytes it must read and the operations it must compute, at the best
rates that were measured."""

import timeit
from collections.abc import Callable

import torch

from experiments.sides import HIDDEN, PREFIX, Work

Phases = list[tuple[float, float]]  # bytes and operations; phases cannot overlap
C, VOCABULARY = 1024, 50257  # of both shapes, up to 8 ids
BLOCKS = 24 * 12 * C * C  # weights of GPT-2 medium's 24 blocks
BART_ENCODER, BART_DECODER, BART_SOURCE = 12 * 12 * C * C, 12 * 14 * C * C, 12 * 2 * C * C
HEAD = VOCABULARY * C
THETA = HIDDEN * (C + 24 * 2 * C)  # weights of the MLP that makes the prefix
WIDE = 2**14  # of a square of 1 GB, far more than caches hold
ADAM = 7 * 4  # bytes a trained weight: reads it, its gradient and both moments, writes three of them


def count_step(work: Work, trains_all: bool) -> Phases:
    """Two operations a weight and token forward, two backward to the activations, two to trained weights."""
    products = BLOCKS * work.rows * (work.source + work.target) + HEAD * work.rows * work.target
    if trains_all:
        return [(0, 6 * products), (ADAM * (BLOCKS + HEAD), 0)]
    return [(0, 4 * products + 6 * PREFIX * THETA), (ADAM * THETA, 0)]


def count_gpt2(work: Work, size: int) -> Phases:
    """x once; then, for each new token, all weights and the cache once, and all beams' operations."""
    read = work.rows * (work.source - 1)
    cache = work.rows * (PREFIX + work.source) * 2 * 24 * C
    tokens = count_tokens(work, size * (BLOCKS + HEAD + cache), 2 * (BLOCKS + HEAD))
    return [(size * BLOCKS, 2 * BLOCKS * read), *tokens]


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
def measure_rates(dtype: torch.dtype) -> dict[str, float]:
    """Bytes and operations a second: the best of two kernels each, for none is the best everywhere."""
    weights, square = torch.ones(WIDE, WIDE), torch.randn(3000, 3000).to(dtype)

    def multiply(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:  # oneDNN's
        return torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")

    readers, products = [weights.sum], [lambda: square @ square]
    if torch.backends.mkldnn.is_available():
        readers.append(lambda: multiply(weights[:1], weights))
        if dtype == torch.float32:  # in bfloat16, @ is oneDNN's where the processor has it
            products.append(lambda: multiply(square, square))
    reading, multiplying = min(map(time_best, readers)), min(map(time_best, products))
    return {"bytes": 4 * weights.numel() / reading, "operations": 2 * 3000**3 / multiplying}


def time_best(call: Callable) -> float:
    """Seconds of the fastest of five calls."""
    return min(timeit.repeat(call, number=1, repeat=5))
