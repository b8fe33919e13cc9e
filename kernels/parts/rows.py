"""Rows of a matrix in and out of a program, with masks only where they are needed."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def rows_of(ptr, stride, offs, count, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr):
    """Rows `offs` of ptr (count, WIDTH), 0 beyond."""
    columns = tl.arange(0, BLOCK_D)
    ptrs = ptr + offs.to(tl.int64)[:, None] * stride + columns[None, :]
    if WIDTH == BLOCK_D:
        return tl.load(ptrs, mask=offs[:, None] < count, other=0.0)
    return tl.load(ptrs, mask=(offs[:, None] < count) & (columns[None, :] < WIDTH), other=0.0)


@triton.jit
def put_rows(ptr, stride, offs, count, value, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr):
    columns = tl.arange(0, BLOCK_D)
    ptrs = ptr + offs.to(tl.int64)[:, None] * stride + columns[None, :]
    there = offs[:, None] < count
    if WIDTH != BLOCK_D:
        there = there & (columns[None, :] < WIDTH)
    tl.store(ptrs, value.to(ptr.dtype.element_ty), mask=there)
