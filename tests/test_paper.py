"""The paper in eleven tests, to be read first and in order: one for each equation and each promise.

The models are so small that they read ids below 40, and random, so that nothing holds by what they learnt.
"""

import torch

from minprefix import generate, save_prefix
from minprefix.methods import collapse, compute_sites, make_theta, target_loss
from minprefix.prefix import pack, read_activations
from tests.conftest import assert_close
from tests.models import Table, make_bart, make_gpt2, make_prefix

WORDS = [3, 9, 4]


def make_pair(lm) -> tuple[list[int], list[int]]:
    """x and y as the model takes them: for GPT-2 ids(x), BOS and ids(y), EOS."""
    return lm.frame([5, 6, 7], is_target=False), lm.frame([8, 9], is_target=True)


def read(lm, x: list[int], prefix: dict[str, torch.Tensor]):
    """The cache behind [PREFIX; x], or [x; INFIX]."""
    ids = torch.tensor([x])
    return lm.read(ids, torch.ones_like(ids), {site: (P, None) for site, P in prefix.items()})


def test_a_warm_cache_equals_one_call():
    """Eq. 1, h_i = LM_phi(z_i, h_<i): of the past nothing is needed but h_<i, so z may come in pieces."""
    lm, z = make_gpt2(), torch.tensor([[5, 6, 7, 0, 8, 9]])
    cache = lm.empty_cache(1)
    pieces = [lm(piece, cache) for piece in z.split([3, 1, 2], dim=1)]
    assert_close(torch.cat(pieces, 1), lm(z))


def test_the_loss_counts_y_and_its_end_only():
    """Eq. 2, sum over i in Y_idx of log p_phi(z_i | h_<i): whether x itself is likely does not matter."""
    lm = make_gpt2()
    x, y = make_pair(lm)
    loss, count = target_loss(lm, {}, [(x, y)])
    log_p = lm(torch.tensor([x + y])).log_softmax(-1)[0]  # (|x| + |y|, V): row i is of token i + 1
    by_hand = sum(log_p[len(x) - 1 + i, token] for i, token in enumerate(y))
    assert count == len(y) == 3
    assert_close(loss, -by_hand)


def test_a_prefix_of_real_words_equals_the_words():
    """Eq. 3, h_i = P_theta[i, :] for i in P_idx: later tokens cannot tell it from what the LM computes."""
    lm, z = make_gpt2(), [5, 6, 7, 0, 8, 9]
    cache = lm.empty_cache(1)
    cache.splice(read_activations(lm, WORDS, len(WORDS)))
    assert_close(lm(torch.tensor([z]), cache), lm(torch.tensor([WORDS + z]))[:, len(WORDS) :])


def test_the_gradient_reaches_p_theta_and_nothing_else():
    """Eq. 3 is maximised over theta only: it flows through the frozen phi, into each number of P_theta."""
    lm = make_gpt2()
    theta = make_theta(lm, "prefix", 3, 0, [])
    loss, _ = target_loss(lm, compute_sites(lm, "prefix", theta), [make_pair(lm)])
    loss.backward()
    assert (theta["decoder"].P.grad != 0).all()
    assert all(parameter.grad is None for parameter in lm.parameters())


def test_the_three_sites_of_bart_each_take_their_own_p():
    """Eq. 3 for encoder-decoders, [PREFIX; x; PREFIX'; y]: at the encoder, the decoder, and between them."""
    lm = make_bart(encoder_layers=3, decoder_layers=2)
    sites = compute_sites(lm, "prefix", make_theta(lm, "prefix", 4, 0, []))
    shapes = {site: tuple(P_theta.shape) for site, P_theta in sites.items()}  # (P, 2·L·C), C = 32
    assert shapes == {"encoder": (4, 2 * 3 * 32), "decoder": (4, 2 * 2 * 32), "cross": (4, 2 * 2 * 32)}
    bare, _ = target_loss(lm, {}, [make_pair(lm)])
    for site, P_theta in sites.items():
        loss, _ = target_loss(lm, {site: P_theta}, [make_pair(lm)])
        assert abs(loss - bare) > 0.01
        assert (torch.autograd.grad(loss, P_theta)[0] != 0).all()


def test_the_mlp_is_gone_from_the_file(tmp_path):
    """Sec. 4.3, P_theta[i, :] = MLP_theta(P'_theta[i, :]): once trained, P_theta alone is kept."""
    lm = make_gpt2()
    theta = make_theta(lm, "prefix", 3, 512, [])
    save_prefix(collapse(lm, "prefix", theta, {}, "made up"), tmp_path / "a.pt")
    content = torch.load(tmp_path / "a.pt", weights_only=True)
    assert content["sites"].keys() == {"decoder"} and not content["tensors"]
    assert torch.equal(content["sites"]["decoder"], theta["decoder"].mlp(theta["decoder"].P))
    assert (tmp_path / "a.pt").stat().st_size < 6000  # bytes, where the MLP has 82,560 numbers


def test_of_free_embeddings_the_lm_computes_the_upper_layers():
    """Sec. 7.2, embedding-only: C numbers a slot are free, and LM_phi makes 2·L·C activations of them."""
    lm = make_gpt2()
    theta = make_theta(lm, "embedding", 3, 0, WORDS)  # begins as the embeddings of these words
    assert theta["decoder"].P.shape == (3, 32)
    P_theta = compute_sites(lm, "embedding", theta)["decoder"]
    assert_close(P_theta, pack(read(lm, WORDS, {})))
    P_theta[:, -1].sum().backward()  # of the last layer's values
    assert (theta["decoder"].P.grad != 0).all()


def test_x_cannot_see_an_infix():
    """Sec. 7.3, [x; INFIX; y]: y attends to both, but x was read before the infix came."""
    lm, x, y = make_gpt2(), [5, 6, 7], torch.tensor([[0, 8, 9]])
    infix = torch.randn(2, 128, requires_grad=True)
    bare, cache = read(lm, x, {}), read(lm, x, {"infix": infix})
    assert torch.equal(pack(cache), torch.cat((pack(bare), infix)))
    assert not pack(bare).requires_grad  # so training keeps nothing of x for a backward pass
    assert (lm(y, cache) - lm(y, bare)).abs().amax(-1).min() > 0.01


def test_beams_equal_a_tree_by_hand():
    """Sec. 5.3, sum log p / |y|^alpha, where |y| counts the EOS. From token 1:

    [EOS]         log p = ln .5             = -0.693                   the likeliest text
    [2, 3, EOS]   log p = ln (.4 * .9 * .9) = -1.127, / 3 = -0.376     the likeliest a token
    [2, EOS]      log p = ln (.4 * .1)      = -3.219, / 2 = -1.609
    [3, EOS]      log p = ln (.1 * .9)      = -2.408, / 2 = -1.204
    """
    behind = [[1.0, 0.0, 0.0, 0.0], [0.5, 0.0, 0.4, 0.1], [0.1, 0.0, 0.0, 0.9], [0.9, 0.0, 0.1, 0.0]]
    lm = Table(behind)  # p(EOS), p(1), p(2), p(3) behind each token
    assert generate(lm, [[1]], beams=2, length_penalty=0.0) == [[]]
    assert generate(lm, [[1]], beams=2, length_penalty=1.0) == [[2, 3]]
    assert generate(lm, [[1]], beams=2, length_penalty=0.5) == [[2, 3]]  # -0.651 > -0.693
    assert generate(lm, [[1]], beams=2, length_penalty=0.4) == [[]]  # -0.726 < -0.693
    assert generate(lm, [[1]], beams=1, length_penalty=1.0) == [[]]  # greedy never looks behind the 2


def test_users_in_one_batch_are_answered_as_alone():
    """Sec. 8: one frozen LM, and one small prefix a user. Rows share a batch, never what they attend to."""
    lm, sources = make_gpt2(), [[5, 6, 7, 0], [8, 0], [5, 6, 7, 0], [9, 4, 3, 0]]
    users = [make_prefix(lm, 2, seed=1), None, make_prefix(lm, 5, seed=2), make_prefix(lm, 1, seed=3)]
    together = generate(lm, sources, users, max_new_tokens=8)
    assert together == [generate(lm, [x], user, max_new_tokens=8)[0] for x, user in zip(sources, users)]
    assert together[0] != together[2]  # one question, two users


def test_an_ensemble_is_the_mean_distribution():
    """Sec. 8: several prefixes of one task answer by p(z_{i+1}) = 1/M sum over m of p_m(z_{i+1})."""
    lm, x, y = make_gpt2(seed=1), [5, 6, 7], [0]
    members = [make_prefix(lm, 2, seed=4), make_prefix(lm, 4, seed=5)]
    options = dict(beams=1, max_new_tokens=8)
    (found,) = generate(lm, [[*x, 0]], members, ensemble=True, **options)
    for token in found:
        logits = [lm(torch.tensor([y]), read(lm, x, member.sites))[0, -1] for member in members]
        assert token == torch.stack(logits).softmax(-1).mean(0).argmax()  # (M, V) -> (V,)
        y.append(token)
    assert len(found) == 8
    assert all(generate(lm, [[*x, 0]], member, **options) != [found] for member in members)
