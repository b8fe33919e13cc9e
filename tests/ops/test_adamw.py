"""adamw: ELECTRA's step over all parameters, against numbers worked out by hand and a loop."""

import math
import sys

import pytest
import torch
from numerics import DEVICES, EPS, laid_out

from electra_fast.ops import adamw
from electra_fast.ops._core import core

SHAPES = [(3, 4), (5,), (1,), (0,), (130, 7)]


def example(dtype=torch.float32, device="cpu", layout="contiguous", **options):
    kind = dict(dtype=dtype, device=device)
    params, grads, exp_avgs = ([laid_out(torch.randn(s, **kind), layout) for s in SHAPES] for _ in range(3))
    given = dict(params=params, grads=grads, exp_avgs=exp_avgs)
    given |= dict(exp_avg_sqs=[laid_out(torch.rand(s, **kind), layout) for s in SHAPES])
    given |= dict(lr=torch.tensor([0.05], **kind), lr_scales=[1.0, 0.5, 0.8, 1.0, 0.1])
    given |= dict(weight_decays=[0.01, 0.0, 0.01, 0.0, 0.1], beta1=0.9, beta2=0.999, eps=1e-6, max_grad_norm=1.0)
    return given | dict(guard=torch.tensor(3.0, **kind)) | options


def copied(given):
    return {
        n: [t.clone() for t in v] if isinstance(v, list) and n not in ("lr_scales", "weight_decays") else v
        for n, v in given.items()
    }


def truth(params, grads, exp_avgs, exp_avg_sqs, lr, lr_scales, weight_decays, beta1, beta2, eps, max_grad_norm, guard):
    norm = math.sqrt(sum(g.double().square().sum().item() for g in grads))
    clip = max_grad_norm * min(1 / norm if norm else math.inf, 1 / max_grad_norm)
    for p, g, m, v, scale, decay in zip(params, grads, exp_avgs, exp_avg_sqs, lr_scales, weight_decays, strict=True):
        m.copy_(beta1 * m + (1 - beta1) * clip * g)
        v.copy_(beta2 * v + (1 - beta2) * (clip * g) ** 2)
        p.sub_(lr * scale * (m / (v.sqrt() + eps) + decay * p))
    return norm


def test_one_number_by_hand():
    p, g, m, v = (torch.tensor([x], dtype=torch.float64) for x in (2.0, 0.5, 0.0, 0.0))
    numbers = dict(beta1=0.9, beta2=0.999, eps=1e-6, max_grad_norm=1.0, guard=torch.tensor(1.0))
    norm = adamw([p], [g], [m], [v], torch.tensor([0.1], dtype=torch.float64), [1.0], [0.01], **numbers)
    assert norm.item() == 0.5
    assert m.item() == pytest.approx(0.05, rel=1e-12)  # no bias correction
    assert v.item() == pytest.approx(0.00025, rel=1e-12)
    assert p.item() == pytest.approx(2 - 0.1 * (0.05 / (0.015811388300841896 + 1e-6) + 0.02), rel=1e-12)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "unaligned"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_three_steps_equal_the_loop(dtype, layout, device):
    three_steps(example(dtype, device, layout), layout)


@pytest.fixture(params=core.isas() if core else [])
def isa(request, monkeypatch):
    """Each instruction set in turn is what the op runs."""
    monkeypatch.setattr(sys.modules["electra_fast.ops.adamw"], "core", getattr(core, request.param))


@pytest.mark.parametrize("layout", ["contiguous", "transposed", "unaligned"])
def test_every_instruction_set(isa, layout):
    three_steps(example(layout=layout), layout)


def three_steps(ours, layout):
    exact, dtype = copied(ours), ours["lr"].dtype
    for name in ("params", "exp_avgs", "exp_avg_sqs"):
        exact[name] = [t.double() for t in exact[name]]
    for _ in range(3):
        ours["grads"] = [laid_out(torch.randn_like(g), layout) for g in ours["grads"]]
        exact["grads"] = [g.double() for g in ours["grads"]]
        before = [g.clone() for g in ours["grads"]]
        norm = adamw(**ours)
        assert norm.item() == pytest.approx(truth(**exact), rel=EPS[dtype])
        assert all(map(torch.equal, before, ours["grads"])), "a gradient was modified"
    for name in ("params", "exp_avgs", "exp_avg_sqs"):
        for mine, gold in zip(ours[name], exact[name], strict=True):
            torch.testing.assert_close(mine.double(), gold, rtol=EPS[dtype], atol=EPS[dtype])


def test_threads_change_no_bit_and_the_norm_keeps_its_digits(isa):
    shapes, before, found = [(300, 301), (7,), (16384,), (16385,), (0,), (1, 3)], torch.get_num_threads(), []
    lists = {name: [torch.rand(shape) for shape in shapes] for name in "params grads exp_avgs exp_avg_sqs".split()}
    given = example() | lists | dict(lr_scales=[1.0] * len(shapes), weight_decays=[0.01] * len(shapes))
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            step = copied(given)
            found.append([adamw(**step), *step["params"], *step["exp_avgs"], *step["exp_avg_sqs"]])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))
    exact = math.sqrt(sum(g.double().square().sum().item() for g in given["grads"]))
    assert found[0][0].item() == pytest.approx(exact, rel=2**-24)


def test_two_runs_give_the_same_bits():
    one, two = example(), None
    two = copied(one)
    assert torch.equal(adamw(**one), adamw(**two))
    assert all(map(torch.equal, one["params"], two["params"]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size, clipped", [(0.5, False), (1.0, False), (10.0, True)])
def test_gradients_are_clipped_above_the_norm_alone(size, clipped, dtype):
    given = example(dtype, beta1=0.0)
    total = math.sqrt(sum(g.square().sum().item() for g in given["grads"]))
    given["grads"] = [g * size / total for g in given["grads"]]
    assert adamw(**given).item() == pytest.approx(size)
    for moment, grad in zip(given["exp_avgs"], given["grads"], strict=True):
        torch.testing.assert_close(moment, grad / size if clipped else grad)


def test_decay_and_scales_belong_to_their_parameter():
    given = example(torch.float64)
    for name in ("grads", "exp_avgs"):
        given[name] = [torch.zeros_like(t) for t in given[name]]
    before = copied(given)["params"]
    assert adamw(**given).item() == 0
    for i, (old, new) in enumerate(zip(before, given["params"], strict=True)):
        torch.testing.assert_close(new, old * (1 - 0.05 * given["lr_scales"][i] * given["weight_decays"][i]))


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["grads", "guard"])
def test_what_is_not_finite_changes_nothing(isa, where, number):
    given = example()
    if where == "guard":
        given["guard"] = torch.tensor(number)
    else:
        given["grads"][4][100, 3] = number
    before = copied(given)
    norm = adamw(**given)
    assert norm.isfinite().item() == (where == "guard")
    for name in ("params", "exp_avgs", "exp_avg_sqs"):
        assert all(map(torch.equal, before[name], given[name]))


def test_the_norm_of_huge_finite_gradients_changes_nothing_or_clips():
    given = example()
    given["grads"] = [torch.full_like(g, 1e30) for g in given["grads"]]
    adamw(**given)
    assert all(p.isfinite().all() for p in given["params"])


def test_parameters_that_require_gradients_are_updated_in_place():
    given = example()
    before = given["params"][0].clone()
    given["params"] = [torch.nn.Parameter(p) for p in given["params"]]
    place = given["params"][0].data_ptr()
    adamw(**given)
    assert given["params"][0].data_ptr() == place and not torch.equal(given["params"][0], before)


def test_no_parameters():
    empty = {name: [] for name in "params grads exp_avgs exp_avg_sqs lr_scales weight_decays".split()}
    assert adamw(**example() | empty).item() == 0


@pytest.mark.parametrize("name", ["grads", "exp_avgs", "exp_avg_sqs"])
def test_lists_that_disagree_are_rejected(name):
    given = example()
    for wrong in (given[name][:-1], [*given[name][:-1], torch.randn(7, 130)]):
        with pytest.raises(ValueError, match=f"adamw: {name} has other shapes than params"):
            adamw(**given | {name: wrong})


@pytest.mark.parametrize("name", ["lr_scales", "weight_decays"])
def test_numbers_that_disagree_are_rejected(name):
    with pytest.raises(ValueError, match="adamw: there are 5 params, . lr_scales, . weight_decays"):
        adamw(**example() | {name: [1.0] * 4})


@pytest.mark.parametrize("norm", [0.0, -1.0, math.nan, math.inf])
def test_norms_that_cannot_be_clipped_to_are_rejected(norm):
    with pytest.raises(ValueError, match=f"adamw: max_grad_norm is {norm}; a finite number above 0"):
        adamw(**example(max_grad_norm=norm))


@pytest.mark.parametrize("grads", [torch.float64, torch.float32])
def test_copies_are_the_new_parameters_rounded(grads):
    """On the CPU the reference serves a float64 parameter beside a float32 copy."""
    given = example(torch.float64)
    given |= dict(grads=[g.to(grads) for g in given["grads"]], copies=[p.float() for p in given["params"]])
    exact = {n: v for n, v in copied(given).items() if n != "copies"}
    adamw(**given)
    truth(**exact)
    for copy, param, gold in zip(given["copies"], given["params"], exact["params"], strict=True):
        torch.testing.assert_close(param, gold, rtol=1e-6, atol=1e-6)
        assert torch.equal(copy, param.float())


def test_gradients_of_a_third_dtype_are_rejected():
    given = example()
    given["copies"] = [p.bfloat16() for p in given["params"]]
    with pytest.raises(TypeError, match="adamw: param is torch.float32, grads is torch.float16"):
        adamw(**given | dict(grads=[g.half() for g in given["grads"]]))
    with pytest.raises(ValueError, match="adamw: copies has other shapes than params"):
        adamw(**given | dict(copies=given["copies"][1:]))


def test_mixed_dtypes_and_devices_are_rejected():
    given = example()
    doubled = [given["grads"][0].double(), *given["grads"][1:]]
    with pytest.raises(TypeError, match="adamw: param is torch.float32, grads is torch.float64"):
        adamw(**given | dict(grads=doubled))
    with pytest.raises(RuntimeError, match="adamw: tensors on different devices: .*guard on meta"):
        adamw(**given | dict(guard=torch.tensor(1.0, device="meta")))
