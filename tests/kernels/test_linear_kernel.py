"""linear's Triton kernels, interpreted: by the rule, for every class of tile, whatever the layout and the shares."""

import math
import sys

import numerics
import pytest
import test_linear
import torch
from interpreted import FEW_LAYOUTS, in_two_dtypes, one_layout, repeats, through_triton
from numerics import check
from torch._subclasses.fake_tensor import FakeTensorMode

from electra_fast.kernels import linear as kernels
from electra_fast.kernels import linear_weight
from electra_fast.ops import linear
from electra_fast.ops._library import backends

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU test_linear.py runs the kernels")


@pytest.fixture(autouse=True)
def on_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """The public op calls the launchers; one upstream gradient, not contiguous, and one layout of the inputs do."""
    module = sys.modules["electra_fast.ops.linear"]
    monkeypatch.setattr(module, "_linear", through_triton(module._linear))
    monkeypatch.setattr(numerics, "UPSTREAMS", {"strided": numerics.UPSTREAMS["strided"]})
    monkeypatch.setattr(numerics, "LAYOUTS", ["contiguous"])


@pytest.mark.parametrize("dtype", [torch.float32, *repeats(torch.float16)], ids=str)
@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("rows", [0, 1, 129, *repeats(63, 127, 128)])
def test_rows(rows: int, gelu: bool, dtype: torch.dtype) -> None:
    check(linear, test_linear.truth, test_linear.example(rows, 64, 64, gelu), dtype)


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize(
    "inner, outer, dtype",
    in_two_dtypes(
        (1, 1),
        (17, 80),
        (64, 192),
        half=(128, 256),
        slow=[(80, 33), (128, 256), (300, 64), (512, 256), (256, 3), (64, 200)],
    ),
    ids=str,
)
def test_widths(inner: int, outer: int, gelu: bool, dtype: torch.dtype) -> None:
    check(linear, test_linear.truth, test_linear.example(20, inner, outer, gelu), dtype)


@pytest.mark.parametrize("layout", FEW_LAYOUTS)
@pytest.mark.parametrize("width", [9, 64])
def test_layouts(width: int, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one_layout(layout, monkeypatch)
    check(linear, test_linear.truth, test_linear.example(70, width, width))


@pytest.mark.parametrize("programs", [2, 132, *repeats(1, 5)])
@pytest.mark.parametrize("rows", [1, 100, *repeats(16, 33)])
def test_shares_of_the_rows(rows: int, programs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear_weight, "PROGRAMS", programs)
    check(linear, test_linear.truth, test_linear.example(rows, 64, 20))


def test_another_gradient_is_added() -> None:
    for width in (8, 64):
        dout, weight, other = torch.randn(70, 64), torch.randn(64, width), torch.randn(70, width)
        found = kernels.input_gradient(dout, weight, add=other)
        torch.testing.assert_close(found, dout @ weight + other, rtol=1e-5, atol=1e-4)


def test_it_is_multiplied_by_a_slope() -> None:
    dout, weight, slope = torch.randn(70, 64), torch.randn(64, 8), torch.randn(70, 8)
    found = kernels.input_gradient(dout, weight, times=slope)
    torch.testing.assert_close(found, dout @ weight * slope, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("rows", [(100, 100, 100), (33, 200, 0), (1, 0, 16)], ids=str)
def test_products_and_sums_of_a_block_together(rows: tuple, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of as many rows or not, the last into slices of others; with sums of many rows, few and one."""
    launches = []
    plain = linear_weight._launch
    monkeypatch.setattr(linear_weight, "_launch", lambda jobs: launches.append(len(jobs)) or plain(jobs))
    shapes = [(20, 24), (9, 5), (7, 24)]
    given = [(torch.randn(n, outer), torch.randn(n, inner)) for n, (outer, inner) in zip(rows, shapes, strict=True)]
    weight, bias = torch.full((27, 24), math.nan), torch.full((27,), math.nan)
    products = [linear_weight.Product(*pair) for pair in given[:2]]
    products.append(linear_weight.Product(*given[2], into=(weight[20:], bias[20:])))
    also = [(torch.randn(n, 30), torch.empty(20), torch.empty(10)) for n in (300, 5, 1)]
    found = linear_weight.weight_gradients(*products, also=also)
    assert sum(launches) == sum(n > 0 for n in rows) and len(launches) == (sum(launches) + 1) // 2
    for dweight, dbias, (dout, x) in zip(found[::2], found[1::2], given, strict=True):
        torch.testing.assert_close(dweight, dout.T @ x, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(dbias, dout.sum(0), rtol=1e-4, atol=1e-4)
    assert torch.equal(weight[20:], found[4]) and weight[:20].isnan().all()
    for parts, first, second in also:
        torch.testing.assert_close(torch.cat([first, second]), parts.sum(0), rtol=1e-4, atol=1e-4)


def test_shares_fill_the_waves_and_no_more() -> None:
    """ELECTRA-Small's attention: 8 tiles in 16 shares, one wave; Base's FFN: 144 tiles, near 12 waves, not 2."""
    assert linear_weight.share(((2, 256), (6, 256)), 132, 2 * 64 * 128 * 256, 2**18) == 16
    blocks = linear_weight.share(((72, 2048), (72, 2048)), 132, 2 * 64 * 128 * 256, 2 * 768 * 3072)
    waves = -(-144 * -(-2048 // blocks) // 132)
    assert waves * blocks < 1.11 * 144 * 2048 / 132


def test_gelu_at_its_ends() -> None:
    test_linear.test_gelu_at_its_ends()


@pytest.mark.parametrize("gelu", [False, True])
@pytest.mark.parametrize("width", [12, 64])
def test_nan_stays_in_its_row(width: int, gelu: bool) -> None:
    given = test_linear.example(70, width, width, gelu)
    rest = [row for row in range(70) if row not in (2, 69)]  # what is read beyond the last row is that row again
    upstream = torch.randn(70, width)

    def clean_rows() -> list[torch.Tensor]:
        x = given["x"].clone().requires_grad_()
        out = linear(**given | dict(x=x))
        return [t[rest] for t in (out, *torch.autograd.grad(out, x, upstream))]

    clean = clean_rows()
    given["x"][[2, 69]], upstream[[2, 69]] = math.nan, math.nan
    assert linear(**given)[[2, 69]].isnan().all()
    for before, after in zip(clean, clean_rows(), strict=True):
        assert torch.equal(before, after)


@pytest.mark.parametrize("width", [12, 64])
def test_a_row_alone_is_itself_among_others_to_the_bit(width: int) -> None:
    given = test_linear.example(140, width, width)
    whole = linear(**given)
    for row in (0, 63, 64, 139):
        assert torch.equal(linear(**given | dict(x=given["x"][row : row + 1]))[0], whole[row])


def test_rows_more_than_two_to_the_31_elements_apart() -> None:
    test_linear.test_rows_more_than_two_to_the_31_elements_apart()


def test_cuda_goes_to_triton_and_float64_to_the_reference() -> None:
    for name in ("linear_fwd", "linear_bwd"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"electra_fast::{name}", "CUDA")
        assert backends[name]["cuda"] == "Triton"
    with FakeTensorMode():
        for dtype, gelu, expected in ((torch.bfloat16, True, 1), (torch.bfloat16, False, 0), (torch.float64, True, 0)):
            x, weight, bias = (torch.empty(n, dtype=dtype, device="cuda") for n in ((9, 64), (32, 64), 32))
            out, saved = torch.ops.electra_fast.linear_fwd(x, weight, bias, gelu)
            assert out.shape == (9, 32) and [s.shape for s in saved] == [out.shape] * expected
