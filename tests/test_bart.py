"""BART against transformers, and prefixes at its three sites."""

from itertools import pairwise

import pytest
import torch

from minprefix.bart import BART, BARTConfig
from minprefix.cache import pad_right
from minprefix.errors import InputError
from minprefix.generate import generate
from tests.conftest import random_sources

# encoder layers, decoder layers, heads of each, widths of each MLP: no two sides alike
SHAPES = {
    "even": dict(encoder_layers=2, decoder_layers=2),
    "deep encoder": dict(encoder_layers=3, decoder_layers=1, decoder_attention_heads=4, decoder_ffn_dim=24),
    "deep decoder": dict(encoder_layers=1, decoder_layers=3, encoder_attention_heads=8, encoder_ffn_dim=24),
    "scaled": dict(scale_embedding=True, activation_function="relu", encoder_attention_heads=1),
    "scaled, gelu_new": dict(scale_embedding=True, activation_function="gelu_new", decoder_layers=1),
}


def make_bart(seed: int = 0, **changes) -> BART:
    """A random, frozen BART with large weights, so that its outputs vary with what it reads."""
    torch.manual_seed(seed)
    shape = dict(vocab_size=40, max_position_embeddings=64, d_model=32)
    for side in ("encoder", "decoder"):
        shape |= {f"{side}_layers": 2, f"{side}_attention_heads": 2, f"{side}_ffn_dim": 48}
    lm = BART(BARTConfig(**shape | changes))
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


def as_transformers(lm: BART):
    """The same model as transformers' BartForConditionalGeneration."""
    transformers = pytest.importorskip("transformers", reason="transformers is a test dependency")
    settings = {k: v for k, v in vars(lm.config).items() if k not in ("name", "fingerprint")}
    theirs = transformers.BartForConditionalGeneration(
        transformers.BartConfig(**settings, dropout=0.0, use_cache=True)
    ).eval()
    bias = {"final_logits_bias": lm.final_logits_bias}
    ours = {f"model.{name}": t for name, t in lm.state_dict().items() if name not in bias} | bias
    duplicates = ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight")
    theirs.load_state_dict(ours | dict.fromkeys(duplicates, lm.shared.weight))
    return theirs


def assert_close(ours, theirs, tolerance=1e-5):
    assert (ours - theirs).abs().max() <= tolerance * max(1.0, float(theirs.abs().max()))


def ids_of(seed: int, *shape: int) -> torch.Tensor:
    return torch.randint(3, 40, shape, generator=torch.Generator().manual_seed(seed))


# --- against transformers ---


@pytest.mark.parametrize("shape", SHAPES)
def test_logits_are_those_of_transformers(shape):
    lm = make_bart(1, **SHAPES[shape])
    x, mask = pad_right(random_sources(3, count=4), value=1)
    y = ids_of(0, 4, 9)
    with torch.no_grad():
        theirs = as_transformers(lm)(input_ids=x, attention_mask=mask.long(), decoder_input_ids=y).logits
        assert not mask.all()
        assert_close(lm(x, y, mask), theirs)
        whole = as_transformers(lm)(input_ids=x, decoder_input_ids=y).logits
        assert_close(lm(x, y), whole)
        assert (whole - theirs).abs().max() > 0.01  # the padding would have mattered


def test_pieces_are_the_whole():
    lm, x, y = make_bart(), ids_of(0, 2, 7), ids_of(1, 2, 9)
    cache = lm.read(x, torch.ones_like(x), {})
    pieces = [lm.logits(lm.hidden(y[:, a:b], cache)) for a, b in [(0, 4), (4, 5), (5, 9)]]
    assert_close(torch.cat(pieces, 1), lm(x, y))


def test_too_long_a_text_is_a_clear_error():
    lm, short, long = make_bart(), ids_of(0, 1, 5), ids_of(0, 1, 65)
    for x, y in ((long, short), (short, long)):
        with pytest.raises(InputError, match="take 65 positions, but the model has 64"):
            lm(x, y)


# --- decoding ---


def generate_theirs(lm, sources: list[list[int]], **options) -> list[list[int]]:
    """transformers' ids for right-padded sources, without the start token and from EOS on."""
    x, mask = pad_right(sources, value=1)
    theirs = as_transformers(lm)
    config = lm.config
    forced = {k: getattr(config, k) for k in ("forced_bos_token_id", "forced_eos_token_id")}
    theirs.generation_config.update(**forced, decoder_start_token_id=config.decoder_start_token_id)
    out = theirs.generate(input_ids=x, attention_mask=mask.long(), do_sample=False, **options)[:, 1:].tolist()
    return [row[: row.index(config.eos_token_id)] if config.eos_token_id in row else row for row in out]


XSUM = dict(forced_bos_token_id=0, forced_eos_token_id=2)  # bart-large's; bart-large-xsum forces EOS only


@pytest.mark.parametrize("length_penalty", [0.8, 1.0, 2.0])
@pytest.mark.parametrize("beams", [1, 4, 6])
def test_ids_are_those_of_transformers(beams, length_penalty):
    lengths = set()
    for seed, shape in enumerate(SHAPES):
        lm, sources = make_bart(seed, **SHAPES[shape]), random_sources(seed, count=4)
        theirs = generate_theirs(
            lm, sources, num_beams=beams, max_new_tokens=14, length_penalty=length_penalty
        )
        ours = generate(lm, sources, beams=beams, max_new_tokens=14, length_penalty=length_penalty)
        assert ours == theirs, f"seed {seed}"
        lengths |= {len(row) for row in ours}
    assert len(lengths) > 2


@pytest.mark.parametrize("early_stopping", [False, True])
@pytest.mark.parametrize("beams", [1, 4, 6])
def test_forced_tokens_lengths_and_repeats_are_those_of_transformers(beams, early_stopping):
    """The options in bart-large-xsum's generation_config.json, all at once."""
    cut = dict(max_new_tokens=15, min_new_tokens=6, no_repeat_ngram_size=2, length_penalty=0.8)
    cut |= dict(early_stopping=early_stopping)
    for seed in range(5):
        lm, sources = make_bart(seed, **XSUM), random_sources(seed, count=4)
        ours = generate(lm, sources, beams=beams, **cut)
        assert ours == generate_theirs(lm, sources, num_beams=beams, **cut), f"seed {seed}"
        assert all(row[0] == 0 and len(row) >= 6 for row in ours)
        assert all(len(set(pairwise(row))) == len(row) - 1 for row in ours)
