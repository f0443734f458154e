"""Several prefixes in one call: each row its own, or all of them together."""

import dataclasses
import json

import pytest
import torch

import sample
from minprefix.errors import InputError
from minprefix.generate import gather_prefixes, generate
from minprefix.hub import load_lm
from minprefix.methods import collapse
from minprefix.prefix import SavedPrefix, compute_activations
from minprefix.store import load_prefix, save_prefix
from minprefix.texts import generate_texts
from tests.conftest import make_gpt2, random_sources, train_steps
from tests.test_bart import make_bart

MODELS = {"gpt2": make_gpt2, "bart": make_bart}


def make_prefix(lm, method: str, length: int, seed: int) -> SavedPrefix:
    """A random prefix at all of the method's sites."""
    generator = torch.Generator().manual_seed(seed)
    sites = [site for site in lm.site_widths() if (site == "infix") == (method == "infix")]
    if method == "embedding":
        embeds = 0.3 * torch.randn(length, lm.config.n_embd, generator=generator)
        P = {site: compute_activations(lm, embeds, site) for site in sites}
    else:
        P = {site: torch.randn(length, lm.site_widths()[site], generator=generator) for site in sites}
    base = {"name": "", "config": {}, "fingerprint": ""}
    return SavedPrefix(method, P, lm.positions, base, {}, {}, "")


def make_members(lm, seed: int = 0) -> list[SavedPrefix]:
    """Of other lengths, one of them embedding-only."""
    settings = [("prefix", 3), ("embedding", 2), ("prefix", 5)]
    return [make_prefix(lm, *setting, seed + 10 * i) for i, setting in enumerate(settings)]


# --- each row its own ---


@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize("model", MODELS)
def test_rows_of_all_lengths_and_methods_are_each_row_alone(model, beams):
    changed, third = 0, "infix" if model == "gpt2" else "prefix"
    for seed in range(4):
        lm, sources = MODELS[model](seed), random_sources(seed, count=6)
        settings = [("prefix", 5), None, ("embedding", 3), (third, 2), ("prefix", 1), ("embedding", 4)]
        rows = [make_prefix(lm, *setting, seed) if setting else None for setting in settings]
        options = dict(beams=beams, max_new_tokens=6)
        together = generate(lm, sources, rows, **options)
        alone = [generate(lm, [x], prefix, **options)[0] for x, prefix in zip(sources, rows)]
        assert together == alone, f"seed {seed}"
        bare = generate(lm, sources, **options)
        assert bare[1] == together[1]
        changed += sum(row != without for row, without in zip(together, bare))
    assert changed >= 10, "the prefixes must matter"


def read_logits(lm, sources: list[list[int]], prefixes: list) -> torch.Tensor:
    """The logits (B, V) of each source's next token; sources of one length."""
    x = torch.tensor(sources)
    with torch.inference_mode():
        cache = lm.read(x[:, :-1], torch.ones_like(x[:, :-1]), gather_prefixes(prefixes))
        return lm.logits(lm.hidden(x[:, -1:], cache))[:, 0]


@pytest.mark.parametrize("model", MODELS)
def test_a_user_s_logits_do_not_depend_on_who_else_is_in_the_batch(model):
    """Bit for bit while the shapes of the batch stay: no row enters another's sums. Another batch size or
    padding lets the kernels add in another order: 1e-5.
    """
    for seed in range(4):
        lm, (x,) = MODELS[model](seed), random_sources(seed, count=1, longest=9)
        ours, short, long = (make_prefix(lm, "prefix", n, seed + n) for n in (3, 2, 6))
        other = make_prefix(lm, "prefix", 2, seed + 99)
        batch = read_logits(lm, [x, x], [short, ours])[1]
        assert torch.equal(read_logits(lm, [x, x], [other, ours])[1], batch)
        assert torch.equal(read_logits(lm, [[7] * len(x), x], [None, ours])[1], batch)
        scale = float(batch.abs().max())
        for others in ([], [long], [short, None]):
            row = read_logits(lm, [x] * (1 + len(others)), [*others, ours])[-1]
            assert (row - batch).abs().max() <= 1e-5 * scale
        assert (read_logits(lm, [x], [short])[0] - batch).abs().max() > 0.01 * scale


def test_a_user_s_draws_do_not_depend_on_who_else_is_in_the_batch():
    """Nor on a prefix so large that its own row is NaN; one user's repeated questions are drawn anew."""
    lm, options = make_gpt2(), dict(beams=1, sample=True, max_new_tokens=8, seed=3)
    ours, other = make_prefix(lm, "prefix", 3, 1), make_prefix(lm, "prefix", 2, 2)
    huge = dataclasses.replace(other, sites={"decoder": torch.full_like(other.sites["decoder"], 3e38)})
    x, y = [5, 6, 7], [8, 9]
    alone = generate(lm, [x, y, x, x], [ours] * 4, **options)
    assert len({tuple(alone[row]) for row in (0, 2, 3)}) > 1
    for neighbour in (other, huge, None):
        rows = [neighbour, ours, neighbour, ours, ours, ours]
        together = generate(lm, [x, x, y, y, x, x], rows, batch_size=4, **options)
        assert [together[row] for row in (1, 3, 4, 5)] == alone


def test_a_folder_of_files_is_the_store(tmp_path):
    """To add a user is to copy a file, to delete one is to remove it: the other's text stays as it was."""
    lm, (source,) = make_gpt2(), random_sources(3, count=1)

    def ask_all() -> dict[str, list[int]]:
        names = sorted(path.stem for path in tmp_path.glob("*.pt"))
        rows = [load_prefix(tmp_path / f"{name}.pt") for name in names]
        return dict(zip(names, generate(lm, [source] * len(rows), rows, max_new_tokens=6)))

    for name, (length, seed) in {"ann": (3, 1), "bob": (5, 2), "cem": (1, 3)}.items():
        save_prefix(make_prefix(lm, "prefix", length, seed), tmp_path / f"{name}.pt")
    answers = ask_all()
    (tmp_path / "ann.pt").unlink()
    assert ask_all() == {name: answers[name] for name in ("bob", "cem")}
    save_prefix(make_prefix(lm, "embedding", 7, 4), tmp_path / "dee.pt")
    assert {name: ids for name, ids in ask_all().items() if name != "dee"} == {
        name: answers[name] for name in ("bob", "cem")
    }
    assert len({tuple(ids) for ids in answers.values()}) > 1


# --- all together ---


def mean_log_p(lm, source: list[int], y: list[int], members: list) -> torch.Tensor:
    """log of the mean of the members' probabilities of what follows y (V,): each alone, without a cache."""
    log_p = []
    for prefix in members:
        read, start = lm.split(source)
        x = torch.tensor([read], dtype=torch.long)
        with torch.no_grad():
            cache = lm.read(x, torch.ones_like(x), gather_prefixes([prefix]))
            log_p.append(lm.logits(lm.hidden(torch.tensor([[*start, *y]]), cache))[0, -1].log_softmax(-1))
    return torch.stack(log_p).exp().mean(0).log()


def decode_slowly(lm, source: list[int], members: list, steps: int) -> list[int]:
    y: list[int] = []
    while len(y) < steps:
        token = int(mean_log_p(lm, source, y, members).argmax())
        if token == lm.config.eos_token_id:
            break
        y.append(token)
    return y


@pytest.mark.parametrize("model", MODELS)
def test_greedy_takes_the_likeliest_token_of_the_mean_distribution(model):
    differs = 0
    for seed in range(4):
        lm, sources = MODELS[model](seed), random_sources(seed)
        members = [*make_members(lm, seed), None]
        found = generate(lm, sources, members, ensemble=True, beams=1, max_new_tokens=6)
        assert found == [decode_slowly(lm, source, members, 6) for source in sources], f"seed {seed}"
        differs += all(
            generate(lm, sources, member, beams=1, max_new_tokens=6) != found for member in members
        )
    assert differs >= 2, "the ensemble must not be one of its members"


def score_all(lm, source: list[int], members: list, steps: int) -> dict[tuple[int, ...], tuple[float, int]]:
    """Of every text of at most so many tokens: sum log p, token by token, and |y| with its EOS."""
    eos = lm.config.eos_token_id
    scores, running = {}, {(): 0.0}
    for length in range(1, steps + 1):
        grown = {}
        for y, log_p in running.items():
            for token, more in enumerate(mean_log_p(lm, source, list(y), members).tolist()):
                if token == eos or length == steps:
                    scores[y if token == eos else (*y, token)] = (log_p + more, length)
                else:
                    grown[*y, token] = log_p + more
        running = grown
    return scores


def test_a_wide_enough_beam_finds_the_best_of_all_texts():
    winners = set()
    for seed in range(3):
        lm, source = make_gpt2(seed, vocab_size=4, n_layer=1, n_embd=8), [1, 2]
        members = [make_prefix(lm, "prefix", n, seed + n) for n in (1, 3)]
        scores = score_all(lm, source, members, 3)
        assert len(scores) == 1 + 3 + 9 + 27
        for alpha in (0.0, 1.0, 2.0):
            best = max(scores, key=lambda y: scores[y][0] / scores[y][1] ** alpha)
            options = dict(beams=16, max_new_tokens=3, length_penalty=alpha, ensemble=True)
            assert generate(lm, [source], members, **options) == [list(best)]
            winners.add(best)
    assert len(winners) > 2


@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize("model", MODELS)
def test_one_member_and_identical_members_are_the_single_prefix(model, beams):
    for seed in range(3):
        lm, sources = MODELS[model](seed), random_sources(seed, count=3)
        prefix = make_prefix(lm, "prefix", 3, seed)
        options = dict(beams=beams, max_new_tokens=6)
        single = generate(lm, sources, prefix, **options)
        assert generate(lm, sources, [prefix], ensemble=True, **options) == single
        assert generate(lm, sources, [prefix] * 3, ensemble=True, **options) == single
        draws = [
            generate(lm, sources, members, ensemble=ensemble, beams=1, sample=True, seed=5, max_new_tokens=6)
            for members, ensemble in ((prefix, False), ([prefix] * 3, True))
        ]
        assert draws[0] == draws[1]


@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize("model", MODELS)
def test_the_sources_of_an_ensemble_are_each_source_alone(model, beams):
    """Sources end at different steps, and take all their members' rows with them."""
    for seed in range(3):
        lm, sources = MODELS[model](seed), random_sources(seed, count=5)
        options = dict(ensemble=True, beams=beams, max_new_tokens=10)
        together = generate(lm, sources, make_members(lm, seed), batch_size=4, **options)
        assert together == [generate(lm, [x], make_members(lm, seed), **options)[0] for x in sources]


def test_sampling_draws_from_the_mean_distribution():
    """Each share of 6,000 draws lies within 5 standard deviations."""
    lm = make_gpt2(vocab_size=6)
    members = [make_prefix(lm, "prefix", n, n) for n in (2, 4)]
    options = dict(beams=1, sample=True, max_new_tokens=1, batch_size=6000, ensemble=True)
    draws = generate(lm, [[1, 2]] * 6000, members, **options)
    p = mean_log_p(lm, [1, 2], [], members).exp()
    for token in range(6):
        share = sum(row == ([token] if token else []) for row in draws) / 6000
        assert abs(share - p[token]) < 5 * float(p[token] * (1 - p[token]) / 6000) ** 0.5 + 1e-9
    one = mean_log_p(lm, [1, 2], [], members[:1]).exp()
    assert (one - p).abs().max() > 0.05, "one member alone must differ"


@pytest.mark.parametrize("prefix", [None, []])
def test_an_ensemble_needs_members(prefix):
    with pytest.raises(InputError, match="an ensemble needs a list of prefixes"):
        generate(make_gpt2(), [[1]], prefix, ensemble=True)


def test_a_member_of_another_model_is_refused():
    lm = make_gpt2()
    foreign = make_prefix(make_gpt2(n_embd=16), "prefix", 2, 0)
    with pytest.raises(InputError, match="does not fit"):
        generate(lm, [[1], [2]], [make_prefix(lm, "prefix", 2, 0), foreign], ensemble=True)


def test_sample_answers_with_all_prefixes_together(tiny_folder, tmp_path):
    lm, tokenizer = load_lm(tiny_folder)
    for name, method in (("a.pt", "prefix"), ("b.pt", "infix")):
        theta, _ = train_steps(lm, [([5, 6, 0], [8, 9, 0])], method, 3)
        save_prefix(collapse(lm, method, theta, {}, "made up"), tmp_path / name)
    (tmp_path / "in.txt").write_text("name : Blue Fig\nname : Ox\n")
    given = [f"--prefix={tmp_path / name}" for name in ("a.pt", "b.pt")]
    given += [f"--input={tmp_path / 'in.txt'}", f"--output={tmp_path / 'out.jsonl'}", "--max-new-tokens=6"]
    sample.main([*given, "--ensemble"])
    lines = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    members = [load_prefix(tmp_path / name) for name in ("a.pt", "b.pt")]
    options = dict(max_new_tokens=6, ensemble=True)
    expected = generate_texts(lm, tokenizer, ["name : Blue Fig", "name : Ox"], members, options)
    assert [line["text"] for line in lines] == expected
    assert {line["prefix"] for line in lines} == {"ensemble"}
