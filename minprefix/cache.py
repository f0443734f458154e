"""h_<i of Eq. 1: what later steps can see of earlier ones, the keys and values of every layer.

Shapes, here and in all files: B batch, T new tokens, S slots seen (cache + T), P prefix, H heads, D head
size, C = H·D (in P_theta H counts the heads of keys and values), L layers, V vocabulary, K beams.
"""

import copy

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from minprefix.checks import InputError


class Cache:
    """The past of B rows, in the order of the calls; positions and masks follow from the cache alone.

    keys, values: per layer (B, H, S, D); real (B, S): slots that later tokens may see; next (B,): the
    position of the row's next token; most: none is above it, which is known without waiting for a GPU; paths
    (B, K, S) or None: while K beams share a row, the slots that each beam sees; cross: beside a decoder's
    past, the source's keys and values, which do not grow.
    """

    def __init__(self, batch: int, n_layer: int, n_head: int, head_size: int, like: Tensor):
        empty = like.new_empty(batch, n_head, 0, head_size)
        self.keys = [empty] * n_layer
        self.values = [empty] * n_layer
        self.real = torch.empty(batch, 0, dtype=torch.bool, device=like.device)
        self.next, self.most = torch.zeros(batch, dtype=torch.long, device=like.device), 0
        self.paths: Tensor | None = None
        self.cross: Cache | None = None

    def __len__(self) -> int:
        """Slots, S."""
        return self.real.shape[1]

    def splice(self, prefix: Tensor, real: Tensor | None = None, shift: bool = True) -> None:
        """Eq. 3, first case: P_theta (P, 2·L·C), or one for each row (B, P, 2·L·C), becomes the next P slots.

        real (B, P) masks the padding of rows with shorter prefixes. `shift` counts the prefix as P positions.
        """
        B, L, H, D = len(self.real), len(self.keys), self.keys[0].shape[1], self.keys[0].shape[3]
        P = prefix.shape[-2]
        real = self.real.new_ones(B, P) if real is None else real.to(self.real.device)
        self._claim(real, real.sum(1) if shift else 0)
        # Eq. 3: h_i = P_theta[i, :] for i in P_idx
        h = prefix.to(self.keys[0]).unflatten(-1, (2 * L, H, D)).expand(B, P, -1, -1, -1)  # (B, P, 2L, H, D)
        for layer, (k, v) in enumerate(h.permute(2, 0, 3, 1, 4).unflatten(0, (L, 2))):  # (B, H, P, D) each
            self.append(layer, k, v)

    def advance(self, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Claims slots for T new tokens, valid (B, T) -> positions (B, T) and what each sees (B, 1, T, S).

        A new token sees every real slot of the past and the new ones up to itself: the mask is aligned to the
        lower right. Beams (`paths`) are siblings instead: each sees its own path and itself, and all have one
        position.
        """
        T = valid.shape[1]
        itself = torch.eye(T, dtype=torch.bool, device=valid.device)
        if self.paths is None:
            positions = self.next[:, None] + (valid.cumsum(1) - 1).clamp(min=0)  # (B, T)
            past = self.real[:, None, :].expand(-1, T, -1)  # (B, T, S)
            # A padded token sees itself, though nobody sees it: softmax over no slot at all would be NaN.
            new = (valid[:, None, :] & torch.ones_like(itself).tril()) | itself  # (B, T, T)
            self._claim(valid, valid.sum(1))
            return positions, torch.cat((past, new), 2)[:, None]
        positions = self.next[:, None].expand(-1, T)  # (B, K)
        self.paths = torch.cat((self.paths, itself.expand(len(valid), -1, -1)), 2)  # (B, K, S + K)
        self._claim(valid, 1)
        return positions, self.paths[:, None]

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Puts k, v (B, H, T, D) into the claimed slots -> all keys and values of the layer (B, H, S, D)."""
        return self._grow(self.keys, layer, k), self._grow(self.values, layer, v)

    def branch(self, beams: int) -> None:
        """From here on each row holds K beams, all with the row's past: the tokens of a call are siblings."""
        self.paths = self.real[:, None, :].expand(-1, beams, -1)  # (B, K, S)

    def follow(self, parents: Tensor) -> None:
        """Beam k goes on from beam parents[b, k]: only the mask is permuted, no key or value moves."""
        self.paths = self.paths.take_along_dim(parents[:, :, None], 1)  # (B, K, S)

    def __getitem__(self, rows: Tensor) -> "Cache":
        """A cache of the chosen rows (any order, repeats allowed): to drop finished ones, or give each its
        copies.
        """
        chosen = copy.copy(self)
        chosen.keys = [k[rows] for k in self.keys]
        chosen.values = [v[rows] for v in self.values]
        chosen.real, chosen.next = self.real[rows], self.next[rows]
        chosen.paths = None if self.paths is None else self.paths[rows]
        chosen.cross = None if self.cross is None else self.cross[rows]
        return chosen

    def _grow(self, held: list[Tensor], layer: int, new: Tensor) -> Tensor:
        """While decoding, into spare room, a quarter of what is held: the past is copied a few times only."""
        if not torch.is_inference_mode_enabled():
            # Rebinding, not writing: autograd needs the old tensors, and detaching would starve P_theta.
            held[layer] = torch.cat((held[layer], new), 2)
            return held[layer]
        S, T = len(self), new.shape[2]
        if S == T:  # the first slots need no copy, and nothing is ever written into them
            held[layer] = new
            return new
        if held[layer].shape[2] < S:
            spare = S // 4 if T < S // 4 else 0  # none behind a source: it may be the last to come
            held[layer] = F.pad(held[layer][:, :, : S - T], (0, 0, 0, T + spare))  # (B, H, S + spare, D)
        held[layer][:, :, S - T : S] = new
        return held[layer][:, :, :S]

    def check_positions(self, n_positions: int) -> None:
        """InputError if a row has gone past the last of n_positions."""
        if self.most > n_positions and (taken := int(self.next.max())) > n_positions:
            taken = f"prefix, source and target take {taken} positions, but the model has {n_positions}"
            raise InputError(f"{taken}: shorten the source, the prefix or max_new_tokens")

    def _claim(self, real: Tensor, positions: Tensor | int) -> None:
        self.real = torch.cat((self.real, real), 1)  # (B, S + T)
        self.next = self.next + positions
        self.most += real.shape[1] if isinstance(positions, Tensor) else positions


def pad_right(rows: list[list[int]], value: int = 0) -> tuple[Tensor, Tensor]:
    """Rows of ids -> (B, T) long, filled with `value` at the end, and a mask (B, T) of what is real."""
    tensors = [torch.tensor(row, dtype=torch.long) for row in rows]
    return pad_sequence(tensors, batch_first=True, padding_value=value), mark_real(rows)


def stack_prefixes(prefixes: list[Tensor | None], width: int) -> tuple[Tensor, Tensor]:
    """One P_theta (P, width) or None for each row -> (B, P, width), padded with zeros, and which are real (B,
    P).
    """
    rows = [torch.zeros(0, width) if P_theta is None else P_theta for P_theta in prefixes]
    return pad_sequence(rows, batch_first=True), mark_real(rows)


def mark_real(rows: list) -> Tensor:
    """True for the items of each row (B, T), False for what fills it up to the longest one."""
    lengths = torch.tensor([len(row) for row in rows])
    return torch.arange(int(lengths.max())) < lengths[:, None]
