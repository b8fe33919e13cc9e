"""attention_block's backward on the GPU: five launches where rows are narrow, of any lengths.

attention_block_bwd_kernel: a program takes BLOCK_M rows through the norm and the dropout, a few at a time, to the
gradients of the output projection and of the residual, as dropout_add_layer_norm.py does, and the former, which the
weight's gradient wants in memory in any case, from there through the projection: dread = dprojected W, BLOCK_N columns
at a time. Wider rows take dropout_add_layer_norm.py's launch and linear.py's.
Then attention.py; the gradients of q, k and v are put side by side, so that the gradients of x and of the weight are
one product each; linear_weight.py takes both weights' gradients together, and sums them and the norm's. The gradients
of rows asked for twice are added by index_put_, which sorts, so in order. No atomics; two runs give the same bits.

ELECTRA-Small, T = 16384 (128 x 128), D = 256, 4 heads, bf16, at 790 TFLOP/s and 4.3 TB/s:
                      flops    us   elements moved            us   launches (eager PyTorch)
    norm, dropout, W  2.1 GF   3    6 T D          50 MB      12   1  (5)
    attention         5.4 GF   7    8 T D          67 MB      16   1  (9)
    dx                6.4 GF   8    5 T D          42 MB      10   1  (2)
    weights, sums     8.6 GF   11   6 T D + sums   84 MB      20   2  (6)
In launches of their own norm and product moved 7 T D: what one wrote the other read. 64 rows are 256 programs, two a
multiprocessor (planned occupancy), so one's traffic meets the other's products.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .attention import put_gradients
from .attention_block import asking_rows, heads_of
from .dropout_add_layer_norm import row_gradients
from .linear import input_gradient, unit_stride
from .linear_weight import Product, weight_gradients
from .parts.device import entry
from .parts.groups import Dropout, Matrix, dropout, matrix
from .parts.layer_norm import Normed, NormGradients, add_and_normalise_bwd, rows_and_source
from .parts.partials import Sum

# (bytes of an element, D[, generation]) -> tile, see device.py: BLOCK_N divides D, BLOCK_R rows at a time are taken
# through the norm.
BWD = {
    (2, 64): dict(BLOCK_M=64, BLOCK_N=64, BLOCK_R=32, num_warps=4, num_stages=2),
    (2, 128): dict(BLOCK_M=64, BLOCK_N=64, BLOCK_R=16, num_warps=4, num_stages=2),
    (2, 256): dict(BLOCK_M=64, BLOCK_N=64, BLOCK_R=8, num_warps=4, num_stages=2),
}


@triton.jit
def attention_block_bwd_kernel(
    dout,
    norm,
    x_ptr,
    dropout,
    source,
    gradients,
    weight,
    dcontext_ptr,
    rows,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_R: tl.constexpr,
    PRECISION: tl.constexpr,
):
    weight, gradients = Matrix(*weight), NormGradients(*gradients)
    if dropout is not None:
        dropout = Dropout(*dropout)
    if source is not None:
        source = Normed(*source)
    start = tl.program_id(0).to(tl.int64) * BLOCK_M
    end = tl.minimum(start + BLOCK_M, rows)
    norm = Normed(*norm)
    add_and_normalise_bwd(Matrix(*dout), norm, x_ptr, dropout, source, gradients, start, end, WIDTH, BLOCK_R)
    offs_m, columns = start + tl.arange(0, BLOCK_M), tl.arange(0, WIDTH)
    here, there = tl.minimum(offs_m, rows - 1)[:, None], offs_m[:, None] < rows
    dprojected = tl.load(gradients.dy + here * WIDTH + columns[None, :])
    for first in range(0, WIDTH, BLOCK_N):
        offs_n = first + tl.arange(0, BLOCK_N)
        part = tl.load(weight.ptr + columns.to(tl.int64)[:, None] * weight.row + offs_n[None, :])
        dread = tl.dot(dprojected, part, input_precision=PRECISION).to(dcontext_ptr.dtype.element_ty)
        tl.store(dcontext_ptr + offs_m[:, None] * WIDTH + offs_n[None, :], dread, mask=there)


def _to_read(
    dout: Tensor,
    z: Tensor,
    x: Tensor | Normed,
    norm_weight: Tensor,
    norm_bias: Tensor,
    row_ids: Tensor,
    seed: Tensor,
    dropout_p: float,
    mean: Tensor,
    rstd: Tensor,
    weight: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Sum]:
    """dprojected, dx of the residual, dread (R, D), x, and what the norm's gradients are the sums of."""
    rows, width = z.shape
    size = z.element_size()
    chosen = entry(BWD, (size, width), z)
    if not chosen or rows == 0:
        norm = (norm_weight, norm_bias, row_ids, seed, dropout_p, mean, rstd)
        dprojected, dx, x, left = row_gradients(dout, z, x, *norm)
        return dprojected, dx, input_gradient(dprojected, weight), x, left
    x, source = rows_and_source(x)
    dout, weight = unit_stride(dout, weight)
    programs = triton.cdiv(rows, chosen["BLOCK_M"])
    dprojected, dx, dread = (torch.empty_like(z) for _ in range(3))
    parts = z.new_empty(programs, 2, width, dtype=torch.float32)
    attention_block_bwd_kernel[(programs,)](
        matrix(dout),
        (z, mean, rstd, norm_weight.contiguous(), None),
        x,
        dropout(row_ids, seed, dropout_p),
        source,
        (dprojected, dx, parts),
        matrix(weight),
        dread,
        rows,
        WIDTH=width,
        PRECISION="ieee" if size == 4 else "tf32",  # of 32-bit products; others have none
        enable_fp_fusion=True,
        **chosen,
    )
    return dprojected, dx, dread, x, (parts, torch.empty_like(norm_weight), torch.empty_like(norm_bias))


def attention_block_bwd(
    grads: list[Tensor],
    x: Tensor | Normed,
    qkv_weight: Tensor,
    qkv_bias: Tensor,
    out_weight: Tensor,
    out_bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    row_ids: Tensor,
    num_heads: int,
    rows: Tensor | None,
    cu_rows: Tensor | None,
    max_rows: int,
    seed: Tensor,
    eps: float,
    attention_dropout_p: float,
    dropout_p: float,
    saved: list[Tensor],
    ids: Tensor | None = None,
) -> list[Tensor]:
    """grads [dout], saved [out, ...] -> a gradient for each of the seven tensors from x, which may be a norm before if
    all rows ask, to norm_bias. ids: of the rows that ask, if they are at hand."""
    _, z, mean, rstd, lse, *projections = saved
    kept = projections.pop() if len(projections) > 1 + (rows is not None) else None
    asking, ids, *offsets = asking_rows(x, row_ids, cu_seqlens, max_seqlen, rows, cu_rows, max_rows, ids)
    width, scale = z.shape[1], 1 / math.sqrt(z.shape[1] // num_heads)
    given = (grads[0], z, asking, norm_weight, norm_bias, ids, seed, dropout_p, mean, rstd)
    dprojected, dasking, dread, asking, norm = _to_read(*given, out_weight)
    dread = dread.unflatten(1, (num_heads, width // num_heads))
    read = torch.empty_like(dread) if kept is None else kept
    gradients = [torch.empty_like(t) for t in projections]
    heads, found = heads_of(projections, num_heads), heads_of(gradients, num_heads)
    numbers = (ids, seed, scale, attention_dropout_p, [read, lse])
    put_gradients(found, dread, *heads, *offsets, *numbers, again=kept is None)
    into = torch.empty_like(qkv_weight, memory_format=torch.contiguous_format), qkv_bias.new_empty(3 * width)
    if rows is None:
        (dqkv,) = gradients
        dx = input_gradient(dqkv, qkv_weight, add=dasking)
        parts = [Product(dqkv, asking, into=into)]
    else:
        assert isinstance(x, Tensor)
        dq, dkv = gradients
        dasking = input_gradient(dq, qkv_weight[:width], add=dasking)
        dx = input_gradient(dkv, qkv_weight[width:]).index_put_((rows,), dasking, accumulate=True)
        first, others = zip(*(t.tensor_split([width]) for t in into), strict=True)
        parts = [Product(dq, asking, into=first), Product(dkv, x, into=others)]
    dout_weights = weight_gradients(Product(dprojected, read.flatten(1)), *parts, also=[norm])[:2]
    return [dx, *into, *dout_weights, *norm[1:]]
