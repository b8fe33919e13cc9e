"""discriminator_head on the GPU: logit = w gelu(W h + b) + c of each token, and its binary cross-entropy.

discriminator_head_fwd_kernel, the only launch: a program takes BLOCK_M rows of hidden through all columns of the dense
layer, BLOCK_N at a time. It adds each tile's part of the logit, w gelu(z), in registers, and writes logit and loss; z
is never written.
discriminator_head_bwd_kernel: a program computes a tile of z again, and writes dz (T, D) and its rows' sums of dlogit
gelu(z) for w, and of dlogit for c, which partials.py adds in order. dX, dW and db are linear.py's products of dz.
No atomics, and two runs give the same bits.

Cost: 2 T D D flops forward and 6 backward (4 are needed: computing z again costs 2 T D D flops instead of 4 T D bytes
written and read, which is less below D = 370, and no memory). Bytes in bf16: 2 T D forward, 10 T D backward.
ELECTRA-Small, T = 16,384, D = 256: 2.1 GF and 8 MB forward, 2.7 us at 790 TFLOP/s and 2.0 us at 4.3 TB/s; 6.4 GF and
42 MB backward, 8.2 and 9.8 us: products are the limit forward, bandwidth backward, and a GELU an element comes on top.
Launches: 1 forward and 5 backward; eager PyTorch 4 (product, GELU, product, loss) and 9.

Tiles: forward, the sums of 64 x 128 for 4 warps are 64 registers a thread of 168, and 74 KB: 3 programs a
multiprocessor, so the 256 programs of ELECTRA-Small run at once, and the GELU of one overlaps with the product of
another. Backward, 128 x 128 for 8 warps read half as much of hidden and W from the cache; its 188 registers leave room
for one program a multiprocessor.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .linear import gelu_and_slope, input_gradient, unit_stride
from .linear_weight import Product, weight_gradients
from .parts.device import entry
from .parts.groups import Affine, Matrix, affine, matrix

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)

# (bytes of an element, whether BLOCK_K divides D, so that no column needs a mask[, generation]) -> tile, see device.py:
# BLOCK_M rows, BLOCK_N columns of the dense layer, BLOCK_K of its input at a time.
FWD = {
    (2, True): dict(BLOCK_M=64, BLOCK_N=128, BLOCK_K=64, num_warps=4, num_stages=3),
    (2, False): dict(BLOCK_M=64, BLOCK_N=64, BLOCK_K=32, num_warps=4, num_stages=2),
    (4, True): dict(BLOCK_M=32, BLOCK_N=64, BLOCK_K=16, num_warps=4, num_stages=2),
    (4, False): dict(BLOCK_M=32, BLOCK_N=64, BLOCK_K=16, num_warps=4, num_stages=2),
}
BWD = {
    (2, True): dict(BLOCK_M=128, BLOCK_N=128, BLOCK_K=64, num_warps=8, num_stages=3),
    (2, False): dict(BLOCK_M=64, BLOCK_N=64, BLOCK_K=32, num_warps=4, num_stages=2),
    (4, True): dict(BLOCK_M=64, BLOCK_N=64, BLOCK_K=16, num_warps=8, num_stages=2),
    (4, False): dict(BLOCK_M=64, BLOCK_N=64, BLOCK_K=16, num_warps=8, num_stages=2),
}


def tile(table: dict, hidden: Tensor) -> dict:
    """The kernel's options: a tile of the table, and what follows from it."""
    size, width = hidden.element_size(), hidden.shape[1]
    even = width % (64 if size == 2 else 16) == 0
    precision = "ieee" if size == 4 else "tf32"  # matters for 32-bit products only
    return entry(table, (size, even), hidden) | dict(WIDTH=width, EVEN=even, PRECISION=precision, enable_fp_fusion=True)


@triton.jit
def _columns(ptr, offs, WIDTH: tl.constexpr):
    """Elements offs of a vector (WIDTH,), as (1, N) float32; 0 beyond its end."""
    return tl.load(ptr + offs, mask=offs < WIDTH, other=0.0).to(tl.float32)[None, :]


@triton.jit
def _dense(
    hidden,
    dense,
    offs_m,
    offs_n,
    rows,
    WIDTH: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A tile of hidden W^T + b, float32: hidden is a Matrix, dense an Affine."""
    # Rows beyond the last are read as the last row again, and never stored; so these loads need no mask.
    hidden_ptrs = hidden.ptr + tl.minimum(offs_m, rows - 1)[:, None] * hidden.row
    weight_ptrs = dense.weight + tl.minimum(offs_n, WIDTH - 1).to(tl.int64)[:, None] * dense.row
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for first in range(0, WIDTH, BLOCK_K):
        offs_k = first + tl.arange(0, BLOCK_K)[None, :]
        if EVEN:
            x, weight = tl.load(hidden_ptrs + offs_k), tl.load(weight_ptrs + offs_k)
        else:
            x = tl.load(hidden_ptrs + offs_k, mask=offs_k < WIDTH, other=0.0)
            weight = tl.load(weight_ptrs + offs_k, mask=offs_k < WIDTH, other=0.0)
        acc = tl.dot(x, tl.trans(weight), acc, input_precision=PRECISION)
    return acc + _columns(dense.bias, offs_n, WIDTH)


@triton.jit
def discriminator_head_fwd_kernel(
    hidden,
    dense,
    out,
    labels_ptr,
    loss_ptr,
    logits_ptr,
    rows,
    WIDTH: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    hidden, dense, out = Matrix(*hidden), Affine(*dense), Affine(*out)
    offs_m = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    x = tl.zeros((BLOCK_M,), tl.float32)
    for start in range(0, WIDTH, BLOCK_N):
        offs_n = start + tl.arange(0, BLOCK_N)
        z = _dense(hidden, dense, offs_m, offs_n, rows, WIDTH, EVEN, BLOCK_M, BLOCK_N, BLOCK_K, PRECISION)
        gelu, _ = gelu_and_slope(z)
        x += tl.sum(gelu * _columns(out.weight, offs_n, WIDTH), 1)
    x += tl.load(out.bias).to(tl.float32)
    label = tl.load(labels_ptr + offs_m, mask=offs_m < rows, other=0).to(tl.float32)
    e = tl.exp2(-tl.abs(x) * LOG2E)
    loss = tl.maximum(x, 0.0) - x * label + tl.where(e < 1e-3, e - 0.5 * e * e, LN2 * tl.log2(1.0 + e))
    tl.store(loss_ptr + offs_m, loss.to(loss_ptr.dtype.element_ty), mask=offs_m < rows)
    tl.store(logits_ptr + offs_m, x.to(logits_ptr.dtype.element_ty), mask=offs_m < rows)


def discriminator_head_fwd(args: Any) -> tuple[Tensor, Tensor, list[Tensor]]:
    """-> loss (T,), logits (T,), [].

    args: a DiscriminatorHeadArguments (electra_fast/ops/discriminator_head.py)
    """
    loss, logits = (args.hidden.new_empty(args.hidden.shape[0]) for _ in range(2))
    if rows := args.hidden.shape[0]:
        hidden, dense_weight = unit_stride(args.hidden, args.dense_weight)
        chosen = tile(FWD, hidden)
        discriminator_head_fwd_kernel[(triton.cdiv(rows, chosen["BLOCK_M"]),)](
            matrix(hidden),
            affine(dense_weight, args.dense_bias),
            affine(args.out_weight.contiguous(), args.out_bias),
            args.labels.contiguous(),
            loss,
            logits,
            rows,
            **chosen,
        )
    return loss, logits, []


@triton.jit
def discriminator_head_bwd_kernel(
    dloss_ptr,
    dlogits_ptr,
    hidden,
    dense,
    out_weight_ptr,
    labels_ptr,
    logits_ptr,
    dz_ptr,
    parts_ptr,
    rows,
    WIDTH: tl.constexpr,
    EVEN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    tiles: tl.constexpr = (WIDTH + BLOCK_N - 1) // BLOCK_N
    block, start = tl.program_id(0).to(tl.int64) // tiles, tl.program_id(0) % tiles * BLOCK_N
    offs_m, offs_n = block * BLOCK_M + tl.arange(0, BLOCK_M), start + tl.arange(0, BLOCK_N)
    hidden, dense = Matrix(*hidden), Affine(*dense)
    z = _dense(hidden, dense, offs_m, offs_n, rows, WIDTH, EVEN, BLOCK_M, BLOCK_N, BLOCK_K, PRECISION)
    gelu, slope = gelu_and_slope(z)
    inside = offs_m < rows
    x = tl.load(logits_ptr + offs_m, mask=inside, other=0.0).to(tl.float32)
    label = tl.load(labels_ptr + offs_m, mask=inside, other=0).to(tl.float32)
    dloss = tl.load(dloss_ptr + offs_m, mask=inside, other=0.0).to(tl.float32)
    dx = dloss * (1.0 / (1.0 + tl.exp2(-x * LOG2E)) - label)
    dx += tl.load(dlogits_ptr + offs_m, mask=inside, other=0.0).to(tl.float32)
    dz = dx[:, None] * _columns(out_weight_ptr, offs_n, WIDTH) * slope
    places = offs_m[:, None] * WIDTH + offs_n[None, :]
    tl.store(dz_ptr + places, dz.to(dz_ptr.dtype.element_ty), mask=inside[:, None] & (offs_n[None, :] < WIDTH))
    parts_ptr += block * (WIDTH + 1)
    tl.store(parts_ptr + offs_n, tl.sum(tl.where(inside[:, None], dx[:, None] * gelu, 0.0), 0), mask=offs_n < WIDTH)
    if start == 0:
        tl.store(parts_ptr + WIDTH, tl.sum(dx, 0))


def discriminator_head_bwd(grads: list[Tensor], args: Any, saved: list[Tensor]) -> list[Tensor]:
    """grads [dloss, dlogits], saved [loss, logits] -> the gradients of all arguments but labels.

    args: a DiscriminatorHeadArguments
    """
    (rows, width), out_weight, out_bias = args.hidden.shape, args.out_weight, args.out_bias
    if rows == 0:
        tensors = (args.hidden, args.dense_weight, args.dense_bias, out_weight, out_bias)
        return [t.new_zeros(t.shape) for t in tensors]
    hidden, dense_weight = unit_stride(args.hidden, args.dense_weight)
    chosen = tile(BWD, hidden)
    blocks, tiles = triton.cdiv(rows, chosen["BLOCK_M"]), triton.cdiv(width, chosen["BLOCK_N"])
    dz, parts = hidden.new_empty(rows, width), hidden.new_empty(blocks, width + 1, dtype=torch.float32)
    discriminator_head_bwd_kernel[(blocks * tiles,)](
        *(t.contiguous() for t in grads),
        matrix(hidden),
        affine(dense_weight, args.dense_bias),
        out_weight.contiguous(),
        args.labels.contiguous(),
        saved[1],
        dz,
        parts,
        rows,
        **chosen,
    )
    dout_weight, dout_bias = out_weight.new_empty(out_weight.shape), out_bias.new_empty(out_bias.shape)
    dense_gradients = weight_gradients(Product(dz, hidden), also=[(parts, dout_weight, dout_bias)])
    return [input_gradient(dz, dense_weight), *dense_gradients, dout_weight, dout_bias]
