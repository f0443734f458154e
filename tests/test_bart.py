"""BART against transformers, and prefixes at its three sites."""

import json
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file, save_file

import sample
import train
from minprefix.bart import BART, BARTConfig
from minprefix.cache import pad_right
from minprefix.errors import InputError
from minprefix.generate import check_base, gather_prefixes, generate
from minprefix.hub import load_lm
from minprefix.methods import collapse, compute_sites, make_theta, target_loss
from minprefix.prefix import SavedPrefix, pack, read_activations
from minprefix.store import load_prefix
from minprefix.texts import encode_source, encode_target, generate_texts
from minprefix.tokenizer import BART_SPECIAL, BYTE_OF_CHAR
from tests.conftest import make_gpt2, random_sources, train_steps

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


@pytest.mark.parametrize(("length_penalty", "early_stopping"), [(0.8, False), (1.0, True), (2.0, False)])
@pytest.mark.parametrize("beams", [1, 4, 6])
def test_forced_tokens_lengths_and_repeats_are_those_of_transformers(beams, length_penalty, early_stopping):
    """The options in bart-large-xsum's generation_config.json, all at once."""
    cut = dict(max_new_tokens=15, min_new_tokens=6, no_repeat_ngram_size=2, length_penalty=length_penalty)
    cut |= dict(early_stopping=early_stopping)
    for seed in range(5):
        lm, sources = make_bart(seed, **XSUM), random_sources(seed, count=4)
        ours = generate(lm, sources, beams=beams, **cut)
        assert ours == generate_theirs(lm, sources, num_beams=beams, **cut), f"seed {seed}"
        assert all(row[0] == 0 and len(row) >= 6 for row in ours)
        assert all(len(set(pairwise(row))) == len(row) - 1 for row in ours)


def test_early_stopping_is_that_of_transformers():
    cut, changed = dict(max_new_tokens=15, length_penalty=2.0, early_stopping=True), 0
    for seed in range(2, 6):
        lm, sources = make_bart(seed, **XSUM), random_sources(seed, count=4)
        ours = generate(lm, sources, beams=4, **cut)
        assert ours == generate_theirs(lm, sources, num_beams=4, **cut), f"seed {seed}"
        changed += ours != generate(lm, sources, beams=4, **cut | {"early_stopping": False})
    assert changed >= 2, "it must matter"


def test_the_source_is_projected_once_for_all_steps_and_beams():
    lm, shapes = make_bart(), []
    for layer in lm.decoder.layers:
        layer.encoder_attn.k_proj.register_forward_hook(lambda _, x, __: shapes.append(tuple(x[0].shape)))
    generate(lm, [[5, 6, 7], [8, 9]], beams=4, max_new_tokens=9, min_new_tokens=9)
    assert shapes == [(2, 3, 32)] * 2  # once a layer: two sources, not eight beams


def test_the_limits_of_source_and_target_are_separate():
    lm = make_bart(**UNEVEN)
    generate(lm, [[5] * 64], make_prefix(1, encoder=9, cross=9), beams=1, max_new_tokens=64)
    with pytest.raises(InputError, match="source 1 needs 65 positions"):
        generate(lm, [[5] * 65], max_new_tokens=9)
    with pytest.raises(InputError, match="source 1 needs 65 positions"):
        generate(lm, [[5]], max_new_tokens=65)


# --- prefixes ---

SITES = ("encoder", "decoder", "cross")
UNEVEN = dict(encoder_layers=3, decoder_layers=2, encoder_attention_heads=4)  # widths 192 and 128
WIDTHS = {"encoder": 192, "decoder": 128, "cross": 128}
BATCH = [([5, 6, 7], [8, 9, 2]), ([3], [4, 2]), ([9, 8, 7, 6], [9, 9, 9, 9, 2])]


def make_prefix(seed: int, **lengths: int) -> SavedPrefix:
    generator = torch.Generator().manual_seed(seed)
    sites = {site: torch.randn(n, WIDTHS[site], generator=generator) for site, n in lengths.items()}
    return SavedPrefix(
        "prefix", sites, "unshifted", {"name": "", "config": {}, "fingerprint": ""}, {}, {}, ""
    )


MIXED = [  # one a row: all sites, none, single ones, other lengths
    make_prefix(1, encoder=3, decoder=2, cross=4),
    None,
    make_prefix(2, encoder=5),
    make_prefix(3, decoder=1),
    make_prefix(4, cross=2),
]


def continue_from(lm, x, y, prefixes: dict) -> torch.Tensor:
    return lm.logits(lm.hidden(y, lm.read(x, torch.ones_like(x), prefixes)))


@pytest.mark.parametrize("site", SITES)
def test_each_site_alone_changes_the_output_and_gets_gradient(site):
    lm, x, y = make_bart(**UNEVEN), ids_of(0, 2, 6), ids_of(1, 2, 5)
    P_theta = (0.3 * make_prefix(1, **{site: 3}).sites[site]).requires_grad_()
    logits = continue_from(lm, x, y, {site: (P_theta, None)})
    assert (logits - lm(x, y)).abs().amax(-1).min() > 0.01  # at every token
    logits.logsumexp(-1).sum().backward()
    assert (P_theta.grad != 0).all()  # every key and value of every layer
    assert all(parameter.grad is None for parameter in lm.parameters())


@pytest.mark.parametrize(
    ("method", "sites"), [("prefix", (site,)) for site in SITES] + [("prefix", ()), ("embedding", ())]
)
def test_only_theta_changes_the_loss_falls_and_the_rest_is_stored(method, sites):
    lm = make_bart(**UNEVEN)
    before = {name: tensor.clone() for name, tensor in lm.state_dict().items()}
    theta, losses = train_steps(lm, BATCH, method, 20, sites)
    assert losses[-1] < losses[0] - 0.05
    assert all(torch.equal(tensor, before[name]) for name, tensor in lm.state_dict().items())
    assert set(theta) == set(sites or SITES)  # a module for each, with its own MLP
    saved = collapse(lm, method, theta, {}, "made up")
    assert {s: tuple(P.shape) for s, P in saved.sites.items()} == {s: (3, WIDTHS[s]) for s in theta}
    assert saved.positions == "unshifted" and not saved.tensors
    with torch.no_grad():
        trained = target_loss(lm, compute_sites(lm, method, theta), BATCH)[0]
        assert torch.equal(trained, target_loss(lm, saved.sites, BATCH)[0])
    check_base(saved, lm)


def test_full_fine_tuning_changes_every_parameter_that_is_read():
    lm = make_bart()
    before = {name: tensor.clone() for name, tensor in lm.named_parameters()}
    _, losses = train_steps(lm, BATCH, "full", 5)
    assert losses[-1] < losses[0] - 0.1
    assert not [name for name, tensor in lm.named_parameters() if torch.equal(tensor, before[name])]


def test_the_loss_is_transformers_on_the_same_labels():
    lm = make_bart()
    summed, tokens = target_loss(lm, {}, BATCH)
    x, mask = pad_right([source for source, _ in BATCH], value=1)
    labels, _ = pad_right([y for _, y in BATCH], value=-100)
    theirs = as_transformers(lm)(input_ids=x, attention_mask=mask.long(), labels=labels).loss
    assert summed.item() / tokens == pytest.approx(theirs.item(), rel=1e-5)


def test_mixed_prefixes_are_each_row_alone():
    lm, rows = make_bart(**UNEVEN), random_sources(5, count=5)
    x, mask = pad_right(rows, value=1)
    y = ids_of(2, 5, 4)
    logits = lm.logits(lm.hidden(y, lm.read(x, mask, gather_prefixes(MIXED))))
    for row, (source, prefix) in enumerate(zip(rows, MIXED)):
        sites = {site: (P, None) for site, P in prefix.sites.items()} if prefix else {}
        assert_close(logits[row], continue_from(lm, torch.tensor([source]), y[row : row + 1], sites)[0])


@pytest.mark.parametrize("beams", [1, 4])
def test_mixed_prefixes_generate_as_each_row_alone(beams):
    changed = 0
    for seed in range(4):
        lm, sources = make_bart(seed, **UNEVEN), random_sources(seed, count=5)
        together = generate(lm, sources, MIXED, beams=beams, max_new_tokens=12)
        pairs = zip(sources, MIXED)
        assert together == [generate(lm, [x], P, beams=beams, max_new_tokens=12)[0] for x, P in pairs]
        bare = generate(lm, sources, beams=beams, max_new_tokens=12)
        changed += sum(row != without for row, without in zip(together, bare))
    assert changed >= 8, "the prefixes must matter"


def search_uncached(lm, source: list[int], prefix, beams: int, steps: int) -> list[int]:
    """Textbook beam search, length penalty 1, in which every token of every beam is computed anew."""
    sites = {site: (P, None) for site, P in prefix.sites.items()} if prefix else {}
    running, finished = [(0.0, [2])], []
    for length in range(1, steps + 1):
        grown = []
        for score, tokens in running:
            log_p = continue_from(lm, torch.tensor([source]), torch.tensor([tokens]), sites)[0, -1]
            grown += [(score + p, [*tokens, t]) for t, p in enumerate(log_p.log_softmax(-1).tolist())]
        grown = sorted(grown, reverse=True)[: 2 * beams]
        ended = [hypothesis[1][-1] == 2 or length == steps for hypothesis in grown]
        finished += [(score / length, y) for (score, y), end in zip(grown[:beams], ended) if end]
        finished = sorted(finished, reverse=True)[:beams]
        running = [hypothesis for hypothesis, end in zip(grown, ended) if not end][:beams]
        if not running or (len(finished) == beams and running[0][0] / length <= finished[-1][0]):
            break
    tokens = finished[0][1][1:]
    return tokens[:-1] if tokens[-1] == 2 else tokens


@pytest.mark.parametrize("beams", [2, 4])
def test_cached_is_uncached_with_a_prefix_present(beams):
    for seed in range(2):
        lm, sources = make_bart(seed, **UNEVEN), random_sources(seed, count=5)
        expected = [search_uncached(lm, source, P, beams, 8) for source, P in zip(sources, MIXED)]
        assert generate(lm, sources, MIXED, beams=beams, max_new_tokens=8) == expected


def test_greedy_cached_is_uncached_with_a_prefix_present():
    for seed in range(3):
        lm, sources = make_bart(seed, **UNEVEN), random_sources(seed, count=5)
        for source, prefix, ours in zip(sources, MIXED, generate(lm, sources, MIXED, 1, max_new_tokens=8)):
            sites = {site: (P, None) for site, P in prefix.sites.items()} if prefix else {}
            y = [2]
            while len(y) <= 8 and (y == [2] or y[-1] != 2):
                y.append(
                    int(continue_from(lm, torch.tensor([source]), torch.tensor([y]), sites)[0, -1].argmax())
                )
            assert ours == [token for token in y[1:] if token != 2]


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


def test_a_cross_prefix_of_words_is_these_words_in_the_memory():
    lm, x, y = make_bart(**UNEVEN), ids_of(0, 1, 5), ids_of(1, 1, 6)
    P_cross = read_activations(lm, WORDS, 3, "cross")
    theirs = as_transformers(lm)
    with torch.no_grad():
        memory = [theirs.model.encoder(ids).last_hidden_state for ids in (torch.tensor([WORDS]), x)]
        outputs = (torch.cat(memory, 1),)
        expected = theirs(encoder_outputs=outputs, decoder_input_ids=y).logits
    assert_close(continue_from(lm, x, y, {"cross": (P_cross, None)}), expected)


def encode_behind(lm: BART, x: torch.Tensor, encoder_words: torch.Tensor) -> torch.Tensor:
    """The source's keys and values, packed: x behind P_theta of words at the encoder."""
    return pack(lm.read(x, torch.ones_like(x), {"encoder": (encoder_words, None)}).cross)


def test_an_encoder_prefix_of_words_is_these_words_before_x_in_one_layer():
    for layers, exact in ((1, True), (2, False)):
        lm, x = forget_positions(make_bart(encoder_layers=layers)), ids_of(0, 1, 5)
        whole = torch.cat((torch.tensor([WORDS]), x), 1)
        expected = pack(lm.read(whole, torch.ones_like(whole), {}).cross)[3:]
        apart = (encode_behind(lm, x, read_activations(lm, WORDS, 3, "encoder")) - expected).abs().max()
        assert (apart < 1e-5) == exact
        # Computed where they stand, the words' activations are exact at any depth.
        _, cache = lm._encode(lm.wte(whole), torch.ones_like(whole), {})
        assert_close(encode_behind(lm, x, pack(cache)[:3]), expected)


def test_a_decoder_prefix_of_words_is_these_words_before_y_for_their_source():
    lm, y = forget_positions(make_bart()), ids_of(1, 1, 6)
    P_theta = read_activations(lm, WORDS, 3, "decoder")
    for source, exact in ((WORDS, True), ([5, 6, 8, 4], False)):
        x = torch.tensor([source])
        expected = lm(x, torch.cat((torch.tensor([WORDS]), y), 1))[:, 3:]
        apart = (continue_from(lm, x, y, {"decoder": (P_theta, None)}) - expected).abs().max()
        assert (apart < 1e-5) == exact


def test_words_start_each_site():
    lm = make_bart(**UNEVEN)
    exact, embeddings = (make_theta(lm, method, 5, 0, [7, 3]) for method in ("prefix", "embedding"))
    torch.manual_seed(0)
    start, fitted = (make_theta(lm, "prefix", 5, 32, words) for words in ([], [7, 3]))
    for site in SITES:
        expected = read_activations(lm, [7, 3, 7, 3, 7], 5, site)
        assert torch.equal(exact[site](), expected) and expected.shape == (5, WIDTHS[site])
        assert_close(compute_sites(lm, "embedding", embeddings)[site], expected)
        distances = [(theta[site]() - expected).square().mean() for theta in (start, fitted)]
        assert distances[1] < 0.1 * distances[0]


def test_a_prefix_takes_no_position():
    lm, x = make_bart(**UNEVEN), ids_of(0, 2, 4)
    cache = lm.read(x, torch.ones_like(x), gather_prefixes([MIXED[0]] * 2))
    assert cache.next.tolist() == [0, 0] and len(cache) == 2 and len(cache.cross) == 4 + 4


@pytest.mark.parametrize(
    ("method", "sites", "words"),
    [
        ("infix", (), "choose method=prefix"),
        ("prefix", ("infix",), "no site 'infix'.*encoder, decoder, cross"),
    ],
)
def test_a_site_that_bart_has_not_is_refused(method, sites, words):
    with pytest.raises(InputError, match=words):
        make_theta(make_bart(), method, 3, 0, [], sites)


def test_a_foreign_prefix_is_refused():
    lm = make_bart(**UNEVEN)
    foreign = [replace(MIXED[0], sites={site: torch.ones(2, 96)}) for site in SITES]
    foreign += [replace(MIXED[0], sites={"infix": torch.ones(2, 128)})]
    for prefix in foreign:
        with pytest.raises(InputError, match="does not fit"):
            generate(lm, [[5]], prefix)
    with pytest.raises(InputError, match="'shifted' positions"):
        generate(lm, [[5]], replace(MIXED[0], positions="shifted"))
    with pytest.raises(InputError, match="does not fit"):
        generate(make_gpt2(), [[5]], replace(make_prefix(1, cross=2), positions="shifted"))


# --- checkpoints ---


@pytest.fixture
def folder(tmp_path):
    return save_bart(tmp_path)


def save_bart(tmp_path, **changes):
    """A tiny BART that reads bytes, as transformers saves it."""
    as_transformers(make_bart(vocab_size=261, **UNEVEN, **changes)).save_pretrained(tmp_path)
    names = [*BART_SPECIAL[:4], *BYTE_OF_CHAR, "<mask>"]
    (tmp_path / "vocab.json").write_text(json.dumps({name: id for id, name in enumerate(names)}))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    return tmp_path


def rewrite(folder, change) -> None:
    tensors = change(load_file(folder / "model.safetensors"))
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, folder / "model.safetensors")


def without_prefix(tensors):
    return {name.removeprefix("model."): t for name, t in tensors.items()}


def with_all_copies(tensors):
    names = ("model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight", "lm_head.weight")
    return tensors | dict.fromkeys(names, tensors["model.shared.weight"])


def with_a_copy_only(tensors):
    renamed = {"model.shared.weight": "lm_head.weight"}
    return {renamed.get(name, name): t for name, t in tensors.items()}


def with_fairseq_versions(tensors):
    return tensors | {"model.encoder.version": torch.ones(1), "model.decoder.version": torch.ones(1)}


SPELLINGS = [dict, without_prefix, with_all_copies, with_a_copy_only, with_fairseq_versions]


@pytest.mark.parametrize("change", SPELLINGS)
def test_every_spelling_of_a_file_loads_as_the_same_model(change, folder):
    fingerprint = load_lm(folder)[0].config.fingerprint
    rewrite(folder, change)
    lm, _ = load_lm(folder)
    expected = make_bart(vocab_size=261, **UNEVEN)
    assert isinstance(lm, BART) and not lm.training and not any(p.requires_grad for p in lm.parameters())
    assert lm.state_dict().keys() == expected.state_dict().keys()
    assert all(torch.equal(lm.state_dict()[name], t) for name, t in expected.state_dict().items())
    assert lm.config.fingerprint == fingerprint and lm.config.name == str(folder)


def test_an_absent_bias_is_zero_and_a_head_of_its_own_is_refused(folder):
    rewrite(folder, lambda tensors: {k: t for k, t in tensors.items() if k != "final_logits_bias"})
    assert not load_lm(folder)[0].final_logits_bias.any()
    rewrite(folder, lambda tensors: tensors | {"lm_head.weight": tensors["model.shared.weight"] + 1})
    with pytest.raises(InputError, match=r"lm_head\.weight is unexpected"):
        load_lm(folder)


def make_official(n_layer: int, decoder_layers: int, d_model: int, n_head: int) -> BARTConfig:
    sides = [n_layer, decoder_layers, n_head, n_head, 4 * d_model, 4 * d_model]
    return BARTConfig(50265, 1024, d_model, *sides)


OFFICIAL = {  # and how many parameters they have
    "bart-base": (make_official(6, 6, 768, 12), 139_420_416),
    "bart-large, bart-large-xsum": (make_official(12, 12, 1024, 16), 406_291_456),
    "distilbart-xsum-12-3": (make_official(12, 3, 1024, 16), 255_121_408),
}


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_shapes_have_transformers_tensors(name):
    transformers = pytest.importorskip("transformers", reason="transformers is a test dependency")
    config, count = OFFICIAL[name]
    settings = {k: v for k, v in vars(config).items() if k not in ("name", "fingerprint")}
    with torch.device("meta"):
        lm = BART(config)
        theirs = transformers.BartForConditionalGeneration(transformers.BartConfig(**settings))
    expected = {name.removeprefix("model."): tuple(t.shape) for name, t in theirs.state_dict().items()}
    found = {name: tuple(t.shape) for name, t in lm.state_dict().items()}
    copies = {"lm_head.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"}
    assert found.items() <= expected.items() and set(expected) - set(found) == copies
    assert sum(parameter.numel() for parameter in lm.parameters()) == count


def edit_json(path, **changes) -> None:
    content = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in content.items() if value != "absent"}))


IDS = ("eos_token_id", "decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id")


@pytest.mark.parametrize("generation", ["absent", {}, {"forced_bos_token_id": 5}, {"eos_token_id": [7, 2]}])
@pytest.mark.parametrize("config", [{}, {"forced_bos_token_id": 0}, {"forced_eos_token_id": "absent"}])
def test_special_ids_come_from_the_file_that_transformers_takes_them_from(config, generation, folder):
    edit_json(folder / "config.json", **config)
    (folder / "generation_config.json").unlink()
    if generation != "absent":
        generation = {"bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2} | generation
        (folder / "generation_config.json").write_text(json.dumps(generation))
    transformers = pytest.importorskip("transformers", reason="transformers is a test dependency")
    theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder).generation_config
    expected = {key: getattr(theirs, key) for key in IDS}
    expected["eos_token_id"] = (
        expected["eos_token_id"][0] if "[" in str(generation) else expected["eos_token_id"]
    )
    config = load_lm(folder)[0].config
    assert {key: getattr(config, key) for key in IDS} == expected


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("decoder_layers", "absent", "decoder_layers is missing"),
        ("d_model", 30, "d_model 30 must be divisible by encoder_attention_heads 4"),
        ("decoder_attention_heads", 3, "divisible by decoder_attention_heads 3"),
        ("scale_embedding", "yes", "scale_embedding is 'yes', but must be true or false"),
        ("tie_word_embeddings", False, "tie_word_embeddings is False, but must be true"),
        ("activation_function", "swish", "activation_function is 'swish'"),
        ("model_type", "mbart", "model_type is 'mbart'"),
        ("max_position_embeddings", 62, r"embed_positions.weight is \(66, 32\) and should be \(64, 32\)"),
    ],
)
def test_a_bad_config_is_refused(key, value, words, folder):
    edit_json(folder / "config.json", **{key: value})
    with pytest.raises(InputError, match=words):
        load_lm(folder)


TEXTS = [
    "",
    "Hello world",
    " a<mask>b",
    "a \t\n<mask> <mask>c",
    "<s>x</s> <pad>\n<unk>",
    "<|endoftext|>é",
    "<mas",
]
TEXTS += ["a\x1c<mask>", "a\u3000<mask>", "\x85 <mask>x", "  <s>  </s>"]


def test_ids_are_hugging_face_s(folder):
    transformers = pytest.importorskip("transformers", reason="transformers is a test dependency")
    mask = transformers.AddedToken("<mask>", lstrip=True, special=True)  # as in BART's own tokenizer files
    theirs = transformers.BartTokenizer.from_pretrained(folder, mask_token=mask)
    lm, ours = load_lm(folder)
    for text in TEXTS:
        ids = theirs(text, add_special_tokens=False)["input_ids"]
        assert ours.encode(text) == ids, repr(text)
        assert ours.decode(ids) == theirs.decode(ids, clean_up_tokenization_spaces=False)
        assert encode_source(lm, ours, text) == encode_target(lm, ours, text) == theirs(text)["input_ids"]
        cut = theirs(text, truncation=True, max_length=5)["input_ids"]
        assert encode_source(lm, ours, text, 5) == encode_target(lm, ours, text, 5) == cut


def test_texts_hold_no_special_tokens(folder):
    edit_json(folder / "generation_config.json", forced_bos_token_id=0)
    lm, tokenizer = load_lm(folder)
    lm.final_logits_bias[0, :4] += 6.0
    ids = generate(lm, [encode_source(lm, tokenizer, "abc")], max_new_tokens=9)[0]
    assert ids[0] == 0
    text = generate_texts(lm, tokenizer, ["abc"], None, {"max_new_tokens": 9})[0]
    assert text == tokenizer.decode([token for token in ids if token > 3]).strip()


def test_a_checkpoint_writes_what_it_writes_in_transformers(folder):
    """With bart-large-xsum's generation settings."""
    transformers = pytest.importorskip("transformers", reason="transformers is a test dependency")
    settings = dict(min_length=4, max_length=16, no_repeat_ngram_size=3, num_beams=6, early_stopping=True)
    ids = dict(
        bos_token_id=0, eos_token_id=2, pad_token_id=1, decoder_start_token_id=2, forced_eos_token_id=2
    )
    (folder / "generation_config.json").write_text(json.dumps(settings | ids))
    theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder).eval()
    lm, tokenizer = load_lm(folder)
    for text in ("abc", "Hello world"):
        source = encode_source(lm, tokenizer, text)
        expected = theirs.generate(input_ids=torch.tensor([source]))[0, 1:].tolist()
        cut = dict(min_new_tokens=3, max_new_tokens=15, no_repeat_ngram_size=3, early_stopping=True)
        ours = generate(lm, [source], beams=6, **cut)[0]
        assert [*ours, 2] == expected


def test_the_bundled_bart_is_transformers_and_writes_the_same(bundled_bart):
    transformers = pytest.importorskip("transformers", reason="transformers is a test dependency")
    theirs = transformers.AutoModelForSeq2SeqLM.from_pretrained(bundled_bart, dtype=torch.float32).eval()
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(bundled_bart)
    lm, tokenizer = load_lm(bundled_bart)
    texts = ("The river rose<mask> night, and the road to Pellwood was closed.", "Café Rouge sold 17 houses.")
    for text in texts:
        source = encode_source(lm, tokenizer, text)
        assert source == their_tokenizer(text)["input_ids"]
        x, y = torch.tensor([source]), torch.tensor([[2, *source[:6]]])
        with torch.no_grad():
            assert_close(lm(x, y), theirs(input_ids=x, decoder_input_ids=y).logits, 1e-5)
        for beams, alpha in ((1, 1.0), (4, 2.0), (6, 0.8)):
            options = dict(min_new_tokens=11, max_new_tokens=30, length_penalty=alpha)
            expected = theirs.generate(input_ids=x, num_beams=beams, do_sample=False, **options)[
                0, 1:
            ].tolist()
            ours = generate(lm, [source], beams=beams, **options)[0]
            assert ours == (expected[: expected.index(2)] if 2 in expected else expected)


SHORT = ["dataset=e2e", "data=sample", "max_steps=3", "batch_size=4", "prefix_len=3", "mlp_hidden=8"]
SHORT += ["n_train=20", "dev_limit=4", "eval_limit=3", "max_new_tokens=8", "beams=2", "lr=0.05"]


@pytest.mark.parametrize(
    ("settings", "sites"),
    [
        (["init=table"], SITES),
        (["sites=decoder+cross"], ("decoder", "cross")),
        (["method=embedding", "sites=encoder"], ("encoder",)),
        (["method=full"], ()),
        (["method=top2"], ()),
        (["method=adapter", "bottleneck=4"], ()),
        (["method=lora", "bottleneck=2", "max_source=9", "max_target=7", "min_new_tokens=6"], ()),
    ],
)
def test_the_commands_work_with_bart(settings, sites, tmp_path, capsys):
    model, out = save_bart(tmp_path, max_position_embeddings=300), tmp_path / "e2e.pt"
    train.main([*SHORT, *settings, f"model={model}", f"out={out}"])
    trained = [line[11:] for line in capsys.readouterr().out.splitlines() if line.startswith("text ")]
    saved = load_prefix(out)
    assert {site: len(P) for site, P in saved.sites.items()} == dict.fromkeys(sites, 3)
    assert bool(saved.tensors) != bool(sites)
    sample.main(["--prefix", str(out), "--records", "3"])
    sampled = [line[11:] for line in capsys.readouterr().out.splitlines() if line.startswith("e2e ")]
    assert sampled == trained and len(sampled) == 3


@pytest.mark.parametrize(
    ("settings", "words"), [("method=infix", "choose method=prefix"), ("sites=crosss", "no site 'crosss'")]
)
def test_places_that_bart_does_not_have_are_refused(settings, words, tmp_path):
    model = save_bart(tmp_path, max_position_embeddings=300)
    with pytest.raises(InputError, match=words):
        train.main([*SHORT, settings, f"model={model}", f"out={tmp_path / 'infix.pt'}"])
    assert not list(tmp_path.glob("infix*"))
