"""linear() is F.linear, whichever library computes it; attention in bfloat16."""

import pytest
import torch
import torch.nn.functional as F

from minprefix.layers import FEW, HAS_ONEDNN, attend, linear


@pytest.mark.parametrize("rows", [(1,), (2, 5), (FEW,), (FEW + 1,)])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("has_bias", [False, True])
def test_it_is_f_linear(rows, transposed, has_bias):
    torch.manual_seed(0)
    x, bias = torch.randn(*rows, 24), torch.randn(40) if has_bias else None
    weight = torch.randn(24, 40).T if transposed else torch.randn(40, 24)
    for _ in range(2):
        with torch.no_grad():
            found = linear(x, weight, bias)
        torch.testing.assert_close(found, F.linear(x, weight, bias), rtol=1e-5, atol=1e-5)
        weight.mul_(2)  # a weight that changes in place is seen


def test_onednn_takes_what_has_few_rows_and_no_gradient(monkeypatch):
    if not HAS_ONEDNN:
        pytest.skip("this PyTorch has no oneDNN product")
    calls = []
    monkeypatch.setattr(F, "linear", lambda *arguments: calls.append(arguments))
    x, weight = torch.randn(FEW, 4), torch.randn(6, 4)
    with torch.no_grad():
        assert linear(x, weight) is not None and not calls
        linear(torch.randn(FEW + 1, 4), weight)
        linear(x.bfloat16(), weight.bfloat16())
        with torch.autocast("cpu", torch.bfloat16):
            linear(x, weight)
    linear(x, weight.requires_grad_())
    assert len(calls) == 4


def test_attention_that_trains_in_bfloat16_is_float32_s_rounded_once(monkeypatch):
    """Under autocast, too, which would turn it back."""
    q, k, v = (torch.randn(2, heads, 5, 8).bfloat16().requires_grad_() for heads in (4, 2, 2))
    mask = torch.ones(2, 1, 5, 5, dtype=torch.bool).tril()
    with torch.autocast("cpu", torch.bfloat16):
        y = attend(q, k, v, mask)
    expected = attend(*(t.float() for t in (q, k, v)), mask)
    assert y.dtype == torch.bfloat16 and torch.equal(y, expected.bfloat16())
    taken, compute = [], F.scaled_dot_product_attention
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda *t, **o: taken.append(t) or compute(*t, **o)
    )
    with torch.no_grad():  # a cache is not turned into float32 for every token
        attend(q, k, v, mask)
    assert taken[0][0].dtype == torch.bfloat16
