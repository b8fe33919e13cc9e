"""The Triton kernels of discriminator_head in the interpreter, against the reference and the truth of its test."""

import sys
from collections.abc import Callable

import numerics
import pytest
import test_discriminator_head as plain
import torch
from interpreted import FEW_LAYOUTS, in_two_dtypes, one_layout, through_triton
from numerics import check

from electra_fast.kernels import discriminator_head as kernels
from electra_fast.ops import discriminator_head
from electra_fast.ops._library import backends

OP = sys.modules["electra_fast.ops.discriminator_head"]
REGISTERED = OP._discriminator_head
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU the op's own tests run the kernels")


@pytest.fixture(autouse=True)
def on_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """The public op calls the launchers."""
    monkeypatch.setattr(OP, "_discriminator_head", through_triton(REGISTERED))
    monkeypatch.setattr(numerics, "UPSTREAMS", {"strided": numerics.UPSTREAMS["strided"]})


@pytest.mark.parametrize(
    "rows, width, dtype",
    in_two_dtypes((0, 12), (1, 1), (63, 17), (129, 64), half=(63, 17), slow=[(127, 80), (128, 128), (9, 300)]),
    ids=str,
)
def test_by_the_rule(rows: int, width: int, dtype: torch.dtype) -> None:
    check(discriminator_head, plain.truth, plain.example(rows, width), dtype)


@pytest.mark.parametrize("layout", FEW_LAYOUTS)
def test_whatever_the_layout(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one_layout(layout, monkeypatch)
    check(discriminator_head, plain.truth, plain.example(33, 70))


def test_with_other_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    small = dict(BLOCK_M=16, BLOCK_N=32, BLOCK_K=16, num_warps=4, num_stages=1)
    for table in (kernels.FWD, kernels.BWD):
        monkeypatch.setitem(table, 4, small)
    check(discriminator_head, plain.truth, plain.example(37, 128))


@pytest.mark.parametrize(
    "test",
    [
        plain.test_a_row_alone_equals_itself_among_others,
        plain.test_the_loss_is_pytorch_s,
        plain.test_no_rows,
        lambda: plain.test_nan_stays_in_its_row(None),
        *(lambda n=n: plain.test_either_output_alone_gives_gradients(n) for n in (0, 1)),
        *(lambda n=n: plain.test_the_loss_is_finite_at_any_logit(n) for n in (-1e4, -100.0, 0.0, 100.0, 1e4)),
    ],
)
def test_what_holds_in_the_core_holds_here(test: Callable) -> None:
    test()


def test_a_row_alone_is_the_row_among_others_to_the_bit() -> None:
    given = plain.example(140, 40)
    hidden = given["hidden"].requires_grad_()
    whole = discriminator_head(**given)
    upstream = [torch.randn(140), torch.randn(140)]
    (dhidden,) = torch.autograd.grad(whole, hidden, upstream)
    for rows in (slice(0, 1), slice(60, 131)):
        some = given | dict(hidden=hidden[rows].detach().requires_grad_(), labels=given["labels"][rows])
        alone = discriminator_head(**some)
        (gradient,) = torch.autograd.grad(alone, some["hidden"], [u[rows] for u in upstream])
        assert torch.equal(alone[0], whole[0][rows]) and torch.equal(alone[1], whole[1][rows])
        assert torch.equal(gradient, dhidden[rows])


def test_cuda_goes_to_triton_and_to_the_reference_where_it_cannot() -> None:
    for name in ("discriminator_head_fwd", "discriminator_head_bwd"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"electra_fast::{name}", "CUDA")
        assert backends[name]["cuda"] == "Triton"
    for dtype, expected in ((torch.bfloat16, True), (torch.float64, False)):
        assert REGISTERED.on_triton((torch.empty(9, 12, dtype=dtype),)) == expected
