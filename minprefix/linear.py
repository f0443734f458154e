"""The product that most of the time goes into, by the faster of two libraries, and what it starts from."""

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., n_in) times weight (n_out, n_in), plus bias: F.linear.

    For float32 PyTorch calls MKL, which for a few rows takes up to twice as long as oneDNN. PyTorch has that
    too, for what its compiler makes of a frozen model: without a gradient.
    """
    is_decoding = x.dtype == torch.float32 and x.device.type == "cpu" and not torch.is_grad_enabled()
    if is_decoding and torch.backends.mkldnn.is_available():
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


def make_weight(*shape: int) -> nn.Parameter:
    """Small random numbers, for a model without a checkpoint.

    Uniform ones: for normal ones on the meta device PyTorch would import its compiler, for two seconds.
    """
    return nn.Parameter(torch.empty(shape).uniform_(-0.03, 0.03))


def make_embedding(count: int, n_embd: int) -> nn.Embedding:
    return nn.Embedding.from_pretrained(make_weight(count, n_embd), freeze=False)
