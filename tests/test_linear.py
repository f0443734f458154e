"""linear() is F.linear, whichever library computes it."""

import pytest
import torch
import torch.nn.functional as F

from minprefix.linear import FEW, HAS_ONEDNN, linear


@pytest.mark.parametrize("rows", [(1,), (2, 5), (FEW,), (FEW + 1,)])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("has_bias", [False, True])
def test_it_is_f_linear(rows, transposed, has_bias):
    torch.manual_seed(0)
    x = torch.randn(*rows, 24)
    weight = torch.randn(24, 40).T if transposed else torch.randn(40, 24)
    bias = torch.randn(40) if has_bias else None
    with torch.no_grad():
        torch.testing.assert_close(linear(x, weight, bias), F.linear(x, weight, bias), rtol=1e-5, atol=1e-5)


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


def test_weights_that_change_in_place_are_seen():
    weight = torch.randn(6, 4)
    x = torch.randn(2, 4)
    with torch.no_grad():
        linear(x, weight)
        weight.mul_(2)
        torch.testing.assert_close(linear(x, weight), F.linear(x, weight))
