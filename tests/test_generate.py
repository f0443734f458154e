"""Decoding against transformers, a search that keeps nothing, and a table; many prefixes at once."""

import dataclasses
import functools
import json
import shutil
import warnings
from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import sample
from minprefix import InputError, generate, hub, load_lm, load_prefix, save_prefix
from minprefix.bart import BART
from minprefix.cache import pad_right
from minprefix.generate import list_ends
from minprefix.methods import collapse
from minprefix.texts import generate_texts
from tests.conftest import BUNDLED, assert_close, continue_from, pad_left, random_sources, train_steps
from tests.models import (
    MODELS,
    SHAPES,
    Table,
    as_transformers,
    both_models,
    make_gpt2,
    make_prefix,
    save_checkpoint,
)

transformers = pytest.importorskip("transformers", reason="transformers is a test dependency")

# --- against transformers ---


def generate_theirs(lm, sources: list[list[int]], theirs=None, beams: int = 1, banned=(), **options):
    """transformers' ids, without what they go on from, EOS cut."""
    theirs, config = theirs or as_transformers(lm), lm.config
    x, mask = pad_right(sources, value=1) if isinstance(lm, BART) else pad_left(sources)
    start = 1 if isinstance(lm, BART) else x.shape[1]
    names = ("decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id")
    theirs.generation_config.update(**{name: getattr(config, name, None) for name in names}, pad_token_id=1)
    options |= {"num_beams": beams, "suppress_tokens": list(banned) or None, "do_sample": False}
    out = theirs.generate(input_ids=x, attention_mask=mask.long(), **options)
    texts = [[*row[start:].tolist(), config.eos_token_id] for row in out]
    return [row[: row.index(config.eos_token_id)] for row in texts]


MAKERS = {  # of the bart-large family some force BOS, some EOS
    "GPT-2": lambda seed: make_gpt2(seed),
    "BART": lambda seed: MODELS["BART"](seed, **SHAPES[seed]),
    "BART that forces": lambda seed: MODELS["BART"](seed, forced_bos_token_id=0, forced_eos_token_id=2),
}
PENALTIES = [dict(length_penalty=alpha) for alpha in (0.0, 0.8, 1.0, 2.0)]
CUT, XSUM = dict(min_new_tokens=6, banned=(3, 7, 11)), dict(min_new_tokens=6, no_repeat_ngram_size=2)
CASES = [(model, options) for model in MODELS for options in [*PENALTIES, CUT]]
CASES += [("BART that forces", PENALTIES[i] | XSUM | dict(early_stopping=i > 1)) for i in (1, 2, 3)]
CASES += [("GPT-2", options | dict(early_stopping="never")) for options in PENALTIES[:3]]


@pytest.mark.parametrize(("model", "options"), CASES)
@pytest.mark.parametrize("beams", [1, 2, 4, 6])
def test_ids_are_those_of_transformers(beams, model, options):
    lengths, options = set(), options | dict(beams=beams, max_new_tokens=14)
    for seed in range(len(SHAPES)):
        lm, sources = MAKERS[model](seed), random_sources(seed, count=4)
        ours = generate(lm, sources, **options)
        assert ours == generate_theirs(lm, sources, **options), f"seed {seed}"
        lengths |= {len(row) for row in ours}
    assert len(lengths) > 2


def test_the_bundled_model_writes_what_it_writes_in_transformers():
    transformers = pytest.importorskip("transformers", reason="transformers is a test dependency")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(BUNDLED, dtype=torch.float32).eval()
    lm, tokenizer = load_lm(BUNDLED)
    words = ("The river is", "name : Blue Spice | area : city centre", "In 1999, a")
    sources = [tokenizer.encode(text) for text in words]
    for beams, length_penalty in ((1, 1.0), (5, 0.0), (5, 1.0), (4, 2.0)):
        options = dict(max_new_tokens=20, length_penalty=length_penalty)
        expected = generate_theirs(lm, sources, theirs, beams, **options)
        assert generate(lm, sources, beams=beams, **options) == expected


# --- what a checkpoint's own files wish for generation ---

IDS = st.integers(0, 299)
FRAMES = {"bos_token_id": 0, "decoder_start_token_id": 2}
WISHES = {
    "suppress_tokens": st.lists(st.integers(1, 150) | st.just(999), max_size=99),
    "forced_eos_token_id": st.integers(151, 299),
    "early_stopping": st.sampled_from([False, True, "never"]),
}
OWN = WISHES | {"no_repeat_ngram_size": st.integers(0, 3), "forced_bos_token_id": st.integers(151, 299)}
OPTIONS = {"min_new_tokens": st.integers(0, 6), "length_penalty": st.sampled_from([0.0, 1.0, 2.0])}


@pytest.fixture(scope="module")
def wishers(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wishes")
    for model, make in MODELS.items():
        save_checkpoint(folder / model, make(vocab_size=300, **({"n_embd": 16} if model == "GPT-2" else {})))
    return folder


@both_models
@given(data=st.data())
@settings(max_examples=20, deadline=None)
def test_what_a_checkpoint_wishes_is_done_as_by_transformers(model, data, wishers):
    """Whether generation_config.json says it or, as in old folders, config.json."""
    folder, kind = wishers / model, {"GPT-2": "CausalLM", "BART": "Seq2SeqLM"}[model]
    ends = data.draw(IDS | st.lists(IDS, min_size=1, max_size=40, unique=True))
    wishes = data.draw(st.fixed_dictionaries({}, optional=WISHES if model == "GPT-2" else OWN))
    wishes |= FRAMES | {"eos_token_id": ends}
    options = data.draw(st.fixed_dictionaries({}, optional=OPTIONS)) | {"max_new_tokens": 10}
    beams, is_old = data.draw(st.sampled_from([1, 3])), data.draw(st.booleans())
    config = json.loads((folder / "config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(wishes))
    if is_old:
        (folder / "generation_config.json").unlink()
        (folder / "config.json").write_text(json.dumps(config | wishes))
    try:
        lm, _ = load_lm(folder)
        theirs = getattr(transformers, f"AutoModelFor{kind}").from_pretrained(folder, dtype=torch.float32)
    finally:
        (folder / "config.json").write_text(json.dumps(config))
    x, own = (
        random_sources(data.draw(st.integers(0, 99)), 1, 300)[0],
        {"num_beams": beams, "do_sample": False},
    )
    own["attention_mask"] = torch.ones(1, len(x)).long()
    out = theirs.generate(torch.tensor([x]), pad_token_id=1, **own, **options)[0]
    y = out[1 if model == "BART" else len(x) :].tolist()
    end = next((i for i, token in enumerate(y) if token in list_ends(lm.config)), len(y))
    assert generate(lm, [x], beams=beams, **options)[0] == y[:end]


@pytest.fixture
def say(wishers, tmp_path):
    """Puts wishes into one of the two files, without the other -> what is said of them, a line or nothing."""
    folder = shutil.copytree(wishers / "GPT-2", tmp_path / "a")
    config = json.loads((folder / "config.json").read_text())

    def load_with(place: str, wishes: dict) -> str:
        (folder / "generation_config.json").unlink(missing_ok=True)
        (folder / place).write_text(json.dumps(config | wishes if place == "config.json" else wishes))
        with warnings.catch_warnings(record=True, action="always") as said:
            load_lm(folder)
        assert len(said) <= 1 and all(str(line.message).startswith(f"{folder / place} ") for line in said)
        return "".join(str(line.message) for line in said)

    return load_with


@pytest.mark.parametrize("place", ["config.json", "generation_config.json"])
def test_all_that_transformers_knows_and_is_not_done_is_said_in_a_line(place, say):
    names = [name for name in vars(transformers.GenerationConfig()) if not name.endswith("_token_id")]
    wishes = {name: 2 for name in names if name not in hub.OBEYED and not name.startswith(hub.SILENT)}
    line = say(place, wishes | {"max_length": 9, "early_stopping": "never"})
    assert line.endswith(f" asks for {', '.join(wishes)} in generation: not obeyed") and len(wishes) > 20
    assert say(place, transformers.GenerationConfig._get_default_generation_params()) == ""
    for name in ("encoder_no_repeat_ngram_size", "renormalize_logits"):
        assert name in say(place, {name: True if name.startswith("re") else 1})
    if place != "config.json":  # where much may stand that has nothing to do with generation
        assert "invented_today" in say(place, {"invented_today": 1})


def test_an_option_goes_before_a_checkpoint_s_wish():
    lm, x = make_gpt2(no_repeat_ngram_size=1, early_stopping=True), [[5, 6, 7]]
    plain = make_gpt2()
    options = dict(beams=1, max_new_tokens=20)
    assert generate(lm, x, **options) == generate(plain, x, no_repeat_ngram_size=1, **options)
    assert generate(lm, x, no_repeat_ngram_size=0, **options) == generate(plain, x, **options)
    assert generate(lm, x, **options) != generate(plain, x, **options)


def test_each_of_several_eos_ends_a_draw():
    lm = Table(TABLE)
    lm.config.further_ends = [3]
    options = dict(beams=1, sample=True, max_new_tokens=9)
    assert {tuple(row) for row in generate(lm, [[1]] * 300, **options)} == {(), (2,)}
    assert generate(lm, [[1]] * 30, **options, min_new_tokens=1) == [[2]] * 30  # neither 0 nor 3


# --- against a search that keeps nothing: every token of every beam is computed anew, each row alone ---


def mean_log_p(lm, source: list[int], y: list[int], members: list) -> torch.Tensor:
    """log of the mean of the members' probabilities of what follows y (V,)."""
    read, start = lm.split(source)
    logits = [continue_from(lm, [read], [prefix], torch.tensor([[*start, *y]]))[0, -1] for prefix in members]
    return torch.stack(logits).softmax(-1).mean(0).log()


def search_slowly(lm, source: list[int], members: list, K: int, steps: int, alpha: float = 1.0) -> list[int]:
    """Textbook beam search; with one beam greedy, which ends at its first EOS."""
    eos, running, finished = lm.config.eos_token_id, [(0.0, [])], []
    for length in range(1, steps + 1):
        grown = []
        for score, y in running:
            log_p = mean_log_p(lm, source, y, members).tolist()
            grown += [(score + p, [*y, token]) for token, p in enumerate(log_p)]
        grown = sorted(grown, reverse=True)[: 2 * K]
        ended = [y[-1] == eos or length == steps for _, y in grown]
        finished += [(score / length**alpha, y) for (score, y), end in zip(grown[:K], ended) if end]
        finished = sorted(finished, reverse=True)[:K]
        running = [hypothesis for hypothesis, end in zip(grown, ended) if not end][:K]
        hope = running[0][0] / length**alpha if running and K > 1 else -torch.inf
        if len(finished) == K and hope <= finished[-1][0]:
            break
    return [token for token in finished[0][1] if token != eos]


def make_users(lm, seed: int) -> list:
    """Prefixes of many lengths and methods, and one row without; of BART also each site alone."""
    users = [make_prefix(lm, 5, seed), None, make_prefix(lm, 3, seed, "embedding"), make_prefix(lm, 1, seed)]
    if isinstance(lm, BART):
        return users + [make_prefix(lm, {site: 1 + i}, seed) for i, site in enumerate(lm.site_widths())]
    return [*users, make_prefix(lm, 2, seed, "infix"), make_prefix(lm, 4, seed, "embedding")]


@both_models
@pytest.mark.parametrize("beams", [1, 2, 4])
def test_rows_with_prefixes_of_all_kinds_are_each_row_alone_and_uncached(beams, model):
    changed = 0
    for seed in range(3):
        lm = MODELS[model](seed)
        users = make_users(lm, seed)
        sources = random_sources(seed, count=len(users))
        found = generate(lm, sources, users, beams=beams, max_new_tokens=8)
        assert found == [search_slowly(lm, x, [user], beams, 8) for x, user in zip(sources, users)]
        bare = generate(lm, sources, beams=beams, max_new_tokens=8)
        assert bare[1] == found[1]
        changed += sum(row != without for row, without in zip(found, bare))
    assert changed >= 8, "the prefixes must matter"


@both_models
@pytest.mark.parametrize(("beams", "alpha"), [(1, 1.0), (4, 1.0), (4, 2.0), (8, 0.0)])
def test_an_ensemble_decodes_by_the_mean_distribution_each_source_alone(beams, alpha, model):
    """Sources end at different steps, and take all their members' rows with them."""
    differs, options = 0, dict(beams=beams, max_new_tokens=8, length_penalty=alpha)
    for seed in range(3):
        lm, sources = MODELS[model](seed), random_sources(seed, count=5)
        members = [make_prefix(lm, 3, seed), None, make_prefix(lm, 2, seed + 1, "embedding")]
        expected = [search_slowly(lm, source, members, beams, 8, alpha) for source in sources]
        for batch_size in (2, 5):
            assert generate(lm, sources, members, ensemble=True, batch_size=batch_size, **options) == expected
        differs += all(generate(lm, sources, one, **options) != expected for one in members)
    assert differs >= 2, "the ensemble must not be one of its members"


# --- draws ---

TABLE = [[1.0, 0.0, 0.0, 0.0], [0.5, 0.0, 0.4, 0.1], [0.1, 0.0, 0.0, 0.9], [0.9, 0.0, 0.1, 0.0]]
DRAW = dict(beams=1, sample=True, max_new_tokens=1)


def assert_shares(draws: list[list[int]], p: list[float]) -> None:
    """Of each first token (EOS, 0, is cut), within 5 standard deviations."""
    shares, n = Counter(row[0] if row else 0 for row in draws), len(draws)
    for token, p_token in enumerate(p):
        assert abs(shares[token] / n - p_token) < 5 * (p_token * (1 - p_token) / n) ** 0.5 + 1e-9


def test_sampling_draws_from_the_table():
    assert_shares(generate(Table(TABLE), [[1]] * 10_000, batch_size=10_000, **DRAW), TABLE[1])


def test_an_ensemble_draws_from_the_mean_distribution():
    lm = make_gpt2(vocab_size=6)
    members = [make_prefix(lm, n, n) for n in (2, 4)]
    p = mean_log_p(lm, [1, 2], [], members).exp()
    ask = functools.partial(generate, lm, [[1, 2]] * 6000, batch_size=6000, **DRAW)
    assert_shares(ask(members, ensemble=True), p.tolist())
    assert ask([members[0]] * 3, ensemble=True) == ask(members[0])  # who agree are one
    assert (mean_log_p(lm, [1, 2], [], members[:1]).exp() - p).abs().max() > 0.05, "one alone must differ"


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
    assert {tuple(row) for row in generate(Table(TABLE), [[1]] * 500, **DRAW, **options)} == possible


def test_the_seed_decides_the_draw():
    lm, sources = make_gpt2(), random_sources(0)
    draws = [generate(lm, sources, **DRAW | {"max_new_tokens": 20}, seed=seed) for seed in (1, 1, 2)]
    assert draws[0] == draws[1] != draws[2]


# --- who else is in the batch does not matter ---


@both_models
def test_a_user_s_logits_do_not_depend_on_who_else_is_in_the_batch(model):
    """Bit for bit while the shapes of the batch stay: no row enters another's sums. Another batch size or
    padding lets the kernels add in another order: 1e-5.
    """

    def read_logits(sources, prefixes):
        y = torch.tensor([source[-1:] for source in sources])
        return continue_from(lm, [source[:-1] for source in sources], prefixes, y)[:, 0]

    for seed in range(4):
        lm, (x,) = MODELS[model](seed), random_sources(seed, count=1, longest=9)
        ours, short, long = (make_prefix(lm, n, seed + n) for n in (3, 2, 6))
        other = make_prefix(lm, 2, seed + 99)
        batch = read_logits([x, x], [short, ours])[1]
        assert torch.equal(read_logits([x, x], [other, ours])[1], batch)
        assert torch.equal(read_logits([[7] * len(x), x], [None, ours])[1], batch)
        for others in ([], [long], [short, None]):
            assert_close(read_logits([x] * (1 + len(others)), [*others, ours])[-1], batch)
        assert (read_logits([x], [short])[0] - batch).abs().max() > 0.01 * batch.abs().max()


def test_a_user_s_draws_do_not_depend_on_who_else_is_in_the_batch():
    """One user's repeated questions are drawn anew."""
    lm, options = make_gpt2(), DRAW | dict(max_new_tokens=8, seed=3)
    ours, other = make_prefix(lm, 3, 1), make_prefix(lm, 2, 2)
    x, y = [5, 6, 7], [8, 9]
    alone = generate(lm, [x, y, x, x], [ours] * 4, **options)
    assert len({tuple(alone[row]) for row in (0, 2, 3)}) > 1
    for neighbour in (other, None):
        rows = [neighbour, ours, neighbour, ours, ours, ours]
        together = generate(lm, [x, x, y, y, x, x], rows, batch_size=4, **options)
        assert [together[row] for row in (1, 3, 4, 5)] == alone


@pytest.mark.parametrize(("options", "most"), [({"beams": 1}, 2), (DRAW, 2), ({"beams": 4}, 5)])
@both_models
def test_a_token_is_read_back_at_once(model, options, most, monkeypatch):
    """Each look makes a GPU wait: here for the largest logit and the tokens, of beams also their scores."""
    looks, totals = Counter(), []
    for name in ("__bool__", "__int__", "__float__", "item", "tolist"):
        old = getattr(torch.Tensor, name)
        look = lambda *given, name=name, old=old: looks.update([name]) or old(*given)  # noqa: E731
        monkeypatch.setattr(torch.Tensor, name, look)
    lm, options = MODELS[model](), {"banned": (3,)} | options
    for length in (4, 24):
        generate(lm, [[5, 6, 7], [4]], **options | {"min_new_tokens": length, "max_new_tokens": length})
        totals.append(looks.total())
        looks.clear()
    assert totals[1] - totals[0] <= 20 * most


@pytest.mark.parametrize("value", [1e20, 3e38, -3e38])
@pytest.mark.parametrize("options", [{"beams": 1}, {"beams": 4}, DRAW])
@both_models
def test_a_prefix_of_absurd_numbers_is_an_error_and_no_empty_text(model, options, value):
    lm = MODELS[model]()
    good = make_prefix(lm, 2)
    absurd = dataclasses.replace(good, sites={site: P * 0 + value for site, P in good.sites.items()})
    options = options | {"max_new_tokens": 9}
    for prefixes, ensemble in (([absurd], False), ([good, absurd], False), ([good, absurd], True)):
        with pytest.raises(InputError, match=r"too large.*not finite"):
            generate(lm, [[5, 6]] * len(prefixes), prefixes, ensemble=ensemble, **options)


def test_sample_answers_with_all_prefixes_together(tiny_folder, tmp_path):
    lm, tokenizer = load_lm(tiny_folder)
    paths = [tmp_path / "a.pt", tmp_path / "b.pt"]
    for path, method in zip(paths, ("prefix", "infix")):
        theta, _ = train_steps(lm, [([5, 6, 0], [8, 9, 0])], method, 3)
        save_prefix(collapse(lm, method, theta, {}, "made up"), path)
    (tmp_path / "in.txt").write_text("name : Blue Fig\nname : Ox\n")
    given = [f"--prefix={path}" for path in paths] + [f"--input={tmp_path / 'in.txt'}", "--ensemble"]
    sample.main([*given, f"--output={tmp_path / 'out.jsonl'}", "--max-new-tokens=6"])
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    members, options = [load_prefix(path) for path in paths], dict(max_new_tokens=6)
    expected = generate_texts(lm, tokenizer, ["name : Blue Fig", "name : Ox"], members, options, 0, True)
    assert [line["text"] for line in lines] == expected
    assert {line["prefix"] for line in lines} == {"ensemble"}


# --- what is refused ---

BOUNDS = {"beams": 0, "max_new_tokens": 0, "min_new_tokens": 101, "no_repeat_ngram_size": -1, "seed": -1}
BOUNDS |= {"temperature": 0.0, "top_p": 1.5, "top_k": -1, "length_penalty": float("nan")}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        *[({name: value}, f"{name} is {value}") for name, value in BOUNDS.items()],
        ({"beams": 10**9}, "beams is 1000000000"),
        ({"beam": 1}, "unknown key 'beam'; did you mean 'beams'"),
        ({"sample": True, "beams": 4}, "set beams to 1"),
        ({"top_k": 3}, "set sample too"),
        ({"max_new_tokens": 500}, "source 1 needs 5[0-9]+ positions"),
        ({"prefix": [None]}, "1 prefixes for 3 sources"),
        ({"ensemble": True}, "an ensemble needs a list of prefixes"),
        ({"ensemble": True, "prefix": []}, "an ensemble needs a list of prefixes"),
        ({"sources": [[1], []]}, "source 2 is empty"),
    ],
)
def test_senseless_options_are_refused(options, words):
    with pytest.raises(InputError, match=words):
        generate(make_gpt2(), **{"sources": random_sources(0)} | options)


@both_models
def test_a_prefix_of_another_model_is_refused(model):
    lm = MODELS[model]()
    good, foreign = make_prefix(lm, 2), [make_prefix(make_gpt2(n_embd=16), 2)]
    infix = make_prefix(make_gpt2(), 2, method="infix")
    foreign += [make_prefix(MODELS["BART"](d_model=16), 2), dataclasses.replace(infix, positions="unshifted")]
    base = {"name": "theirs", "config": {}, "fingerprint": "abc"}
    changes = [{"base": base}, {"positions": "another"}]
    changes += [{"sites": {site: P_theta[:, 1:]}} for site, P_theta in good.sites.items()]
    for prefix in [*foreign, *(dataclasses.replace(good, **change) for change in changes)]:
        with pytest.raises(InputError, match=r"does not fit.*pass --model"):
            generate(lm, [[5], [6]], [good, prefix], ensemble=True, max_new_tokens=9)


def test_an_unknown_option_is_refused_though_it_is_none():
    lm, _ = load_lm(BUNDLED)
    with pytest.raises(InputError, match="unknown key 'beem'; did you mean 'beams'"):
        generate(lm, [[1, 2]], beem=None)
