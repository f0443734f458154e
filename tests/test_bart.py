"""BART against transformers, and prefixes at its three sites."""

import json

import pytest
import torch

import sample
import train
from minprefix import InputError, generate, load_lm, load_prefix
from minprefix.bart import BART, BARTConfig
from minprefix.cache import pad_right
from minprefix.methods import target_loss
from minprefix.prefix import pack, read_activations
from minprefix.texts import encode_source, encode_target, generate_texts
from tests.conftest import BUNDLED_BART, assert_close, ids_of, random_sources
from tests.models import BATCHES, SHAPES, as_transformers, make_bart, make_prefix, save_checkpoint

# --- the model ---


@pytest.mark.parametrize("shape", range(len(SHAPES)))
def test_logits_are_those_of_transformers(shape):
    lm = make_bart(1, **SHAPES[shape])
    x, mask = pad_right(random_sources(3, count=4), value=1)
    y, theirs = ids_of(0, 4, 9), as_transformers(lm)
    with torch.no_grad():
        padded = theirs(input_ids=x, attention_mask=mask.long(), decoder_input_ids=y).logits
        whole = theirs(input_ids=x, decoder_input_ids=y).logits
    assert_close(lm(x, y, mask), padded)
    assert_close(lm(x, y), whole)
    assert (whole - padded).abs().max() > 0.01  # the padding would have mattered


def test_the_loss_is_transformers_on_the_same_labels():
    lm, batch = make_bart(), BATCHES["BART"]
    summed, tokens = target_loss(lm, {}, batch)
    x, mask = pad_right([source for source, _ in batch], value=1)
    labels, _ = pad_right([y for _, y in batch], value=-100)
    theirs = as_transformers(lm)(input_ids=x, attention_mask=mask.long(), labels=labels).loss
    assert summed.item() / tokens == pytest.approx(theirs.item(), rel=1e-5)


def test_the_source_is_projected_once_for_all_steps_and_beams():
    lm, shapes = make_bart(), []
    for layer in lm.decoder.layers:
        layer.encoder_attn.k_proj.register_forward_hook(lambda _, x, __: shapes.append(tuple(x[0].shape)))
    generate(lm, [[5, 6, 7], [8, 9]], beams=4, max_new_tokens=9, min_new_tokens=9)
    assert shapes == [(2, 3, 32)] * 2  # once a layer: two sources, not eight beams


def test_source_and_target_have_a_limit_each_and_a_prefix_takes_no_position():
    lm, short, long = make_bart(), [5], [5] * 65
    prefix = make_prefix(lm, {"encoder": 9, "decoder": 2, "cross": 9})
    generate(lm, [[5] * 64], prefix, beams=1, max_new_tokens=64)
    cache = read(lm, ids_of(0, 2, 4), **prefix.sites)
    assert cache.next.tolist() == [0, 0] and len(cache) == 2 and len(cache.cross) == 9 + 4
    for x, y in ((long, short), (short, long)):
        with pytest.raises(InputError, match=r"65 positions.*64"):
            lm(torch.tensor([x]), torch.tensor([y]))
        with pytest.raises(InputError, match=r"source 1 needs 65 positions"):
            generate(lm, [x], max_new_tokens=len(y))


OFFICIAL = {  # shapes, and how many parameters they have
    "bart-base": ((768, 6, 6, 12, 12, 3072, 3072), 139_420_416),
    "bart-large, bart-large-xsum": ((1024, 12, 12, 16, 16, 4096, 4096), 406_291_456),
    "distilbart-xsum-12-3": ((1024, 12, 3, 16, 16, 4096, 4096), 255_121_408),
}


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_shapes_have_transformers_tensors(name):
    shape, count = OFFICIAL[name]
    with torch.device("meta"):
        lm = BART(BARTConfig(50265, 1024, *shape))
        as_transformers(lm)  # takes our tensors as its own, or raises
    assert sum(parameter.numel() for parameter in lm.parameters()) == count


# --- words as a prefix: where is it exact? ---
# Cross-attention knows no positions: P_cross of words is these words in the memory, always.
# In self-attention BART counts no position for a prefix, so that words and text share positions, and so
# equality needs a model that cannot tell positions apart; moreover
# - an encoder's words would see x, so from the second layer on their activations depend on x;
# - a decoder's words see the source, so their activations hold for that source only.

WORDS = [7, 3, 9]


def forget_positions(lm: BART) -> BART:
    for stack in (lm.encoder, lm.decoder):
        stack.embed_positions.weight.data[:] = stack.embed_positions.weight[0]
    return lm


def read(lm: BART, x: torch.Tensor, **prefix: torch.Tensor):
    return lm.read(x, torch.ones_like(x), {site: (P_theta, None) for site, P_theta in prefix.items()})


def test_a_cross_prefix_of_words_is_these_words_in_the_memory():
    lm, x, y = make_bart(), ids_of(0, 1, 5), ids_of(1, 1, 6)
    found = lm.logits(lm.hidden(y, read(lm, x, cross=read_activations(lm, WORDS, 3, "cross"))))
    theirs = as_transformers(lm)
    with torch.no_grad():
        memory = [theirs.model.encoder(ids).last_hidden_state for ids in (torch.tensor([WORDS]), x)]
        outputs = (torch.cat(memory, 1),)
        assert_close(found, theirs(encoder_outputs=outputs, decoder_input_ids=y).logits)


def test_an_encoder_prefix_of_words_is_these_words_before_x_in_one_layer():
    for layers, exact in ((1, True), (2, False)):
        lm, x = forget_positions(make_bart(encoder_layers=layers)), ids_of(0, 1, 5)
        whole = torch.cat((torch.tensor([WORDS]), x), 1)
        expected = pack(read(lm, whole).cross)[3:]
        alone = read_activations(lm, WORDS, 3, "encoder")
        apart = (pack(read(lm, x, encoder=alone).cross) - expected).abs().max()
        assert (apart < 1e-5) == exact
        # Computed where they stand, the words' activations are exact at any depth.
        in_place = read_activations(lm, whole[0].tolist(), 8, "encoder")[:3]
        assert_close(pack(read(lm, x, encoder=in_place).cross), expected)


def test_a_decoder_prefix_of_words_is_these_words_before_y_for_their_source():
    lm, y = forget_positions(make_bart()), ids_of(1, 1, 6)
    P_theta = read_activations(lm, WORDS, 3, "decoder")
    for source, exact in ((WORDS, True), ([5, 6, 8, 4], False)):
        x = torch.tensor([source])
        expected = lm(x, torch.cat((torch.tensor([WORDS]), y), 1))[:, 3:]
        found = lm.logits(lm.hidden(y, read(lm, x, decoder=P_theta)))
        assert ((found - expected).abs().max() < 1e-5) == exact


# --- texts ---


@pytest.fixture
def folder(tmp_path):
    return save_checkpoint(tmp_path, make_bart(vocab_size=261))


TEXTS = ["", "Hello world", " a<mask>b", "a \t\n<mask> <mask>c", "<s>x</s> <pad>\n<unk>", "<|endoftext|>é"]
TEXTS += ["<mas", "a\x1c<mask>", "a\u3000<mask>", "\x85 <mask>x", "  <s>  </s>"]


def test_ids_are_hugging_face_s(folder):
    transformers = pytest.importorskip("transformers", reason="transformers is a test dependency")
    mask = {"__type": "AddedToken", "content": "<mask>", "lstrip": True, "special": True}  # as in BART's own
    (folder / "tokenizer_config.json").write_text(json.dumps({"mask_token": mask}))
    theirs = transformers.BartTokenizer.from_pretrained(folder)
    lm, ours = load_lm(folder)
    for text in TEXTS:
        ids = theirs(text, add_special_tokens=False)["input_ids"]
        assert ours.encode(text) == ids, repr(text)
        assert ours.decode(ids) == theirs.decode(ids, clean_up_tokenization_spaces=False)
        assert encode_source(lm, ours, text) == encode_target(lm, ours, text) == theirs(text)["input_ids"]
        cut = theirs(text, truncation=True, max_length=5)["input_ids"]
        assert encode_source(lm, ours, text, 5) == encode_target(lm, ours, text, 5) == cut


def test_texts_hold_no_special_tokens(folder):
    (folder / "generation_config.json").write_text('{"forced_bos_token_id": 0}')
    lm, tokenizer = load_lm(folder)
    lm.final_logits_bias[0, :4] += 6.0
    ids = generate(lm, [encode_source(lm, tokenizer, "abc")], max_new_tokens=9)[0]
    assert ids[0] == 0
    text = generate_texts(lm, tokenizer, ["abc"], None, {"max_new_tokens": 9})[0]
    assert text == tokenizer.decode([token for token in ids if token > 3]).strip()


def test_the_bundled_bart_is_transformers_and_writes_the_same():
    transformers = pytest.importorskip("transformers", reason="transformers is a test dependency")
    theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(BUNDLED_BART, dtype=torch.float32).eval()
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(BUNDLED_BART)
    lm, tokenizer = load_lm(BUNDLED_BART)
    texts = ("The river rose<mask> night, and the road to Pellwood was closed.", "Café Rouge sold 17 houses.")
    for text in texts:
        source = encode_source(lm, tokenizer, text)
        assert source == their_tokenizer(text)["input_ids"]
        x, y = torch.tensor([source]), torch.tensor([[2, *source[:6]]])
        with torch.no_grad():
            assert_close(lm(x, y), theirs(input_ids=x, decoder_input_ids=y).logits)
        for beams, alpha in ((1, 1.0), (4, 2.0), (6, 0.8)):
            options = dict(min_new_tokens=11, max_new_tokens=30, length_penalty=alpha)
            out = theirs.generate(input_ids=x, num_beams=beams, do_sample=False, **options)[0, 1:].tolist()
            assert generate(lm, [source], beams=beams, **options)[0] == [*out, 2][: [*out, 2].index(2)]


SHORT = ["dataset=e2e", "data=sample", "max_steps=3", "batch_size=4", "prefix_len=3", "mlp_hidden=8"]
SHORT += ["n_train=20", "dev_limit=4", "eval_limit=3", "max_new_tokens=8", "beams=2", "lr=0.05"]


RUNS = {
    "init=table": ("encoder", "decoder", "cross"),
    "sites=decoder+cross": ("decoder", "cross"),
    "method=embedding sites=encoder": ("encoder",),
    "method=full": (),
    "method=top2": (),
    "method=adapter bottleneck=4": (),
    "method=lora bottleneck=2 max_source=9 max_target=7 min_new_tokens=6": (),
}


@pytest.mark.parametrize(("settings", "sites"), RUNS.items())
def test_the_commands_work_with_bart(settings, sites, tmp_path, capsys):
    out = tmp_path / "e2e.pt"
    save_checkpoint(tmp_path, make_bart(vocab_size=261, max_position_embeddings=300))
    train.main([*SHORT, *settings.split(), f"model={tmp_path}", f"out={out}"])
    trained = [line[11:] for line in capsys.readouterr().out.splitlines() if line.startswith("text ")]
    saved = load_prefix(out)
    assert {site: len(P) for site, P in saved.sites.items()} == dict.fromkeys(sites, 3)
    assert bool(saved.tensors) != bool(sites)
    sample.main(["--prefix", str(out), "--records", "3"])
    sampled = [line[11:] for line in capsys.readouterr().out.splitlines() if line.startswith("e2e ")]
    assert sampled == trained and len(sampled) == 3
