"""attention_block's Triton launchers, interpreted: by the rule, where all rows ask and where some do."""

import math
import sys

import numerics
import pytest
import test_attention_block
import torch
from interpreted import FEW_LAYOUTS, one_layout, repeats, through_triton
from numerics import check, dropout_factors, offsets
from torch._subclasses.fake_tensor import FakeTensorMode

from electra_fast.kernels import attention, attention_block_bwd, linear, linear_weight
from electra_fast.kernels import attention_block as kernels
from electra_fast.ops import attention_block
from electra_fast.ops._library import backends

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU test_attention_block.py runs the kernels")
example, truth = test_attention_block.example, test_attention_block.truth


@pytest.fixture(autouse=True)
def on_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """The public op calls the launchers; one upstream gradient, not contiguous, and one layout of the inputs do."""
    module = sys.modules["electra_fast.ops.attention_block"]
    monkeypatch.setattr(module, "_attention_block", through_triton(module._attention_block))
    monkeypatch.setattr(numerics, "UPSTREAMS", {"strided": numerics.UPSTREAMS["strided"]})
    monkeypatch.setattr(numerics, "LAYOUTS", ["contiguous"])
    large = dict(BLOCK_M=64, BLOCK_N=64, num_warps=4, num_stages=1)  # the interpreter pays by the block
    for table in (attention.FWD, attention.BWD):
        for key in [key for key in table if key[0] == 4]:
            monkeypatch.setitem(table, key, large)
    for table in (linear.FWD, linear.BWD_INPUT, linear_weight.BWD_WEIGHT):
        monkeypatch.setitem(table, (4, 1), large | dict(BLOCK_K=64))


@pytest.fixture
def one_launch(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A width of 64 is one launch in float32 as well; the longest sequence of each such launch."""
    longest: list[int] = []
    fits = kernels.in_one_launch

    def noted(x: torch.Tensor, max_seqlen: int, num_heads: int) -> bool:
        return fits(x, max_seqlen, num_heads) and not longest.append(max_seqlen)

    monkeypatch.setattr(kernels, "in_one_launch", noted)
    monkeypatch.setitem(kernels.FWD, (4, 64), kernels.FWD[2, 64])
    monkeypatch.setitem(attention_block_bwd.BWD, (4, 64), attention_block_bwd.BWD[2, 64])
    return longest


@pytest.mark.parametrize(
    "lengths, dtype",
    [(lengths, torch.float32) for lengths in [(63, 0), (128,), (0, 0), ()]]
    + [((128,), torch.float16), ((129, 2), torch.float16)]
    + repeats(*((lengths, torch.float32) for lengths in [(1,), (127, 1), (129, 2)])),
    ids=str,
)
def test_lengths_in_one_launch(lengths: tuple, dtype: torch.dtype, one_launch: list[int]) -> None:
    check(attention_block, truth, example(lengths, width=64, heads=1), dtype)
    assert (len(one_launch) == 2) == (max(lengths, default=0) <= 128)


@pytest.mark.parametrize("width", [128, *repeats(256)])
def test_widths_in_one_launch(width: int, one_launch: list[int]) -> None:
    check(attention_block, truth, example((20, 3), width, width // 64), torch.float16)
    assert len(one_launch) == 2


@pytest.mark.slow
def test_lengths_in_pieces() -> None:
    check(attention_block, truth, example((1, 63, 0, 128), width=64, heads=1))


@pytest.mark.parametrize("dtype", [torch.float32, *repeats(torch.float16)], ids=str)
@pytest.mark.parametrize("asking", [(5, 0, 3), (0, 0, 0)], ids=str)
def test_only_some_rows_ask(asking: tuple, dtype: torch.dtype) -> None:
    check(attention_block, truth, example(asking=asking, width=64), dtype)


@pytest.mark.parametrize("asking", [None, (2, 4)], ids=str)
@pytest.mark.parametrize("width, heads", [(17, 1), (24, 3), *repeats((6, 2), (128, 2))])
def test_heads_and_their_width(width: int, heads: int, asking: tuple | None) -> None:
    check(attention_block, truth, example((5, 9), width, heads, asking))


@pytest.mark.parametrize("asking", [None, (2, 4)], ids=str)
@pytest.mark.parametrize("layout", [*FEW_LAYOUTS, "no dropout"])
def test_layouts(layout: str, asking: tuple | None, monkeypatch: pytest.MonkeyPatch) -> None:
    one_layout(layout, monkeypatch)
    p = 0.0 if layout == "no dropout" else 0.1
    check(attention_block, truth, example((5, 9), heads=1, asking=asking, attention_p=p, p=p))


def test_rows_asked_for_twice_and_out_of_order() -> None:
    given = example(asking=(3, 1, 3))
    given["rows"] = torch.tensor([4, 4, 0, 5, 14, 6, 6])
    check(attention_block, truth, given)


@pytest.mark.parametrize("asking", [None, (30, 40)], ids=str)
@pytest.mark.parametrize("seed", [-7, 2**62 + 5])
def test_drops_the_very_bytes(seed: int, asking: tuple | None) -> None:
    given = example((40, 60), width=64, heads=1, asking=asking, attention_p=1.0, p=0.3, seed=seed)
    ids = given["row_ids"] if asking is None else given["row_ids"][given["rows"]]
    for name, value in dict(x=0.0, out_bias=1.0, norm_weight=1.0, norm_bias=0.0).items():
        given[name].fill_(value)
    assert torch.equal(attention_block(**given) > 0, dropout_factors(seed, ids, 64, 0.3) != 0)


def test_one_launch_drops_the_very_bytes_and_keeps_a_sequence_to_itself(one_launch: list[int]) -> None:
    for seed in (-7, 2**62 + 5):
        test_drops_the_very_bytes(seed, None)
    given = example((5, 20, 9), width=64, heads=1)
    whole = attention_block(**given)
    alone = {"x": given["x"][5:25], "row_ids": given["row_ids"][5:25], "cu_seqlens": offsets(20)}
    assert torch.equal(attention_block(**given | alone), whole[5:25])
    given["x"][5:25] = math.nan
    found = attention_block(**given)
    assert found[5:25].isnan().all() and torch.equal(found[25:], whole[25:]) and torch.equal(found[:5], whole[:5])
    assert len(one_launch) == 5


@pytest.mark.parametrize("nan", [slice(6, 15), *repeats(slice(0, 6), slice(15, 19))], ids=str)
def test_nan_in_one_sequence_does_not_reach_another(nan: slice) -> None:
    test_attention_block.test_nan_in_one_sequence_does_not_reach_another(None, nan)


def test_a_sequence_alone_is_itself_among_others_to_the_bit() -> None:
    given = example((5, 20, 9))
    alone = {"x": given["x"][5:25], "row_ids": given["row_ids"][5:25], "cu_seqlens": offsets(20)}
    assert torch.equal(attention_block(**given | alone), attention_block(**given)[5:25])


def test_at_its_edges() -> None:
    test_attention_block.test_probability_one_leaves_the_residual()
    test_attention_block.test_rows_give_the_same_rows_of_the_whole()


def test_cuda_goes_to_triton_and_to_the_reference_where_it_cannot() -> None:
    for name in ("attention_block_fwd", "attention_block_bwd"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"electra_fast::{name}", "CUDA")
        assert backends[name]["cuda"].startswith("Triton for rows up to 4096 wide and heads up to 128, else")
    with FakeTensorMode():
        kinds = (torch.bfloat16, 64, False, 9, 5), (torch.bfloat16, 64, True, 9, 6), (torch.bfloat16, 300, False, 9, 0)
        longer = (torch.bfloat16, 64, False, 129, 6), (torch.bfloat16, 64, True, 129, 7)  # what was read is kept
        for dtype, width, some, longest, expected in (*kinds, *longer, (torch.float64, 64, False, 9, 0)):
            shapes = (9, width), (3 * width, width), (3 * width,), (width, width), (width,), (width,), (width,)
            floats = [torch.empty(shape, dtype=dtype, device="cuda") for shape in shapes]
            cu, seed = (torch.empty(n, dtype=torch.int64, device="cuda") for n in (3, 1))
            ids, rows = (torch.empty(n, dtype=torch.int64, device="cuda") for n in (9, 4))
            asking = (rows, cu, 3) if some else (None, None, 0)
            out, saved = torch.ops.electra_fast.attention_block_fwd(
                *floats, cu, longest, ids, 2, *asking, seed, 1 / math.e, 0.1, 0.1
            )
            assert out.shape == (4 if some else 9, width) and len(saved) == expected
