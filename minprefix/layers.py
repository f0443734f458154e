"""What the models share: the linear map by the faster of two libraries, non-linearities, bounds of sizes."""

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from minprefix.checks import InputError

FEW = 256  # rows, up to which oneDNN is no slower
HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
ACTIVATIONS = {  # as config.json calls them
    "gelu_new": nn.GELU("tanh"),
    "gelu_pytorch_tanh": nn.GELU("tanh"),
    "gelu": nn.GELU(),
    "relu": nn.ReLU(),
}
Activation = Literal[*ACTIVATIONS]
# The bounds lie far above any of these models: they keep a damaged file from asking for an endless one.
Size = Annotated[int, Field(ge=1, le=2**20)]
Depth = Annotated[int, Field(ge=1, le=200)]
Id = Annotated[int, Field(ge=0)]


def check_shape(config, n_embd: str, *heads: str) -> None:
    """InputError if a config's sizes or token ids do not go together."""
    for n_head in heads:
        width, count = getattr(config, n_embd), getattr(config, n_head)
        if width % count:
            raise InputError(f"{n_embd} {width} must be divisible by {n_head} {count}")
    for name, id in vars(config).items():
        if name.endswith("_token_id") and id is not None and id >= config.vocab_size:
            raise InputError(f"{name} is {id!r}, but must be an id below {config.vocab_size}")


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


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
    """Queries (B, H, T, D), keys and values (B, H, S, D) or of fewer heads, mask (B, 1, T, S) -> (B, T, C).

    No `is_causal`: it aligns to the upper left, so that behind a cache each token would see too little.
    """
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=k.shape[1] < q.shape[1])
    return y.transpose(1, 2).flatten(2)  # (B, H, T, D) -> (B, T, C)


class Linear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class Conv1D(nn.Module):
    """A linear map that stores its weight as (in, out), as GPT-2's checkpoints do."""

    def __init__(self, n_in: int, n_out: int):
        super().__init__()
        self.out_features = n_out
        self.weight = nn.Parameter(torch.empty(n_in, n_out).uniform_(-0.03, 0.03))
        self.bias = nn.Parameter(torch.zeros(n_out))

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight.T, self.bias)


class Embedding(nn.Embedding):
    def reset_parameters(self) -> None:
        """Uniform: for normal ones on the meta device PyTorch would import its compiler, for two seconds."""
        nn.init.uniform_(self.weight, -0.03, 0.03)
