"""What trains, and how a step's loss comes about: prefixes, and the methods that change the LM instead."""

import dataclasses
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from minprefix.cache import pad_right
from minprefix.checks import InputError, build
from minprefix.generate import check_base
from minprefix.prefix import PREFIXES, SavedPrefix, choose_sites, compute_activations, make_site

Batch = list[tuple[list[int], list[int]]]  # of (source, y) ids
IGNORED = -100  # F.cross_entropy's mark for positions outside Y_idx
WITH_LORA = (".c_attn", ".q_proj", ".v_proj")  # in GPT-2 the keys are of the same map


class Adapter(nn.Module):
    """A small residual MLP behind each block; in BART, behind each layer of both stacks.

    W_up starts at zero, so the LM starts as it was.
    """

    def __init__(self, n_embd: int, bottleneck: int):
        super().__init__()
        self.ln = nn.LayerNorm(n_embd)
        self.down, self.up = nn.Linear(n_embd, bottleneck), nn.Linear(bottleneck, n_embd)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        # Sec. 5.2: h + W_up relu(W_down LN(h)), h the block's output (B, T, C)
        return h + self.up(F.relu(self.down(self.ln(h))))


class LoRA(nn.Module):
    """Hu et al. (2021): a linear map becomes (W + B A) x + b. Their factor alpha / rank is 1 here."""

    def __init__(self, n_in: int, n_out: int, rank: int):
        super().__init__()
        self.A = nn.Parameter(torch.empty(rank, n_in).uniform_(-1, 1) / math.sqrt(n_in))
        self.B = nn.Parameter(torch.zeros(n_out, rank))  # the LM starts as it was

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return h + x @ self.A.T @ self.B.T  # (B, T, n_in) -> (B, T, rank) -> (B, T, n_out)


def make_theta(
    lm, method: str, length: int, hidden: int, words: list[int], sites: Sequence[str] = (), inner: int = 6
) -> nn.Module:
    """The parameters to train; all others of the LM are frozen.

    They are a module for each site, or some of the LM's own modules, or new ones inside of it ("adapter",
    "lora"). hidden: width of the MLP of Sec. 4.3, 0 for a direct P_theta. words: ids whose activations start
    the prefix (Sec. 7.4), none for a random start. sites: some of the model's, none for all of the method's.
    inner: width of an adapter, or LoRA's rank. Draws from torch's global generator.
    InputError where model or method has no such site.
    """
    chosen = choose_sites(lm, method, sites)
    lm.requires_grad_(False)
    if not chosen:
        # float32 whatever the LM has: in bfloat16 most steps of AdamW would be rounded away
        return choose_modules(lm, method, inner).float().requires_grad_()
    return nn.ModuleDict({site: make_site(lm, method, length, hidden, words, site) for site in chosen})


def choose_modules(lm, method: str, bottleneck: int) -> nn.Module:
    """The modules of the LM that train; for "adapter" and "lora", new ones that are put around its own.

    "lora" is around the maps to queries and values of all attentions.
    """
    if method == "full":
        return lm
    if method == "top2":
        return nn.ModuleList(lm.last_blocks())
    n_embd = lm.config.n_embd
    if method == "adapter":
        return attach(lm.blocks(), [Adapter(n_embd, bottleneck) for _ in lm.blocks()])
    hosts = [module for name, module in lm.named_modules() if name.endswith(WITH_LORA)]
    return attach(hosts, [LoRA(n_embd, host.out_features, bottleneck) for host in hosts])


def attach(hosts: list[nn.Module], modules: list[nn.Module]) -> nn.ModuleList:
    """Puts a module around each host, as its `added`: from the host's input and output to a new output."""
    for host, module in zip(hosts, modules):
        if hasattr(host, "added"):
            raise InputError("the model holds an adapter or LoRA already: load it anew")
        host.added = module.to(next(host.parameters()).device)
        host.register_forward_hook(lambda host, inputs, output: host.added(inputs[0], output))
    return nn.ModuleList(modules)


def apply_tensors(lm, saved: SavedPrefix) -> None:
    """Makes the LM what a training with "full", "top2", "adapter" or "lora" left; no longer its own base.

    InputError if it was trained on another model, or if its tensors are not those of its method.
    """
    check_base(saved, lm)
    dtype = lm.wte.weight.dtype
    if saved.method in PREFIXES:
        raise InputError(f"method {saved.method} changes no model: hand it to generate as its prefix")
    maps = [t for name, t in saved.tensors.items() if name.endswith((".added.down.weight", ".added.A"))]
    bottleneck = max((len(W) for W in maps if W.shape[1:] == (lm.config.n_embd,)), default=0)
    make_theta(lm, saved.method, 0, 0, [], inner=bottleneck)
    expected = {name: p.shape for name, p in lm.named_parameters() if p.requires_grad}
    if expected != {name: tensor.shape for name, tensor in saved.tensors.items()}:
        raise InputError(f"the file's tensors are not those of method {saved.method}: train or copy it again")
    lm.load_state_dict(saved.tensors, strict=False)
    lm.to(dtype).requires_grad_(False)
    changed = f"{lm.config.fingerprint}+{saved.method}"  # what was trained on the base does not fit this
    lm.config = dataclasses.replace(lm.config, fingerprint=changed)


def compute_sites(lm, method: str, theta: nn.Module) -> dict[str, Tensor]:
    """P_theta (P, 2·L·C) at the place where it is spliced: computed once a step, not once a row."""
    if method not in PREFIXES:
        return {}
    if method == "embedding":
        words = {site: embeds().to(lm.wte.weight.dtype) for site, embeds in theta.items()}
        return {site: compute_activations(lm, embeds, site) for site, embeds in words.items()}
    return {site: P_theta() for site, P_theta in theta.items()}


def target_logits(lm, sites: dict[str, Tensor], batch: Batch) -> tuple[Tensor, Tensor]:
    """Of a batch of (source, y) ids: logits (N, V) for the N tokens of all its y, and these tokens (N,)."""
    device = lm.wte.weight.device
    halves = [(*lm.split(source, apart="infix" in sites), y) for source, y in batch]
    x, x_mask = pad_right([x for x, _, _ in halves])  # (B, |x|), or (B, 0)
    z, z_mask = pad_right([start + y[:-1] for _, start, y in halves])  # (B, T)
    targets, _ = pad_right([[IGNORED] * (len(start) - 1) + y for _, start, y in halves], IGNORED)  # (B, T)
    prefixes = {site: (P_theta, None) for site, P_theta in sites.items()}
    cache = lm.read(x.to(device), x_mask.to(device), prefixes)
    h = lm.hidden(z.to(device), cache, z_mask.to(device))  # (B, T, C)
    in_y = targets != IGNORED  # (B, T)
    return lm.logits(h[in_y.to(device)]), targets[in_y].to(device)


def target_loss(lm, sites: dict[str, Tensor], batch: Batch) -> tuple[Tensor, int]:
    """-sum log p(y | x) of a batch of (source, y) ids, y with its EOS, in nats; and how many tokens y has."""
    logits, y = target_logits(lm, sites, batch)
    # Eq. 2: max sum_{i in Y_idx} log p(z_i | h_<i); logits for y only
    loss = F.cross_entropy(logits.float(), y, reduction="sum")
    return loss, len(y)


def distil_loss(lm, sites: dict[str, Tensor], teacher: dict[str, Tensor], batch: Batch) -> Tensor:
    """KL(p || q) in nats for each token of y, of a batch of (source, y) ids -> (N,): q is what the LM says
    behind the prefixes of `sites`, p what it says behind those of `teacher`, to which no gradient flows.

    A teacher's prefix is a whole text, {"decoder": read_activations(lm, ids, len(ids))}: read once, spliced
    in front of every row. (Context distillation; Eyuboglu et al. 2025 for long documents, "Cartridges".)
    """
    with torch.no_grad():
        log_p = target_logits(lm, teacher, batch)[0].float().log_softmax(-1)  # (N, V)
    log_q = target_logits(lm, sites, batch)[0].float().log_softmax(-1)
    # Distillation: KL(p(y | text, x) || p(y | P_theta, x)) = sum_v p_v (log p_v - log q_v)
    return F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)


@torch.no_grad()
def collapse(lm, method: str, theta: nn.Module, config: dict, data: str) -> SavedPrefix:
    """Sec. 4.3: drops the MLP; only P_theta is stored, or what else was trained and nothing beside it."""
    sites = {site: P_theta.float().cpu() for site, P_theta in compute_sites(lm, method, theta).items()}
    tensors = {name: p.detach().cpu() for name, p in lm.named_parameters() if p.requires_grad}
    shape = dataclasses.asdict(lm.config)
    base = {"name": shape.pop("name"), "fingerprint": shape.pop("fingerprint"), "config": shape}
    content = {"method": method, "sites": sites, "positions": lm.positions, "base": base, "config": config}
    content |= {"metrics": {}, "data": data, "tensors": tensors}
    return build(SavedPrefix, content, "what was trained cannot be kept, lower lr: ")
