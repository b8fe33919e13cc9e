"""dropout_add_layer_norm on the GPU: out = LayerNorm(z), z = residual + dropout(x): one launch forward, two backward.

dropout_add_layer_norm_fwd_kernel: a program computes BLOCK_M whole rows. It reads x and residual, and writes out and,
for the backward, mean and 1 / deviation, (T,) float32.
dropout_add_layer_norm_bwd_kernel: program p of P computes the blocks p, p + P, ... of rows. It computes the normalised
rows again from x and residual, which autograd keeps in any case: that reads as many bytes as a saved (T, D) would, but
needs neither its memory nor its rounding. It writes dx, dresidual and its rows' sums for dweight and dbias, (P, 2, D);
partials.py adds these in order. No atomics, and two runs give the same bits.

The mean is corrected by the mean of the differences from it, so rows far from zero, also constant ones, lose no digits.
The backward computes the correction again, by a third sum beside the two that it needs in any case.

Cost: about 8 T D flops forward, 16 backward, and a Philox call (about 80 integer operations) for 16 elements each way.
Bytes in bf16: 6 T D forward, 10 T D backward, 16 T and 8 P D beside them. ELECTRA-Small, T = 16,384, D = 256: 25 MB and
42 MB, at 4.3 TB/s 5.9 and 9.8 us; the flops and the Philox calls take about 1 us on all cores, so bandwidth is the
limit. There are no products. Launches: eager PyTorch 3 forward (dropout, add, layer norm) and 3 backward, which move
15 bytes an element each way; here 1 and 2.

Tiles: 2,048 elements for 4 warps are 16 a thread (8 at D = 4,096, where triton 3.6 would spill); up to D = 512 a warp
has rows of its own. The forward in bf16 takes 48 to 65 registers, so 7 to 10 programs fit on a multiprocessor, with
56 KB or more of loads in flight. The backward keeps two accumulators an element and takes 128 registers: 4 programs and
48 KB, so PROGRAMS is 4 for each of 132 multiprocessors.
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

PROGRAMS = 528  # the most programs, and partial sums, of the backward, for any number of rows

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
    """SUM: z is stored in x's memory, and normalised after it is rounded to x's dtype."""
    x, norm = Matrix(*x), Norm(*norm)
    offs_m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    columns = tl.arange(0, BLOCK_D)
    inside = (offs_m[:, None] < rows) & (columns[None, :] < WIDTH)
    y = load_rows(x, offs_m[:, None], inside)
    z = load_rows(Matrix(*residual), offs_m[:, None], inside)
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
        tl.store(x.ptr + offs_m[:, None] * x.row + columns[None, :], kept, mask=inside)
        z = kept.to(tl.float32)
    mean, rstd, xhat = normalise(z, inside, eps, WIDTH)
    out = xhat * weight[None, :] + bias[None, :]
    ptrs = out_ptr + offs_m[:, None] * WIDTH + columns[None, :]
    tl.store(ptrs, out.to(out_ptr.dtype.element_ty), mask=inside)
    tl.store(norm.mean + offs_m[:, None], mean, mask=offs_m[:, None] < rows)
    tl.store(norm.rstd + offs_m[:, None], rstd, mask=offs_m[:, None] < rows)


def dropout_add_layer_norm_fwd(args: Any) -> tuple[Tensor, list[Tensor]]:
    """-> out (T, D), [mean, rstd (T,) float32].

    args: a DropoutAddLayerNormArguments (electra_fast/ops/dropout_add_layer_norm.py)
    """
    mask = dropout(args.row_ids, args.seed, args.dropout_p)
    return normalised_sum(args.x, args.residual, (args.weight, args.bias), mask, args.eps)


def normalised_sum(
    x: Tensor, residual: Tensor, norm: tuple[Tensor, Tensor], mask: tuple | None, eps: float, into_x: bool = False
) -> tuple[Tensor, list[Tensor]]:
    """-> LayerNorm(z) (T, D), z = residual + dropout(x), [mean, rstd (T,) float32].

    norm: the LayerNorm's weight and bias
    mask: the Dropout of x, or None
    into_x: x, contiguous, is overwritten by z
    """
    weight, bias = norm
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
            mask,
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
    """SUM: x is the sum z, and residual is only the memory for the output of `source`, if there is one."""
    dout, x, residual, norm = Matrix(*dout), Matrix(*x), Matrix(*residual), Norm(*norm)
    gradients = NormGradients(*gradients)
    if dropout is not None:
        dropout = Dropout(*dropout)
    start, step = tl.program_id(0).to(tl.int64) * BLOCK_M, tl.num_programs(0) * BLOCK_M
    other = None if SUM else residual
    normalise_rows_bwd(dout, x, other, norm, dropout, gradients, start, rows, step, WIDTH, BLOCK_M, BLOCK_D)
    if source is not None:
        recompute_rows(Normed(*source), residual.ptr, start, rows, step, WIDTH, BLOCK_M, BLOCK_D)


def dropout_add_layer_norm_bwd(grads: list[Tensor], args: Any, saved: list[Tensor]) -> list[Tensor]:
    """grads [dout], saved [out, mean, rstd] -> [dx, dresidual, dweight, dbias].

    args: a DropoutAddLayerNormArguments
    """
    _, mean, rstd = saved
    norm, mask = Norm(args.weight, args.bias, mean, rstd), dropout(args.row_ids, args.seed, args.dropout_p)
    dx, dresidual, left = _row_gradients(grads[0], args.x, args.residual, None, norm, mask, SUM=False)
    sum_partials(left)
    return [dx, dresidual, *left[1:]]


def row_gradients(
    dout: Tensor, norm: Normed, x: Tensor | Normed, mask: tuple | None
) -> tuple[Tensor, Tensor, Tensor, Sum]:
    """Returns (dy, dx, x, partial sums of the norm's gradients) of a block's end, LayerNorm(z) with z = x + dropout(y).

    norm: the block's LayerNorm, with z
    mask: the Dropout of y, or None
    """
    rows, source = rows_and_source(x)
    dy, dx, left = _row_gradients(dout, norm.z, rows, source, norm, mask, SUM=True)
    return dy, dx, rows, left


def _row_gradients(
    dout: Tensor,
    x: Tensor,
    residual: Tensor,
    source: tuple | None,
    norm: Norm | Normed,
    mask: tuple | None,
    **kind: bool,
) -> tuple[Tensor, Tensor, Sum]:
    """Returns (dx, dresidual, the Sum that gives dweight and dbias)."""
    rows, width = x.shape
    dx, dresidual, dweight, dbias = (t.new_empty(t.shape) for t in (x, residual, norm.weight, norm.bias))
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
        (norm.weight.contiguous(), None, norm.mean, norm.rstd),
        mask,
        source,
        (dx, dresidual, parts),
        rows,
        **kind,
        **chosen,
    )
    return dx, dresidual, (parts, dweight, dbias)
