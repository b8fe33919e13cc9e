"""linear on the GPU: y = f(x W^T + b), f the identity or the erf GELU, and the gradient of x.

linear_fwd_kernel: a program computes a tile of y. It adds the bias and applies the GELU before it stores the tile. For
the backward it stores the GELU's slope, not its argument: the same bytes, and the backward multiplies where it would
have to compute the GELU's derivative.
linear_bwd_input_kernel: a program computes a tile of dX = dz W. It can add another gradient of x, or multiply by the
slope of the function that made x. With a GELU, dz = dy slope is computed before, once for both gradients.
The gradients of weight and bias are in linear_weight.py. No atomics, and two runs give the same bits.

Cost: 2 T K N flops forward, 4 T K N backward; elements: T (K + N) forward, T (2 N + 2 K) backward, and with the GELU
T N more forward and 3 T N more backward. (To recompute the slope would cost 2 T K N flops instead of 4 T N bytes: less
below K = 370, which is what ffn_block does.) At 790 TFLOP/s and 4.3 TB/s, T = 16384 in bf16, microseconds (products,
bytes):

    K -> N           forward      dX           dW           eager launches: 1 forward (2 with the GELU), 3 backward (4);
    256 -> 768       8.2   7.9    8.2   7.9    8.2   7.9    here 1 forward, 3 backward (4)
    256 -> 256       2.7   3.9    2.7   3.9    2.7   3.9
    256 -> 1024     10.9   9.8   10.9   9.8   10.9   9.8
    768 -> 3072     97.9  30     97.9  30     97.9  30

A tile of BLOCK_M x BLOCK_N reads (BLOCK_M + BLOCK_N) K elements from the L2. 128 x 256 is the largest tile whose sums
fit in registers (128 a thread of 8 warps); for 256 -> 1024 it reads 100 MB where 128 x 128 reads 134. Programs of one
block of rows are consecutive, so x comes from memory once, and the weights, at most 5 MB, stay in the L2. Planned
occupancy: one program a multiprocessor at 128 x 256, two at smaller tiles. Only `tile` and its tables decide by shape;
they were chosen by these counts and by what compiles without a spill, and are still to be raced, also against cuBLAS.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .parts.device import entry
from .parts.groups import Affine, Matrix, affine, matrix

LOG2E = tl.constexpr(1.4426950408889634)

# (bytes of an element, class of the shape[, generation]) -> tile, see device.py: BLOCK_M rows, BLOCK_N columns of y,
# BLOCK_K of x.
FWD = {
    (2, 1): dict(BLOCK_M=64, BLOCK_N=64, BLOCK_K=32, num_warps=4, num_stages=2),
    (2, 64): dict(BLOCK_M=128, BLOCK_N=64, BLOCK_K=64, num_warps=4, num_stages=3),
    (2, 128): dict(BLOCK_M=128, BLOCK_N=128, BLOCK_K=64, num_warps=8, num_stages=3),
    (2, 256): dict(BLOCK_M=128, BLOCK_N=256, BLOCK_K=64, num_warps=8, num_stages=3),
    (4, 1): dict(BLOCK_M=64, BLOCK_N=64, BLOCK_K=16, num_warps=8, num_stages=2),
    (4, 64): dict(BLOCK_M=64, BLOCK_N=64, BLOCK_K=16, num_warps=8, num_stages=2),
    (4, 128): dict(BLOCK_M=128, BLOCK_N=128, BLOCK_K=16, num_warps=8, num_stages=2),
    (2, 256, 86): dict(BLOCK_M=128, BLOCK_N=128, BLOCK_K=64, num_warps=8, num_stages=3),
}
BWD_INPUT = {
    (2, 1): dict(BLOCK_M=64, BLOCK_N=32, BLOCK_K=64, num_warps=4, num_stages=2),
    (2, 64): dict(BLOCK_M=128, BLOCK_N=64, BLOCK_K=64, num_warps=4, num_stages=3),
    (2, 128): dict(BLOCK_M=128, BLOCK_N=64, BLOCK_K=128, num_warps=8, num_stages=3),
    (2, 256): dict(BLOCK_M=128, BLOCK_N=64, BLOCK_K=256, num_warps=8, num_stages=3),
    (4, 1): dict(BLOCK_M=64, BLOCK_N=16, BLOCK_K=64, num_warps=8, num_stages=2),
    (4, 64): dict(BLOCK_M=64, BLOCK_N=16, BLOCK_K=64, num_warps=8, num_stages=2),
    (4, 128): dict(BLOCK_M=128, BLOCK_N=16, BLOCK_K=128, num_warps=8, num_stages=2),
    (2, 256, 86): dict(BLOCK_M=128, BLOCK_N=32, BLOCK_K=256, num_warps=8, num_stages=3),
    (2, 256, 100): dict(BLOCK_M=128, BLOCK_N=64, BLOCK_K=128, num_warps=8, num_stages=3),
}


def tile(table: dict, x: Tensor, width: int, summed: int = 64, gelu: bool = False) -> dict:
    """The kernel's options for results `width` columns wide, which are sums of `summed` terms.

    The table's class is the largest of 256, 128 and 64 that divides the width, if 64 divides the terms: then no column
    needs a mask (EVEN). Else it is 1. With a GELU or float32, a tile of 256 columns would need too many registers.
    """
    size = x.element_size()
    largest = 1 if summed % 64 else 128 if gelu or size == 4 else 256
    kind = next(c for c in (256, 128, 64, 1) if c <= largest and width % c == 0)
    precision = "ieee" if size == 4 else "tf32"  # matters for 32-bit products only
    return entry(table, (size, kind), x) | dict(EVEN=kind > 1, PRECISION=precision, enable_fp_fusion=True)


@triton.jit
def gelu_and_slope(z):
    """z Phi(z) and its derivative, Phi(z) + z phi(z), of float32.

    Phi(-a) = e^(-a^2 / 2) t q(t) with t = 1 / (1 + 0.34 a), the fit of csrc/gelu.h: within 2e-7 if t is exact, 8e-7
    with a device's rsqrt. It takes 21 instructions an element on sm_90; with libdevice's erf, which looks its
    coefficients up, it would take 37.
    """
    power = tl.exp2(z * z * (-0.5 * LOG2E))
    root = tl.rsqrt(1.0 + 0.34 * tl.abs(z))
    t = root * root
    q = -0.02637026086449623 * t + 0.14067211747169495
    q = q * t - 0.2754623293876648
    q = q * t + 0.20473270118236542
    q = q * t - 0.046395085752010345
    q = q * t + 0.11603496968746185
    q = q * t + 0.11503509432077408
    q = q * t + 0.13613347709178925
    q = q * t + 0.13561934232711792
    tail = q * t * power
    cdf = tl.where(z < 0, tail, 1.0 - tail)
    return z * cdf, cdf + z * power * 0.3989422804014327


@triton.jit
def _load(ptrs, inside, EVEN: tl.constexpr):
    """What lies at ptrs, and 0 where `inside` is false; with EVEN all of it is inside, and the load has no mask."""
    if EVEN:
        return tl.load(ptrs)
    return tl.load(ptrs, mask=inside, other=0.0)


@triton.jit
def in_matrix(rows, row_count, columns, column_count, EVEN: tl.constexpr):
    """Which elements of a tile lie in the matrix; with EVEN all its columns do."""
    inside = rows[:, None] < row_count
    if not EVEN:
        inside = inside & (columns[None, :] < column_count)
    return inside


@triton.jit
def _corner(columns, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """Rows and columns of this program's tile, 64-bit; consecutive programs have the tiles of one block of rows."""
    pid, across = tl.program_id(0).to(tl.int64), tl.cdiv(columns, BLOCK_N)
    return pid // across * BLOCK_M + tl.arange(0, BLOCK_M), pid % across * BLOCK_N + tl.arange(0, BLOCK_N)


@triton.jit
def linear_fwd_kernel(
    x,
    linear,
    out_ptr,
    slope_ptr,
    rows,
    inner,
    outer,
    GELU: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """slope_ptr: None if the GELU's slope is not kept."""
    x, linear = Matrix(*x), Affine(*linear)
    offs_m, offs_n = _corner(outer, BLOCK_M, BLOCK_N)
    # Rows beyond the last are read as the last row again, and never stored; so these loads need no mask.
    x_ptrs = x.ptr + tl.minimum(offs_m, rows - 1)[:, None] * x.row
    weight_ptrs = linear.weight + tl.minimum(offs_n, outer - 1)[:, None] * linear.row
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for first in range(0, inner, BLOCK_K):
        offs_k = first + tl.arange(0, BLOCK_K)[None, :]
        x_tile = _load(x_ptrs + offs_k, offs_k < inner, EVEN)
        weight = _load(weight_ptrs + offs_k, offs_k < inner, EVEN)
        acc = tl.dot(x_tile, tl.trans(weight), acc, input_precision=PRECISION)
    acc += tl.load(linear.bias + offs_n, mask=offs_n < outer, other=0.0).to(tl.float32)[None, :]
    places = offs_m[:, None] * outer + offs_n[None, :]
    inside = in_matrix(offs_m, rows, offs_n, outer, EVEN)
    if GELU:
        acc, slope = gelu_and_slope(acc)
        if slope_ptr is not None:
            tl.store(slope_ptr + places, slope.to(slope_ptr.dtype.element_ty), mask=inside)
    tl.store(out_ptr + places, acc.to(out_ptr.dtype.element_ty), mask=inside)


@triton.jit
def linear_bwd_input_kernel(
    dout,
    weight,
    add_ptr,
    times_ptr,
    dx_ptr,
    rows,
    inner,
    outer,
    EVEN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """add_ptr, times_ptr: None or (rows, inner), contiguous, which is added to dx or multiplied with it."""
    dout, weight = Matrix(*dout), Matrix(*weight)
    offs_m, offs_k = _corner(inner, BLOCK_M, BLOCK_K)
    dout_ptrs = dout.ptr + tl.minimum(offs_m, rows - 1)[:, None] * dout.row
    acc = tl.zeros((BLOCK_M, BLOCK_K), tl.float32)
    for first in range(0, outer, BLOCK_N):
        offs_n = first + tl.arange(0, BLOCK_N)
        dout_tile = _load(dout_ptrs + offs_n[None, :], offs_n[None, :] < outer, EVEN)
        weight_ptrs = weight.ptr + offs_n.to(tl.int64)[:, None] * weight.row + offs_k[None, :]
        weight_tile = _load(weight_ptrs, (offs_n[:, None] < outer) & (offs_k[None, :] < inner), EVEN)
        acc = tl.dot(dout_tile, weight_tile, acc, input_precision=PRECISION)
    places = offs_m[:, None] * inner + offs_k[None, :]
    inside = in_matrix(offs_m, rows, offs_k, inner, EVEN)
    if add_ptr is not None:
        acc += tl.load(add_ptr + places, mask=inside, other=0.0).to(tl.float32)
    if times_ptr is not None:
        acc *= tl.load(times_ptr + places, mask=inside, other=0.0).to(tl.float32)
    tl.store(dx_ptr + places, acc.to(dx_ptr.dtype.element_ty), mask=inside)


def product(x: Tensor, weight: Tensor, bias: Tensor, gelu: bool = False, keep: bool = False) -> tuple[Tensor, Tensor]:
    """f(x W^T + b), and the GELU's slope if `keep`, else the result again."""
    x, weight = unit_stride(x, weight)
    (rows, inner), outer = x.shape, weight.shape[0]
    out = x.new_empty(rows, outer)
    slope = torch.empty_like(out) if keep else None
    chosen = tile(FWD, x, outer, inner, gelu)
    if programs := triton.cdiv(rows, chosen["BLOCK_M"]) * triton.cdiv(outer, chosen["BLOCK_N"]):
        linear_fwd_kernel[(programs,)](
            matrix(x), affine(weight, bias), out, slope, rows, inner, outer, GELU=gelu, **chosen
        )
    return out, out if slope is None else slope


def input_gradient(
    dout: Tensor,
    weight: Tensor,
    add: Tensor | None = None,
    times: Tensor | None = None,
) -> Tensor:
    """dout W, plus `add`, another gradient of x, or times `times`, the slope of the function that made x; both are
    contiguous (T, K)."""
    dout, weight = unit_stride(dout, weight)
    rows, (outer, inner) = dout.shape[0], weight.shape
    dx = dout.new_empty(rows, inner)
    chosen = tile(BWD_INPUT, dout, inner, outer)
    if programs := triton.cdiv(rows, chosen["BLOCK_M"]) * triton.cdiv(inner, chosen["BLOCK_K"]):
        linear_bwd_input_kernel[(programs,)](matrix(dout), matrix(weight), add, times, dx, rows, inner, outer, **chosen)
    return dx


def linear_fwd(args: Any) -> tuple[Tensor, list[Tensor]]:
    """-> out (T, N), [the GELU's slope (T, N), if there is a GELU].

    args: a LinearArguments (electra_fast/ops/linear.py)
    """
    out, slope = product(args.x, args.weight, args.bias, args.gelu, keep=args.gelu)
    return out, [slope] if args.gelu else []


def unit_stride(*tensors: Tensor) -> list[Tensor]:
    """The tensors (., D) with columns of stride 1; those of another stride are copied."""
    return [t if t.stride(1) == 1 else t.contiguous() for t in tensors]
