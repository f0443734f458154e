"""Muon, for the matrices that pretrain.py trains."""

import math

import torch
import torch.distributed as dist
from torch import Tensor


def orthogonalise(update: Tensor, steps: int = 5) -> Tensor:
    """Newton-Schulz iteration of Muon (Jordan et al. 2024): brings the singular values of a matrix near 1."""
    x = update.T if update.shape[0] > update.shape[1] else update
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=-4.7750, alpha=2.0315), x, beta=3.4445)
    return x.T if update.shape[0] > update.shape[1] else x


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, orthogonalised, then scaled to the size of AdamW's updates.

    torch.optim.Muon iterates in bfloat16: seconds a step on a processor without such instructions.
    """

    def __init__(self, params, lr, rank=0, workers=1, momentum=0.95, weight_decay=0.05):
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self.rank, self.workers = rank, workers

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            updates = [self.accumulate(p, group["momentum"]) for p in group["params"]]
            for i, update in enumerate(updates):  # each worker takes its share of this work, too
                mine = i % self.workers == self.rank
                updates[i] = orthogonalise(update) if mine else torch.zeros_like(update)
            add_up(updates, self.workers)
            for p, update in zip(group["params"], updates):
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update, alpha=-0.2 * group["lr"] * math.sqrt(max(p.shape)))

    def accumulate(self, p: Tensor, momentum: float) -> Tensor:
        average = self.state[p].setdefault("momentum", torch.zeros_like(p))
        average.lerp_(p.grad, 1 - momentum)
        return p.grad.lerp(average, momentum)


def add_up(tensors: list[Tensor], workers: int) -> None:
    """Replaces each tensor by its sum over the workers."""
    if workers > 1:
        flat = torch.cat([t.flatten() for t in tensors])
        dist.all_reduce(flat)
        for t, total in zip(tensors, flat.split([t.numel() for t in tensors])):
            t.copy_(total.view_as(t))
