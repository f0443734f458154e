"""Decoding against transformers, and against tables that a person can check."""

import dataclasses
import types

import pytest
import torch

from minprefix.cache import Cache
from minprefix.errors import InputError
from minprefix.generate import generate
from minprefix.hub import load_lm
from minprefix.prefix import SavedPrefix, read_activations
from tests.conftest import as_transformers, make_gpt2, pad_left, random_sources


def generate_theirs(lm, sources: list[list[int]], theirs=None, **options) -> list[list[int]]:
    ids, mask = pad_left(sources)
    out = (theirs or as_transformers(lm)).generate(
        input_ids=ids, attention_mask=mask, do_sample=False, pad_token_id=0, **options
    )
    texts = [row[ids.shape[1] :].tolist() for row in out]
    return [row[: row.index(0)] if 0 in row else row for row in texts]


@pytest.mark.parametrize("seed", range(6))
def test_greedy_ids_are_those_of_transformers(seed):
    lm, sources = make_gpt2(seed), random_sources(seed, count=5)
    theirs = generate_theirs(lm, sources, num_beams=1, max_new_tokens=20)
    assert generate(lm, sources, beams=1, max_new_tokens=20) == theirs


def test_the_bundled_model_writes_what_it_writes_in_transformers(bundled):
    transformers = pytest.importorskip("transformers", reason="transformers is a test dependency")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(bundled, dtype=torch.float32).eval()
    lm, tokenizer = load_lm(bundled)
    words = ("The river is", "name : Blue Spice | area : city centre", "In 1999, a")
    sources = [tokenizer.encode(text) for text in words]
    for beams, length_penalty in ((1, 1.0), (5, 0.0), (5, 1.0), (4, 2.0)):
        options = dict(max_new_tokens=20, length_penalty=length_penalty)
        expected = generate_theirs(lm, sources, theirs, num_beams=beams, **options)
        assert generate(lm, sources, beams=beams, **options) == expected


@pytest.mark.parametrize("length_penalty", [0.0, 0.8, 1.0, 2.0])
@pytest.mark.parametrize("beams", [2, 4, 5])
def test_beam_ids_are_those_of_transformers(beams, length_penalty):
    for seed in range(5):
        lm, sources = make_gpt2(seed), random_sources(seed, count=4)
        options = dict(max_new_tokens=14, length_penalty=length_penalty)
        theirs = generate_theirs(lm, sources, num_beams=beams, **options)
        assert generate(lm, sources, beams=beams, **options) == theirs, f"seed {seed}"


def test_minimum_length_and_banned_tokens_are_those_of_transformers():
    for seed in range(5):
        lm, sources = make_gpt2(seed), random_sources(seed)
        theirs = generate_theirs(
            lm, sources, num_beams=3, max_new_tokens=12, min_new_tokens=6, suppress_tokens=[3, 7, 11]
        )
        ours = generate(lm, sources, beams=3, max_new_tokens=12, min_new_tokens=6, banned=(3, 7, 11))
        assert ours == theirs
        assert all(len(row) >= 6 and not {3, 7, 11} & set(row) for row in ours)


class Table:
    """A language model that a person can check by hand: p(next | last token) is a table. EOS is 0."""

    def __init__(self, table: list[list[float]]):
        self.log_p = torch.tensor(table).log()
        self.wte = types.SimpleNamespace(weight=torch.zeros(len(table), 1))
        self.config = types.SimpleNamespace(eos_token_id=0, n_positions=999, vocab_size=len(table))

    def split(self, source):
        return source[:-1], source[-1:]

    def count_positions(self, prefix, source, target):
        return prefix + source + target

    def read(self, x, mask, prefixes):
        cache = Cache(len(x), 1, 1, 1, like=torch.zeros(1))
        cache.splice(torch.zeros(x.shape[1], 2))
        return cache

    def hidden(self, ids, cache):
        cache.advance(torch.ones_like(ids).bool())
        cache.append(0, torch.zeros(len(ids), 1, ids.shape[1], 1), torch.zeros(len(ids), 1, ids.shape[1], 1))
        return ids[:, :, None].float()

    def logits(self, h):
        return self.log_p[h[:, :, 0].long()]

    def __call__(self, ids, cache):
        return self.logits(self.hidden(ids, cache))


# From 1: EOS with 0.5 at once, or 2 with 0.4 and then 3, EOS almost surely.
#   [EOS]         log p = ln .5              = -0.693, |y| = 1
#   [2, 3, EOS]   log p = ln (.4 * .9 * .9)  = -1.127, |y| = 3: -1.127 / 3 = -0.376
TABLE = [
    [1.0, 0.0, 0.0, 0.0],
    [0.5, 0.0, 0.4, 0.1],
    [0.1, 0.0, 0.0, 0.9],
    [0.9, 0.0, 0.1, 0.0],
]


@pytest.mark.parametrize(("length_penalty", "winner"), [(0.0, []), (1.0, [2, 3])])
def test_the_length_penalty_swaps_the_winner(length_penalty, winner):
    assert generate(Table(TABLE), [[1]], beams=2, max_new_tokens=5, length_penalty=length_penalty) == [winner]


def test_greedy_takes_the_likeliest_token_where_a_beam_looks_ahead():
    assert generate(Table(TABLE), [[1]], beams=1) == [[]]


def test_sampling_draws_from_the_table():
    """10,000 draws of one token from (.5, 0, .4, .1): each share within 5 standard deviations."""
    draws = generate(Table(TABLE), [[1]] * 10_000, beams=1, sample=True, max_new_tokens=1, batch_size=10_000)
    shares = [sum(row == token for row in draws) / 10_000 for token in ([], [2], [3])]
    assert all(abs(share - p) < 0.025 for share, p in zip(shares, (0.5, 0.4, 0.1)))


@pytest.mark.parametrize(
    ("options", "possible"),
    [
        ({"top_k": 1}, {()}),
        ({"top_k": 2}, {(), (2,)}),
        ({"top_p": 0.45}, {()}),
        ({"top_p": 0.6}, {(), (2,)}),
        ({"temperature": 0.01}, {()}),
        ({"min_new_tokens": 1}, {(2,), (3,)}),
    ],
)
def test_what_sampling_cuts_is_never_drawn(options, possible):
    draws = generate(Table(TABLE), [[1]] * 500, beams=1, sample=True, max_new_tokens=1, **options)
    assert {tuple(row) for row in draws} == possible


def test_the_seed_decides_the_draw():
    lm, sources = make_gpt2(), random_sources(0)
    draws = [generate(lm, sources, beams=1, sample=True, seed=seed, max_new_tokens=20) for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]


def make_prefix(seed: int, length: int, site: str = "decoder") -> SavedPrefix:
    return as_prefix(torch.randn(length, 128, generator=torch.Generator().manual_seed(seed)), site)


def as_prefix(P_theta: torch.Tensor, site: str = "decoder") -> SavedPrefix:
    return SavedPrefix(
        "prefix", {site: P_theta}, "shifted", {"name": "", "config": {}, "fingerprint": ""}, {}, {}, ""
    )


@pytest.mark.parametrize("beams", [1, 4])
def test_rows_with_different_prefixes_are_each_row_alone(beams):
    prefixes = [make_prefix(1, 5), None, make_prefix(2, 2), make_prefix(3, 3, "infix"), make_prefix(1, 5)]
    changed = 0
    for seed in range(4):
        lm, sources = make_gpt2(seed), random_sources(seed, count=5)
        together = generate(lm, sources, prefixes, beams=beams, max_new_tokens=12)
        alone = [
            generate(lm, [source], prefix, beams=beams, max_new_tokens=12)[0]
            for source, prefix in zip(sources, prefixes)
        ]
        assert together == alone
        bare = generate(lm, sources, beams=beams, max_new_tokens=12)
        changed += sum(row != without for row, without in zip(together, bare))
    assert changed >= 8, "the prefixes must matter"


def test_a_prefix_of_real_words_continues_as_the_words_do():
    for seed in range(4):
        lm, sources = make_gpt2(seed), random_sources(seed)
        words = as_prefix(read_activations(lm, [7, 3, 9], 3))
        spoken = generate(lm, [[7, 3, 9, *source] for source in sources], max_new_tokens=12)
        assert generate(lm, sources, words, max_new_tokens=12) == spoken


def test_batches_do_not_change_the_outputs():
    lm, sources = make_gpt2(), random_sources(0, count=7)
    whole = generate(lm, sources, beams=3, max_new_tokens=12, batch_size=7)
    assert generate(lm, sources, beams=3, max_new_tokens=12, batch_size=2) == whole


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"beams": 0}, "beams is 0"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"min_new_tokens": 101}, "min_new_tokens is 101"),
        ({"temperature": 0.0}, "temperature is 0"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"top_k": -1}, "top_k is -1"),
        ({"sample": True, "beams": 4}, "set beams to 1"),
        ({"max_new_tokens": 500}, "source 1 needs 5[0-9]+ positions"),
        ({"prefix": [None]}, "1 prefixes for 3 sources"),
    ],
)
def test_senseless_options_are_refused(options, words):
    with pytest.raises(InputError, match=words):
        generate(make_gpt2(), random_sources(0), **options)


def test_an_empty_source_is_refused():
    with pytest.raises(InputError, match="source 2 is empty"):
        generate(make_gpt2(), [[1], []])


def test_a_prefix_of_another_model_is_refused():
    foreign = dataclasses.replace(
        make_prefix(1, 2), base={"name": "theirs", "config": {}, "fingerprint": "abc"}
    )
    for prefix in (foreign, as_prefix(torch.randn(2, 64)), dataclasses.replace(foreign, sites={})):
        with pytest.raises(InputError, match="pass --model"):
            generate(make_gpt2(), [[1]], prefix)
    with pytest.raises(InputError, match="has no prefix"):
        generate(make_gpt2(), [[1]], dataclasses.replace(make_prefix(1, 2), sites={}))
