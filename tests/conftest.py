"""Tiny random models in the shapes of both sides: ours and, where it is installed, transformers'."""

import json
import os
from dataclasses import asdict
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import Module

from minprefix.gpt2 import GPT2, GPT2Config
from minprefix.methods import compute_sites, make_theta, target_loss
from minprefix.tokenizer import BYTE_OF_CHAR


def make_gpt2(seed=0, vocab_size=40, n_layer=2, n_head=2, n_embd=32, n_positions=128) -> GPT2:
    """A random, frozen GPT-2 with large weights, so that its distributions are far from uniform."""
    torch.manual_seed(seed)
    lm = GPT2(GPT2Config(vocab_size, n_positions, n_embd, n_layer, n_head))
    for parameter in lm.parameters():
        parameter.data.normal_(std=0.3)
    return lm.eval().requires_grad_(False)


def as_transformers(lm: GPT2):
    """The same model as transformers' GPT2LMHeadModel."""
    transformers = pytest.importorskip(
        "transformers", reason="transformers is a test dependency: pip install .[test]"
    )
    c = lm.config
    config = transformers.GPT2Config(
        vocab_size=c.vocab_size,
        n_positions=c.n_positions,
        n_embd=c.n_embd,
        n_layer=c.n_layer,
        n_head=c.n_head,
        attn_pdrop=0.0,
        embd_pdrop=0.0,
        resid_pdrop=0.0,
        bos_token_id=c.bos_token_id,
        eos_token_id=c.eos_token_id,
        pad_token_id=c.eos_token_id,
    )
    theirs = transformers.GPT2LMHeadModel(config).eval()
    theirs.transformer.load_state_dict(lm.state_dict())
    return theirs


def pad_left(rows: list[list[int]], value: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """ids and attention mask (B, T), as transformers' generate expects a batch."""
    width = max(map(len, rows))
    ids = torch.tensor([[value] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return ids, mask


def random_sources(seed: int, count: int = 3, vocab_size: int = 40, longest: int = 12) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest, (count,), generator=generator).tolist()
    return [torch.randint(1, vocab_size, (n,), generator=generator).tolist() for n in lengths]


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
    (folder / "vocab.json").write_text(
        json.dumps({"<|endoftext|>": 0} | {b: i for i, b in enumerate(BYTE_OF_CHAR, 1)})
    )
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return folder


WEIGHTS = Path(__file__).resolve().parent.parent / "weights"


@pytest.fixture(scope="session")
def bundled() -> str:
    """The bundled GPT-2's folder."""
    return str(WEIGHTS / "gpt2-mini")


@pytest.fixture(scope="session")
def bundled_bart() -> str:
    """The bundled BART's folder."""
    return str(WEIGHTS / "bart-mini")
