"""The product that most of the time goes into, by the faster of two libraries."""

import torch
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
