"""decode_attention's Triton kernel, interpreted, by the tests of the op."""

import sys

import pytest
import test_decode_attention
import torch
from interpreted import of_values, repeats

from electra_fast.kernels import decode_attention as kernels

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU test_decode_attention.py runs the kernel")


@pytest.fixture(autouse=True)
def on_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules["electra_fast.ops.decode_attention"]
    launch = of_values(kernels.decode_attention, module.DecodeAttentionArguments)
    monkeypatch.setattr(module, "_decode_attention", launch)
    monkeypatch.setattr(test_decode_attention, "LAYOUTS", ["contiguous", "transposed"])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(
    "lengths, page",
    [((5, 33, 0, 16), 16), ((70, 129), 32), ((), 16), *repeats(((63, 64, 65), 1), ((0, 0), 16))],
    ids=str,
)
def test_values(lengths: tuple, page: int, dtype: torch.dtype) -> None:
    test_decode_attention.judge(test_decode_attention.example(lengths, page=page), dtype)


@pytest.mark.parametrize("heads, width", [(3, 24), (1, 64), *repeats((1, 1), (2, 80))])
def test_heads_and_their_width(heads: int, width: int) -> None:
    test_decode_attention.judge(test_decode_attention.example((5, 70), heads, width))


def test_the_edges() -> None:
    test_decode_attention.test_another_scale()
    test_decode_attention.test_nan_beyond_a_sequence_is_not_read()
    test_decode_attention.test_large_scores_are_finite()
    test_decode_attention.test_beams_that_share_pages_give_what_they_give_with_copies()
