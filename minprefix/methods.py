"""What trains, and how a step's loss comes about: prefix, infix, embedding-only and full fine-tuning."""

import dataclasses

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from minprefix.cache import pad_right
from minprefix.errors import InputError
from minprefix.prefix import DirectPrefix, MLPPrefix, SavedPrefix, compute_activations, fit, read_activations

METHODS = ("prefix", "infix", "embedding", "full")
IGNORED = -100  # F.cross_entropy's mark for positions outside Y_idx


def make_theta(
    lm, method: str, length: int, hidden: int, words: list[int], sites: tuple[str, ...] = ()
) -> nn.Module:
    """The parameters to train, a module for each site; the LM itself for "full", otherwise it is frozen.

    hidden: width of the MLP of Sec. 4.3, 0 for a direct P_theta. words: ids whose activations start the
    prefix (Sec. 7.4), none for a random start. sites: some of the model's, none for all of the method's.
    Draws from torch's global generator. InputError where model or method has no such site.
    """
    if method not in METHODS:
        raise InputError(f"method={method} is unknown: choose one of {', '.join(METHODS)}")
    lm.requires_grad_(method == "full")
    if method == "full":
        return lm
    chosen = choose_sites(lm, method, sites)
    return nn.ModuleDict({site: make_site(lm, method, length, hidden, words, site) for site in chosen})


def choose_sites(lm, method: str, wanted: tuple[str, ...]) -> list[str]:
    """The model's prefix sites, or those of them that are wanted; for "infix" the one between x and y."""
    sites = [site for site in lm.site_widths() if (site == "infix") == (method == "infix")]
    if not sites:
        raise InputError("method=infix needs x and y in one text, and BART has two: choose method=prefix")
    if wrong := [site for site in wanted if site not in sites]:
        raise InputError(f"this model has no site {wrong[0]!r} for a prefix: choose of {', '.join(sites)}")
    return list(wanted) or sites


def make_site(lm, method: str, length: int, hidden: int, words: list[int], site: str) -> nn.Module:
    """What becomes the P_theta of one site: by itself, through an MLP, or as input embeddings (Sec. 7.2)."""
    n_embd, width = lm.config.n_embd, lm.site_widths()[site]
    if method == "embedding":
        theta = DirectPrefix(length, n_embd).to(lm.wte.weight.device)
        theta.P.data = embed_words(lm, words, length) if words else theta.P.data * lm.wte.weight.std()
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
    return lm.wte.weight[[words[i % len(words)] for i in range(length)]].float()


def compute_sites(lm, method: str, theta: nn.Module) -> dict[str, Tensor]:
    """P_theta (P, 2·L·C) at the place where it is spliced: computed once a step, not once a row."""
    if method == "full":
        return {}
    if method == "embedding":
        return {site: compute_activations(lm, embeds(), site) for site, embeds in theta.items()}
    return {site: P_theta() for site, P_theta in theta.items()}


def target_loss(lm, sites: dict[str, Tensor], batch: list[tuple[list[int], list[int]]]) -> tuple[Tensor, int]:
    """-sum log p(y | x) of a batch of (source, y) ids, y with its EOS, in nats; and how many tokens y has."""
    device = lm.wte.weight.device
    halves = [lm.split(source) for source, _ in batch]
    x, x_mask = pad_right([x for x, _ in halves])  # (B, |x|)
    inputs, y_mask = pad_right([[first, *y[:-1]] for (_, first), (_, y) in zip(halves, batch)])  # (B, |y|)
    targets, _ = pad_right([y for _, y in batch], IGNORED)  # (B, |y|)
    prefixes = {site: (P_theta, None) for site, P_theta in sites.items()}
    cache = lm.read(x.to(device), x_mask.to(device), prefixes)
    h = lm.hidden(inputs.to(device), cache, y_mask.to(device))  # (B, |y|, C)
    # Eq. 2: max sum_{i in Y_idx} log p(z_i | h_<i); logits for y only
    logits = lm.logits(h[y_mask.to(device)])  # (N, V)
    loss = F.cross_entropy(logits.float(), targets[y_mask].to(device), reduction="sum")
    return loss, int(y_mask.sum())


@torch.no_grad()
def collapse(lm, method: str, theta: nn.Module, config: dict, data: str) -> SavedPrefix:
    """Sec. 4.3: drops the MLP; only P_theta is stored (or, for "full", the whole LM)."""
    sites = {site: P_theta.float().cpu() for site, P_theta in compute_sites(lm, method, theta).items()}
    tensors = {name: tensor.cpu() for name, tensor in lm.state_dict().items()} if method == "full" else {}
    shape = dataclasses.asdict(lm.config)
    base = {"name": shape.pop("name"), "fingerprint": shape.pop("fingerprint"), "config": shape}
    return SavedPrefix(method, sites, lm.positions, base, config, {}, data, tensors)
