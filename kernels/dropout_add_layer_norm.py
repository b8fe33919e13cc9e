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
from .parts.groups import Dropout, Matrix, dropout, matrix
from .parts.layer_norm import (
    Norm,
    Normed,
    NormGradients,
    load_rows,
    normalise,
    normalise_rows_bwd,
    recompute_rows,
    rows_and_source,
)
from .parts.partials import Sum, sum_partials
from .parts.philox import dropout_keep

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
def dropout_add_layer_norm_fwd_kernel(
    x,
    residual,
    norm,
    dropout,
    out_ptr,
    rows,
    eps,
    SUM: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """SUM: what is normalised takes x's place, rounded as it is there."""
    x, norm = Matrix(*x), Norm(*norm)
    offs_m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.arange(0, BLOCK_D)
    there = (offs_m[:, None] < rows) & (columns[None, :] < WIDTH)
    y = load_rows(x, offs_m[:, None], there)
    z = load_rows(Matrix(*residual), offs_m[:, None], there)
    weight = tl.load(norm.weight + columns, mask=columns < WIDTH, other=0.0).to(tl.float32)
    bias = tl.load(norm.bias + columns, mask=columns < WIDTH, other=0.0).to(tl.float32)
    if dropout is not None:
        dropout = Dropout(*dropout)
        ids = tl.load(dropout.row_ids + offs_m, mask=offs_m < rows, other=0)
        keep = dropout_keep(tl.load(dropout.seed), ids, 0, 0, dropout.threshold, BLOCK_M, BLOCK_D)
        y = tl.where(keep, y * dropout.scale, 0.0)
    z = z + y
    if SUM:
        kept = z.to(x.ptr.dtype.element_ty)
        tl.store(x.ptr + offs_m[:, None] * x.row + columns[None, :], kept, mask=there)
        z = kept.to(tl.float32)
    mean, rstd, xhat = normalise(z, there, eps, WIDTH)
    out = xhat * weight[None, :] + bias[None, :]
    ptrs = out_ptr + offs_m[:, None] * WIDTH + columns[None, :]
    tl.store(ptrs, out.to(out_ptr.dtype.element_ty), mask=there)
    tl.store(norm.mean + offs_m[:, None], mean, mask=offs_m[:, None] < rows)
    tl.store(norm.rstd + offs_m[:, None], rstd, mask=offs_m[:, None] < rows)


def dropout_add_layer_norm_fwd(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    row_ids: Tensor,
    seed: Tensor,
    eps: float,
    dropout_p: float,
    into_x: bool = False,
) -> tuple[Tensor, list[Tensor]]:
    """-> out (T, D), [mean, rstd (T,) float32]; into_x: the sum is put where x is, contiguous."""
    rows, width = x.shape
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    mean, rstd = (x.new_empty(rows, dtype=torch.float32) for _ in range(2))
    if x.numel():
        x, residual = unit_stride(x, residual)
        chosen = tile(width)
        dropout_add_layer_norm_fwd_kernel[(triton.cdiv(rows, chosen["BLOCK_M"]),)](
            matrix(x),
            matrix(residual),
            (weight.contiguous(), bias.contiguous(), mean, rstd),
            dropout(row_ids, seed, dropout_p),
            out,
            rows,
            eps,
            SUM=into_x,
            **chosen,
        )
    return out, [mean, rstd]


@triton.jit
def dropout_add_layer_norm_bwd_kernel(
    dout,
    x,
    residual,
    norm,
    dropout,
    source,
    gradients,
    rows,
    SUM: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    dout, x, residual, norm = Matrix(*dout), Matrix(*x), Matrix(*residual), Norm(*norm)
    gradients = NormGradients(*gradients)
    if dropout is not None:
        dropout = Dropout(*dropout)
    start, step = tl.program_id(0).to(tl.int64) * BLOCK_M, tl.num_programs(0) * BLOCK_M
    other = None if SUM else residual
    normalise_rows_bwd(dout, x, other, norm, dropout, gradients, start, rows, step, WIDTH, BLOCK_M, BLOCK_D)
    if source is not None:
        recompute_rows(Normed(*source), residual.ptr, start, rows, step, WIDTH, BLOCK_M, BLOCK_D)


def dropout_add_layer_norm_bwd(
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
) -> list[Tensor]:
    """grads [dout], saved [out, mean, rstd] -> [dx, dresidual, dweight, dbias]."""
    norm = (weight, bias, row_ids, seed, dropout_p, *saved[1:])
    dx, dresidual, left = _row_gradients(grads[0], x, residual, None, *norm, SUM=False)
    sum_partials(left)
    return [dx, dresidual, *left[1:]]


def row_gradients(dout: Tensor, z: Tensor, x: Tensor | Normed, *norm: Any) -> tuple[Tensor, Tensor, Tensor, Sum]:
    """Of a block's end, LayerNorm(z) with z = x + dropout(y): dy, dx, x, and what the norm's gradients are sums of.
    norm: weight, bias, row_ids, seed, dropout_p, mean, rstd."""
    rows, source = rows_and_source(x)
    dy, dx, left = _row_gradients(dout, z, rows, source, *norm, SUM=True)
    return dy, dx, rows, left


def _row_gradients(
    dout: Tensor,
    x: Tensor,
    residual: Tensor,
    source: tuple | None,
    weight: Tensor,
    bias: Tensor,
    row_ids: Tensor,
    seed: Tensor,
    dropout_p: float,
    mean: Tensor,
    rstd: Tensor,
    **kind: bool,
) -> tuple[Tensor, Tensor, Sum]:
    """dx, dresidual, and the sums that dweight and dbias wait for."""
    rows, width = x.shape
    dx, dresidual, dweight, dbias = (t.new_empty(t.shape) for t in (x, residual, weight, bias))
    if x.numel() == 0:
        return dx, dresidual, (x.new_zeros(1, 2, width, dtype=torch.float32), dweight, dbias)
    dout, x, residual = unit_stride(dout, x, residual)
    chosen = tile(width)
    programs = min(PROGRAMS, triton.cdiv(rows, chosen["BLOCK_M"]))
    parts = x.new_empty(programs, 2, width, dtype=torch.float32)
    dropout_add_layer_norm_bwd_kernel[(programs,)](
        matrix(dout),
        matrix(x),
        matrix(residual),
        (weight.contiguous(), None, mean, rstd),
        dropout(row_ids, seed, dropout_p),
        source,
        (dx, dresidual, parts),
        rows,
        **kind,
        **chosen,
    )
    return dx, dresidual, (parts, dweight, dbias)
