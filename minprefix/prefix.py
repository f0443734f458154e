"""P_theta of Eq. 3: free activations, trained directly or through an MLP, and what of them is stored."""

from collections.abc import Sequence
from dataclasses import field
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import AfterValidator
from pydantic.dataclasses import dataclass
from torch import Tensor, nn
from typing_extensions import TypedDict

from minprefix.cache import Cache
from minprefix.checks import STRICT, InputError

STACKS = ("decoder", "encoder", "cross")
# Method -> where its P_theta may be spliced; those that have no place change the model instead.
SITES = {"prefix": STACKS, "infix": ("infix",), "embedding": STACKS}
SITES |= {"full": (), "top2": (), "adapter": (), "lora": ()}
FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
PREFIXES = tuple(method for method, sites in SITES.items() if sites)
Method = Literal[*SITES]


class DirectPrefix(nn.Module):
    """theta is P_theta itself, (P, 2·L·C): row i holds the keys and values of slot i in every layer."""

    def __init__(self, length: int, width: int):
        super().__init__()
        self.P = nn.Parameter(torch.randn(length, width) * 0.3)  # the spread of an MLP's first outputs

    def forward(self) -> Tensor:
        return self.P


class MLPPrefix(nn.Module):
    """Sec. 4.3: theta is a small P' (P, C) and an MLP that all slots share; it is dropped after training."""

    def __init__(self, length: int, n_embd: int, width: int, hidden: int):
        super().__init__()
        self.P = nn.Parameter(torch.randn(length, n_embd))
        self.mlp = nn.Sequential(nn.Linear(n_embd, hidden), nn.Tanh(), nn.Linear(hidden, width))

    def forward(self) -> Tensor:
        # Sec. 4.3: P_theta[i, :] = MLP_theta(P'_theta[i, :])
        return self.mlp(self.P)  # (P, C) -> (P, 2·L·C)


def choose_sites(lm, method: str, wanted: Sequence[str]) -> list[str]:
    """The method's sites in this model, or those of them that are wanted; none where it has no prefix."""
    if method not in SITES:
        raise InputError(f"method={method} is unknown: choose one of {', '.join(SITES)}")
    sites = [site for site in lm.site_widths() if site in SITES[method]]
    if SITES[method] and not sites:
        raise InputError("method=infix needs x and y in one text, and BART has two: choose method=prefix")
    if wrong := [site for site in wanted if site not in sites]:
        known = ", ".join(sites) or "none"
        raise InputError(f"method={method} has no site {wrong[0]!r}: leave sites= out, or choose of {known}")
    return list(dict.fromkeys(wanted)) or sites


def make_site(lm, method: str, length: int, hidden: int, words: list[int], site: str) -> nn.Module:
    """What becomes the P_theta of one site: by itself, through an MLP, or as input embeddings (Sec. 7.2)."""
    n_embd, width = lm.config.n_embd, lm.site_widths()[site]
    if method == "embedding":
        theta = DirectPrefix(length, n_embd).to(lm.wte.weight.device)
        theta.P.data = embed_words(lm, words, length).float() if words else theta.P.data * lm.wte.weight.std()
        return theta
    theta = MLPPrefix(length, n_embd, width, hidden) if hidden else DirectPrefix(length, width)
    theta = theta.to(lm.wte.weight.device)
    if words and hidden:
        fit(theta, read_activations(lm, words, length, site))
    elif words:
        theta.P.data = read_activations(lm, words, length, site)
    return theta


def embed_words(lm, words: list[int], length: int) -> Tensor:
    """The words' own embeddings (length, C), repeated to that length."""
    return lm.wte.weight[[words[i % len(words)] for i in range(length)]]


def check_floats(tensor: Tensor) -> Tensor:
    """ValueError for what cannot be a trained tensor."""
    # A tensor of strides 0 shows one stored number a million times.
    dense = tensor.layout == torch.strided and not tensor.is_meta and tensor.dtype in FLOATS
    stored = dense and 0 < tensor.nbytes <= tensor.untyped_storage().nbytes()
    # float64 holds any sum of smaller ones
    if not stored or not tensor.sum(dtype=torch.float64).isfinite():
        raise ValueError("must hold finite floats")
    return tensor


Floats = Annotated[Tensor, AfterValidator(check_floats)]


class Base(TypedDict):
    """The frozen LM that a training began from; an unknown fingerprint is ""."""

    name: str
    config: dict
    fingerprint: str


@dataclass(frozen=True, config=STRICT)
class SavedPrefix:
    """What is left of a training: the content of a .pt file, as store.py writes it.

    sites: P_theta (P, 2·L·C) where it is spliced: GPT-2's "decoder" is before x, "infix" between x and y;
    BART's are "encoder", "decoder" and "cross". positions: "shifted" where the prefix takes |P| of them.
    tensors: for "full", "top2", "adapter" and "lora", what was trained, by its names in the LM, where
    methods.apply_tensors puts it.
    """

    method: Method
    sites: dict[str, Floats]
    positions: str
    base: Base
    config: dict
    metrics: dict
    data: str
    tensors: dict[str, Floats] = field(default_factory=dict)

    def __post_init__(self):
        allowed = SITES[self.method]
        if not set(self.sites) <= set(allowed) or bool(self.sites) != bool(allowed):
            raise InputError(f"method {self.method!r} with sites {sorted(self.sites)} is unknown")
        if bool(self.tensors) == bool(self.sites):
            raise InputError("there must be either sites or tensors")
        if any(P_theta.ndim != 2 for P_theta in self.sites.values()):
            raise InputError("each site must be a tensor (P, 2·L·C)")


def pack(cache: Cache) -> Tensor:
    """The first row's activations as P_theta (S, 2·L·C): a layer's keys, then its values (PEFT's layout)."""
    h = torch.stack([kv[0] for pair in zip(cache.keys, cache.values) for kv in pair])  # (2L, H, S, D)
    return h.permute(2, 0, 1, 3).flatten(1)  # (S, 2·L·C)


def read_activations(lm, ids: list[int], length: int, site: str = "decoder") -> Tensor:
    """Sec. 7.4: what the LM computes for real words, repeated to a length -> P_theta (length, 2·L·C)."""
    return compute_activations(lm, embed_words(lm, ids, length), site).detach().float()


def spread_activations(lm, ids: list[int], length: int, site: str = "decoder") -> Tensor:
    """As read_activations, of `length` of a text's tokens, each so many-th one, moved together."""
    P_text = read_activations(lm, ids, len(ids), site)
    slots = torch.arange(length, device=P_text.device)
    chosen = slots * len(ids) // length
    return lm.move(P_text[chosen], slots - chosen)  # by so many positions


def compute_activations(lm, embeds: Tensor, site: str = "decoder") -> Tensor:
    """Sec. 7.2: embeddings (P, C) are free, the frozen LM computes their layers -> P_theta (P, 2·L·C)."""
    return pack(lm.read_words(embeds)[site])


def fit(theta: MLPPrefix, target: Tensor, steps: int = 500, lr: float = 1e-3) -> float:
    """Sec. 7.4 through the MLP: Adam on the squared distance to real words' activations -> the last one.

    The authors' step size is 1e-4; in 500 steps, 1e-3 comes 2,000 times nearer ("summarize", gpt2-mini).
    """
    optimizer = torch.optim.Adam(theta.parameters(), lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = F.mse_loss(theta(), target)
        loss.backward()
        optimizer.step()
    return loss.item()
