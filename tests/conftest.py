"""What many tests do with a model, and the checkpoints that they share."""

import json
import os
from dataclasses import asdict
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
if "PYTEST_XDIST_WORKER" in os.environ:  # several processes share the cores
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import Module

from minprefix import InputError
from minprefix.cache import pad_right
from minprefix.generate import gather_prefixes
from minprefix.methods import compute_sites, make_theta, target_loss
from minprefix.tokenizer import BYTE_OF_CHAR
from tests.models import make_gpt2, write_vocabulary


def assert_close(ours: Tensor, theirs: Tensor, tolerance: float = 1e-5) -> None:
    """Within the tolerance, relative to the largest."""
    assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max().clamp(min=1.0)


def assert_refused(call, *parts: str) -> str:
    """In one sentence, which is not one error in another."""
    with pytest.raises(InputError) as refused:
        call()
    message = str(refused.value)
    assert all(part in message for part in parts), f"{parts}: {message}"
    assert "\n" not in message and not message.endswith(".") and len(message) < 1000, message
    assert max(map(message.count, ("put the", "again", "cannot be"))) <= 1, message
    return message


def ids_of(seed: int, *shape: int) -> Tensor:
    return torch.randint(3, 40, shape, generator=torch.Generator().manual_seed(seed))


def pad_left(rows: list[list[int]], value: int = 0) -> tuple[Tensor, Tensor]:
    """ids and attention mask (B, T), as transformers' generate expects a batch."""
    ids, mask = pad_right([row[::-1] for row in rows], value)
    return ids.flip(1), mask.flip(1).long()


def random_sources(seed: int, count: int = 3, vocab_size: int = 40, longest: int = 12) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest, (count,), generator=generator).tolist()
    return [torch.randint(1, vocab_size, (n,), generator=generator).tolist() for n in lengths]


def continue_from(lm, sources: list[list[int]], prefixes: list, y: Tensor) -> Tensor:
    """Logits (B, T, V) of what follows y (B, T), each row behind its source and its prefix or None."""
    x, mask = pad_right(sources, value=1)
    return lm.logits(lm.hidden(y, lm.read(x, mask, gather_prefixes(prefixes))))


def train_steps(lm, batch: list, method: str, steps: int, sites=(), hidden=16) -> tuple[Module, list[float]]:
    """theta after some steps of AdamW on one batch, and the loss of each in nats a token."""
    torch.manual_seed(0)
    theta = make_theta(lm, method, 3, hidden, [], sites)
    optimizer = torch.optim.AdamW(theta.parameters(), lr=0.01)
    losses = []
    for _ in range(steps):
        summed, tokens = target_loss(lm, compute_sites(lm, method, theta), batch)
        optimizer.zero_grad()
        (summed / tokens).backward()
        optimizer.step()
        losses.append(summed.item() / tokens)
    return theta, losses


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> Path:
    """A checkpoint of a tiny random model that reads bytes: with it the commands run in a second."""
    folder = tmp_path_factory.mktemp("tiny")
    lm = make_gpt2(vocab_size=257, n_layer=1, n_embd=16, n_positions=512)
    save_file({f"transformer.{name}": t for name, t in lm.state_dict().items()}, folder / "model.safetensors")
    config = {key: value for key, value in asdict(lm.config).items() if key not in ("name", "fingerprint")}
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "gpt2"}))
    write_vocabulary(folder, ["<|endoftext|>", *BYTE_OF_CHAR])
    return folder


WEIGHTS = Path(__file__).resolve().parent.parent / "weights"
BUNDLED, BUNDLED_BART = str(WEIGHTS / "gpt2-mini"), str(WEIGHTS / "bart-mini")
