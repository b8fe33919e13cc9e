"""dropout_add_layer_norm on the GPU: one launch forward, two backward, each row read once and kept in registers.

dropout_add_layer_norm_fwd_kernel: a program takes BLOCK_M whole rows and saves mean and 1 / deviation, (T,) float32.
dropout_add_layer_norm_bwd_kernel: a program goes over every P-th block of rows and forms the normalised rows again from
x and residual, which autograd keeps in any case: as many bytes as reading a saved (T, D) that the forward would have
had to write, without its memory and its rounding. It gives dx, dresidual and its rows' sums for dweight and dbias,
(P, 2, D); partials.py adds these in order. No atomics, two runs give the same bits.

The mean is corrected by the mean of what is left, so rows far from zero, constant ones too, lose no digits. Backward
takes the correction again, with a third sum beside the two it needs in any case.

Cost: about 8 T D flops forward, 16 backward, and a Philox call (about 80 integer operations) for 16 elements each way.
Bytes in bf16: 6 T D forward, 10 T D backward, 16 T and 8 P D beside them. ELECTRA-Small, T = 16,384, D = 256: 25 MB and
42 MB, at 4.3 TB/s 5.9 and 9.8 us; the flops and the Philox calls, spread over all cores, are about 1 us: bandwidth is
the roof, and no products, so 790 TFLOP/s do not come in. Launches: eager PyTorch 3 forward (dropout, add, layer norm)
and 3 backward, which move 15 bytes an element each way; here 1 and 2.

Tiles: 2,048 elements to 4 warps are 16 a thread (8 at D = 4,096, where triton 3.6 would spill); a warp has a row of its
own up to D = 512. The forward in bf16 takes 48 to 65 registers, so 7 to 10 programs fit on a multiprocessor and have
56 KB or more under way. The backward keeps two accumulators an element and takes 128: 4 programs and 48 KB, for which
PROGRAMS is 4 for each of 132.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .linear import unit_stride
from .partials import Sum, sum_partials
from .philox import dropout_keep

PROGRAMS = 528  # of the backward at most, for any number of rows: so many partial sums

# padded D -> tile, forward and backward.
TILES = {
    64: dict(BLOCK_M=32, num_warps=4),
    128: dict(BLOCK_M=16, num_warps=4),
    256: dict(BLOCK_M=8, num_warps=4),
    512: dict(BLOCK_M=4, num_warps=4),
    1024: dict(BLOCK_M=2, num_warps=4),
    2048: dict(BLOCK_M=1, num_warps=4),
    4096: dict(BLOCK_M=1, num_warps=16),
}


def tile(width: int) -> dict:
    """The table's entry, and what follows from it."""
    padded = max(64, triton.next_power_of_2(width))
    return TILES[padded] | dict(WIDTH=width, BLOCK_D=padded, enable_fp_fusion=True)


@triton.jit
def load_rows(ptr, stride, rows, there):
    """Rows of ptr as float32, 0 where not there: rows (M, 1) int64, there (M, D)."""
    columns = tl.arange(0, there.shape[1])
    return tl.load(ptr + rows * stride + columns[None, :], mask=there, other=0.0).to(tl.float32)


@triton.jit
def normalise(z, there, eps, WIDTH: tl.constexpr):
    """Mean (M, 1), 1 / deviation (M, 1) and the normalised rows of z (M, D), which is 0 where not there."""
    mean = tl.div_rn(tl.sum(z, 1), WIDTH + 0.0)[:, None]
    centred = tl.where(there, z - mean, 0.0)
    left = tl.div_rn(tl.sum(centred, 1), WIDTH + 0.0)[:, None]
    centred = tl.where(there, centred - left, 0.0)
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
def dropout_add_layer_norm_fwd_kernel(
    x_ptr,
    residual_ptr,
    weight_ptr,
    bias_ptr,
    row_ids_ptr,
    seed_ptr,
    out_ptr,
    mean_ptr,
    rstd_ptr,
    x_row,
    residual_row,
    rows,
    eps,
    threshold,
    keep_scale,
    DROPOUT: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    offs_m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.arange(0, BLOCK_D)
    there = (offs_m[:, None] < rows) & (columns[None, :] < WIDTH)
    x = load_rows(x_ptr, x_row, offs_m[:, None], there)
    residual = load_rows(residual_ptr, residual_row, offs_m[:, None], there)
    weight = tl.load(weight_ptr + columns, mask=columns < WIDTH, other=0.0).to(tl.float32)
    bias = tl.load(bias_ptr + columns, mask=columns < WIDTH, other=0.0).to(tl.float32)
    if DROPOUT:
        ids = tl.load(row_ids_ptr + offs_m, mask=offs_m < rows, other=0)
        keep = dropout_keep(tl.load(seed_ptr), ids, 0, 0, threshold, BLOCK_M, BLOCK_D)
        x = tl.where(keep, x * keep_scale, 0.0)
    mean, rstd, xhat = normalise(residual + x, there, eps, WIDTH)
    out = xhat * weight[None, :] + bias[None, :]
    ptrs = out_ptr + offs_m[:, None] * WIDTH + columns[None, :]
    tl.store(ptrs, out.to(out_ptr.dtype.element_ty), mask=there)
    tl.store(mean_ptr + offs_m[:, None], mean, mask=offs_m[:, None] < rows)
    tl.store(rstd_ptr + offs_m[:, None], rstd, mask=offs_m[:, None] < rows)


def dropout_add_layer_norm_fwd(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    row_ids: Tensor,
    seed: Tensor,
    eps: float,
    dropout_p: float,
) -> tuple[Tensor, list[Tensor]]:
    """-> out (T, D), [mean, rstd (T,) float32]."""
    rows, width = x.shape
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    mean, rstd = (x.new_empty(rows, dtype=torch.float32) for _ in range(2))
    if x.numel():
        x, residual = unit_stride(x, residual)
        chosen, threshold = tile(width), round(256 * dropout_p)
        dropout_add_layer_norm_fwd_kernel[(triton.cdiv(rows, chosen["BLOCK_M"]),)](
            x,
            residual,
            weight.contiguous(),
            bias.contiguous(),
            row_ids.contiguous(),
            seed,
            out,
            mean,
            rstd,
            x.stride(0),
            residual.stride(0),
            rows,
            eps,
            threshold,
            256 / max(1, 256 - threshold),
            DROPOUT=threshold > 0,
            **chosen,
        )
    return out, [mean, rstd]


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
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """dx and dresidual of BLOCK_M rows at a time, every `step` from start to end; their sums for dweight and dbias."""
    program = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK_D)
    weight = tl.load(weight_ptr + columns, mask=columns < WIDTH, other=0.0).to(tl.float32)
    dweight = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    dbias = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    for first in range(start, end, step):
        offs_m = first + tl.arange(0, BLOCK_M)
        there = (offs_m[:, None] < end) & (columns[None, :] < WIDTH)
        dout = load_rows(dout_ptr, dout_row, offs_m[:, None], there)
        x = load_rows(x_ptr, x_row, offs_m[:, None], there)
        residual = load_rows(residual_ptr, residual_row, offs_m[:, None], there)
        mean = tl.load(mean_ptr + offs_m[:, None], mask=offs_m[:, None] < end, other=0.0)
        rstd = tl.load(rstd_ptr + offs_m[:, None], mask=offs_m[:, None] < end, other=0.0)
        if DROPOUT:
            ids = tl.load(row_ids_ptr + offs_m, mask=offs_m < end, other=0)
            keep = dropout_keep(tl.load(seed_ptr), ids, 0, 0, threshold, BLOCK_M, BLOCK_D)
            x = tl.where(keep, x * keep_scale, 0.0)
        dz, xhat = normalise_bwd(residual + x, mean, rstd, dout, weight, there, WIDTH)
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
def dropout_add_layer_norm_bwd_kernel(
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
    rows,
    threshold,
    keep_scale,
    DROPOUT: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    rows_bwd(
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
        tl.program_id(0).to(tl.int64) * BLOCK_M,
        rows,
        tl.num_programs(0) * BLOCK_M,
        threshold,
        keep_scale,
        DROPOUT,
        WIDTH,
        BLOCK_M,
        BLOCK_D,
    )


def dropout_add_layer_norm_bwd(grads: list[Tensor], *arguments: Any) -> list[Tensor]:
    """grads [dout], saved [out, mean, rstd] -> [dx, dresidual, dweight, dbias]."""
    dx, dresidual, left = row_gradients(grads, *arguments)
    sum_partials(left)
    return [dx, dresidual, *left[1:]]


def row_gradients(
    grads: list[Tensor],
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    row_ids: Tensor,
    seed: Tensor,
    eps: float,
    dropout_p: float,
    saved: list[Tensor],
) -> tuple[Tensor, Tensor, Sum]:
    """dx, dresidual, and the sums that dweight and dbias wait for."""
    rows, width = x.shape
    dx, dresidual, dweight, dbias = (t.new_empty(t.shape) for t in (x, residual, weight, bias))
    if x.numel() == 0:
        return dx, dresidual, (x.new_zeros(1, 2, width, dtype=torch.float32), dweight, dbias)
    dout, x, residual = unit_stride(grads[0], x, residual)
    chosen, threshold = tile(width), round(256 * dropout_p)
    programs = min(PROGRAMS, triton.cdiv(rows, chosen["BLOCK_M"]))
    parts = x.new_empty(programs, 2, width, dtype=torch.float32)
    dropout_add_layer_norm_bwd_kernel[(programs,)](
        dout,
        x,
        residual,
        weight.contiguous(),
        row_ids.contiguous(),
        seed,
        *saved[1:],
        dx,
        dresidual,
        parts,
        dout.stride(0),
        x.stride(0),
        residual.stride(0),
        rows,
        threshold,
        256 / max(1, 256 - threshold),
        DROPOUT=threshold > 0,
        **chosen,
    )
    return dx, dresidual, (parts, dweight, dbias)
