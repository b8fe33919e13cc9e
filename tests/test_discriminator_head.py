"""discriminator_head: w . gelu(W h + b) + c and its binary cross-entropy, against the formula."""

import math

import pytest
import torch
import torch.nn.functional as F
from numerics import DEVICES, check

from electra_fast.ops import discriminator_head

NAMES = "hidden dense_weight dense_bias out_weight out_bias".split()


def example(rows=9, width=12):
    shapes = (rows, width), (width, width), (width,), (1, width), (1,)
    floats = {name: torch.randn(shape) for name, shape in zip(NAMES, shapes, strict=True)}
    return floats | dict(labels=torch.rand(rows) < 0.3)


def truth(hidden, dense_weight, dense_bias, out_weight, out_bias, labels):
    y = hidden @ dense_weight.T + dense_bias
    x = (y * (1 + torch.erf(y / math.sqrt(2))) / 2 * out_weight).sum(1) + out_bias
    return x.clamp(min=0) - x * labels + torch.log1p(torch.exp(-x.abs())), x


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("rows, width", [(1, 1), (9, 12), (129, 64), (63, 17)])
def test_values_and_gradients(rows, width, device):
    check(discriminator_head, truth, example(rows, width), device=device)


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


def test_nan_stays_in_its_row():
    given = example()
    clean = torch.stack(discriminator_head(**given))
    given["hidden"][2] = math.nan
    rest = [0, 1, 3, 4, 5, 6, 7, 8]
    assert torch.equal(torch.stack(discriminator_head(**given))[:, rest], clean[:, rest])


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
