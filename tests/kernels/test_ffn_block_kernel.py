"""ffn_block's Triton kernels, interpreted: in one launch and in pieces, by the rule; the bytes dropped are the op's."""

import math
import sys
from collections.abc import Callable

import numerics
import pytest
import test_ffn_block
import torch
from interpreted import FEW_LAYOUTS, in_two_dtypes, one_layout, repeats, through_triton
from numerics import check, dropout_factors
from torch._subclasses.fake_tensor import FakeTensorMode

from electra_fast.kernels import ffn_block as kernels
from electra_fast.ops import ffn_block
from electra_fast.ops._library import backends

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU test_ffn_block.py runs the kernels")


@pytest.fixture(autouse=True)
def on_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """The public op calls the launchers; one upstream gradient, not contiguous, and one layout of the inputs do. The
    width of 64 is one launch in float32 as well."""
    module = sys.modules["electra_fast.ops.ffn_block"]
    monkeypatch.setattr(module, "_ffn_block", through_triton(module._ffn_block))
    monkeypatch.setattr(numerics, "UPSTREAMS", {"strided": numerics.UPSTREAMS["strided"]})
    monkeypatch.setattr(numerics, "LAYOUTS", ["contiguous"])
    for table in (kernels.FWD, kernels.BWD):
        monkeypatch.setitem(table, (4, 64), table[2, 64])


@pytest.fixture
def pieces(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The launchers of other ops that the forward called."""
    names: list[str] = []

    def recorded(name: str) -> Callable:
        piece = getattr(kernels, name)
        return lambda *args, **options: (names.append(name), piece(*args, **options))[1]

    for name in ("product", "normalised_sum"):
        monkeypatch.setattr(kernels, name, recorded(name))
    return names


@pytest.mark.parametrize(
    "rows, p, dtype",
    in_two_dtypes(
        (0, 0.1), (1, 0.1), (129, 0.1), half=(129, 0.0), slow=[(129, 0.0), *((rows, 0.1) for rows in (63, 127, 128))]
    ),
    ids=str,
)
def test_rows_in_one_launch(rows: int, p: float, dtype: torch.dtype, pieces: list[str]) -> None:
    check(ffn_block, test_ffn_block.truth, test_ffn_block.example(rows, 64, 128, p), dtype)
    assert not pieces


@pytest.mark.parametrize(
    "width, inner, dtype",
    in_two_dtypes((3, 1), (17, 33), (64, 100), half=(17, 33), slow=[(80, 64), (192, 80)]),
    ids=str,
)
def test_widths_in_pieces(width: int, inner: int, dtype: torch.dtype, pieces: list[str]) -> None:
    check(ffn_block, test_ffn_block.truth, test_ffn_block.example(20, width, inner), dtype)
    assert pieces[:3] == ["product", "product", "normalised_sum"]


@pytest.mark.parametrize("width, inner", [(128, 128), *repeats((256, 64))])
def test_widths_in_one_launch(width: int, inner: int, pieces: list[str]) -> None:
    check(ffn_block, test_ffn_block.truth, test_ffn_block.example(140, width, inner), torch.float16)
    assert not pieces


@pytest.mark.parametrize("layout", FEW_LAYOUTS)
@pytest.mark.parametrize("width", [9, 64])
def test_layouts(width: int, layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one_layout(layout, monkeypatch)
    check(ffn_block, test_ffn_block.truth, test_ffn_block.example(70, width, 64))


@pytest.mark.parametrize("block", [64, *repeats(16)])
@pytest.mark.parametrize("seed", [-7, 2**62 + 5])
def test_drops_the_very_bytes(seed: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(kernels.FWD, (4, 64), kernels.FWD[4, 64] | dict(BLOCK_R=block))
    given = test_ffn_block.example(100, 64, 64, p=0.3, seed=seed)
    given["x"].zero_()
    given["down_weight"].zero_()
    given["down_bias"].fill_(1.0).requires_grad_()
    given["norm_weight"].fill_(1.0)
    given["norm_bias"].zero_()
    out = ffn_block(**given)
    kept = dropout_factors(seed, given["row_ids"], 64, 0.3) != 0
    assert torch.equal(out > 0, kept)


def test_nan_stays_in_its_row_and_a_row_alone_is_itself_among_others() -> None:
    given = test_ffn_block.example(140, 64, 128)
    clean = ffn_block(**given)
    for row in (0, 63, 64, 139):
        alone = {name: given[name][row : row + 1] for name in ("x", "row_ids")}
        assert torch.equal(ffn_block(**given | alone)[0], clean[row])
    given["x"][[2, 139]] = math.nan
    found = ffn_block(**given)
    rest = [row for row in range(140) if row not in (2, 139)]
    assert found[[2, 139]].isnan().all() and torch.equal(found[rest], clean[rest])


def test_at_its_edges() -> None:
    test_ffn_block.test_no_rows()
    test_ffn_block.test_probability_one_leaves_the_residual()


def test_cuda_goes_to_triton_and_to_the_reference_where_it_cannot() -> None:
    for name in ("ffn_block_fwd", "ffn_block_bwd"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"electra_fast::{name}", "CUDA")
        assert backends[name]["cuda"] == "Triton for rows up to 4096 wide, else the reference"
    with FakeTensorMode():
        kinds = (torch.bfloat16, 64, 3), (torch.bfloat16, 80, 5), (torch.bfloat16, 5000, 0), (torch.float64, 64, 0)
        for dtype, width, expected in kinds:
            shapes = (9, width), (64, width), (64,), (width, 64), (width,), (width,), (width,)
            floats = [torch.empty(shape, dtype=dtype, device="cuda") for shape in shapes]
            ids, seed = (torch.empty(n, dtype=torch.int64, device="cuda") for n in (9, 1))
            out, saved = torch.ops.electra_fast.ffn_block_fwd(*floats, ids, seed, 1e-12, 0.1)
            assert out.shape == (9, width) and len(saved) == expected
