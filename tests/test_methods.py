"""What a training step changes, and what is left of it."""

import dataclasses

import pytest
import torch
import torch.nn.functional as F

from minprefix import InputError, generate, load_prefix, save_prefix
from minprefix.bart import BART, BARTConfig
from minprefix.generate import check_base
from minprefix.gpt2 import GPT2, GPT2Config
from minprefix.methods import apply_tensors, collapse, compute_sites, make_theta, target_loss
from minprefix.prefix import SITES, choose_sites, read_activations
from tests.conftest import assert_close, train_steps
from tests.models import BATCHES, MODELS, as_transformers, both_models, make_bart, make_gpt2, make_prefix
from tests.test_llama import make_llama

LOWER = MODELS | {"Llama": make_llama}
PREFIXES = [("GPT-2", method, ()) for method in ("prefix", "infix", "embedding")]
PREFIXES += [("BART", "prefix", sites) for sites in ((), ("encoder",), ("decoder",), ("cross",))]


@pytest.mark.parametrize(("model", "method", "sites"), [*PREFIXES, ("BART", "embedding", ())])
def test_only_theta_changes_and_its_prefix_is_what_is_stored(model, method, sites):
    lm, batch = MODELS[model](), BATCHES[model]
    before = {name: tensor.clone() for name, tensor in lm.state_dict().items()}
    theta, losses = train_steps(lm, batch, method, 30, sites)
    assert losses[-1] < losses[0] - 0.05
    assert all(torch.equal(tensor, before[name]) for name, tensor in lm.state_dict().items())
    assert all(parameter.grad is None for parameter in lm.parameters())
    saved = collapse(lm, method, theta, {}, "made up")
    shapes = {site: (3, lm.site_widths()[site]) for site in sites or choose_sites(lm, method, ())}
    assert {site: tuple(P_theta.shape) for site, P_theta in saved.sites.items()} == shapes
    assert saved.positions == lm.positions and not saved.tensors
    check_base(saved, lm)
    with torch.no_grad():
        trained = target_loss(lm, compute_sites(lm, method, theta), batch)[0]
        assert torch.equal(trained, target_loss(lm, saved.sites, batch)[0])


def test_a_batch_in_one_call_is_each_row_alone_in_two():
    """The loss and its gradient, for sources and targets of several lengths, one source of a single token."""
    lm, batch, alone = make_gpt2(), BATCHES["GPT-2"], 0.0
    P_theta = make_prefix(lm, 3).sites["decoder"].requires_grad_()
    together, count = target_loss(lm, {"decoder": P_theta}, batch)
    for source, y in batch:
        x = torch.tensor([source[:-1]], dtype=torch.long)
        cache = lm.read(x, torch.ones_like(x), {"decoder": (P_theta, None)})
        logits = lm(torch.tensor([[source[-1], *y[:-1]]]), cache)[0]
        alone = alone + F.cross_entropy(logits, torch.tensor(y), reduction="sum")
    assert count == 3 + 2 + 5
    assert_close(together, alone)
    assert_close(*(torch.autograd.grad(loss, P_theta)[0] for loss in (together, alone)))


def test_the_mlp_runs_once_a_step_and_not_once_a_row():
    lm = make_gpt2()
    theta = make_theta(lm, "prefix", 3, 16, [])
    calls = []
    theta["decoder"].mlp.register_forward_hook(lambda *_: calls.append(1))
    target_loss(lm, compute_sites(lm, "prefix", theta), BATCHES["GPT-2"])
    assert len(calls) == 1


@both_models
def test_words_start_each_site(model):
    """Exactly, also as free embeddings; through the MLP closely."""
    lm = MODELS[model]()
    exact, embeddings = (make_theta(lm, method, 5, 0, [7, 3]) for method in ("prefix", "embedding"))
    torch.manual_seed(0)
    start, fitted = (make_theta(lm, "prefix", 5, 64, words) for words in ([], [7, 3]))
    computed = compute_sites(lm, "embedding", embeddings)
    for site, P_theta in compute_sites(lm, "prefix", exact).items():
        assert torch.equal(P_theta, read_activations(lm, [7, 3, 7, 3, 7], 5, site))
        assert torch.equal(embeddings[site](), lm.wte.weight[[7, 3, 7, 3, 7]])
        assert_close(computed[site], P_theta)
        before, after = ((theta[site]() - P_theta).square().mean() for theta in (start, fitted))
        assert after < 0.1 * before


# --- bfloat16 ---


def train_in(dtype: torch.dtype, lm, method: str, batch: list) -> tuple:
    """theta after three steps, and their losses."""
    theta, losses = make_theta(lm, method, 3, 16, []), []
    optimizer = torch.optim.AdamW(theta.parameters(), lr=0.01)
    for _ in range(3):
        sites = compute_sites(lm, method, theta)
        with torch.autocast("cpu", torch.bfloat16, dtype == torch.bfloat16):
            loss = target_loss(lm, sites, batch)[0]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return theta, losses


@pytest.mark.parametrize(("model", "method"), [(model, method) for model in LOWER for method in SITES])
def test_in_bfloat16_what_trains_is_float32_and_learns_as_it_does_there(model, method):
    if (model, method) == ("BART", "infix"):
        pytest.skip("a BART has no infix")
    learnt = {}
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(0)
        lm = LOWER[model]().to(dtype)
        before = {name: tensor.clone() for name, tensor in lm.state_dict().items()}
        theta, learnt[dtype] = train_in(dtype, lm, method, BATCHES.get(model, BATCHES["GPT-2"]))
    assert {p.dtype for p in theta.parameters()} == {torch.float32}
    trained = {name for name, p in lm.named_parameters() if p.requires_grad}
    for name, tensor in before.items():
        assert name in trained or torch.equal(lm.state_dict()[name], tensor)
    assert learnt[torch.bfloat16] == pytest.approx(learnt[torch.float32], rel=0.05)
    saved, fresh = collapse(lm, method, theta, {}, ""), LOWER[model]().bfloat16()
    if saved.tensors:
        apply_tensors(fresh, saved)
        lm.bfloat16()
    assert {p.dtype for p in fresh.parameters()} == {torch.bfloat16}  # so it decodes without autocast
    prefix = saved if saved.sites else None
    assert generate(fresh, [[5, 6]], prefix, max_new_tokens=6) == generate(
        lm, [[5, 6]], prefix, max_new_tokens=6
    )


# --- the methods that change the LM ---


def read_logits(lm) -> torch.Tensor:
    ids = torch.tensor([[5, 6, 7, 8], [9, 3, 1, 2]])
    with torch.no_grad():
        return lm(ids) if isinstance(lm, GPT2) else lm(ids, ids.flip(1))


@both_models
@pytest.mark.parametrize("inner", [1, 7])
@pytest.mark.parametrize("method", ["adapter", "lora"])
def test_what_is_put_around_an_lm_starts_as_the_lm_and_its_width_is_read_from_the_file(method, inner, model):
    lm, fresh = MODELS[model](), MODELS[model]()
    before, names = read_logits(lm), set(lm.state_dict())
    theta = make_theta(lm, method, 0, 0, [], inner=inner)
    assert torch.equal(read_logits(lm), before)
    assert set(lm.state_dict()) > names  # the LM's own names stay as they were
    for parameter in theta.parameters():
        parameter.data.normal_()
    assert (read_logits(lm) - before).abs().amax(-1).min() > 0.01  # and it is around it at every token
    apply_tensors(fresh, collapse(lm, method, theta, {"bottleneck": 99}, "made up"))
    assert torch.equal(read_logits(fresh), read_logits(lm))


def expected_names(lm, method: str) -> set[str]:
    """The parameters that a method trains, told from their names."""
    names = {name for name, _ in lm.named_parameters()}
    own = {name for name in names if ".added." not in name}
    starts = ("h.1.", "h.2.", "ln_f.", "decoder.layers.1.", "decoder.layers.2.")
    return {"full": own, "top2": {name for name in own if name.startswith(starts)}}.get(method, names - own)


@both_models
@pytest.mark.parametrize("method", ["full", "top2", "adapter", "lora"])
def test_gradients_reach_what_trains_and_that_is_what_is_stored_and_makes_the_model(method, model, tmp_path):
    """Bit for bit."""
    shape = {"GPT-2": {"n_layer": 3}, "BART": {"decoder_layers": 3}}[model]
    lm, fresh, source = MODELS[model](**shape), MODELS[model](**shape), [[5, 6, 7]]
    before = {name: tensor.clone() for name, tensor in lm.named_parameters()}
    theta, losses = train_steps(lm, BATCHES[model], method, 12)
    assert losses[-1] < losses[0] - 0.02
    trained = expected_names(lm, method)
    assert trained == {name for name, p in lm.named_parameters() if p.requires_grad}
    assert len(list(theta.parameters())) == len(trained)
    for name, parameter in lm.named_parameters():
        assert (parameter.grad is not None) == (name in trained)
        assert name not in before or torch.equal(parameter, before[name]) == (name not in trained)
    save_prefix(collapse(lm, method, theta, {}, "made up"), tmp_path / "a.pt")
    saved = load_prefix(tmp_path / "a.pt")
    assert set(saved.tensors) == trained and not saved.sites
    assert not torch.equal(read_logits(fresh), read_logits(lm))
    apply_tensors(fresh, saved)
    assert torch.equal(read_logits(fresh), read_logits(lm))
    assert generate(fresh, source, max_new_tokens=6) == generate(lm, source, max_new_tokens=6)
    assert not any(parameter.requires_grad for parameter in fresh.parameters())
    with pytest.raises(InputError, match="does not fit"):  # it is no longer the model of that training
        apply_tensors(fresh, saved)


def test_lora_is_that_of_peft():
    peft = pytest.importorskip("peft", reason="peft is the reference for LoRA: pip install .[test]")
    lm = make_gpt2()
    config = peft.LoraConfig(r=3, lora_alpha=3, target_modules=["c_attn"], fan_in_fan_out=True)
    theirs = peft.get_peft_model(as_transformers(lm), config).eval()
    theta = make_theta(lm, "lora", 0, 0, [], inner=3)
    for ours, block in zip(theta, theirs.base_model.model.transformer.h, strict=True):
        ours.B.data.normal_()
        block.attn.c_attn.lora_A["default"].weight.data.copy_(ours.A)
        block.attn.c_attn.lora_B["default"].weight.data.copy_(ours.B)
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        expected = theirs(input_ids=ids).logits
        assert_close(lm(ids), expected, 1e-6)
        assert (make_gpt2()(ids) - expected).abs().max() > 0.1
    assert count_numbers(theta) == sum(p.numel() for p in theirs.parameters() if p.requires_grad)


def test_tensors_of_another_shape_are_refused():
    lm = make_gpt2()
    saved = collapse(lm, "lora", make_theta(lm, "lora", 0, 0, []), {}, "made up")
    tensors, first = saved.tensors, next(iter(saved.tensors))
    wrong = [{name: tensor for name, tensor in tensors.items() if name != first}]
    wrong += [
        tensors | {first: tensor} for tensor in (torch.tensor(0.0), torch.ones(1000, 1), tensors[first][:1])
    ]
    for changed in [*wrong, tensors | {"wte.weight": torch.zeros(40, 32)}]:
        saved = dataclasses.replace(saved, tensors=changed)
        with pytest.raises(InputError, match="are not those of method lora"):
            apply_tensors(make_gpt2(), saved)


def test_what_does_not_go_together_is_refused():
    lm, other = make_gpt2(), make_gpt2()
    prefix = collapse(lm, "prefix", make_theta(lm, "prefix", 3, 0, []), {}, "made up")
    adapter = collapse(lm, "adapter", make_theta(lm, "adapter", 0, 0, []), {}, "made up")
    other.config = dataclasses.replace(other.config, fingerprint="another")
    for call, words in (
        (lambda: apply_tensors(lm, prefix), "hand it to generate as its prefix"),
        (
            lambda: generate(make_gpt2(), [[5], [6]], [adapter, prefix]),
            "adapter has no prefix: apply_tensors",
        ),
        (lambda: apply_tensors(other, adapter), "does not fit"),
        (lambda: make_theta(lm, "adapter", 0, 0, []), "already"),
        (lambda: make_theta(lm, "lora2", 3, 0, []), "method=lora2 is unknown"),
        (lambda: make_theta(lm, "full", 0, 0, [], ["decoder"]), "leave sites= out"),
        (lambda: make_theta(lm, "prefix", 3, 0, [], ["encoder"]), "no site 'encoder'.*decoder"),
        (lambda: make_theta(make_bart(), "infix", 3, 0, []), "choose method=prefix"),
        (lambda: make_theta(make_bart(), "prefix", 3, 0, [], ["infix"]), r"'infix'.*encoder, decoder, cross"),
    ):
        with pytest.raises(InputError, match=words):
            call()


# --- how many numbers: Table 2 names the methods by their share of GPT-2 medium ---


def make_shape(name: str):
    """A model of published shape that takes no memory."""
    with torch.device("meta"):
        if name == "gpt2-medium":
            return GPT2(GPT2Config(50257, 1024, 1024, 24, 16))
        return BART(BARTConfig(50265, 1024, 1024, 12, 12, 16, 16, 4096, 4096))


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
