"""What a training step changes, and what is left of it."""

import pytest
import torch

from minprefix.generate import generate
from minprefix.methods import collapse, compute_sites, make_theta, target_loss
from minprefix.prefix import MLPPrefix, fit, read_activations
from tests.conftest import make_gpt2, train_steps

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


def test_gpt2_medium_stores_the_paper_s_number_of_values():
    """Sec. 5.2: |P| = 5 on GPT-2 medium (24 layers, 1,024 wide) is 245,760 numbers."""
    from minprefix.prefix import DirectPrefix

    assert sum(p.numel() for p in DirectPrefix(5, 2 * 24 * 1024).parameters()) == 245_760


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
