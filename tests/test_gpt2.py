"""LM_phi against transformers, and the invariants of the cache and the prefix (Eq. 1, Eq. 3)."""

import pytest
import torch

from minprefix.cache import pad_right, stack_prefixes
from minprefix.errors import InputError
from minprefix.gpt2 import GPT2, GPT2Config
from minprefix.hub import load_lm
from minprefix.prefix import compute_activations, pack, read_activations
from tests.conftest import as_transformers, make_gpt2, pad_left, random_sources


def assert_close(ours, theirs, tolerance=1e-5):
    assert (ours - theirs).abs().max() <= tolerance * max(1.0, float(theirs.abs().max()))


def ids_of(seed: int, *shape: int) -> torch.Tensor:
    return torch.randint(1, 40, shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("seed", range(4))
def test_logits_are_those_of_transformers(seed):
    lm = make_gpt2(seed, n_layer=1 + seed, n_head=[1, 2, 4, 8][seed])
    ids = ids_of(seed, 3, 17)
    with torch.no_grad():
        assert_close(lm(ids), as_transformers(lm)(ids).logits)


def test_padded_rows_are_those_of_transformers():
    lm = make_gpt2()
    ids, mask = pad_left(random_sources(3, count=4))
    with torch.no_grad():
        theirs = as_transformers(lm)(
            ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0)
        ).logits
    ours = lm(ids, attention_mask=mask)
    assert_close(ours[mask.bool()], theirs[mask.bool()])
    assert ours.isfinite().all()  # a padded query sees no key: the classic NaN


def test_pieces_are_the_whole():
    lm, ids = make_gpt2(), ids_of(0, 2, 11)
    cache = lm.empty_cache(2)
    pieces = [lm(ids[:, a:b], cache) for a, b in [(0, 4), (4, 5), (5, 11)]]
    assert_close(torch.cat(pieces, 1), lm(ids))


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing(side):
    lm, rows = make_gpt2(), random_sources(1, count=5)
    ids, mask = pad_left(rows) if side == "left" else pad_right(rows)
    logits = lm(ids, attention_mask=mask)
    for row, source in enumerate(rows):
        assert_close(logits[row][mask[row].bool()], lm(torch.tensor([source]))[0])


def test_writing_in_place_changes_nothing():
    lm, ids = make_gpt2(), ids_of(0, 2, 9)
    cache = lm.empty_cache(2)
    first = lm(ids[:, :5], cache)
    with torch.inference_mode():
        cache.in_place = True
        second = torch.cat([lm(ids[:, i : i + 1], cache) for i in range(5, 9)], 1)
    assert_close(torch.cat((first, second), 1), lm(ids))


def test_a_prefix_of_real_words_is_these_words():
    lm, ids = make_gpt2(), ids_of(0, 2, 9)
    words = [7, 3, 9]
    cache = lm.empty_cache(2)
    cache.splice(read_activations(lm, words, 3))
    whole = lm(torch.cat((torch.tensor([words] * 2), ids), 1))
    assert_close(lm(ids, cache), whole[:, 3:])


def test_an_infix_of_real_words_is_source_words_target():
    lm, x, y = make_gpt2(), ids_of(0, 1, 5), ids_of(1, 1, 4)
    words = torch.tensor([[7, 3, 9]])
    with torch.no_grad():
        behind_x = lm.empty_cache(1)
        lm(x, behind_x)
        lm(words, behind_x)
        infix = pack(behind_x)[5:]
    cache = lm.read(x, torch.ones_like(x), {"infix": (infix, None)})
    assert_close(lm(y, cache), lm(torch.cat((x, words, y), 1))[:, 8:])


def test_free_embeddings_of_real_words_are_these_words():
    lm, words = make_gpt2(), [7, 3, 9]
    assert torch.equal(compute_activations(lm, lm.wte(torch.tensor(words))), read_activations(lm, words, 3))


def test_mixed_prefixes_in_a_batch_are_each_row_alone():
    lm, rows = make_gpt2(), random_sources(5, count=4)
    prefixes = [torch.randn(4, 128), None, torch.randn(1, 128), torch.randn(7, 128)]
    x, mask = pad_right(rows)
    together = lm.read(x, mask, {"decoder": stack_prefixes(prefixes, 128)})
    y = ids_of(2, 4, 3)
    logits = lm(y, together)
    for row, (source, prefix) in enumerate(zip(rows, prefixes)):
        sites = {} if prefix is None else {"decoder": (prefix, None)}
        alone = lm.read(torch.tensor([source]), torch.ones(1, len(source)), sites)
        assert_close(logits[row], lm(y[row : row + 1], alone)[0])


def test_only_the_prefix_gets_gradient():
    lm, ids = make_gpt2(), ids_of(0, 2, 6)
    P_theta = torch.randn(3, 128, requires_grad=True)
    cache = lm.empty_cache(2)
    cache.splice(P_theta)
    lm(ids, cache).logsumexp(-1).sum().backward()
    assert all(parameter.grad is None for parameter in lm.parameters())
    assert (P_theta.grad.abs().sum(1) > 0).all() and (P_theta.grad.abs().sum(0) > 0).all()


def test_an_infix_cannot_reach_the_source():
    lm, x = make_gpt2(), ids_of(0, 1, 5)
    before = [lm.read(x, torch.ones_like(x), {}).keys[layer] for layer in range(2)]
    after = lm.read(x, torch.ones_like(x), {"infix": (torch.randn(2, 128, requires_grad=True), None)})
    for layer in range(2):
        assert torch.equal(after.keys[layer][:, :, :5], before[layer])
        assert not before[layer].requires_grad  # no graph, so no saved activation, for x


def test_too_long_a_text_is_a_clear_error():
    lm = make_gpt2()
    with pytest.raises(InputError, match="has 128"):
        lm(ids_of(0, 1, 129))


def test_an_untied_head_is_its_own_matrix():
    lm = GPT2(GPT2Config(40, 16, 8, 1, 1, tie_word_embeddings=False))
    with torch.no_grad():
        lm.lm_head.weight.zero_()
    assert (lm(ids_of(0, 1, 3)) == 0).all()


def test_beams_see_their_own_path_only():
    """Two beams in one row, re-ordered once, are two rows that were never together."""
    lm, x = make_gpt2(), ids_of(0, 1, 5)
    cache = lm.read(x, torch.ones_like(x), {})
    cache.branch(2)
    lm.hidden(torch.tensor([[8, 9]]), cache)
    cache.follow(torch.tensor([[1, 1]]))  # both beams go on from the one that chose 9
    logits = lm(torch.tensor([[4, 6]]), cache)
    for beam, last in enumerate([4, 6]):
        path = torch.tensor([[*x[0].tolist(), 9, last]])
        assert_close(logits[0, beam], lm(path)[0, -1])


def test_positions_follow_from_the_cache():
    cache = make_gpt2().empty_cache(2)
    cache.splice(torch.randn(2, 3, 128), torch.tensor([[True, True, True], [True, False, False]]))
    positions, mask = cache.advance(torch.tensor([[True, True], [False, True]]))
    assert positions.tolist() == [[3, 4], [1, 1]]
    assert mask[:, 0].int().tolist() == [
        [[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]],
        [[1, 0, 0, 1, 0], [1, 0, 0, 0, 1]],
    ]


def test_the_bundled_model_is_transformers_(bundled):
    """Logits reach 16 here, too coarse in float32 for 1e-5: so 1e-5 of the largest, and exact in float64."""
    transformers = pytest.importorskip("transformers", reason="transformers is a test dependency")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(bundled, dtype=torch.float32).eval()
    lm, tokenizer = load_lm(bundled)
    ids = torch.tensor([tokenizer.encode("name : Blue Spice | Type : coffee shop | area : city centre")])
    with torch.no_grad():
        assert_close(lm(ids), theirs(ids).logits)
        assert_close(lm.double()(ids), theirs.double()(ids).logits, 1e-12)
