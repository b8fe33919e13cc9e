"""The Triton kernels of dropout_add_layer_norm in the interpreter, against the reference and the truth of its test."""

import sys
from collections.abc import Callable

import numerics
import pytest
import test_dropout_add_layer_norm as plain
import torch
from interpreted import FEW_LAYOUTS, in_two_dtypes, one_layout, repeats, through_triton
from numerics import check, dropout_factors
from torch._subclasses.fake_tensor import FakeTensorMode

from electra_fast.kernels import dropout_add_layer_norm as kernels
from electra_fast.ops import dropout_add_layer_norm
from electra_fast.ops._library import backends

OP = sys.modules["electra_fast.ops.dropout_add_layer_norm"]
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU the op's own tests run the kernels")


@pytest.fixture(autouse=True)
def on_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """The public op calls the launchers; some programs take several blocks of rows."""
    monkeypatch.setattr(OP, "_dropout_add_layer_norm", through_triton(OP._dropout_add_layer_norm))
    monkeypatch.setattr(kernels, "PROGRAMS", 3)
    monkeypatch.setattr(numerics, "UPSTREAMS", {"strided": numerics.UPSTREAMS["strided"]})


@pytest.mark.parametrize(
    "rows, width, dtype",
    in_two_dtypes(
        (0, 20),
        (1, 1),
        (63, 17),
        (129, 64),
        (2, 4096),
        half=(63, 17),
        slow=[(127, 80), (129, 256), (5, 768), (3, 2048)],
    ),
    ids=str,
)
def test_by_the_rule(rows: int, width: int, dtype: torch.dtype) -> None:
    eps = 1e-12 if dtype == torch.float32 else 1e-3  # the truth in float16 divides by its root, 0 in a row of one
    check(dropout_add_layer_norm, plain.truth, plain.example(rows, width) | dict(eps=eps), dtype)


@pytest.mark.parametrize("layout", [*FEW_LAYOUTS, "no dropout", "all dropped"])
def test_whatever_the_layout(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one_layout(layout, monkeypatch)
    p = {"no dropout": 0.0, "all dropped": 1.0}.get(layout, 0.1)
    check(dropout_add_layer_norm, plain.truth, plain.example(33, 150, p))


@pytest.mark.parametrize("block", [8, *repeats(1)])
@pytest.mark.parametrize("seed", [-7, 2**62 + 5])
def test_drops_the_very_bytes(seed: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for width, p in ((64, 0.1), (300, 0.9)):
        monkeypatch.setitem(kernels.TILES, kernels.tile(width)["BLOCK_D"], dict(BLOCK_M=block, num_warps=4))
        dropped = plain.gradient_of_x(p, seed, len(plain.ROW_IDS), width, plain.ROW_IDS) == 0
        assert torch.equal(dropped, dropout_factors(seed, plain.ROW_IDS, width, p) == 0)


@pytest.mark.parametrize(
    "test",
    [
        plain.test_a_row_alone_is_the_row_among_others,
        plain.test_a_mean_far_from_zero_costs_no_digits,
        plain.test_a_dropped_nan_is_gone,
        plain.test_nan_stays_in_its_row,
        plain.test_constant_rows_and_large_values_are_finite,
    ],
)
def test_what_holds_in_the_core_holds_here(test: Callable) -> None:
    test(None)


def test_gradients_far_from_zero_lose_no_digits() -> None:
    given = plain.example(20, 150, p=1.0)
    given["residual"] += 1e6
    exact = {n: v.double() if isinstance(v, torch.Tensor) and n != "row_ids" else v for n, v in given.items()}
    upstream = [torch.randn(20, 150)]
    ours = numerics.run(dropout_add_layer_norm, given, upstream)
    gold = numerics.run(plain.truth, exact, [upstream[0].double()])
    for name in ("gradient of residual", "gradient of weight"):
        torch.testing.assert_close(ours[name].double(), gold[name], rtol=1e-5, atol=1e-5)


def test_cuda_goes_to_triton_and_to_the_reference_where_it_cannot() -> None:
    for name in ("dropout_add_layer_norm_fwd", "dropout_add_layer_norm_bwd"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"electra_fast::{name}", "CUDA")
        assert backends[name]["cuda"].startswith("Triton")
    with FakeTensorMode():
        for dtype, width, expected in ((torch.bfloat16, 256, 2), (torch.float32, 4097, 0), (torch.float64, 256, 0)):
            x, weight = (torch.empty(n, dtype=dtype, device="cuda") for n in ((9, width), width))
            rows, seed = (torch.empty(n, dtype=torch.int64, device="cuda") for n in (9, 1))
            arguments = (x, x, weight, weight, rows, seed, 1e-12, 0.1)
            out, saved = torch.ops.electra_fast.dropout_add_layer_norm_fwd(*arguments)
            assert out.shape == x.shape and len(saved) == expected
