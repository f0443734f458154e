"""Tiny random models of both kinds, as ours and as transformers', and what is spliced into them."""

import json
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from minprefix.bart import BART, BARTConfig
from minprefix.cache import Cache
from minprefix.gpt2 import GPT2, GPT2Config
from minprefix.layers import Checkpoint
from minprefix.prefix import SavedPrefix, choose_sites, compute_activations
from minprefix.tokenizer import BART_SPECIAL, BYTE_OF_CHAR


def make_gpt2(seed: int = 0, **changes) -> GPT2:
    """A random, frozen GPT-2 with large weights, so that its distributions are far from uniform."""
    torch.manual_seed(seed)
    shape = dict(vocab_size=40, n_positions=128, n_embd=32, n_layer=2, n_head=2)
    lm = GPT2(GPT2Config(**shape | changes, fingerprint="made up"))
    for parameter in lm.parameters():
        parameter.data.normal_(std=0.3)
    return lm.eval().requires_grad_(False)


def make_bart(seed: int = 0, **changes) -> BART:
    """A random, frozen BART with large weights, so that its outputs vary with what it reads. Its sides differ
    in their number of layers and heads.
    """
    torch.manual_seed(seed)
    shape = dict(vocab_size=40, max_position_embeddings=64, d_model=32, encoder_layers=3, decoder_layers=2)
    shape |= dict(
        encoder_attention_heads=4, decoder_attention_heads=2, encoder_ffn_dim=48, decoder_ffn_dim=48
    )
    lm = BART(BARTConfig(**shape | changes, fingerprint="made up"))
    for name, tensor in lm.state_dict().items():
        tensor.normal_(std=0.4 if tensor.ndim == 2 else 0.1)
        if "norm" in name and "weight" in name:
            tensor.add_(1.0)
        if "attn.out" in name:
            tensor.mul_(0.2)  # or the source says one token for ever
        if "positions" in name:
            tensor.mul_(3 * lm.scale)  # or the tied head says the last token again
    lm.final_logits_bias[0, 2] += 2.5  # some texts end
    return lm.eval().requires_grad_(False)


SHAPES = [
    dict(encoder_layers=2, encoder_attention_heads=2),
    dict(decoder_layers=1, decoder_attention_heads=4, decoder_ffn_dim=24),
    dict(encoder_layers=1, decoder_layers=3, encoder_attention_heads=8, encoder_ffn_dim=24),
    dict(scale_embedding=True, activation_function="relu", encoder_attention_heads=1),
    dict(scale_embedding=True, activation_function="gelu_new", decoder_layers=1),
]
MODELS = {"GPT-2": make_gpt2, "BART": make_bart}
both_models = pytest.mark.parametrize("model", MODELS)
BATCHES = {  # (source, y) with what each model puts around them
    "GPT-2": [([5, 6, 7, 0], [8, 9, 0]), ([3, 0], [4, 0]), ([0], [9, 9, 9, 9, 0])],
    "BART": [([5, 6, 7], [8, 9, 2]), ([3], [4, 2]), ([9, 8, 7, 6], [9, 9, 9, 9, 2])],
}


def as_transformers(lm: GPT2 | BART):
    """The same model as transformers'."""
    transformers = pytest.importorskip("transformers", reason="transformers is a test dependency")
    settings = asdict(lm.config)
    for ours_alone in ("name", "fingerprint", "further_ends"):
        del settings[ours_alone]
    ours = dict(lm.state_dict())
    if isinstance(lm, GPT2):
        settings |= dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0) | {"pad_token_id": 0}
        theirs = transformers.GPT2LMHeadModel(transformers.GPT2Config(**settings))
        outside, prefix = {"lm_head.weight": ours.pop("lm_head.weight", lm.wte.weight)}, "transformer."
    else:
        theirs = transformers.BartForConditionalGeneration(transformers.BartConfig(**settings, dropout=0.0))
        outside, prefix = {"final_logits_bias": ours.pop("final_logits_bias")}, "model."
        copies = ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight")
        outside |= dict.fromkeys(copies, lm.shared.weight)
    theirs.load_state_dict({prefix + name: tensor for name, tensor in ours.items()} | outside)
    return theirs.eval()


def make_prefix(lm, lengths: int | dict[str, int], seed: int = 0, method: str = "prefix") -> SavedPrefix:
    """A random prefix at all of the method's sites, or of another length at each of those that are named."""
    generator = torch.Generator().manual_seed(seed)
    if isinstance(lengths, int):
        lengths = dict.fromkeys(choose_sites(lm, method, ()), lengths)
    if method == "embedding":
        words = 0.3 * torch.randn(max(lengths.values()), lm.config.n_embd, generator=generator)
        sites = {site: compute_activations(lm, words, site) for site in lengths}
    else:
        widths = lm.site_widths()
        sites = {site: torch.randn(n, widths[site], generator=generator) for site, n in lengths.items()}
    base = {"name": "", "config": {}, "fingerprint": ""}
    return SavedPrefix(method, sites, lm.positions, base, {}, {}, "")


def save_checkpoint(folder: Path, lm: GPT2 | BART) -> Path:
    """The model as transformers saves it; it reads bytes."""
    as_transformers(lm).save_pretrained(folder)
    special = ["<|endoftext|>"] if isinstance(lm, GPT2) else BART_SPECIAL[:4]
    write_vocabulary(folder, [*special, *BYTE_OF_CHAR, "<mask>"])
    return folder


def write_vocabulary(folder: Path, tokens: list[str]) -> None:
    (folder / "vocab.json").write_text(json.dumps({token: id for id, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")


class Table:
    """A language model that a person can check by hand: p(next | last token) is a table. EOS is 0."""

    positions = "shifted"

    def __init__(self, table: list[list[float]]):
        self.log_p = torch.tensor(table).log()
        self.wte = SimpleNamespace(weight=torch.zeros(len(table), 1))
        self.config = SimpleNamespace(**vars(Checkpoint()), n_positions=999, vocab_size=len(table))

    def split(self, source):
        return source[:-1], source[-1:]

    def read(self, x, mask, prefixes):
        cache = Cache(len(x), 1, 1, 1, like=torch.zeros(1))
        cache.splice(torch.zeros(x.shape[1], 2))
        return cache

    def hidden(self, ids, cache):
        cache.advance(torch.ones_like(ids).bool())
        nothing = torch.zeros(len(ids), 1, ids.shape[1], 1)
        cache.append(0, nothing, nothing)
        return ids[:, :, None].float()

    def logits(self, h):
        return self.log_p[h[:, :, 0].long()]
