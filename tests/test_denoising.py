"""weights/denoising.py, and weights/pretrain.py with model=bart, on a text made in test_pretrain.py."""

import json

import numpy as np
import pytest
import torch

from tests import test_pretrain
from tests.test_pretrain import TEXT, TINY, text_folder  # noqa: F401 (a fixture)

import denoising  # isort: skip
import transplant  # isort: skip
import pretrain  # isort: skip

from minprefix.bart import BART, BARTConfig
from minprefix.checks import InputError
from minprefix.gpt2 import GPT2, GPT2Config
from minprefix.hub import load_lm

WORDS = ["<|endoftext|>", "Ġa", "Ġb", "Ġc", "Ġd", "ing", ".", "Ċ"]
A, B, C, D, ING, DOT = range(4, 10)  # in BART's numbering
IDS = np.array([[1, 5, 2, 6, 3, 6, 0, 4, 1, 2, 3, 4] * 10] * 4)  # in GPT-2's


@pytest.fixture
def noise(tmp_path) -> denoising.Noise:
    (tmp_path / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(WORDS)}))
    return denoising.Noise(denoising.number_vocabulary(tmp_path / "vocab.json"))


@pytest.fixture(scope="module")
def work(text_folder, tmp_path_factory):  # noqa: F811
    return test_pretrain.finish(text_folder, tmp_path_factory.mktemp("bart"), "model=bart")


def test_vocabulary_keeps_the_tokens_and_changes_the_special_ones(noise):
    assert noise.mask == 11
    assert np.flatnonzero(noise.begins_word).tolist() == [denoising.EOS, A, B, C, D, 10]
    assert np.flatnonzero(noise.ends_sentence).tolist() == [DOT, 10]


def test_spans_are_whole_words_and_about_a_third_of_them(noise):
    rng, row = np.random.default_rng(0), np.array([A, ING, B, C, ING, D] * 50)
    sources, lost = zip(*(noise.infill(row, rng) for _ in range(50)))
    for source, taken in zip(sources, lost):
        assert [i for i in source if i != noise.mask] == row[~taken].tolist()
        assert (taken[row == ING] == taken[np.flatnonzero(row == ING) - 1]).all()
    masks = np.mean([source.count(noise.mask) for source in sources])
    assert np.mean(lost) == pytest.approx(0.3, abs=0.01) and 2.6 < 200 * np.mean(lost) / masks < 3.2
    rows = [noise.infill(np.array([A, B, DOT, denoising.EOS, D, C] * 10), rng) for _ in range(50)]
    assert all(taken.sum() in range(13, 23) for _, taken in rows)  # 15 of 50 words


def test_sentences_change_places_within_their_document(noise):
    rng = np.random.default_rng(0)
    row = np.array([A, DOT, B, B, DOT, C, DOT, denoising.EOS, D, DOT, ING, DOT])
    orders = {tuple(row[noise.permute(row, rng)]) for _ in range(100)}
    assert len(orders) == 6 * 2
    for order in orders:
        text = "".join(map(str, order))
        assert all(sentence in text for sentence in ("49", "559", "69", "79", "89"))
        assert set(order[:7]) == {A, DOT, B, C} and order[7] == denoising.EOS


def test_a_batch_holds_the_text_and_its_damaged_copy(noise):
    source, mask, target, lost = noise.make_batch(IDS, (0, 7))
    assert target.shape == lost.shape == (4, 122) and source.shape == mask.shape
    assert target[0, 0] == denoising.BOS and target[0, -1] == denoising.EOS
    assert target[0, 1:8].tolist() == [A, D + 1, B, DOT, C, DOT, denoising.EOS]
    for s, m, t, gone in zip(source, mask, target, lost):
        kept = s[m.bool() & (s != noise.mask)]
        assert sorted(kept.tolist()) == sorted(t[~gone].tolist())
        assert (s[~m.bool()] == denoising.PAD).all()
    torch.testing.assert_close(noise.make_batch(IDS, (0, 7)), (source, mask, target, lost))
    assert not torch.equal(source, noise.make_batch(IDS, (0, 8))[0])


def test_loss_is_the_models_cross_entropy(noise):
    lm = pretrain.build_lm(pretrain.parse([*TINY, "model=bart"]))
    source, mask, target, lost = noise.make_batch(IDS[:, :24], (0, 9))
    inputs = torch.cat((torch.full((4, 1), denoising.EOS), target[:, :-1]), 1)
    expected = torch.nn.functional.cross_entropy(lm(source, inputs, mask)[lost], target[lost])
    loss, count = pretrain.compute_rebuilding_loss(lm, source, mask, target, lost)
    assert count == lost.sum() and not mask.all()
    torch.testing.assert_close(loss, expected)


def test_transformers_loads_the_bart_and_agrees(work):
    theirs, tokenizer = test_pretrain.load_theirs(work / "lm", "AutoModelForSeq2SeqLM")
    ours, our_tokenizer = load_lm(work / "lm")
    ids = tokenizer(TEXT)["input_ids"]
    assert ids == [denoising.BOS, *our_tokenizer.encode(TEXT), denoising.EOS]
    assert tokenizer.mask_token_id == ours.config.vocab_size - 1 and theirs.config.num_hidden_layers == 2
    source, target = torch.tensor([ids[:32]]), torch.tensor([[2, *ids[:9]]])
    with torch.no_grad():
        logits = theirs(input_ids=source, decoder_input_ids=target).logits
    torch.testing.assert_close(ours(source, target), logits, atol=1e-5, rtol=1e-5)


def test_a_transplant_writes_what_gpt2_adds():
    """One block: what attention and MLP add to a normalised stream is GPT-2's sum over that stream's size."""
    torch.manual_seed(0)
    start = GPT2(GPT2Config(20, 16, 8, 2, 2))
    for p in start.parameters():
        p.data.normal_(std=0.5)
    lm = BART(BARTConfig(24, 16, 8, 1, 2, 2, 2, 32, 32, activation_function="gelu_new"))
    ids = torch.arange(12)[None]
    transplant.transplant(start, lm, ids)
    (before, middle), _ = transplant.measure_stream(start, ids)
    x, cache = torch.randn(1, 5, 8), start.empty_cache(1)
    _, mask = cache.advance(torch.ones(1, 5, dtype=torch.bool))
    normal = torch.nn.functional.layer_norm(x, (8,))
    for layer in (lm.encoder.layers[0], lm.decoder.layers[0]):
        added = start.h[0].attn(start.h[0].ln_1(x), 0, cache[torch.tensor([0])], mask)
        k, v = layer.self_attn.project(normal)
        torch.testing.assert_close(layer.self_attn(normal, k, v, mask), added / before)
        added = start.h[0].mlp(start.h[0].ln_2(x))
        torch.testing.assert_close(layer.fc2(layer.activation(layer.fc1(normal))), added / middle)
    layer = lm.decoder.layers[1]
    assert torch.equal(layer.encoder_attn.v_proj.weight, layer.self_attn.v_proj.weight)
    assert torch.equal(lm.shared.weight[4], start.wte.weight[1] * (0.02 / start.wte.weight.std()))


def test_a_start_that_does_not_fit_is_refused(work, tmp_path):
    """Nor can a GPT-2 begin with a BART of its own sizes; nothing is written before that is said."""
    for model, init in (("bart", "weights/gpt2-mini"), ("bart", "weights/bart-mini"), ("gpt2", work / "lm")):
        with pytest.raises(InputError, match=f"does not fit a {model} of vocab_size=400"):
            pretrain.main([*TINY, f"model={model}", f"init={init}", f"work={tmp_path / 'new'}"])
    assert not (tmp_path / "new").exists()


def test_a_bart_can_begin_with_a_gpt2(work, text_folder, tmp_path):  # noqa: F811
    init = test_pretrain.finish(text_folder, tmp_path) / "lm"
    start = load_lm(init)[0]
    lm = pretrain.build_lm(pretrain.parse([*TINY, "model=bart", f"work={work}", f"init={init}"]))
    weight = start.h[1].mlp.c_fc.weight * start.h[1].ln_2.weight[:, None]
    for stack in (lm.encoder, lm.decoder):
        torch.testing.assert_close(stack.layers[1].fc1.weight, weight.T)


def test_a_bart_can_begin_with_a_bart(work, text_folder, tmp_path):  # noqa: F811
    """As where the bundled one ended: its tensors, and its BPE in the numbering of the token files."""
    arguments = [*TINY, "model=bart", f"work={tmp_path}", f"init={work / 'lm'}", f"corpus={text_folder}"]
    config = pretrain.parse([*arguments, "tokens=3072"])
    start = load_lm(work / "lm")[0].state_dict()
    torch.testing.assert_close(dict(pretrain.build_lm(config).state_dict()), dict(start), rtol=0, atol=0)
    pretrain.prepare_data(config)
    assert json.loads((work / "vocab.json").read_text()) == json.loads((tmp_path / "vocab.json").read_text())
    assert (work / "train.npy").read_bytes() == (tmp_path / "train.npy").read_bytes()


def test_log_and_resume(work, tmp_path, monkeypatch):
    assert {"heldout", "heldout_lost", "bits_per_byte"} < set(test_pretrain.read_log(work)[-1])
    arguments = [*test_pretrain.start_anew(work, tmp_path), "model=bart"]
    test_pretrain.check_resuming(work, tmp_path, arguments, monkeypatch)
