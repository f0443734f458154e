"""What a training step changes, and what is left of it."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from minprefix.bart import BART, BARTConfig
from minprefix.errors import InputError
from minprefix.generate import generate
from minprefix.gpt2 import GPT2, GPT2Config
from minprefix.methods import apply_tensors, collapse, compute_sites, make_theta, target_loss
from minprefix.prefix import MLPPrefix, fit, read_activations
from minprefix.store import load_prefix, save_prefix
from tests.conftest import as_transformers, make_gpt2, train_steps
from tests.test_bart import make_bart

BATCH = [([5, 6, 7, 0], [8, 9, 0]), ([3, 0], [4, 0]), ([0], [9, 9, 9, 9, 0])]


@pytest.mark.parametrize("method", ["prefix", "infix", "embedding"])
def test_only_theta_changes_and_the_loss_falls(method):
    lm = make_gpt2()
    before = {name: tensor.clone() for name, tensor in lm.state_dict().items()}
    _, losses = train_steps(lm, BATCH, method, 30)
    assert losses[-1] < losses[0] - 0.1
    assert all(torch.equal(tensor, before[name]) for name, tensor in lm.state_dict().items())
    assert all(parameter.grad is None for parameter in lm.parameters())


def test_full_fine_tuning_changes_every_parameter():
    lm = make_gpt2()
    before = {name: tensor.clone() for name, tensor in lm.state_dict().items()}
    _, losses = train_steps(lm, BATCH, "full", 30)
    assert losses[-1] < losses[0] - 0.1
    assert not any(torch.equal(tensor, before[name]) for name, tensor in lm.state_dict().items())


def test_the_loss_is_over_y_and_its_end_only():
    """Eq. 2 by hand: the log-probabilities of y's tokens, each row alone and unpadded."""
    lm = make_gpt2()
    summed, tokens = target_loss(lm, {}, BATCH)
    by_hand = 0.0
    for source, y in BATCH:
        log_p = lm(torch.tensor([source + y])).log_softmax(-1)[0]
        by_hand -= sum(float(log_p[len(source) - 1 + i, token]) for i, token in enumerate(y))
    assert tokens == 3 + 2 + 5
    assert float(summed) == pytest.approx(by_hand, rel=1e-5)


def test_one_call_for_x_and_y_is_as_good_as_two():
    """The loss and its gradient, for sources and targets of several lengths, one source of a single token."""
    lm = make_gpt2()
    gradients = []
    for at_once in (True, False):
        torch.manual_seed(1)
        theta = make_theta(lm, "prefix", 3, 0, [])
        sites = compute_sites(lm, "prefix", theta)
        if at_once:
            loss = target_loss(lm, sites, BATCH)[0]
        else:
            loss = torch.zeros(())
            for source, y in BATCH:
                x = torch.tensor([source[:-1]], dtype=torch.long)
                cache = lm.read(x, torch.ones_like(x), {"decoder": (sites["decoder"], None)})
                logits = lm.logits(lm.hidden(torch.tensor([[source[-1], *y[:-1]]]), cache))[0]
                loss = loss + F.cross_entropy(logits, torch.tensor(y), reduction="sum")
        loss.backward()
        gradients.append((loss.detach(), theta["decoder"].P.grad))
    torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-6)


def test_the_mlp_runs_once_a_step_and_not_once_a_row():
    lm = make_gpt2()
    theta = make_theta(lm, "prefix", 3, 16, [])
    calls = []
    theta["decoder"].mlp.register_forward_hook(lambda *_: calls.append(1))
    target_loss(lm, compute_sites(lm, "prefix", theta), BATCH)
    assert len(calls) == 1


@pytest.mark.parametrize("method", ["prefix", "infix", "embedding"])
def test_the_collapsed_prefix_does_what_theta_did(method):
    lm = make_gpt2()
    theta, _ = train_steps(lm, BATCH, method, 3)
    saved = collapse(lm, method, theta, {}, "made up")
    with torch.no_grad():
        trained = target_loss(lm, compute_sites(lm, method, theta), BATCH)[0]
        assert torch.equal(trained, target_loss(lm, saved.sites, BATCH)[0])
    assert list(saved.sites) == ["infix" if method == "infix" else "decoder"]
    assert [tuple(P_theta.shape) for P_theta in saved.sites.values()] == [(3, 128)] and not saved.tensors
    assert generate(lm, [[5, 6]], saved, max_new_tokens=5) != generate(lm, [[5, 6]], max_new_tokens=5)


def test_words_start_a_direct_prefix_exactly():
    lm = make_gpt2()
    theta = make_theta(lm, "prefix", 5, 0, [7, 3])
    assert torch.equal(theta["decoder"](), read_activations(lm, [7, 3, 7, 3, 7], 5))


def test_words_start_the_mlp_closely():
    lm = make_gpt2()
    target = read_activations(lm, [7, 3, 9], 3)
    torch.manual_seed(0)
    theta = MLPPrefix(3, 32, 128, 64)
    start = (theta() - target).square().mean().item()
    assert fit(theta, target, steps=500) < 0.05 * start


def test_words_start_free_embeddings_exactly():
    lm = make_gpt2()
    theta = make_theta(lm, "embedding", 3, 0, [7, 3, 9])
    assert torch.equal(theta["decoder"](), lm.wte.weight[[7, 3, 9]])


# --- the methods that change the LM ---

TENSOR_METHODS = ("full", "top2", "adapter", "lora")
MODELS = {"GPT-2": make_gpt2, "BART": make_bart}
BART_BATCH = [([5, 6, 7], [8, 9, 2]), ([3], [4, 2]), ([9, 8, 7, 6], [9, 9, 9, 9, 2])]


def read_logits(lm) -> torch.Tensor:
    ids = torch.tensor([[5, 6, 7, 8], [9, 3, 1, 2]])
    with torch.no_grad():
        return lm(ids) if isinstance(lm, GPT2) else lm(ids, ids.flip(1))


def copy_parameters(lm) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in lm.named_parameters()}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("method", ["adapter", "lora"])
def test_what_is_put_around_an_lm_starts_as_the_lm_itself(method, model):
    lm = MODELS[model]()
    before, names = read_logits(lm), set(lm.state_dict())
    theta = make_theta(lm, method, 0, 0, [], inner=4)
    assert torch.equal(read_logits(lm), before)
    assert set(lm.state_dict()) > names  # the LM's own names stay as they were
    for parameter in theta.parameters():
        parameter.data.normal_()
    assert (read_logits(lm) - before).abs().amax(-1).min() > 0.01  # and it is around it at every token


def expected_names(lm, method: str) -> set[str]:
    """The parameters that a method trains, told from their names."""
    names = {name for name, _ in lm.named_parameters()}
    own = {name for name in names if ".added." not in name}
    starts = ("h.1.", "h.2.", "ln_f.", "decoder.layers.1.", "decoder.layers.2.")
    return {"full": own, "top2": {name for name in own if name.startswith(starts)}}.get(method, names - own)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("method", TENSOR_METHODS)
def test_gradients_reach_only_what_trains_and_that_is_what_is_stored(method, model):
    lm = make_gpt2(n_layer=3) if model == "GPT-2" else make_bart(decoder_layers=3)
    before = copy_parameters(lm)
    theta, losses = train_steps(lm, BATCH if model == "GPT-2" else BART_BATCH, method, 12)
    assert losses[-1] < losses[0] - 0.02
    trained = expected_names(lm, method)
    assert trained == {name for name, p in lm.named_parameters() if p.requires_grad}
    assert len(list(theta.parameters())) == len(trained)
    for name, parameter in lm.named_parameters():
        assert (parameter.grad is not None) == (name in trained)
        assert name not in before or torch.equal(parameter, before[name]) == (name not in trained)
    saved = collapse(lm, method, theta, {}, "made up")
    assert set(saved.tensors) == trained and not saved.sites


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("method", TENSOR_METHODS)
def test_what_was_saved_makes_the_same_model_bit_for_bit(method, model, tmp_path):
    lm, batch = MODELS[model](), BATCH if model == "GPT-2" else BART_BATCH
    theta, _ = train_steps(lm, batch, method, 3)
    save_prefix(collapse(lm, method, theta, {}, "made up"), tmp_path / "a.pt")
    fresh = MODELS[model]()
    base = read_logits(fresh)
    apply_tensors(fresh, load_prefix(tmp_path / "a.pt"))
    assert torch.equal(read_logits(fresh), read_logits(lm)) and not torch.equal(base, read_logits(lm))
    source = [[5, 6, 7]]
    assert generate(fresh, source, max_new_tokens=6) == generate(lm, source, max_new_tokens=6)
    assert not any(parameter.requires_grad for parameter in fresh.parameters())
    with pytest.raises(InputError, match="does not fit"):  # it is no longer the model of that training
        apply_tensors(fresh, load_prefix(tmp_path / "a.pt"))


@pytest.mark.parametrize("inner", [1, 7])
@pytest.mark.parametrize("method", ["adapter", "lora"])
def test_the_width_is_read_from_the_file(method, inner):
    lm = make_gpt2()
    theta = make_theta(lm, method, 0, 0, [], inner=inner)
    for parameter in theta.parameters():
        parameter.data.normal_()
    fresh = make_gpt2()
    apply_tensors(fresh, collapse(lm, method, theta, {"bottleneck": 99}, "made up"))
    assert torch.equal(read_logits(fresh), read_logits(lm))


def test_lora_is_that_of_peft():
    peft = pytest.importorskip("peft", reason="peft is the reference for LoRA: pip install .[test]")
    lm = make_gpt2()
    config = peft.LoraConfig(r=3, lora_alpha=3, target_modules=["c_attn"], fan_in_fan_out=True)
    theirs = peft.get_peft_model(as_transformers(lm), config).eval()
    theta = make_theta(lm, "lora", 0, 0, [], inner=3)
    blocks = theirs.base_model.model.transformer.h
    for ours, block in zip(theta, blocks, strict=True):
        ours.B.data.normal_()
        block.attn.c_attn.lora_A["default"].weight.data.copy_(ours.A)
        block.attn.c_attn.lora_B["default"].weight.data.copy_(ours.B)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        expected = theirs(input_ids=ids).logits
        assert (lm(ids) - expected).abs().max() <= 1e-6 * expected.abs().max()
        assert (make_gpt2()(ids) - expected).abs().max() > 0.1
    trained = sum(p.numel() for p in theirs.parameters() if p.requires_grad)
    assert sum(p.numel() for p in theta.parameters()) == trained


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: {name: T for name, T in list(t.items())[1:]}, "are not those of method lora"),
        (lambda t: t | {"wte.weight": torch.zeros(40, 32)}, "are not those of method lora"),
        (lambda t: {name: T[:0] for name, T in t.items()}, "are not those of method lora"),
        (lambda t: {name: torch.tensor(0.0) for name in t}, "are not those of method lora"),
        (lambda t: {name: torch.zeros(10**12, 0) for name in t}, "are not those of method lora"),
    ],
)
def test_tensors_of_another_shape_are_refused(change, words):
    lm = make_gpt2()
    saved = collapse(lm, "lora", make_theta(lm, "lora", 0, 0, []), {}, "made up")
    with pytest.raises(InputError, match=words):
        apply_tensors(make_gpt2(), dataclasses.replace(saved, tensors=change(saved.tensors)))


def test_methods_that_do_not_go_together_are_refused():
    lm = make_gpt2()
    prefix = collapse(lm, "prefix", make_theta(lm, "prefix", 3, 0, []), {}, "made up")
    with pytest.raises(InputError, match="hand it to generate as its prefix"):
        apply_tensors(lm, prefix)
    adapter = collapse(lm, "adapter", make_theta(lm, "adapter", 0, 0, []), {}, "made up")
    with pytest.raises(InputError, match=r"method adapter has no prefix: apply_tensors"):
        generate(make_gpt2(), [[5], [6]], [adapter, prefix])
    with pytest.raises(InputError, match="already"):
        make_theta(lm, "adapter", 0, 0, [])
    with pytest.raises(InputError, match="leave sites= out"):
        make_theta(lm, "full", 0, 0, [], ["decoder"])
    other = make_gpt2()
    other.config = dataclasses.replace(other.config, fingerprint="another")
    with pytest.raises(InputError, match="does not fit"):
        apply_tensors(other, adapter)


# --- how many numbers: Table 2 names the methods by their share of GPT-2 medium ---


def make_shape(name: str):
    """A model of published shape that takes no memory."""
    bart = dict.fromkeys(("encoder_layers", "decoder_layers"), 12) | {"max_position_embeddings": 1024}
    bart |= dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 16)
    bart |= dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 4096)
    with torch.device("meta"):
        if name == "gpt2-medium":
            return GPT2(GPT2Config(50257, 1024, 1024, 24, 16))
        return BART(BARTConfig(vocab_size=50265, d_model=1024, **bart))


def count_numbers(module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("method", "inner", "numbers", "millions"),
    [
        ("top2", 0, 2 * (12 * 1024**2 + 13 * 1024) + 2 * 1024, 25.19),
        # Both published counts are met only when LayerNorm and all biases count.
        ("adapter", 6, 24 * (2 * 1024 * 6 + 6 + 1024 + 2 * 1024), 0.37),
        ("adapter", 224, 24 * (2 * 1024 * 224 + 224 + 1024 + 2 * 1024), 11.09),
        ("lora", 4, 24 * 4 * (1024 + 3 * 1024), 0.39),
        ("full", 0, 354_823_168, 354.82),
    ],
)
def test_gpt2_medium_trains_the_published_number_of_parameters(method, inner, numbers, millions):
    theta = make_theta(make_shape("gpt2-medium"), method, 0, 0, [], inner=inner)
    assert count_numbers(theta) == numbers and round(numbers / 1e6, 2) == millions


def test_prefixes_have_the_published_number_of_parameters():
    medium, large = make_shape("gpt2-medium"), make_shape("bart-large")
    assert count_numbers(make_theta(medium, "prefix", 5, 0, [])) == 245_760
    share = count_numbers(make_theta(large, "prefix", 200, 0, [])) / count_numbers(large)
    assert 0.02 < share < 0.04
    two = count_numbers(make_theta(large, "prefix", 200, 0, [], ["encoder", "decoder"]))
    assert two == 2 * 200 * 2 * 12 * 1024
