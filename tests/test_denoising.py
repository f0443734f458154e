"""weights/denoising.py, and weights/pretrain.py with model=bart, on a text made in test_pretrain.py."""

import json

import numpy as np
import pytest
import torch

from tests.test_pretrain import TINY, text_folder  # noqa: F401 (fixtures); puts weights/ on the path
from tests.test_pretrain import work as gpt2_work  # noqa: F401

import denoising  # isort: skip
import transplant  # isort: skip
import pretrain  # isort: skip

from minprefix.bart import BART, BARTConfig
from minprefix.errors import InputError
from minprefix.gpt2 import GPT2, GPT2Config
from minprefix.hub import load_lm

WORDS = ["<|endoftext|>", "Ġa", "Ġb", "Ġc", "Ġd", "ing", ".", "Ċ"]
A, B, C, D, ING, DOT = range(4, 10)  # in BART's numbering


@pytest.fixture
def noise(tmp_path) -> denoising.Noise:
    (tmp_path / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(WORDS)}))
    return denoising.Noise(denoising.number_vocabulary(tmp_path / "vocab.json"))


@pytest.fixture(scope="module")
def work(text_folder, tmp_path_factory):  # noqa: F811
    work = tmp_path_factory.mktemp("bart")
    arguments = [*TINY, "model=bart", f"corpus={text_folder}", f"work={work}", f"out={work / 'lm'}"]
    pretrain.main([*arguments, "tokens=3072"])
    return work


def test_vocabulary_keeps_the_tokens_and_changes_the_special_ones(noise):
    assert noise.mask == 11
    assert np.flatnonzero(noise.begins_word).tolist() == [denoising.EOS, A, B, C, D, 10]
    assert np.flatnonzero(noise.ends_sentence).tolist() == [DOT, 10]


def test_spans_are_whole_words_and_about_a_third_of_them(noise):
    rng, row = np.random.default_rng(0), np.array([A, ING, B, C, ING, D] * 50)
    lost, masks = [], []
    for _ in range(50):
        source, taken = noise.infill(row, rng)
        assert [i for i in source if i != noise.mask] == row[~taken].tolist()
        assert (taken[row == ING] == taken[np.flatnonzero(row == ING) - 1]).all()
        lost.append(taken.mean())
        masks.append(source.count(noise.mask))
    assert np.mean(lost) == pytest.approx(0.3, abs=0.01)
    assert 2.6 < 200 * np.mean(lost) / np.mean(masks) < 3.2  # words a span
    rows = [noise.infill(np.array([A, B, DOT, denoising.EOS, D, C] * 10), rng) for _ in range(50)]
    assert all(taken.sum() in range(13, 23) for _, taken in rows)  # 15 of 50 words


def test_sentences_change_places_within_their_document(noise):
    rng, row = (
        np.random.default_rng(0),
        np.array([A, DOT, B, B, DOT, C, DOT, denoising.EOS, D, DOT, ING, DOT]),
    )
    orders = {tuple(row[noise.permute(row, rng)]) for _ in range(100)}
    assert len(orders) == 6 * 2
    for order in orders:
        text = "".join(map(chr, (o + 65 for o in order)))
        assert all(sentence in text for sentence in ("EJ", "FFJ", "GJ", "HJ", "IJ"))
        assert set(order[:7]) == {A, DOT, B, C} and order[7] == denoising.EOS


def test_a_batch_holds_the_text_and_its_damaged_copy(noise):
    ids = np.array([[1, 5, 2, 6, 3, 6, 0, 4, 1, 2, 3, 4] * 10] * 4)
    source, mask, target, lost = noise.make_batch(ids, (0, 7))
    assert target.shape == lost.shape == (4, 122) and source.shape == mask.shape
    assert target[0, 0] == denoising.BOS and target[0, -1] == denoising.EOS
    assert target[0, 1:8].tolist() == [A, D + 1, B, DOT, C, DOT, denoising.EOS]
    for s, m, t, gone in zip(source, mask, target, lost):
        kept = s[m.bool() & (s != noise.mask)]
        assert sorted(kept.tolist()) == sorted(t[~gone].tolist())
        assert (s[~m.bool()] == denoising.PAD).all()
    again = noise.make_batch(ids, (0, 7))
    assert all(torch.equal(one, two) for one, two in zip((source, mask, target, lost), again))
    assert not torch.equal(source, noise.make_batch(ids, (0, 8))[0])


def test_loss_is_the_models_cross_entropy():
    lm = pretrain.build_lm(pretrain.parse([*TINY, "model=bart"]))
    generator = torch.Generator().manual_seed(0)
    source, target = (torch.randint(4, 400, (2, n), generator=generator) for n in (7, 9))
    mask = torch.ones_like(source)
    mask[1, 5:] = 0
    predicted = torch.rand(2, 9, generator=generator) < 0.5
    inputs = torch.cat((torch.full((2, 1), denoising.EOS), target[:, :-1]), 1)
    logits = lm(source, inputs, mask)
    expected = torch.nn.functional.cross_entropy(logits[predicted], target[predicted])
    loss, count = pretrain.compute_rebuilding_loss(lm, source, mask, target, predicted)
    assert count == predicted.sum()
    torch.testing.assert_close(loss, expected)


def test_transformers_loads_the_bart_and_agrees(work):
    transformers = pytest.importorskip(
        "transformers", reason="transformers is a test dependency: pip install .[test]"
    )
    theirs, info = transformers.AutoModelForSeq2SeqLM.from_pretrained(
        work / "lm", dtype=torch.float32, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(work / "lm")
    ours, our_tokenizer = load_lm(work / "lm")
    text = "Ada Zarnock, née Møller, sold 17 houses."
    ids = tokenizer(text)["input_ids"][:32]
    assert ids[1:-1] == our_tokenizer.encode(text)[:30] and ids[0] == 0
    assert tokenizer.mask_token_id == ours.config.vocab_size - 1
    source, target = torch.tensor([ids]), torch.tensor([[2, *ids[:9]]])
    with torch.no_grad():
        logits = theirs(input_ids=source, decoder_input_ids=target).logits
    torch.testing.assert_close(ours(source, target), logits, atol=1e-5, rtol=1e-5)


def test_a_transplant_writes_what_gpt2_adds():
    """One block: what attention and MLP add to a normalised stream is GPT-2's sum over that stream's size."""
    torch.manual_seed(0)
    start = GPT2(GPT2Config(20, 16, 8, 2, 2))
    for p in start.parameters():
        torch.nn.init.normal_(p, std=0.5)
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


def test_a_start_that_does_not_fit_is_refused(work):
    arguments = [*TINY, "model=bart", f"work={work}", f"out={work / 'other'}"]
    for init in ("weights/gpt2-mini", "weights/bart-mini"):
        with pytest.raises(InputError, match=f"init={init} does not fit a bart of vocab_size=400"):
            pretrain.main([*arguments, f"init={init}"])


def test_a_gpt2_cannot_begin_with_a_bart(work):
    arguments = [*TINY, f"work={work / 'new'}", f"out={work / 'other'}", f"init={work / 'lm'}"]
    with pytest.raises(InputError, match="does not fit a gpt2 of vocab_size=400"):
        pretrain.main(arguments)
    assert not (work / "new").exists()


def test_a_bart_can_begin_with_a_gpt2(work, gpt2_work):  # noqa: F811
    start = load_lm(gpt2_work / "lm")[0]
    lm = pretrain.build_lm(pretrain.parse([*TINY, "model=bart", f"work={work}", f"init={gpt2_work / 'lm'}"]))
    weight = start.h[1].mlp.c_fc.weight * start.h[1].ln_2.weight[:, None]
    for stack in (lm.encoder, lm.decoder):
        torch.testing.assert_close(stack.layers[1].fc1.weight, weight.T)


def test_a_bart_can_begin_with_a_bart(work, text_folder, tmp_path):  # noqa: F811
    """As where the bundled one ended: its tensors, and its BPE in the numbering of the token files."""
    arguments = [*TINY, "model=bart", f"work={tmp_path}", f"init={work / 'lm'}", f"corpus={text_folder}"]
    config = pretrain.parse([*arguments, "tokens=3072"])
    lm, start = pretrain.build_lm(config), load_lm(work / "lm")[0]
    for name, tensor in start.state_dict().items():
        assert torch.equal(lm.state_dict()[name], tensor), name
    pretrain.prepare_data(config)
    vocabularies = [json.loads((folder / "vocab.json").read_text()) for folder in (work, tmp_path)]
    assert vocabularies[0] == vocabularies[1]
    assert (work / "train.npy").read_bytes() == (tmp_path / "train.npy").read_bytes()


def test_log_and_resume(work, text_folder, tmp_path):  # noqa: F811
    lines = [json.loads(line) for line in (work / "log.jsonl").read_text().splitlines()]
    assert {"heldout", "heldout_lost", "bits_per_byte"} < set(lines[-1])
    for name in ("vocab.json", "merges.txt", "data.json", "train.npy", "heldout.npy", "heldout_records.npy"):
        (tmp_path / name).write_bytes((work / name).read_bytes())
    arguments = [*TINY, "model=bart", f"corpus={text_folder}", f"work={tmp_path}", "tokens=3072"]
    take_step, calls = pretrain.take_step, []

    def stop(*args):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        take_step(*args)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(pretrain, "take_step", stop)
        pretrain.main([*arguments, f"out={tmp_path / 'lm'}", "save_minutes=1e-9"])
    assert torch.load(tmp_path / "state.pt")["step"] == 5
    pretrain.main([*arguments, f"out={tmp_path / 'lm'}"])
    once, twice = (torch.load(folder / "state.pt")["lm"] for folder in (work, tmp_path))
    assert all(torch.equal(once[name], twice[name]) for name in once)
