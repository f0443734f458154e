"""BART against transformers, and prefixes at its three sites."""

import pytest
import torch

from minprefix.bart import BART, BARTConfig
from minprefix.cache import pad_right
from minprefix.errors import InputError
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
    """A random, frozen BART with large weights, so that its distributions are far from uniform."""
    torch.manual_seed(seed)
    shape = dict(vocab_size=40, max_position_embeddings=64, d_model=32)
    for side in ("encoder", "decoder"):
        shape |= {f"{side}_layers": 2, f"{side}_attention_heads": 2, f"{side}_ffn_dim": 48}
    lm = BART(BARTConfig(**shape | changes))
    for tensor in (*lm.parameters(), lm.final_logits_bias):
        tensor.data.normal_(std=0.3)
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
