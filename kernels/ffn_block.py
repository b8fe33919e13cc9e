"""ffn_block on the GPU: out = LayerNorm(z), z = x + dropout(gelu(x W1^T + b1) W2^T + b2).

It is one launch each way if rows are narrow, else a launch for each part.

ffn_block_fwd_kernel: a program keeps BLOCK_M rows of x on chip and goes over F, BLOCK_F columns at a time: h = gelu(x
W1^T + b1) is an operand of the next product, and never written. The sum, rounded as the result of a product of its own
would be, goes to memory; add_and_normalise reads it back from the cache, a few rows at a time, for dropout, residual
and LayerNorm, since registers would not hold these beside the sums. It writes z, out and the norm's statistics; nothing
of width F is saved.
ffn_block_bwd_kernel: a program takes BLOCK_M rows through the norm and the dropout, a few at a time, to ddown and
dresidual. It keeps x and ddown and goes over F: it computes x W1^T + b1 again, dh = ddown W2, dz = dh gelu'(x W1^T +
b1), and sums dx = dresidual + dz W1 in registers. It writes dx, and h, dz and ddown for linear_weight.py's gradients.
No atomics, and two runs give the same bits.
Wide rows take linear.py's launches and dropout_add_layer_norm.py's, and save h and the GELU's slope.

Save or recompute: saving h and the slope costs 4 T F elements written and read; computing x W1^T again costs 2 T D F
flops and 2 T F elements, for h alone. They are equal at D = 2 x 790 / 4.3 = 367 in bf16. At D = 256, T = 16384,
F = 1024: 31 us saved; recomputed 11 and 16 us, and 67 MB less a layer. At D = 768 recomputing would cost 98 us to save
47, so there they are saved. If the weights' gradients recomputed h and dz, too, instead of reading them (134 MB, 31 us,
written and read), it would cost 22 us more, in a kernel with two accumulators of its own: so nearly equal that the
plain products stay.

ELECTRA-Small, T = 16384, D = 256, F = 1024, bf16, at 790 TFLOP/s and 4.3 TB/s (weights stay in the L2):
                   flops   us     elements moved        us     launches (eager)
    forward        17 GF   22     3 T D         25 MB    6     1        (6, and 210 MB)
    to dx          26 GF   33     6 T D + 2 T F 118 MB  27     1        (7)
    dW1, dW2, sums 17 GF   22     2 T D + 2 T F 101 MB  24     2        (4 and 2)
The norm's backward in a launch of its own would move 42 MB and leave 101 to the second: 25 MB and a launch boundary
more. As part of this launch it is first on every multiprocessor at once, so its 6 us of traffic overlap no products.
Tiles: 128 rows a program are 128 programs, one a multiprocessor, which read both weights, 1 MB, from the L2 each:
134 MB; with 64 rows it would be 268. BLOCK_F is as large as shared memory allows with two stages.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .dropout_add_layer_norm import normalised_sum, row_gradients
from .linear import gelu_and_slope, input_gradient, product, unit_stride
from .linear_weight import Product, weight_gradients
from .parts.device import entry
from .parts.groups import Affine, Dropout, Matrix, affine, dropout, matrix
from .parts.layer_norm import Norm, Normed, NormGradients, add_and_normalise, add_and_normalise_bwd, rows_and_source

# (bytes of an element, D[, generation]) -> tile, see device.py: BLOCK_F divides F; BLOCK_R rows are normalised at once.
FWD = {
    (2, 64): dict(BLOCK_M=128, BLOCK_F=64, BLOCK_R=64, num_warps=4, num_stages=2),
    (2, 128): dict(BLOCK_M=128, BLOCK_F=64, BLOCK_R=32, num_warps=8, num_stages=2),
    (2, 256): dict(BLOCK_M=128, BLOCK_F=64, BLOCK_R=32, num_warps=8, num_stages=2),
    (2, 64, 80): dict(BLOCK_M=128, BLOCK_F=64, BLOCK_R=64, num_warps=8, num_stages=2),
    (2, 128, 86): {},
    (2, 256, 80): {},  # its backward would take 168 KB
}
BWD = {
    (2, 64): dict(BLOCK_M=128, BLOCK_F=64, BLOCK_R=64, num_warps=8, num_stages=2),
    (2, 128): dict(BLOCK_M=128, BLOCK_F=64, BLOCK_R=32, num_warps=8, num_stages=2),
    (2, 256): dict(BLOCK_M=128, BLOCK_F=32, BLOCK_R=16, num_warps=8, num_stages=2),
    (2, 128, 80): dict(BLOCK_M=128, BLOCK_F=32, BLOCK_R=32, num_warps=8, num_stages=2),
}


def in_one_launch(x: Tensor, up_weight: Tensor) -> bool:
    """Whether the tables have a tile for rows of this width on this device, whose BLOCK_F divides F."""
    return entry(FWD, (x.element_size(), x.shape[1]), x) != {} and up_weight.shape[0] % 64 == 0


def tile(table: dict, x: Tensor) -> dict:
    """The kernel's options: a tile of the table, and what follows from it."""
    size, width = x.element_size(), x.shape[1]
    precision = "ieee" if size == 4 else "tf32"  # matters for 32-bit products only
    return entry(table, (size, width), x) | dict(WIDTH=width, PRECISION=precision, enable_fp_fusion=True)


@triton.jit
def ffn_block_fwd_kernel(
    x,
    up,
    down,
    norm,
    dropout,
    out_ptr,
    z_ptr,
    rows,
    inner,
    eps,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_R: tl.constexpr,
    PRECISION: tl.constexpr,
):
    x, up, down, norm = Matrix(*x), Affine(*up), Affine(*down), Norm(*norm)
    if dropout is not None:
        dropout = Dropout(*dropout)
    start = tl.program_id(0).to(tl.int64) * BLOCK_M
    offs_m, columns = start + tl.arange(0, BLOCK_M), tl.arange(0, WIDTH)
    row = tl.minimum(offs_m, rows - 1)  # rows beyond the last are read as the last row again, and never stored
    x_rows = tl.load(x.ptr + row[:, None] * x.row + columns[None, :])
    acc = tl.zeros((BLOCK_M, WIDTH), tl.float32)
    for first in range(0, inner, BLOCK_F):
        offs_f = first + tl.arange(0, BLOCK_F)
        up_rows = tl.load(up.weight + offs_f.to(tl.int64)[:, None] * up.row + columns[None, :])
        bias = tl.load(up.bias + offs_f).to(tl.float32)
        h, _ = gelu_and_slope(tl.dot(x_rows, tl.trans(up_rows), input_precision=PRECISION) + bias[None, :])
        down_columns = tl.load(down.weight + columns.to(tl.int64)[:, None] * down.row + offs_f[None, :])
        acc = tl.dot(h.to(x_rows.dtype), tl.trans(down_columns), acc, input_precision=PRECISION)
    acc += tl.load(down.bias + columns).to(tl.float32)[None, :]
    places = z_ptr + offs_m[:, None] * WIDTH + columns[None, :]
    tl.store(places, acc.to(z_ptr.dtype.element_ty), mask=offs_m[:, None] < rows)
    end = tl.minimum(start + BLOCK_M, rows)
    add_and_normalise(x, z_ptr, out_ptr, norm, dropout, eps, start, end, WIDTH, BLOCK_R)


def ffn_block_fwd(args: Any) -> tuple[Tensor, list[Tensor]]:
    """-> out (T, D), [z (T, D), mean, rstd (T,) float32, and if it is not one launch h and the GELU's slope (T, F)].

    args: an FfnBlockArguments (electra_fast/ops/ffn_block.py)
    """
    mask = dropout(args.row_ids, args.seed, args.dropout_p)
    if not in_one_launch(args.x, args.up_weight):
        h, slope = product(args.x, args.up_weight, args.up_bias, gelu=True, keep=True)
        z, _ = product(h, args.down_weight, args.down_bias)
        norm = (args.norm_weight, args.norm_bias)
        out, statistics = normalised_sum(z, args.x, norm, mask, args.eps, into_x=True)
        return out, [z, *statistics, h, slope]
    x, up_weight, down_weight = unit_stride(args.x, args.up_weight, args.down_weight)
    rows, inner = x.shape[0], up_weight.shape[0]
    out, z = x.new_empty(x.shape), x.new_empty(x.shape)
    mean, rstd = (x.new_empty(rows, dtype=torch.float32) for _ in range(2))
    if rows:
        chosen = tile(FWD, x)
        ffn_block_fwd_kernel[(triton.cdiv(rows, chosen["BLOCK_M"]),)](
            matrix(x),
            affine(up_weight, args.up_bias),
            affine(down_weight, args.down_bias),
            (args.norm_weight.contiguous(), args.norm_bias.contiguous(), mean, rstd),
            mask,
            out,
            z,
            rows,
            inner,
            args.eps,
            **chosen,
        )
    return out, [z, mean, rstd]


class FfnGradients(NamedTuple):
    """Where the backward puts its results, contiguous."""

    ddown: Any  # (T, D): the gradient of the second product's result
    dx: Any  # (T, D)
    parts: Any  # (P, 2, D) float32: each program's sums for the gradients of the norm's weight and bias
    h: Any  # (T, F): the GELU's output, computed again
    dz: Any  # (T, F): the gradient of the GELU's argument


@triton.jit
def ffn_block_bwd_kernel(
    dout,
    norm,
    x,
    dropout,
    source,
    gradients,
    up,
    down,
    rows,
    inner,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_F: tl.constexpr,
    BLOCK_R: tl.constexpr,
    PRECISION: tl.constexpr,
):
    x, up, down, gradients = Matrix(*x), Affine(*up), Matrix(*down), FfnGradients(*gradients)
    if dropout is not None:
        dropout = Dropout(*dropout)
    if source is not None:
        source = Normed(*source)
    start = tl.program_id(0).to(tl.int64) * BLOCK_M
    end = tl.minimum(start + BLOCK_M, rows)
    of_norm = NormGradients(gradients.ddown, gradients.dx, gradients.parts)
    norm = Normed(*norm)
    add_and_normalise_bwd(Matrix(*dout), norm, x.ptr, dropout, source, of_norm, start, end, WIDTH, BLOCK_R)
    offs_m, columns = start + tl.arange(0, BLOCK_M), tl.arange(0, WIDTH)
    row, inside = tl.minimum(offs_m, rows - 1)[:, None], offs_m[:, None] < rows
    x_rows = tl.load(x.ptr + row * x.row + columns[None, :])
    ddown = tl.load(gradients.ddown + row * WIDTH + columns[None, :])
    acc = tl.load(gradients.dx + row * WIDTH + columns[None, :]).to(tl.float32)
    for first in range(0, inner, BLOCK_F):
        offs_f = first + tl.arange(0, BLOCK_F)
        up_rows = tl.load(up.weight + offs_f.to(tl.int64)[:, None] * up.row + columns[None, :])
        bias = tl.load(up.bias + offs_f).to(tl.float32)
        h, slope = gelu_and_slope(tl.dot(x_rows, tl.trans(up_rows), input_precision=PRECISION) + bias[None, :])
        down_columns = tl.load(down.ptr + columns.to(tl.int64)[:, None] * down.row + offs_f[None, :])
        dz = (tl.dot(ddown, down_columns, input_precision=PRECISION) * slope).to(x_rows.dtype)
        acc = tl.dot(dz, up_rows, acc, input_precision=PRECISION)
        places = offs_m[:, None] * inner + offs_f[None, :]
        tl.store(gradients.h + places, h.to(x_rows.dtype), mask=inside)
        tl.store(gradients.dz + places, dz, mask=inside)
    tl.store(gradients.dx + offs_m[:, None] * WIDTH + columns[None, :], acc.to(x_rows.dtype), mask=inside)


def ffn_block_bwd(grads: list[Tensor], args: Any, saved: list[Tensor]) -> list[Tensor]:
    """grads [dout], saved [out, what the forward saved] -> the gradients of the seven tensors from x to norm_bias.

    args: an FfnBlockArguments, whose x is a Normed if the encoder did not save it
    """
    _, z, mean, rstd, *kept = saved
    mask = dropout(args.row_ids, args.seed, args.dropout_p)
    if kept:
        h, slope = kept
        of_norm = Normed(z, mean, rstd, args.norm_weight, args.norm_bias)
        ddown, dresidual, rows, norm = row_gradients(grads[0], of_norm, args.x, mask)
        dz = input_gradient(ddown, args.down_weight, times=slope)
        dx = input_gradient(dz, args.up_weight, add=dresidual)
        return [dx, *weight_gradients(Product(dz, rows), Product(ddown, h), also=[norm]), *norm[1:]]
    rows, source = rows_and_source(args.x)
    dout, rows, up_weight, down_weight = unit_stride(grads[0], rows, args.up_weight, args.down_weight)
    (count, width), inner = rows.shape, up_weight.shape[0]
    h, dz = (rows.new_empty(count, inner) for _ in range(2))
    ddown, dx = (rows.new_empty(rows.shape) for _ in range(2))
    chosen = tile(BWD, rows)
    programs = triton.cdiv(count, chosen["BLOCK_M"])
    parts = rows.new_empty(programs, 2, width, dtype=torch.float32)
    if count:
        ffn_block_bwd_kernel[(programs,)](
            matrix(dout),
            (z, mean, rstd, args.norm_weight.contiguous(), None),
            matrix(rows),
            mask,
            source,
            (ddown, dx, parts, h, dz),
            affine(up_weight, args.up_bias),
            matrix(down_weight),
            count,
            inner,
            **chosen,
        )
    norm = parts, args.norm_weight.new_empty(width), args.norm_bias.new_empty(width)
    return [dx, *weight_gradients(Product(dz, rows), Product(ddown, h), also=[norm]), *norm[1:]]
