"""Rows through LayerNorm, on chip: pieces of the kernels that end with one, and of their backwards.

A block ends with LayerNorm(z), z = x + dropout(y). It keeps z, in its dtype, in place of y: the norm's backward reads
neither y nor x then, and the rows that come out follow from z, mean and 1 / deviation. So an encoder keeps no rows
between its blocks: each block's backward makes what went into it again (rows_again) from the norm before, where it
takes the gradient through its own norm. What that reads of the norm before it need not read of y and x; it writes the
rows, for the weights' gradients: T D elements a block more, 2 us at ELECTRA-Small's 128 x 128 and 4.3 TB/s.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .philox import dropout_keep


class Normed(NamedTuple):
    """Rows that nobody kept: LayerNorm(z) by its statistics, (T,) float32, and its weight and bias."""

    z: Tensor  # contiguous
    mean: Tensor
    rstd: Tensor
    weight: Tensor
    bias: Tensor


def rows_or_room(x: Tensor | Normed) -> tuple[Tensor, Normed, bool]:
    """Rows, what they are to be made from, and whether they are: then they are room as yet."""
    if isinstance(x, Tensor):
        return x, Normed(x, x, x, x, x), False
    return torch.empty_like(x.z), x._replace(weight=x.weight.contiguous(), bias=x.bias.contiguous()), True


@triton.jit
def load_rows(ptr, stride, rows, there):
    """Rows of ptr as float32, 0 where not there: rows (M, 1) int64, there (M, D)."""
    columns = tl.arange(0, there.shape[1])
    return tl.load(ptr + rows * stride + columns[None, :], mask=there, other=0.0).to(tl.float32)


@triton.jit
def _centre(z, mean, there, WIDTH: tl.constexpr):
    """z less its mean, and less the mean of what that leaves."""
    centred = tl.where(there, z - mean, 0.0)
    left = tl.div_rn(tl.sum(centred, 1), WIDTH + 0.0)[:, None]
    return tl.where(there, centred - left, 0.0)


@triton.jit
def normalise(z, there, eps, WIDTH: tl.constexpr):
    """Mean (M, 1), 1 / deviation (M, 1) and the normalised rows of z (M, D), which is 0 where not there."""
    mean = tl.div_rn(tl.sum(z, 1), WIDTH + 0.0)[:, None]
    centred = _centre(z, mean, there, WIDTH)
    variance = tl.div_rn(tl.sum(centred * centred, 1), WIDTH + 0.0)[:, None]
    rstd = tl.div_rn(1.0, tl.sqrt_rn(variance + eps))
    return mean, rstd, centred * rstd


@triton.jit
def normalise_bwd(z, mean, rstd, dout, weight, there, WIDTH: tl.constexpr):
    """dz and the normalised rows; mean and rstd (M, 1) are those of `normalise`."""
    dxhat = dout * weight[None, :]
    centred = tl.where(there, z - mean, 0.0)
    left = tl.sum(centred, 1)[:, None] / WIDTH
    along = tl.sum(dxhat, 1)[:, None] / WIDTH
    across = (tl.sum(dxhat * centred, 1)[:, None] / WIDTH - left * along) * rstd
    xhat = (centred - left) * rstd
    return (dxhat - along - xhat * across) * rstd, xhat


@triton.jit
def finish_rows(
    z_ptr,
    x_ptr,
    norm_weight_ptr,
    norm_bias_ptr,
    row_ids_ptr,
    seed_ptr,
    out_ptr,
    mean_ptr,
    rstd_ptr,
    x_row,
    start,
    end,
    eps,
    threshold,
    keep_scale,
    DROPOUT: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """LayerNorm(x + dropout(y)) of rows start to end, that this program wrote: y as its threads see it by now. The sum,
    rounded as it is kept, takes y's place in z."""
    tl.debug_barrier()
    columns = tl.arange(0, WIDTH)
    weight = tl.load(norm_weight_ptr + columns).to(tl.float32)
    bias = tl.load(norm_bias_ptr + columns).to(tl.float32)
    for first in range(start, end, BLOCK_R):
        offs_r = first + tl.arange(0, BLOCK_R)
        there = (offs_r[:, None] < end) & (columns[None, :] < WIDTH)
        y = load_rows(z_ptr, WIDTH, offs_r[:, None], there)
        if DROPOUT:
            ids = tl.load(row_ids_ptr + offs_r, mask=offs_r < end, other=0)
            keep = dropout_keep(tl.load(seed_ptr), ids, 0, 0, threshold, BLOCK_R, WIDTH)
            y = tl.where(keep, y * keep_scale, 0.0)
        z = (y + load_rows(x_ptr, x_row, offs_r[:, None], there)).to(z_ptr.dtype.element_ty)
        tl.store(z_ptr + offs_r[:, None] * WIDTH + columns[None, :], z, mask=there)
        mean, rstd, xhat = normalise(z.to(tl.float32), there, eps, WIDTH)
        out = (xhat * weight[None, :] + bias[None, :]).to(out_ptr.dtype.element_ty)
        tl.store(out_ptr + offs_r[:, None] * WIDTH + columns[None, :], out, mask=there)
        tl.store(mean_ptr + offs_r[:, None], mean, mask=offs_r[:, None] < end)
        tl.store(rstd_ptr + offs_r[:, None], rstd, mask=offs_r[:, None] < end)


@triton.jit
def rows_bwd(
    dout_ptr,
    x_ptr,
    residual_ptr,
    weight_ptr,
    row_ids_ptr,
    seed_ptr,
    mean_ptr,
    rstd_ptr,
    dx_ptr,
    dresidual_ptr,
    parts_ptr,
    dout_row,
    x_row,
    residual_row,
    start,
    end,
    step,
    threshold,
    keep_scale,
    DROPOUT: tl.constexpr,
    SUM: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """dx and dresidual of BLOCK_M rows at a time, every `step` from start to end; their sums for dweight and dbias.
    SUM: x is what was normalised, after the dropout and with the residual."""
    program = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK_D)
    weight = tl.load(weight_ptr + columns, mask=columns < WIDTH, other=0.0).to(tl.float32)
    dweight = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    dbias = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for first in range(start, end, step):
        offs_m = first + tl.arange(0, BLOCK_M)
        there = (offs_m[:, None] < end) & (columns[None, :] < WIDTH)
        dout = load_rows(dout_ptr, dout_row, offs_m[:, None], there)
        z = load_rows(x_ptr, x_row, offs_m[:, None], there)
        mean = tl.load(mean_ptr + offs_m[:, None], mask=offs_m[:, None] < end, other=0.0)
        rstd = tl.load(rstd_ptr + offs_m[:, None], mask=offs_m[:, None] < end, other=0.0)
        if DROPOUT:
            ids = tl.load(row_ids_ptr + offs_m, mask=offs_m < end, other=0)
            keep = dropout_keep(tl.load(seed_ptr), ids, 0, 0, threshold, BLOCK_M, BLOCK_D)
            if not SUM:
                z = tl.where(keep, z * keep_scale, 0.0)
        if not SUM:
            z += load_rows(residual_ptr, residual_row, offs_m[:, None], there)
        dz, xhat = normalise_bwd(z, mean, rstd, dout, weight, there, WIDTH)
        dweight += dout * xhat
        dbias += dout
        ptrs = offs_m[:, None] * WIDTH + columns[None, :]
        tl.store(dresidual_ptr + ptrs, dz.to(dresidual_ptr.dtype.element_ty), mask=there)
        if DROPOUT:
            dz = tl.where(keep, dz * keep_scale, 0.0)
        tl.store(dx_ptr + ptrs, dz.to(dx_ptr.dtype.element_ty), mask=there)
    ptrs = parts_ptr + program * 2 * WIDTH + columns
    tl.store(ptrs, tl.sum(dweight, 0), mask=columns < WIDTH)
    tl.store(ptrs + WIDTH, tl.sum(dbias, 0), mask=columns < WIDTH)


@triton.jit
def rows_again(
    z_ptr,
    mean_ptr,
    rstd_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    start,
    end,
    step,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """LayerNorm(z) of BLOCK_M rows at a time, every `step` from start to end, as the forward made it."""
    columns = tl.arange(0, BLOCK_D)
    weight = tl.load(weight_ptr + columns, mask=columns < WIDTH, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + columns, mask=columns < WIDTH, other=0.0).to(tl.float32)
    for first in range(start, end, step):
        offs_m = first + tl.arange(0, BLOCK_M)
        there = (offs_m[:, None] < end) & (columns[None, :] < WIDTH)
        z = load_rows(z_ptr, WIDTH, offs_m[:, None], there)
        mean = tl.load(mean_ptr + offs_m[:, None], mask=offs_m[:, None] < end, other=0.0)
        rstd = tl.load(rstd_ptr + offs_m[:, None], mask=offs_m[:, None] < end, other=0.0)
        out = _centre(z, mean, there, WIDTH) * rstd * weight[None, :] + bias[None, :]
        tl.store(out_ptr + offs_m[:, None] * WIDTH + columns[None, :], out.to(out_ptr.dtype.element_ty), mask=there)


@triton.jit
def finish_rows_bwd(
    dout_ptr,
    z_ptr,
    x_ptr,
    norm_weight_ptr,
    row_ids_ptr,
    seed_ptr,
    mean_ptr,
    rstd_ptr,
    dy_ptr,
    dx_ptr,
    parts_ptr,
    before_ptr,
    before_mean_ptr,
    before_rstd_ptr,
    before_weight_ptr,
    before_bias_ptr,
    dout_row,
    start,
    end,
    threshold,
    keep_scale,
    DROPOUT: tl.constexpr,
    AGAIN: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """dy, and of dx the residual's part, of rows start to end, for the whole program to read. AGAIN: x is made again
    from the norm before, and put there."""
    if AGAIN:
        rows_again(
            before_ptr,
            before_mean_ptr,
            before_rstd_ptr,
            before_weight_ptr,
            before_bias_ptr,
            x_ptr,
            start,
            end,
            BLOCK_R,
            WIDTH,
            BLOCK_R,
            WIDTH,
        )
    rows_bwd(
        dout_ptr,
        z_ptr,
        z_ptr,  # with the residual in it
        norm_weight_ptr,
        row_ids_ptr,
        seed_ptr,
        mean_ptr,
        rstd_ptr,
        dy_ptr,
        dx_ptr,
        parts_ptr,
        dout_row,
        WIDTH,
        WIDTH,
        start,
        end,
        BLOCK_R,
        threshold,
        keep_scale,
        DROPOUT,
        True,
        WIDTH,
        BLOCK_R,
        WIDTH,
    )
    tl.debug_barrier()
