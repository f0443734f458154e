"""The third model against transformers and PEFT, and what a prefix of it must be (Eq. 1, Eq. 3)."""

import dataclasses

import pytest
import torch

from minprefix import from_peft, save_prefix, to_peft
from minprefix.checks import InputError, build
from minprefix.generate import generate
from minprefix.hub import load_lm
from minprefix.llama import Llama, LlamaConfig
from minprefix.methods import apply_tensors, collapse, compute_sites, make_theta, target_loss
from minprefix.prefix import SITES, SavedPrefix, compute_activations, read_activations
from minprefix.tokenizer import BYTE_OF_CHAR
from tests.conftest import assert_close, continue_from, ids_of, pad_left, random_sources
from tests.models import make_prefix, write_vocabulary

transformers = pytest.importorskip("transformers", reason="transformers is a test dependency")
SHAPES = {
    "one key head": {"num_key_value_heads": 1},
    "grouped": {"num_key_value_heads": 2, "tie_word_embeddings": True, "hidden_act": "quick_gelu"},
    "a key head each": {"tie_word_embeddings": True, "rope_theta": 100000.0, "num_hidden_layers": 3},
    "heads wider than C / H": {"num_key_value_heads": 2, "head_dim": 16, "rms_norm_eps": 1e-5},
}
BASE = {"vocab_size": 257, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2}
BASE |= {"num_attention_heads": 4, "max_position_embeddings": 128, "bos_token_id": 1, "eos_token_id": 2}
BATCH = [([5, 6, 7, 1], [8, 9, 2]), ([3, 1], [4, 2]), ([1], [9, 9, 9, 9, 2])]


def make_theirs(**shape):
    torch.manual_seed(0)
    lm = transformers.LlamaForCausalLM(transformers.LlamaConfig(**BASE | shape)).eval()
    for name, parameter in lm.named_parameters():
        parameter.data.normal_(float("norm" in name), 0.3)
    return lm


def make_llama() -> Llama:
    """One of them as ours, frozen."""
    shape = BASE | SHAPES["grouped"]
    lm, theirs = Llama(LlamaConfig(**shape, fingerprint="tiny")), make_theirs(**shape)
    tensors = {name.removeprefix("model."): tensor for name, tensor in theirs.state_dict().items()}
    lm.load_state_dict({name: tensors[name] for name in lm.state_dict()})
    return lm.eval().requires_grad_(False)


@pytest.fixture(params=SHAPES)
def both(request, tmp_path) -> tuple:
    """(ours, transformers') from one folder."""
    theirs = make_theirs(**SHAPES[request.param])
    theirs.save_pretrained(tmp_path)
    write_vocabulary(tmp_path, ["<|endoftext|>", *BYTE_OF_CHAR])
    return load_lm(tmp_path)[0], theirs


def test_logits_are_those_of_transformers(both):
    ours, theirs = both
    ids, mask = pad_left(random_sources(3, count=4))
    with torch.no_grad():
        expected = theirs(ids, attention_mask=mask, position_ids=(mask.cumsum(1) - 1).clamp(min=0)).logits
        assert_close(ours(ids, attention_mask=mask)[mask.bool()], expected[mask.bool()])
        low = ours.bfloat16()(ids, attention_mask=mask)
    assert_close(low[mask.bool()].float(), expected[mask.bool()], 0.05)


@pytest.mark.parametrize("beams", [1, 4])
def test_ids_are_those_of_transformers(both, beams):
    ours, theirs = both
    options = {"num_beams": beams, "do_sample": False, "max_new_tokens": 12, "pad_token_id": 2}
    for source in random_sources(4, count=6, vocab_size=257):
        expected = theirs.generate(torch.tensor([source]), **options)[0, len(source) :].tolist()
        expected = expected[: expected.index(2)] if 2 in expected else expected
        assert generate(ours, [source], beams=beams, max_new_tokens=12) == [expected]


def test_pieces_are_the_whole_up_to_the_last_position():
    lm, ids = make_llama(), ids_of(0, 2, 9)
    with torch.inference_mode():  # keys and values are written in place
        cache = lm.empty_cache(2)
        pieces = [lm(ids[:, a:b], cache) for a, b in [(0, 4), *((i, i + 1) for i in range(4, 9))]]
    assert_close(torch.cat(pieces, 1), lm(ids))
    with pytest.raises(InputError, match="has 128"):
        lm(ids_of(0, 1, 129))


def test_a_prefix_of_real_words_is_these_words():
    """Keys are stored turned to the words' own positions, so nothing is left to do when they are spliced."""
    lm, ids, words = make_llama(), ids_of(0, 2, 9), [7, 3, 9]
    cache = lm.empty_cache(2)
    cache.splice(read_activations(lm, words, 3))
    assert_close(lm(ids, cache), lm(torch.cat((torch.tensor([words] * 2), ids), 1))[:, 3:])
    assert torch.equal(compute_activations(lm, lm.wte(torch.tensor(words))), read_activations(lm, words, 3))


@pytest.mark.parametrize("method", ["prefix", "infix", "embedding"])
def test_mixed_prefixes_in_a_batch_are_each_row_alone(method):
    lm, rows, y = make_llama(), random_sources(5, count=4), ids_of(2, 4, 3)
    prefixes = [make_prefix(lm, length, length, method) if length else None for length in (4, 0, 1, 7)]
    together = continue_from(lm, rows, prefixes, y)
    for row in range(4):
        alone = continue_from(lm, rows[row : row + 1], prefixes[row : row + 1], y[row : row + 1])
        assert_close(together[row], alone[0])
    texts = [generate(lm, [row], prefix, beams=3, max_new_tokens=8)[0] for row, prefix in zip(rows, prefixes)]
    assert generate(lm, rows, prefixes, beams=3, max_new_tokens=8) == texts


def test_only_the_prefix_gets_gradient():
    lm = make_llama()
    P_theta = torch.randn(3, lm.site_widths()["decoder"], requires_grad=True)
    assert P_theta.shape[1] == 2 * 2 * 2 * 8  # keys and values, L, H_kv, D
    target_loss(lm, {"decoder": P_theta}, BATCH)[0].backward()
    assert all(parameter.grad is None for parameter in lm.parameters())
    assert (P_theta.grad.abs().sum(1) > 0).all() and (P_theta.grad.abs().sum(0) > 0).all()


@pytest.mark.parametrize("method", SITES)
def test_every_method_learns_and_its_file_says_what_it_learnt(method):
    lm, ids = make_llama(), ids_of(0, 2, 5)
    theta = make_theta(lm, method, 3, 16, [])
    optimizer = torch.optim.AdamW(theta.parameters(), lr=0.01)
    losses = []
    for _ in range(6):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=method == "prefix"):
            losses.append(target_loss(lm, compute_sites(lm, method, theta), BATCH)[0])
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < losses[0]
    saved, fresh = collapse(lm, method, theta, {}, ""), make_llama()
    if saved.tensors:
        apply_tensors(fresh, saved)
    prefixes = [saved if saved.sites else None] * 2
    expected = continue_from(lm, ids.tolist(), prefixes, ids)
    assert_close(continue_from(fresh, ids.tolist(), prefixes, ids), expected)


def test_peft_loads_our_folder_and_we_load_it_again(tmp_path):
    """For grouped queries PEFT counts the heads of keys and values, as P_theta (P, 2·L·H_kv·D) does."""
    peft = pytest.importorskip("peft", reason="peft is a test dependency")
    lm, ids = make_llama(), ids_of(0, 2, 5)
    sites = {"decoder": torch.randn(4, 64)}
    base = {"name": "tiny", "config": dataclasses.asdict(lm.config), "fingerprint": ""}
    save_prefix(SavedPrefix("prefix", sites, "shifted", base, {}, {}, "made up"), tmp_path / "a.pt")
    to_peft(tmp_path / "a.pt", tmp_path / "folder")
    theirs = peft.PeftModel.from_pretrained(make_theirs(**SHAPES["grouped"]), tmp_path / "folder").eval()
    back = from_peft(tmp_path / "folder")
    cache = lm.empty_cache(2)
    cache.splice(back.sites["decoder"])
    assert_close(lm(ids, cache), theirs(ids, attention_mask=torch.ones_like(ids)).logits)
    generate(lm, [[5, 6, 1]], back, max_new_tokens=2)  # its shape fits


REFUSED = {
    "attention_bias": True,
    "mlp_bias": True,
    "hidden_act": "laplace",
    "sliding_window": 64,
    "head_dim": 3,
}
REFUSED |= {"rope_parameters": {"rope_type": "llama3", "factor": 8.0}, "rope_scaling": {"type": "linear"}}
REFUSED |= {"pretraining_tp": 2, "num_key_value_heads": 3, "num_hidden_layers": 10**9, "hidden_size": 30}
REFUSED |= {"eos_token_id": -1, "forced_eos_token_id": 257, "rms_norm_eps": 0.0, "rope_theta": 0.0}


@pytest.mark.parametrize("key", REFUSED)
def test_what_it_cannot_do_is_refused_in_one_sentence(key):
    with pytest.raises(InputError, match=key):
        build(LlamaConfig, BASE | {key: REFUSED[key]}, "config.json: ")
