"""discriminator_head: w . gelu(W h + b) + c and its binary cross-entropy, against the formula."""

import math
import sys

import pytest
import torch
import torch.nn.functional as F
from numerics import DEVICES, ROWS, check, check_threads

from electra_fast.ops import discriminator_head
from electra_fast.ops._core import core

NAMES = "hidden dense_weight dense_bias out_weight out_bias".split()


@pytest.fixture(params=core.isas() if core else [])
def isa(request, monkeypatch):
    """Each instruction set in turn is what the op runs."""
    monkeypatch.setattr(sys.modules["electra_fast.ops.discriminator_head"], "core", getattr(core, request.param))


def example(rows=9, width=12):
    shapes = (rows, width), (width, width), (width,), (1, width), (1,)
    floats = {name: torch.randn(shape) for name, shape in zip(NAMES, shapes, strict=True)}
    for name in ("dense_weight", "out_weight"):  # logits near 1: of large ones, rounding is most of a gradient's error
        floats[name] /= width**0.5
    return floats | dict(labels=torch.rand(rows) < 0.3)


def truth(hidden, dense_weight, dense_bias, out_weight, out_bias, labels):
    y = hidden @ dense_weight.T + dense_bias
    x = (y * (1 + torch.erf(y / math.sqrt(2))) / 2 * out_weight).sum(1) + out_bias
    return x.clamp(min=0) - x * labels + torch.log1p(torch.exp(-x.abs())), x


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("rows, width", [(1, 1), (9, 12), (129, 64), (63, 17)])
def test_values_and_gradients(rows, width, device):
    check(discriminator_head, truth, example(rows, width), device=device)


@pytest.mark.parametrize("rows", ROWS)
def test_every_instruction_set(isa, rows):
    check(discriminator_head, truth, example(rows, 33))


@pytest.mark.parametrize("width", [1, 64, 300])
def test_every_instruction_set_at_other_widths(isa, width):
    check(discriminator_head, truth, example(100, width))


def test_threads_change_no_bit(isa):
    check_threads(discriminator_head, example(700, 33), rows="hidden")


def test_float64_is_exact():
    check(discriminator_head, truth, example(), torch.float64)


def test_the_loss_is_pytorch_s():
    given = example()
    loss, logits = discriminator_head(**given)
    theirs = F.binary_cross_entropy_with_logits(logits, given["labels"].float(), reduction="none")
    torch.testing.assert_close(loss, theirs)


@pytest.mark.parametrize("which", [0, 1], ids=["loss", "logits"])
def test_either_output_alone_gives_gradients(which):
    given = example()
    floats = [given[name].requires_grad_() for name in NAMES]
    ours = torch.autograd.grad(discriminator_head(**given)[which].sum(), floats)
    theirs = torch.autograd.grad(truth(**given)[which].sum(), floats)
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("logit", [-1e4, -100.0, 0.0, 100.0, 1e4])
def test_the_loss_is_finite_at_any_logit(logit):
    given = example(rows=2) | dict(out_bias=torch.tensor([logit]), labels=torch.tensor([False, True]))
    given["out_weight"].zero_()
    loss, logits = discriminator_head(**given)
    assert logits.tolist() == [logit, logit]
    torch.testing.assert_close(loss, F.softplus(torch.tensor([logit, -logit])))


def test_a_row_alone_equals_itself_among_others():
    given = example(rows=40)
    loss, logits = discriminator_head(**given)
    some = discriminator_head(**given | {name: given[name][7:9] for name in ("hidden", "labels")})
    torch.testing.assert_close(some, (loss[7:9], logits[7:9]))


def test_nan_stays_in_its_row(isa):
    given = example()
    clean = torch.stack(discriminator_head(**given))
    given["hidden"][2] = math.nan
    rest = [0, 1, 3, 4, 5, 6, 7, 8]
    found = torch.stack(discriminator_head(**given))
    assert found[:, 2].isnan().all() and torch.equal(found[:, rest], clean[:, rest])


def test_no_rows():
    given = example(rows=0)
    given["dense_weight"].requires_grad_()
    loss, logits = discriminator_head(**given)
    (loss.sum() + logits.sum()).backward()
    assert loss.shape == logits.shape == (0,) and not given["dense_weight"].grad.any()


def test_labels_are_booleans():
    given = example()
    with pytest.raises(TypeError, match="labels is torch.int64; torch.bool is allowed"):
        discriminator_head(**given | dict(labels=given["labels"].long()))


@pytest.mark.parametrize("name", [*NAMES[1:], "labels"])
def test_shapes_that_disagree_are_rejected(name):
    given = example()
    with pytest.raises(ValueError, match=f"discriminator_head: {name} has shape"):
        discriminator_head(**given | {name: given[name][:-1]})


def test_gradcheck():
    given = example(3, 4)
    floats = [given[name].double().requires_grad_() for name in NAMES]
    assert torch.autograd.gradcheck(lambda *args: discriminator_head(*args, given["labels"]), floats)
