"""LayerNorm of rows that are on chip, and its backward: parts of several kernels.

A block of the encoder ends with LayerNorm(z), z = x + dropout(y). It saves z, in its dtype, not y: the norm's backward
then needs neither y nor x. The block's output is LayerNorm(z), which can be computed from z, the saved mean and
1 / deviation, so an encoder need not save the rows between its blocks. Instead, the backward of each block computes its
input x again (recompute_rows) from the norm before it, in the launch that takes the gradient through the block's own
norm. Reading that norm's z costs no more than reading a saved x. x is written, since the weights' gradients need it:
T D elements a block more, 2 us at ELECTRA-Small's 128 x 128 and 4.3 TB/s.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .groups import Matrix
from .philox import dropout_keep


class Norm(NamedTuple):
    """A LayerNorm's parameters and the statistics of its rows."""

    weight: Any  # (D,)
    bias: Any  # (D,); None in a backward, which does not need it
    mean: Any  # (T,) float32
    rstd: Any  # (T,) float32, 1 / deviation


class Normed(NamedTuple):
    """What a LayerNorm saves and its parameters: its output, which is not saved, follows from these."""

    z: Any  # (T, D), contiguous: what was normalised
    mean: Any  # (T,) float32
    rstd: Any  # (T,) float32, 1 / deviation
    weight: Any  # (D,)
    bias: Any  # (D,); None in a backward, which does not need it


class NormGradients(NamedTuple):
    """Where the backward of LayerNorm(x + dropout(y)) puts its results, contiguous."""

    dy: Any  # (T, D)
    dx: Any  # (T, D)
    parts: Any  # (P, 2, D) float32: each program's sums for the gradients of weight and bias


def rows_and_source(x: Tensor | Normed) -> tuple[Tensor, tuple | None]:
    """Returns (x, source). If x was not saved, x is an empty buffer that the kernel fills again from `source`, the
    fields of a Normed; else source is None."""
    if isinstance(x, Tensor):
        return x, None
    return torch.empty_like(x.z), (*x[:3], x.weight.contiguous(), x.bias.contiguous())


@triton.jit
def load_rows(matrix, rows, inside):
    """Rows of a Matrix as float32, and 0 where `inside` is false. rows (M, 1) int64, inside (M, D)."""
    columns = tl.arange(0, inside.shape[1])
    return tl.load(matrix.ptr + rows * matrix.row + columns[None, :], mask=inside, other=0.0).to(tl.float32)


@triton.jit
def _centre(z, mean, inside, WIDTH: tl.constexpr):
    """z - mean, minus the mean of that difference, which is the rounding error of `mean`."""
    centred = tl.where(inside, z - mean, 0.0)
    left = tl.div_rn(tl.sum(centred, 1), WIDTH + 0.0)[:, None]
    return tl.where(inside, centred - left, 0.0)


@triton.jit
def normalise(z, inside, eps, WIDTH: tl.constexpr):
    """Returns (mean (M, 1), 1 / deviation (M, 1), normalised rows (M, D)) of z (M, D), which is 0 outside."""
    mean = tl.div_rn(tl.sum(z, 1), WIDTH + 0.0)[:, None]
    centred = _centre(z, mean, inside, WIDTH)
    variance = tl.div_rn(tl.sum(centred * centred, 1), WIDTH + 0.0)[:, None]
    rstd = tl.div_rn(1.0, tl.sqrt_rn(variance + eps))
    return mean, rstd, centred * rstd


@triton.jit
def normalise_bwd(z, mean, rstd, dout, weight, inside, WIDTH: tl.constexpr):
    """Returns (gradient of z, normalised rows). mean, rstd (M, 1): from `normalise`."""
    dxhat = dout * weight[None, :]
    centred = tl.where(inside, z - mean, 0.0)
    left = tl.sum(centred, 1)[:, None] / WIDTH
    along = tl.sum(dxhat, 1)[:, None] / WIDTH
    across = (tl.sum(dxhat * centred, 1)[:, None] / WIDTH - left * along) * rstd
    xhat = (centred - left) * rstd
    return (dxhat - along - xhat * across) * rstd, xhat


@triton.jit
def add_and_normalise(
    x,
    z_ptr,
    out_ptr,
    norm,
    dropout,
    eps,
    start,
    end,
    WIDTH: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """out = LayerNorm(z), z = x + dropout(y), for rows start to end, BLOCK_R at a time. The program has written y to
    z_ptr, where z replaces it. z is normalised after it is rounded to its dtype, so that the backward, which reads the
    rounded z, computes the same rows."""
    tl.debug_barrier()  # other threads of the program wrote y
    columns = tl.arange(0, WIDTH)
    weight = tl.load(norm.weight + columns).to(tl.float32)
    bias = tl.load(norm.bias + columns).to(tl.float32)
    for first in range(start, end, BLOCK_R):
        offs_r = first + tl.arange(0, BLOCK_R)
        inside = (offs_r[:, None] < end) & (columns[None, :] < WIDTH)
        y = load_rows(Matrix(z_ptr, WIDTH), offs_r[:, None], inside)
        if dropout is not None:
            ids = tl.load(dropout.row_ids + offs_r, mask=offs_r < end, other=0)
            keep = dropout_keep(tl.load(dropout.seed), ids, 0, 0, dropout.threshold, BLOCK_R, WIDTH)
            y = tl.where(keep, y * dropout.scale, 0.0)
        z = (y + load_rows(x, offs_r[:, None], inside)).to(z_ptr.dtype.element_ty)
        tl.store(z_ptr + offs_r[:, None] * WIDTH + columns[None, :], z, mask=inside)
        mean, rstd, xhat = normalise(z.to(tl.float32), inside, eps, WIDTH)
        out = (xhat * weight[None, :] + bias[None, :]).to(out_ptr.dtype.element_ty)
        tl.store(out_ptr + offs_r[:, None] * WIDTH + columns[None, :], out, mask=inside)
        tl.store(norm.mean + offs_r[:, None], mean, mask=offs_r[:, None] < end)
        tl.store(norm.rstd + offs_r[:, None], rstd, mask=offs_r[:, None] < end)


@triton.jit
def normalise_rows_bwd(
    dout,
    y,
    x,
    norm,
    dropout,
    gradients,
    start,
    end,
    step,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """dy and dx of out = LayerNorm(x + dropout(y)) for blocks of BLOCK_M rows, which begin `step` rows apart, from
    start to end; and the program's sums for the gradients of the norm's weight and bias. If x is None, y is the sum
    x + dropout(y)."""
    program = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK_D)
    weight = tl.load(norm.weight + columns, mask=columns < WIDTH, other=0.0).to(tl.float32)
    dweight = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    dbias = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for first in range(start, end, step):
        offs_m = first + tl.arange(0, BLOCK_M)
        inside = (offs_m[:, None] < end) & (columns[None, :] < WIDTH)
        dout_rows = load_rows(dout, offs_m[:, None], inside)
        z = load_rows(y, offs_m[:, None], inside)
        mean = tl.load(norm.mean + offs_m[:, None], mask=offs_m[:, None] < end, other=0.0)
        rstd = tl.load(norm.rstd + offs_m[:, None], mask=offs_m[:, None] < end, other=0.0)
        if dropout is not None:
            ids = tl.load(dropout.row_ids + offs_m, mask=offs_m < end, other=0)
            keep = dropout_keep(tl.load(dropout.seed), ids, 0, 0, dropout.threshold, BLOCK_M, BLOCK_D)
            if x is not None:
                z = tl.where(keep, z * dropout.scale, 0.0)
        if x is not None:
            z += load_rows(x, offs_m[:, None], inside)
        dz, xhat = normalise_bwd(z, mean, rstd, dout_rows, weight, inside, WIDTH)
        dweight += dout_rows * xhat
        dbias += dout_rows
        places = offs_m[:, None] * WIDTH + columns[None, :]
        tl.store(gradients.dx + places, dz.to(gradients.dx.dtype.element_ty), mask=inside)
        if dropout is not None:
            dz = tl.where(keep, dz * dropout.scale, 0.0)
        tl.store(gradients.dy + places, dz.to(gradients.dy.dtype.element_ty), mask=inside)
    ptrs = gradients.parts + program * 2 * WIDTH + columns
    tl.store(ptrs, tl.sum(dweight, 0), mask=columns < WIDTH)
    tl.store(ptrs + WIDTH, tl.sum(dbias, 0), mask=columns < WIDTH)


@triton.jit
def recompute_rows(
    source,
    out_ptr,
    start,
    end,
    step,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """The output of the LayerNorm `source`, a Normed, with the bits of its forward, for blocks of BLOCK_M rows, which
    begin `step` rows apart, from start to end."""
    columns = tl.arange(0, BLOCK_D)
    weight = tl.load(source.weight + columns, mask=columns < WIDTH, other=0.0).to(tl.float32)
    bias = tl.load(source.bias + columns, mask=columns < WIDTH, other=0.0).to(tl.float32)
    for first in range(start, end, step):
        offs_m = first + tl.arange(0, BLOCK_M)
        inside = (offs_m[:, None] < end) & (columns[None, :] < WIDTH)
        z = load_rows(Matrix(source.z, WIDTH), offs_m[:, None], inside)
        mean = tl.load(source.mean + offs_m[:, None], mask=offs_m[:, None] < end, other=0.0)
        rstd = tl.load(source.rstd + offs_m[:, None], mask=offs_m[:, None] < end, other=0.0)
        out = _centre(z, mean, inside, WIDTH) * rstd * weight[None, :] + bias[None, :]
        tl.store(out_ptr + offs_m[:, None] * WIDTH + columns[None, :], out.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def add_and_normalise_bwd(
    dout,
    norm,
    x_ptr,
    dropout,
    source,
    gradients,
    start,
    end,
    WIDTH: tl.constexpr,
    BLOCK_R: tl.constexpr,
):
    """dy and dx of out = LayerNorm(z), z = x + dropout(y), for rows start to end; ends with a barrier, so that every
    thread of the program may read them. `norm` and `source` are each a Normed. If `source` is not None, x is its
    output, which is computed again and stored."""
    if source is not None:
        recompute_rows(source, x_ptr, start, end, BLOCK_R, WIDTH, BLOCK_R, WIDTH)
    normalise_rows_bwd(
        dout, Matrix(norm.z, WIDTH), None, norm, dropout, gradients, start, end, BLOCK_R, WIDTH, BLOCK_R, WIDTH
    )
    tl.debug_barrier()
