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
from .parts.layer_norm import Normed, load_rows, normalise, rows_again, rows_bwd, rows_or_room
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
    SUM: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """SUM: what is normalised takes x's place, rounded as it is there."""
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
    z = residual + x
    if SUM:
        kept = z.to(x_ptr.dtype.element_ty)
        tl.store(x_ptr + offs_m[:, None] * x_row + columns[None, :], kept, mask=there)
        z = kept.to(tl.float32)
    mean, rstd, xhat = normalise(z, there, eps, WIDTH)
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
    into_x: bool = False,
) -> tuple[Tensor, list[Tensor]]:
    """-> out (T, D), [mean, rstd (T,) float32]; into_x: the sum is put where x is, contiguous."""
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
            SUM=into_x,
            **chosen,
        )
    return out, [mean, rstd]


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
    before_ptr,
    before_mean_ptr,
    before_rstd_ptr,
    before_weight_ptr,
    before_bias_ptr,
    dout_row,
    x_row,
    residual_row,
    rows,
    threshold,
    keep_scale,
    DROPOUT: tl.constexpr,
    SUM: tl.constexpr,
    AGAIN: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """AGAIN: the residual, part of the sum by now, is made again from the norm before."""
    start, step = tl.program_id(0).to(tl.int64) * BLOCK_M, tl.num_programs(0) * BLOCK_M
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
        start,
        rows,
        step,
        threshold,
        keep_scale,
        DROPOUT,
        SUM,
        WIDTH,
        BLOCK_M,
        BLOCK_D,
    )
    if AGAIN:
        rows_again(
            before_ptr,
            before_mean_ptr,
            before_rstd_ptr,
            before_weight_ptr,
            before_bias_ptr,
            residual_ptr,
            start,
            rows,
            step,
            WIDTH,
            BLOCK_M,
            BLOCK_D,
        )


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
    dx, dresidual, left = _row_gradients(grads[0], x, residual, Normed(x, x, x, x, x), *norm, SUM=False, AGAIN=False)
    sum_partials(left)
    return [dx, dresidual, *left[1:]]


def row_gradients(dout: Tensor, z: Tensor, x: Tensor | Normed, *norm: Any) -> tuple[Tensor, Tensor, Tensor, Sum]:
    """Of a block's end, LayerNorm(z) with z = x + dropout(y): dy, dx, x, and what the norm's gradients are sums of.
    norm: weight, bias, row_ids, seed, dropout_p, mean, rstd."""
    rows, before, again = rows_or_room(x)
    dy, dx, left = _row_gradients(dout, z, rows, before, *norm, SUM=True, AGAIN=again)
    return dy, dx, rows, left


def _row_gradients(
    dout: Tensor,
    x: Tensor,
    residual: Tensor,
    before: Normed,
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
        mean,
        rstd,
        dx,
        dresidual,
        parts,
        *before,
        dout.stride(0),
        x.stride(0),
        residual.stride(0),
        rows,
        threshold,
        256 / max(1, 256 - threshold),
        DROPOUT=threshold > 0,
        **kind,
        **chosen,
    )
    return dx, dresidual, (parts, dweight, dbias)
