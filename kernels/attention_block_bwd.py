"""attention_block's backward on the GPU: the gradients of x, both weights, both biases and the norm, in five launches.

attention_block_bwd_kernel: a program takes BLOCK_M rows through the norm and the dropout, a few at a time
(add_and_normalise_bwd), to the gradients of the output projection and of the residual. It writes both, since the
weights' gradients need the former, and multiplies it by the projection's weight: dread = dprojected W, the gradient of
attention's output, BLOCK_N columns at a time. Wider rows take dropout_add_layer_norm.py's launch and linear.py's.
Then come attention.py's backward, which writes the gradients of q, k and v side by side, so that the gradients of x and
of the weight are one product each; linear.py for dx; and linear_weight.py for both weights' gradients, whose sums and
the norm's are one more launch. The gradients of rows that are queries twice are added by index_put_, which sorts, so in
order. No atomics, and two runs give the same bits.

ELECTRA-Small, T = 16384 (128 x 128), D = 256, 4 heads, bf16, at 790 TFLOP/s and 4.3 TB/s:
                      flops    us   elements moved            us   launches (eager PyTorch)
    norm, dropout, W  2.1 GF   3    6 T D          50 MB      12   1  (5)
    attention         5.4 GF   7    8 T D          67 MB      16   1  (9)
    dx                6.4 GF   8    5 T D          42 MB      10   1  (2)
    weights, sums     8.6 GF   11   6 T D + sums   84 MB      20   2  (6)
As two launches, norm and product would move 7 T D, since the product reads what the norm writes. 64 rows a program are
256 programs, two a multiprocessor (planned occupancy), so the traffic of one overlaps with the products of the other.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .attention import put_gradients
from .attention_block import heads_of, queries_of
from .dropout_add_layer_norm import row_gradients
from .linear import input_gradient, unit_stride
from .linear_weight import Product, weight_gradients
from .parts.device import entry
from .parts.groups import Dropout, Matrix, dropout, matrix
from .parts.layer_norm import Normed, NormGradients, add_and_normalise_bwd, rows_and_source
from .parts.partials import Sum

# (bytes of an element, D[, generation]) -> tile, see device.py: BLOCK_N divides D; BLOCK_R rows go through the norm at
# once.
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
    # Rows beyond the last are read as the last row again, and never stored.
    row, inside = tl.minimum(offs_m, rows - 1)[:, None], offs_m[:, None] < rows
    dprojected = tl.load(gradients.dy + row * WIDTH + columns[None, :])
    for first in range(0, WIDTH, BLOCK_N):
        offs_n = first + tl.arange(0, BLOCK_N)
        part = tl.load(weight.ptr + columns.to(tl.int64)[:, None] * weight.row + offs_n[None, :])
        dread = tl.dot(dprojected, part, input_precision=PRECISION).to(dcontext_ptr.dtype.element_ty)
        tl.store(dcontext_ptr + offs_m[:, None] * WIDTH + offs_n[None, :], dread, mask=inside)


def _to_read(
    dout: Tensor, norm: Normed, x: Tensor | Normed, mask: tuple | None, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Sum]:
    """Returns dprojected, dx of the residual, dread and x, each (R, D), and the Sum that gives the norm's gradients.

    mask: the Dropout of the projection, or None
    weight: the output projection's
    """
    z = norm.z
    rows, width = z.shape
    size = z.element_size()
    chosen = entry(BWD, (size, width), z)
    if not chosen or rows == 0:
        dprojected, dx, x, left = row_gradients(dout, norm, x, mask)
        return dprojected, dx, input_gradient(dprojected, weight), x, left
    x, source = rows_and_source(x)
    dout, weight = unit_stride(dout, weight)
    programs = triton.cdiv(rows, chosen["BLOCK_M"])
    dprojected, dx, dread = (torch.empty_like(z) for _ in range(3))
    parts = z.new_empty(programs, 2, width, dtype=torch.float32)
    attention_block_bwd_kernel[(programs,)](
        matrix(dout),
        (z, norm.mean, norm.rstd, norm.weight.contiguous(), None),
        x,
        mask,
        source,
        (dprojected, dx, parts),
        matrix(weight),
        dread,
        rows,
        WIDTH=width,
        PRECISION="ieee" if size == 4 else "tf32",  # matters for 32-bit products only
        enable_fp_fusion=True,
        **chosen,
    )
    return dprojected, dx, dread, x, (parts, torch.empty_like(norm.weight), torch.empty_like(norm.bias))


def attention_block_bwd(grads: list[Tensor], args: Any, saved: list[Tensor], ids: Tensor | None = None) -> list[Tensor]:
    """grads [dout], saved [out, what the forward saved] -> the gradients of the seven tensors from x to norm_bias.

    args: an AttentionBlockArguments (electra_fast/ops/attention_block.py), whose x is a Normed if the encoder did not
        save it, which is allowed if all rows are queries
    ids: (R,), the row ids of the queries, if the caller has them
    """
    _, z, mean, rstd, lse, *projections = saved
    kept = projections.pop() if len(projections) > 1 + (args.rows is not None) else None
    queries, num_heads, weight = queries_of(args, ids), args.num_heads, args.qkv_weight
    width, scale = z.shape[1], 1 / math.sqrt(z.shape[1] // num_heads)
    of_norm = Normed(z, mean, rstd, args.norm_weight, args.norm_bias)
    mask = dropout(queries.row_ids, args.seed, args.dropout_p)
    dprojected, dquery_x, dread, query_x, norm = _to_read(grads[0], of_norm, queries.x, mask, args.out_weight)
    dread = dread.unflatten(1, (num_heads, width // num_heads))
    read = torch.empty_like(dread) if kept is None else kept
    gradients = [torch.empty_like(t) for t in projections]
    qkv, dqkv = heads_of(projections, num_heads), heads_of(gradients, num_heads)
    mask = dropout(queries.row_ids, args.seed, args.attention_dropout_p)
    put_gradients(dqkv, dread, qkv, [read, lse], queries.packing, mask, scale, again=kept is None)
    into = torch.empty_like(weight, memory_format=torch.contiguous_format), args.qkv_bias.new_empty(3 * width)
    if args.rows is None:
        (dprojection,) = gradients
        dx = input_gradient(dprojection, weight, add=dquery_x)
        parts = [Product(dprojection, query_x, into=into)]
    else:
        dq, dkv = gradients
        dquery_x = input_gradient(dq, weight[:width], add=dquery_x)
        dx = input_gradient(dkv, weight[width:]).index_put_((args.rows,), dquery_x, accumulate=True)
        first, others = zip(*(t.tensor_split([width]) for t in into), strict=True)
        parts = [Product(dq, query_x, into=first), Product(dkv, args.x, into=others)]
    dout_weights = weight_gradients(Product(dprojected, read.flatten(1)), *parts, also=[norm])[:2]
    return [dx, *into, *dout_weights, *norm[1:]]
