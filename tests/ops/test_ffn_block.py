"""ffn_block: LayerNorm(x + dropout(W2 gelu(W1 x + b1) + b2)), against the formula."""

import math
import sys

import pytest
import torch
import torch.nn.functional as F
from numerics import DEVICES, ROWS, check, check_threads, dropout_factors

from electra_fast.ops import ffn_block
from electra_fast.ops._core import core

NAMES = "x up_weight up_bias down_weight down_bias norm_weight norm_bias".split()


@pytest.fixture(params=core.isas() if core else [])
def isa(request, monkeypatch):
    """Each instruction set in turn is what the op runs."""
    monkeypatch.setattr(sys.modules["electra_fast.ops.ffn_block"], "core", getattr(core, request.param))


def example(rows=7, width=12, inner=20, p=0.1, seed=3):
    shapes = (rows, width), (inner, width), (inner,), (width, inner), (width,), (width,), (width,)
    floats = {name: torch.randn(shape) for name, shape in zip(NAMES, shapes, strict=True)}
    return floats | dict(row_ids=torch.randint(0, 2**62, (rows,)), eps=1e-12, dropout_p=p, seed=seed)


def truth(x, up_weight, up_bias, down_weight, down_bias, norm_weight, norm_bias, row_ids, eps, dropout_p, seed):
    up = x @ up_weight.T + up_bias
    down = (up * (1 + torch.erf(up / math.sqrt(2))) / 2) @ down_weight.T + down_bias
    y = x + down * dropout_factors(seed, row_ids, x.shape[1], dropout_p).to(x.dtype)
    centred = y - y.mean(1, keepdim=True)
    return centred / (centred.square().mean(1, keepdim=True) + eps).sqrt() * norm_weight + norm_bias


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("p", [0.0, 0.1])
@pytest.mark.parametrize("rows, width, inner", [(1, 3, 1), (7, 12, 20), (63, 64, 256), (129, 17, 33), (128, 16, 64)])
def test_values_and_gradients(rows, width, inner, p, device):
    check(ffn_block, truth, example(rows, width, inner, p), device=device)


@pytest.mark.parametrize("rows", ROWS)
def test_every_instruction_set(isa, rows):
    check(ffn_block, truth, example(rows, 33, 21))


@pytest.mark.parametrize("p", [0.0, 1.0])
@pytest.mark.parametrize("width, inner", [(37, 600), (256, 64)])
def test_every_instruction_set_at_other_widths(isa, width, inner, p):
    check(ffn_block, truth, example(100, width, inner, p))


def test_threads_change_no_bit(isa):
    check_threads(ffn_block, example(700, 33, 65), rows="x")


def test_float64_is_exact():
    check(ffn_block, truth, example(), torch.float64)


def test_it_is_the_modules_of_pytorch():
    given = {name: t.double() for name, t in example().items() if name in NAMES}
    ours = ffn_block(**given, row_ids=torch.arange(7), eps=1e-12)
    up = F.gelu(F.linear(given["x"], given["up_weight"], given["up_bias"]))
    down = F.linear(up, given["down_weight"], given["down_bias"])
    theirs = F.layer_norm(given["x"] + down, (12,), given["norm_weight"], given["norm_bias"], 1e-12)
    torch.testing.assert_close(ours, theirs)


def test_the_mask_follows_the_row_ids_wherever_the_rows_are():
    given = example(rows=33)
    order = torch.randperm(33)[:20]
    some = ffn_block(**given | {name: given[name][order] for name in ("x", "row_ids")})
    torch.testing.assert_close(some, ffn_block(**given)[order], rtol=1e-5, atol=1e-5)


def test_probability_one_leaves_the_residual():
    given = example(p=1.0)
    theirs = F.layer_norm(given["x"], (12,), given["norm_weight"], given["norm_bias"], 1e-12)
    torch.testing.assert_close(ffn_block(**given), theirs)


@pytest.mark.parametrize("p", [-0.1, 2, math.nan])
def test_other_probabilities_are_rejected(p):
    with pytest.raises(ValueError, match=f"ffn_block: dropout_p is {p}; a probability lies between 0 and 1"):
        ffn_block(**example(p=p))


def test_nan_stays_in_its_row(isa):
    given, upstream, rest = example(), torch.randn(7, 12), [0, 1, 3, 4, 5, 6]

    def found():
        x = given["x"].clone().requires_grad_()
        out = ffn_block(**given | dict(x=x))
        return out.detach(), *torch.autograd.grad(out, x, upstream)

    clean = found()
    given["x"][2] = upstream[2] = math.nan
    for before, after in zip(clean, found(), strict=True):
        assert after[2].isnan().all() and torch.equal(after[rest], before[rest])


def test_no_rows():
    given = example(rows=0)
    given["up_weight"].requires_grad_()
    y = ffn_block(**given)
    y.sum().backward()
    assert y.shape == (0, 12) and not given["up_weight"].grad.any()


@pytest.mark.parametrize("name", [*NAMES[1:], "row_ids"])
def test_shapes_that_disagree_are_rejected(name):
    given = example()
    with pytest.raises(ValueError, match="ffn_block: .* has shape .* is needed"):
        ffn_block(**given | {name: given[name][:-1]})


def test_gradcheck():
    given = example(3, 4, 5)
    floats = [given.pop(name).double().requires_grad_() for name in NAMES]
    assert torch.autograd.gradcheck(lambda *args: ffn_block(*args, **given), floats)
