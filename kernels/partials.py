"""Sums over rows, the second half: what each program summed over its own rows is summed here, in order.

sum_partials_kernel: a program takes a few columns of all partial sums, (P, N) float32. Nothing depends on which program
came first, so two runs give the same bits. Cost: P N flops and 4 P N bytes, mostly from the cache; one launch.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

SUM = dict(BLOCK_P=128, BLOCK_N=16, num_warps=4)


@triton.jit
def sum_partials_kernel(
    parts_ptr, first_ptr, second_ptr, count, row, width, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr
):
    columns = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    which = tl.program_id(1)
    ptrs = parts_ptr + which.to(tl.int64) * width + columns[None, :]
    acc = tl.zeros((BLOCK_P, BLOCK_N), tl.float32)
    for start in range(0, count, BLOCK_P):
        rows = (start + tl.arange(0, BLOCK_P)).to(tl.int64)
        there = (rows[:, None] < count) & (columns[None, :] < width)
        acc += tl.load(ptrs + rows[:, None] * row, mask=there, other=0.0)
    total = tl.sum(acc, 0).to(first_ptr.dtype.element_ty)
    if which == 0:
        tl.store(first_ptr + columns, total, mask=columns < width)
    else:
        tl.store(second_ptr + columns, total, mask=columns < width)


def sum_partials(parts: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """parts (P, K, ...) float32, K 1 or 2 -> K sums over P, (...) each, in dtype."""
    sums = [parts.new_empty(parts.shape[2:], dtype=dtype) for _ in range(parts.shape[1])]
    width = sums[0].numel()
    grid = (triton.cdiv(width, SUM["BLOCK_N"]), len(sums))
    sum_partials_kernel[grid](
        parts, sums[0], sums[-1], parts.shape[0], parts.stride(0), width, enable_fp_fusion=True, **SUM
    )
    return sums
