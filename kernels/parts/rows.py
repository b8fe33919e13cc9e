"""Loading and storing rows of a matrix, without a mask for the columns if their number is a power of two."""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def rows_of(matrix, offs, count, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr):
    """Rows `offs` of a Matrix (count, WIDTH), as (M, BLOCK_D); 0 beyond its rows and columns."""
    columns = tl.arange(0, BLOCK_D)
    ptrs = matrix.ptr + offs.to(tl.int64)[:, None] * matrix.row + columns[None, :]
    if WIDTH == BLOCK_D:
        return tl.load(ptrs, mask=offs[:, None] < count, other=0.0)
    return tl.load(ptrs, mask=(offs[:, None] < count) & (columns[None, :] < WIDTH), other=0.0)


@triton.jit
def put_rows(matrix, offs, count, value, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr):
    """Stores value (M, BLOCK_D) in rows `offs` of a Matrix (count, WIDTH)."""
    columns = tl.arange(0, BLOCK_D)
    ptrs = matrix.ptr + offs.to(tl.int64)[:, None] * matrix.row + columns[None, :]
    inside = offs[:, None] < count
    if WIDTH != BLOCK_D:
        inside = inside & (columns[None, :] < WIDTH)
    tl.store(ptrs, value.to(matrix.ptr.dtype.element_ty), mask=inside)
