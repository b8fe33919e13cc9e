"""encoder's Triton launchers, interpreted: its blocks' launches, and the rows between the blocks made again."""

import sys
from typing import Any

import numerics
import pytest
import test_attention_block_kernel
import test_encoder
import torch
from interpreted import FEW_LAYOUTS, one_layout, repeats, through_triton
from numerics import check
from torch._subclasses.fake_tensor import FakeTensorMode

from electra_fast import ops
from electra_fast.kernels import encoder as kernels
from electra_fast.kernels import ffn_block
from electra_fast.ops._library import backends

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU test_encoder.py runs the kernels")
MODULE = sys.modules["electra_fast.ops.encoder"]
example, named, truth = test_encoder.example, test_encoder.named, test_encoder.truth
small_tiles, one_launch = test_attention_block_kernel.on_triton, test_attention_block_kernel.one_launch


@pytest.fixture(autouse=True)
def on_triton(small_tiles: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The public op calls the launchers; of the blocks' tests: one upstream gradient, one layout and small tiles."""
    call = through_triton(MODULE._encoder)
    monkeypatch.setattr(torch.ops.electra_fast, "encoder", lambda *values: call(MODULE.EncoderArguments(*values)))


@pytest.fixture
def whole(one_launch: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """A width of 64 is one launch a block in float32 as well."""
    for table in (ffn_block.FWD, ffn_block.BWD):
        monkeypatch.setitem(table, (4, 64), table[2, 64])


@pytest.mark.parametrize(
    "lengths, dtype", [((31, 0, 2), torch.float32), ((), torch.half), *repeats(((128, 1), torch.float16))]
)
def test_lengths_in_one_launch_a_block(lengths: tuple, dtype: torch.dtype, whole: None) -> None:
    check(named, truth, example(lengths, 64, 1, 64, 2), dtype)


def test_what_more_keys_than_one_block_was_read_is_kept(whole: None) -> None:
    check(named, truth, example((130,), 64, 1, 64, 1), torch.float16)


@pytest.mark.parametrize("dtype", [torch.float32, *repeats(torch.float16)], ids=str)
@pytest.mark.parametrize("width, heads, inner", [(17, 1, 33), *repeats((24, 3, 20))])
def test_widths_in_pieces(width: int, heads: int, inner: int, dtype: torch.dtype) -> None:
    check(named, truth, example((5, 9), width, heads, inner, 2), dtype)


@pytest.mark.slow
def test_a_wider_layer_in_one_launch_a_block() -> None:
    check(named, truth, example((5, 9), 128, 2, 64, 2), torch.float16)


@pytest.mark.parametrize("depth", [2, *repeats(1, 3)])
@pytest.mark.parametrize("asking", [(5, 0, 3), *repeats(((0, 0, 0),))], ids=str)
def test_only_some_rows_ask_in_the_last_layer(asking: tuple, depth: int, whole: None) -> None:
    check(named, truth, example(width=64, heads=1, inner=64, depth=depth, asking=asking), torch.float16)
    check(named, truth, example(width=24, heads=2, depth=depth, asking=asking))


def test_rows_asked_for_twice_add_up() -> None:
    check(named, truth, example(asking=(2, 1, 3)) | dict(rows=torch.tensor([1, 1, 5, 8, 6, 8])))


@pytest.mark.parametrize("width", [64, *repeats(24)])
@pytest.mark.parametrize("layout", [*FEW_LAYOUTS, "no dropout"])
def test_layouts(layout: str, width: int, whole: None, monkeypatch: pytest.MonkeyPatch) -> None:
    one_layout(layout, monkeypatch)
    check(named, truth, example((3, 4), width, 1, 64, 2, p=0.0 if layout == "no dropout" else 0.1))


@pytest.mark.parametrize("asking", [*repeats(None), (3, 2)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, *repeats(torch.float16)], ids=str)
def test_bits_are_those_of_the_blocks(
    dtype: torch.dtype, asking: tuple | None, whole: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is made again is what was; so are the bytes that either dropout drops."""
    module = sys.modules["electra_fast.ops.ffn_block"]  # as attention_block by now
    monkeypatch.setattr(module, "_ffn_block", through_triton(module._ffn_block))
    given = numerics.moved(example((5, 9), 64, 1, 64, 3, asking), dtype, "cpu")
    upstream = [torch.randn(14 if asking is None else 5, 64).to(dtype)]
    ours = numerics.run(named, given, upstream)
    theirs = numerics.run(test_encoder.blocks(ops.attention_block, ops.ffn_block), given, upstream)
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name


def arguments(monkeypatch: pytest.MonkeyPatch, *args: Any, **options: Any) -> list[Any]:
    """What the op itself is given."""
    found: list[Any] = []
    monkeypatch.setattr(torch.ops.electra_fast, "encoder", lambda *given: found.extend(given))
    named(**example(*args, **options))
    return found


@pytest.mark.parametrize("asking", [None, (3, 2)], ids=str)
def test_inference_gives_the_same_and_keeps_nothing(asking: tuple | None, monkeypatch: pytest.MonkeyPatch) -> None:
    given = MODULE.EncoderArguments(*arguments(monkeypatch, (5, 9), depth=2, asking=asking))
    cuda = MODULE._encoder.cuda
    out, saved = cuda.forward(given)
    monkeypatch.setattr(kernels, "encoder_fwd", None)  # which holds what every layer keeps until its end
    plain, nothing = cuda.forward(given, keep=False)
    assert torch.equal(out, plain) and saved and nothing == []


def test_cuda_goes_to_triton_and_to_its_blocks_where_it_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    assert backends["encoder"]["cuda"] == "Triton for rows up to 4096 wide and heads up to 128, else its blocks"
    for name in ("encoder", "encoder_fwd", "encoder_bwd"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"electra_fast::{name}", "CUDA")

    def on_cuda(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            dtype = torch.bfloat16 if value.is_floating_point() else value.dtype
            return torch.empty(value.shape, dtype=dtype, device="cuda")
        return [on_cuda(v) for v in value] if isinstance(value, list) else value

    for lengths, expected in (((5, 9), 2 * 8), ((5, 129), 2 * 9)):
        given = arguments(monkeypatch, lengths, 64, 1, 64, 2)
        with FakeTensorMode():
            out, saved = torch.ops.electra_fast.encoder_fwd(*map(on_cuda, given))
        assert out.shape == (sum(lengths), 64) and len(saved) == expected
