"""The Triton kernels of adamw in the interpreter, against the loop of its test."""

import math
import sys
from collections.abc import Callable

import pytest
import test_adamw as plain
import torch
from interpreted import of_values

from electra_fast.kernels import adamw as kernels
from electra_fast.ops import adamw
from electra_fast.ops._library import backends

OP = sys.modules["electra_fast.ops.adamw"]
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU the op's own tests run the kernels")


@pytest.fixture(autouse=True)
def on_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """The public op calls the launcher; tensors have several pieces, programs several of these."""
    monkeypatch.setattr(OP, "_adamw", of_values(kernels.adamw_fwd, OP.AdamWArguments))
    monkeypatch.setattr(kernels, "BLOCK", 256)
    monkeypatch.setattr(kernels, "PROGRAMS", 4)


@pytest.mark.parametrize("block", [256, 4096])
@pytest.mark.parametrize("layout", ["contiguous", "transposed", "unaligned"])
def test_three_steps_equal_the_loop(layout: str, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "BLOCK", block)
    plain.three_steps(plain.example(layout=layout), layout)


@pytest.mark.parametrize("shapes", [[(0,)], [(255,)], [(256,)], [(0,), (257,), (0,)], [(2, 3)] * 9], ids=str)
def test_around_a_piece_and_with_tensors_of_no_elements(shapes: list, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plain, "SHAPES", shapes)
    numbers = dict(lr_scales=[1.0 - i / 10 for i in range(len(shapes))], weight_decays=[0.01] * len(shapes))
    plain.three_steps(plain.example(**numbers), "contiguous")


def test_float16_is_worked_out_in_float32() -> None:
    given = plain.example(torch.float16)
    exact = plain.copied(given) | dict(lr=given["lr"].double())
    for name in ("params", "grads", "exp_avgs", "exp_avg_sqs"):
        exact[name] = [t.double() for t in exact[name]]
    assert adamw(**given).item() == pytest.approx(plain.truth(**exact), rel=1e-3)
    for name in ("params", "exp_avgs", "exp_avg_sqs"):
        for ours, gold in zip(given[name], exact[name], strict=True):
            torch.testing.assert_close(ours.double(), gold, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("grads", [torch.float32, torch.float16], ids=str)
def test_a_float32_master_and_its_narrow_copy(grads: torch.dtype) -> None:
    """float16 for bfloat16, which the interpreter cuts where a GPU rounds."""
    given = plain.example()
    given["grads"] = [g.to(grads) for g in given["grads"]]
    given["copies"] = [torch.full_like(p, math.nan, dtype=torch.float16) for p in given["params"]]
    given["copies"][4] = given["copies"][4].t().contiguous().t()  # written by way of a dense one
    exact = {n: v for n, v in plain.copied(given).items() if n != "copies"}
    for name in ("params", "grads", "exp_avgs", "exp_avg_sqs"):
        exact[name] = [t.double() for t in exact[name]]
    assert adamw(**given).item() == pytest.approx(plain.truth(**exact), rel=1e-6)
    for name in ("params", "exp_avgs", "exp_avg_sqs"):
        for ours, gold in zip(given[name], exact[name], strict=True):
            assert ours.dtype == torch.float32
            torch.testing.assert_close(ours.double(), gold, rtol=2e-6, atol=2e-6)
    for copy, param in zip(given["copies"], given["params"], strict=True):
        assert torch.equal(copy, param.half())
    given["guard"], before = torch.tensor(math.nan), plain.copied(given)
    adamw(**given)
    assert all(torch.equal(a, b) for n in ("params", "copies") for a, b in zip(before[n], given[n], strict=True))


def test_the_norm_keeps_its_digits_and_its_range() -> None:
    for size in (1e-30, 1.0, 1e30):
        given = plain.example()
        given["grads"] = [g * size for g in given["grads"]]
        norm = math.sqrt(sum(g.double().square().sum().item() for g in given["grads"]))
        before = plain.copied(given)["params"]
        assert adamw(**given).item() == pytest.approx(norm, rel=2**-23)
        assert all(p.isfinite().all() for p in given["params"]) and not torch.equal(before[0], given["params"][0])


@pytest.mark.parametrize(
    "test",
    [
        plain.test_two_runs_give_the_same_bits,
        plain.test_no_parameters,
        plain.test_parameters_that_require_gradients_are_updated_in_place,
        *(lambda n=n: plain.test_what_is_not_finite_changes_nothing(None, "grads", n) for n in (math.nan, -math.inf)),
        *(lambda n=n: plain.test_what_is_not_finite_changes_nothing(None, "guard", n) for n in (math.nan, math.inf)),
    ],
)
def test_what_holds_in_the_core_holds_here(test: Callable) -> None:
    test()


@pytest.mark.parametrize("size", [0.5, 1.0, 10.0])
def test_gradients_are_clipped_above_the_norm_alone(size: float) -> None:
    given = plain.example(beta1=0.0)
    total = math.sqrt(sum(g.square().sum().item() for g in given["grads"]))
    given["grads"] = [g * size / total for g in given["grads"]]
    assert adamw(**given).item() == pytest.approx(size)
    for moment, grad in zip(given["exp_avgs"], given["grads"], strict=True):
        torch.testing.assert_close(moment, grad / max(size, 1.0))


def test_cuda_goes_to_triton_and_to_the_reference_where_it_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    assert torch._C._dispatch_has_kernel_for_dispatch_key("electra_fast::adamw", "CUDA")
    assert backends["adamw"]["cuda"] == "Triton for lists of one dtype each, else the reference"
    monkeypatch.setattr(OP, "_adamw_triton", lambda *args: "triton")
    monkeypatch.setattr(OP, "adamw_reference", lambda *args: "reference")
    for kinds, expected in (
        ("bfloat16 bfloat16 bfloat16 bfloat16", "triton"),
        ("float32 bfloat16 float32 float32 bfloat16", "triton"),
        ("float64 float64 float64 float64", "reference"),
        ("float32+float16 float32 float32 float32", "reference"),
    ):
        lists = [[torch.empty(1, dtype=getattr(torch, d)) for d in kind.split("+")] for kind in kinds.split()]
        copies = lists[4] if len(lists) > 4 else []
        assert OP._adamw_cuda(OP.AdamWArguments(*lists[:4], *[None] * 8, copies)) == expected
