"""What the models share: the linear map by the faster of two libraries, non-linearities, bounds of sizes."""

from dataclasses import field
from typing import Annotated, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from pydantic import AliasChoices, Field
from pydantic.dataclasses import dataclass
from torch import Tensor, nn

from minprefix.checks import LENIENT, InputError

FEW = 256  # rows, up to which oneDNN is no slower
HAS_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


class QuickGELU(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.702 * x)


# As config.json calls them. Several names are one function, which transformers computes in several ways.
TANH_GELU = ("gelu_new", "gelu_fast", "gelu_accurate", "gelu_pytorch_tanh", "gelu_python_tanh")
ACTIVATIONS = dict.fromkeys(TANH_GELU, nn.GELU("tanh")) | dict.fromkeys(("gelu", "gelu_python"), nn.GELU())
ACTIVATIONS |= dict.fromkeys(("silu", "swish"), nn.SiLU()) | {"quick_gelu": QuickGELU(), "mish": nn.Mish()}
ACTIVATIONS |= {"relu": nn.ReLU(), "relu6": nn.ReLU6(), "leaky_relu": nn.LeakyReLU(), "tanh": nn.Tanh()}
ACTIVATIONS |= {"sigmoid": nn.Sigmoid(), "hardswish": nn.Hardswish(), "linear": nn.Identity()}
Activation = Literal[*ACTIVATIONS]
# The bounds lie far above any of these models: they keep a damaged file from asking for an endless one.
Size = Annotated[int, Field(ge=1, le=2**20)]
Depth = Annotated[int, Field(ge=1, le=200)]
Id = Annotated[int, Field(ge=0)]


def called(*names: str, default: object = ...) -> Any:
    """A field of a config that files call by one of these names; without a default they must."""
    return Field(default, validation_alias=AliasChoices(*names))


@dataclass(frozen=True, config=LENIENT, kw_only=True)
class Checkpoint:
    """What the files of every checkpoint say beside its shape, keys as in config.json.

    BOS and EOS frame texts, further_ends end one as well. Those past the vocabulary are no tokens of the
    model, as in transformers.
    no_repeat_ngram_size, early_stopping: where `generate` is not told; the other options have our defaults.
    name and fingerprint say which checkpoint it is. unsaid: what config.json stands for where it is silent,
    unless that is a default.
    """

    unsaid: ClassVar[dict] = {}
    bos_token_id: Id = 0
    eos_token_id: Id = 0
    further_ends: list[Id] = field(default_factory=list)
    forced_eos_token_id: Id | None = None
    suppress_tokens: list[Id] = field(default_factory=list)
    no_repeat_ngram_size: Annotated[int, Field(ge=0)] = 0
    early_stopping: bool | Literal["never"] = False
    name: str = ""
    fingerprint: str = ""


def check_shape(config, n_embd: str, *heads: str) -> None:
    """InputError if a config's sizes or token ids do not go together."""
    for n_head in heads:
        width, count = getattr(config, n_embd), getattr(config, n_head)
        if width % count:
            raise InputError(f"{n_embd} {width} must be divisible by {n_head} {count}")
    for name, id in vars(config).items():
        if name.startswith(("decoder_start_", "forced_")) and id is not None and id >= config.vocab_size:
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
    if q.is_cpu and q.dtype == torch.bfloat16 and torch.is_grad_enabled():
        with torch.autocast("cpu", enabled=False):  # float32's gradient takes a third of the time
            return attend(q.float(), k.float(), v.float(), mask).to(q.dtype)
    shared = q.shape[1] // k.shape[1]
    if shared > 1 and q.is_cuda:  # no fused kernel there takes both a mask and heads that are shared
        k, v = (t.repeat_interleave(shared, 1) for t in (k, v))  # (B, H, S, D)
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
