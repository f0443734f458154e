"""GPT-2 against transformers, and the invariants of its cache (Eq. 1) and of what is spliced in (Eq. 3)."""

import pytest
import torch

from minprefix.cache import pad_right
from minprefix.checks import InputError
from minprefix.gpt2 import GPT2, GPT2Config
from minprefix.hub import load_lm
from minprefix.prefix import pack
from tests.conftest import BUNDLED, assert_close, ids_of, pad_left, random_sources
from tests.models import as_transformers, make_gpt2


@pytest.mark.parametrize("seed", range(4))
def test_logits_are_those_of_transformers(seed):
    lm = make_gpt2(seed, n_layer=1 + seed, n_head=2**seed)
    ids = ids_of(seed, 3, 17)
    with torch.no_grad():
        assert_close(lm(ids), as_transformers(lm)(ids).logits)


def test_the_bundled_model_is_transformers_():
    """Logits reach 16 here, too coarse in float32 for 1e-5: so 1e-5 of the largest, and exact in float64."""
    transformers = pytest.importorskip("transformers", reason="transformers is a test dependency")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(BUNDLED, dtype=torch.float32).eval()
    lm, tokenizer = load_lm(BUNDLED)
    ids = torch.tensor([tokenizer.encode("name : Blue Spice | Type : coffee shop | area : city centre")])
    with torch.no_grad():
        assert_close(lm(ids), theirs(ids).logits)
        assert_close(lm.double()(ids), theirs.double()(ids).logits, 1e-12)


@pytest.mark.parametrize("pad", [pad_left, pad_right])
def test_padding_changes_nothing(pad):
    lm, rows = make_gpt2(), random_sources(1, count=5)
    ids, mask = pad(rows)
    logits = lm(ids, attention_mask=mask)
    assert logits.isfinite().all()  # a padded query sees no key: the classic NaN
    for row, source in enumerate(rows):
        assert_close(logits[row][mask[row].bool()], lm(torch.tensor([source]))[0])


def test_writing_in_place_changes_nothing():
    """As decoding does: the past is copied a few times only."""
    lm, ids = make_gpt2(), ids_of(0, 2, 40)
    with torch.inference_mode():
        cache = lm.empty_cache(2)
        pieces = [lm(ids[:, :9], cache)]
        places = set()
        for token in ids[:, 9:].split(1, dim=1):
            pieces.append(lm(token, cache))
            places.add(cache.keys[0].data_ptr())
    assert_close(torch.cat(pieces, 1), lm(ids))
    assert len(places) < 12


def test_an_infix_of_real_words_is_source_words_target():
    lm, x, y = make_gpt2(), ids_of(0, 1, 5), ids_of(1, 1, 4)
    words = torch.tensor([[7, 3, 9]])
    behind_x = lm.empty_cache(1)
    lm(torch.cat((x, words), 1), behind_x)
    cache = lm.read(x, torch.ones_like(x), {"infix": (pack(behind_x)[5:], None)})
    assert_close(lm(y, cache), lm(torch.cat((x, words, y), 1))[:, 8:])


def test_too_long_a_text_is_a_clear_error():
    with pytest.raises(InputError, match=r"129 positions.*128"):
        make_gpt2()(ids_of(0, 1, 129))


def test_padding_takes_no_position():
    """The table has 6; 8 slots are claimed, of which each row uses 5."""
    lm, cache = make_gpt2(n_positions=6), make_gpt2().empty_cache(2)
    for mask in ([[1, 1, 1, 1], [1, 0, 0, 0]], [[1, 0, 0, 0], [1, 1, 1, 1]]):
        lm(ids_of(0, 2, 4), cache, torch.tensor(mask))
    lm(ids_of(0, 2, 1), cache)
    with pytest.raises(InputError, match=r"7 positions.*6"):
        lm(ids_of(0, 2, 1), cache)


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
