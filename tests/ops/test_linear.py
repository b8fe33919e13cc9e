"""linear: x W^T + b and the erf GELU, against the formula."""

import math
import sys

import pytest
import torch
import torch.nn.functional as F
from numerics import DEVICES, ROWS, check, check_threads

from electra_fast.ops import linear
from electra_fast.ops._core import core


@pytest.fixture(params=core.isas() if core else [])
def isa(request, monkeypatch):
    """Each instruction set in turn is what the op runs."""
    monkeypatch.setattr(sys.modules["electra_fast.ops.linear"], "core", getattr(core, request.param))


def example(rows=5, inner=12, outer=7, gelu=True):
    return dict(x=torch.randn(rows, inner), weight=torch.randn(outer, inner), bias=torch.randn(outer), gelu=gelu)


def truth(x, weight, bias, gelu=False):
    y = x @ weight.T + bias
    return y * (1 + torch.erf(y / math.sqrt(2))) / 2 if gelu else y


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("rows, inner, outer", [(1, 1, 1), (5, 12, 7), (63, 17, 64), (129, 64, 33), (2, 300, 5)])
def test_values_and_gradients(rows, inner, outer, gelu, device):
    check(linear, truth, example(rows, inner, outer, gelu), device=device)


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("rows", ROWS)
def test_every_instruction_set(isa, rows, gelu):
    check(linear, truth, example(rows, 33, 21, gelu))


@pytest.mark.parametrize("rows", [100, 300])
@pytest.mark.parametrize("inner, outer", [(1100, 5), (5, 1100), (256, 64)])
def test_every_instruction_set_beyond_what_a_product_adds_up_at_once(isa, inner, outer, rows):
    check(linear, truth, example(rows, inner, outer))


@pytest.mark.parametrize("gelu", [False, True])
def test_threads_change_no_bit(isa, gelu):
    check_threads(linear, example(700, 65, 33, gelu), rows="x")


@pytest.mark.parametrize("gelu", [False, True])
def test_float64_is_exact(gelu):
    check(linear, truth, example(gelu=gelu), torch.float64)


def test_it_is_the_linear_layer_and_gelu_of_pytorch():
    x, weight, bias, _ = (t.double() if isinstance(t, torch.Tensor) else t for t in example().values())
    torch.testing.assert_close(linear(x, weight, bias), F.linear(x, weight, bias))
    torch.testing.assert_close(linear(x, weight, bias, gelu=True), F.gelu(F.linear(x, weight, bias)))


def test_gelu_at_its_ends():
    x = torch.tensor([[-100.0], [-10.0], [0.0], [10.0], [100.0]])
    y = linear(x, torch.ones(1, 1), torch.zeros(1), gelu=True)
    torch.testing.assert_close(y, torch.tensor([[0.0], [0.0], [0.0], [10.0], [100.0]]), rtol=0, atol=1e-22)  # Phi(-10)


def test_no_rows():
    given = {name: t.requires_grad_() for name, t in example(rows=0).items() if name != "gelu"}
    y = linear(**given)
    y.sum().backward()
    assert y.shape == (0, 7)
    assert not given["weight"].grad.any() and not given["bias"].grad.any()


@pytest.mark.parametrize("outer", [5, 16, 75])
@pytest.mark.parametrize("rows", [1, 15, 16, 17, 31, 32, 33, 100, 256])
def test_few_rows_have_the_bits_that_they_have_among_many(isa, rows, outer):
    """Few take the weight as it is, many pack it."""
    given = example(300, 600, outer)
    assert torch.equal(linear(**{**given, "x": given["x"][:rows]}), linear(**given)[:rows])


@pytest.mark.parametrize("gelu", [False, True])
def test_nan_stays_in_its_row(isa, gelu):
    given = example(gelu=gelu)
    clean = linear(**given)
    given["x"][2] = math.nan
    found = linear(**given)
    assert found[2].isnan().all() and torch.equal(found[[0, 1, 3, 4]], clean[[0, 1, 3, 4]])


def test_rows_more_than_two_to_the_31_elements_apart():
    given = example(rows=2)
    far = torch.empty(2**31 + 16).as_strided(given["x"].shape, (2**31, 1)).copy_(given["x"])
    torch.testing.assert_close(linear(**{**given, "x": far}), linear(**given))


def test_shapes_that_disagree_are_rejected():
    given = example()
    with pytest.raises(ValueError, match=r"linear: x has shape \(5, 11\); \(5, 12\) is needed"):
        linear(**{**given, "x": given["x"][:, :-1]})
    with pytest.raises(ValueError, match="linear: bias has shape"):
        linear(**{**given, "bias": given["bias"][:-1]})


def test_gradcheck():
    given = [t.double().requires_grad_() for t in list(example(3, 4, 2).values())[:3]]
    assert torch.autograd.gradcheck(lambda *args: linear(*args, gelu=True), given)
