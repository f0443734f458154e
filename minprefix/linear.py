"""The product that most of the time goes into, by the faster of two libraries, and what it starts from."""

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

FEW = 256  # rows, up to which oneDNN is no slower
HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """F.linear: x (..., n_in) times weight (n_out, n_in), plus bias.

    For float32 PyTorch calls MKL, which for a few rows took up to twice as long as oneDNN (on an AMD
    processor, experiments/SPEED.md). PyTorch has that as well, for models that its compiler has frozen:
    without a gradient.
    """
    few = x.shape[:-1].numel() <= FEW and not torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")
    if HAS_ONEDNN and few and x.is_cpu and x.dtype == weight.dtype == torch.float32:
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return F.linear(x, weight, bias)


class Linear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def make_weight(*shape: int) -> nn.Parameter:
    """Small random numbers, for a model without a checkpoint.

    Uniform ones: for normal ones on the meta device PyTorch would import its compiler, for two seconds.
    """
    return nn.Parameter(torch.empty(shape).uniform_(-0.03, 0.03))


def make_embedding(count: int, n_embd: int) -> nn.Embedding:
    return nn.Embedding.from_pretrained(make_weight(count, n_embd), freeze=False)
