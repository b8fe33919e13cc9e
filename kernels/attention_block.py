"""attention_block on the GPU: out = LayerNorm(z), z = x + dropout(attention(x Wqkv^T + bqkv) Wo^T + bo).

It is one launch if rows are narrow and sequences short, else a launch for each part.

attention_block_fwd_kernel: a program computes one sequence. It reads the sequence's rows of x and keeps them on chip,
computes queries, keys and values, 64 columns at a time; then each head's attention, whose scores, softmax and dropout
stay in registers; then the output projection; and last dropout, residual and LayerNorm (add_and_normalise). Each step
writes its result to memory, since the backward needs it and registers would not hold all of them; the next step reads
it from the cache. No other program reads or writes these rows, so a barrier within the program is enough. It writes
qkv, attention's output, log-sum-exps, z, out and the norm's statistics.

Otherwise, and if only some rows are queries, the parts are linear.py, attention.py on views of the packed projection,
linear.py again and dropout_add_layer_norm.py: queries, keys and values are columns of one (T, 3 D) product. If only
some rows are queries, their queries are a product of their own, (R, D), and keys and values are one of (T, 2 D). The
backward is in attention_block_bwd.py. No atomics, and two runs give the same bits.

ELECTRA-Small, T = 16384 (128 x 128), D = 256, 4 heads, bf16, at 790 TFLOP/s and 4.3 TB/s:
                   flops    us   elements moved       us     launches (eager)
    one launch     10.7 GF  14   7 T D        59 MB   14     1        (6 to 13)
    in parts       10.7 GF  14   13 T D      109 MB   25     4
The one launch reads the weights, 0.5 MB, for each sequence, 67 MB from the L2, and 34 MB of its own results. It is one
program of 8 warps a multiprocessor, whose steps wait for each other, so it will take far more than 14 us; it saves
50 MB and three launch boundaries. The generator, D = 64 and one head, has 5 us of boundaries in parts, and 3 us of
traffic. A sequence much shorter than BLOCK_S wastes its program. Which is faster is still to be raced; FWD decides.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .attention import Packing, attend, reads_again
from .dropout_add_layer_norm import normalised_sum
from .linear import product, unit_stride
from .parts.device import entry
from .parts.groups import Affine, Dropout, Matrix, affine, dropout, matrix
from .parts.layer_norm import Norm, add_and_normalise
from .parts.philox import dropout_keep

LOG2E = tl.constexpr(1.4426950408889634)

# (bytes of an element, D[, generation]) -> tile of the forward in one launch, see device.py: for heads of 64 and
# sequences of at most BLOCK_S tokens; BLOCK_R rows are normalised at once.
FWD = {
    (2, 64): dict(BLOCK_S=128, BLOCK_R=64, num_warps=8, num_stages=1),
    (2, 128): dict(BLOCK_S=128, BLOCK_R=32, num_warps=8, num_stages=1),
    (2, 256): dict(BLOCK_S=128, BLOCK_R=32, num_warps=8, num_stages=1),
    (2, 256, 86): {},
}


def in_one_launch(x: Tensor, max_seqlen: int, num_heads: int) -> bool:
    """Whether the table has a tile for rows of this width and sequences of this length on this device."""
    chosen = entry(FWD, (x.element_size(), x.shape[1]), x)
    return chosen != {} and x.shape[1] == 64 * num_heads and max_seqlen <= chosen["BLOCK_S"]


class Buffers(NamedTuple):
    """What the one launch writes besides the norm's statistics, contiguous."""

    qkv: Any  # (T, 3 D): queries, keys and values
    read: Any  # (T, D): attention's output
    lse: Any  # (H, T) float32: log-sum-exps of the scores, in powers of two
    z: Any  # (T, D): the norm's input
    out: Any  # (T, D)
    tokens: Any  # T


@triton.jit
def _weight(linear, rows, columns):
    """A tile of an Affine's weight."""
    return tl.load(linear.weight + rows.to(tl.int64)[:, None] * linear.row + columns[None, :])


@triton.jit
def attention_block_fwd_kernel(
    x,
    projection,
    output,
    norm,
    cu_seqlens_ptr,
    attention_dropout,
    dropout,
    buffers,
    scale,
    eps,
    WIDTH: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_H: tl.constexpr,
    BLOCK_R: tl.constexpr,
    PRECISION: tl.constexpr,
):
    x, norm, buffers = Matrix(*x), Norm(*norm), Buffers(*buffers)
    projection, output = Affine(*projection), Affine(*output)
    if attention_dropout is not None:
        attention_dropout = Dropout(*attention_dropout)
    if dropout is not None:
        dropout = Dropout(*dropout)
    n = tl.program_id(0)
    start = tl.load(cu_seqlens_ptr + n).to(tl.int64)
    length = tl.load(cu_seqlens_ptr + n + 1).to(tl.int64) - start
    if length == 0:
        return
    place, columns, column = tl.arange(0, BLOCK_S), tl.arange(0, WIDTH), tl.arange(0, BLOCK_H)
    rows, inside = start + place, place < length
    x_rows = tl.load(x.ptr + rows[:, None] * x.row + columns[None, :], mask=inside[:, None], other=0.0)
    for first in tl.range(0, 3 * WIDTH, BLOCK_H, num_stages=3):
        outer = first + column
        weight = _weight(projection, outer, columns)
        bias = tl.load(projection.bias + outer).to(tl.float32)
        qkv = tl.dot(x_rows, tl.trans(weight), input_precision=PRECISION) + bias[None, :]
        tl.store(buffers.qkv + rows[:, None] * (3 * WIDTH) + outer[None, :], qkv.to(x_rows.dtype), mask=inside[:, None])
    tl.debug_barrier()  # other threads of the program read qkv

    keep_scale = 1.0
    if attention_dropout is not None:
        keep_scale = attention_dropout.scale
        seed = tl.load(attention_dropout.seed)
        ids = tl.load(attention_dropout.row_ids + rows, mask=inside, other=0)
    lse_ptrs = buffers.lse + rows
    for head in range(0, WIDTH // BLOCK_H):
        outer = head * BLOCK_H + column
        q_ptrs = buffers.qkv + rows[:, None] * (3 * WIDTH) + outer[None, :]
        q = tl.load(q_ptrs, mask=inside[:, None], other=0.0)
        k = tl.load(q_ptrs + WIDTH, mask=inside[:, None], other=0.0)
        v = tl.load(q_ptrs + 2 * WIDTH, mask=inside[:, None], other=0.0)
        s = tl.dot(q, tl.trans(k), input_precision=PRECISION) * (scale * LOG2E)
        s = tl.where(inside[None, :], s, float("-inf"))
        largest = tl.max(s, 1)
        p = tl.exp2(s - largest[:, None])
        total = tl.sum(p, 1)
        if attention_dropout is not None:
            keep = dropout_keep(seed, ids, 0, 1 + head, attention_dropout.threshold, BLOCK_S, BLOCK_S)
            p = tl.where(keep, p, 0.0)
        acc = tl.dot(p.to(v.dtype), v, input_precision=PRECISION) * (keep_scale / total)[:, None]
        tl.store(buffers.read + rows[:, None] * WIDTH + outer[None, :], acc.to(x_rows.dtype), mask=inside[:, None])
        tl.store(lse_ptrs, largest + tl.log2(total), mask=inside)
        lse_ptrs += buffers.tokens
    tl.debug_barrier()

    acc = tl.zeros((BLOCK_S, WIDTH), tl.float32)
    for first in tl.range(0, WIDTH, BLOCK_H, num_stages=2):
        read_ptrs = buffers.read + rows[:, None] * WIDTH + (first + column)[None, :]
        read = tl.load(read_ptrs, mask=inside[:, None], other=0.0)
        weight = _weight(output, columns, first + column)
        acc = tl.dot(read, tl.trans(weight), acc, input_precision=PRECISION)
    acc += tl.load(output.bias + columns).to(tl.float32)[None, :]
    places = rows[:, None] * WIDTH + columns[None, :]
    tl.store(buffers.z + places, acc.to(x_rows.dtype), mask=inside[:, None])
    end = start + length
    add_and_normalise(x, buffers.z, buffers.out, norm, dropout, eps, start, end, WIDTH, BLOCK_R)


def _one_launch(args: Any) -> tuple[Tensor, list[Tensor], list[Tensor], Tensor]:
    """Returns (out, [z, mean, rstd, lse], [qkv], attention's output (T, H, D / H))."""
    x, qkv_weight, out_weight = unit_stride(args.x, args.qkv_weight, args.out_weight)
    tokens, width = x.shape
    out, z, read = (x.new_empty(x.shape) for _ in range(3))
    qkv, lse = x.new_empty(tokens, 3 * width), x.new_empty(args.num_heads, tokens, dtype=torch.float32)
    mean, rstd = (x.new_empty(tokens, dtype=torch.float32) for _ in range(2))
    if sequences := args.cu_seqlens.shape[0] - 1:
        attention_block_fwd_kernel[(sequences,)](
            matrix(x),
            affine(qkv_weight, args.qkv_bias),
            affine(out_weight, args.out_bias),
            (args.norm_weight.contiguous(), args.norm_bias.contiguous(), mean, rstd),
            args.cu_seqlens.contiguous(),
            dropout(args.row_ids, args.seed, args.attention_dropout_p),
            dropout(args.row_ids, args.seed, args.dropout_p),
            (qkv, read, lse, z, out, tokens),
            1 / math.sqrt(width // args.num_heads),
            args.eps,
            WIDTH=width,
            BLOCK_H=64,
            PRECISION="ieee" if x.element_size() == 4 else "tf32",
            enable_fp_fusion=True,
            **entry(FWD, (x.element_size(), width), x),
        )
    return out, [z, mean, rstd, lse], [qkv], read.unflatten(1, (args.num_heads, -1))


def attention_block_fwd(args: Any, ids: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
    """-> out (R, D), and what is saved: [z (R, D), mean, rstd (R,), lse (H, R), qkv (T, 3 D), attention's output (R, H,
    D / H)]. If `rows` is None, all rows are queries, R = T; else qkv is queries (R, D), and keys and values (T, 2 D).
    Attention's output is not saved if the backward can compute it again (`reads_again`).

    args: an AttentionBlockArguments (electra_fast/ops/attention_block.py)
    ids: (R,), the row ids of the queries, if the caller has them
    """
    x, weight, bias, width = args.x, args.qkv_weight, args.qkv_bias, args.x.shape[1]
    if args.rows is None and in_one_launch(x, args.max_seqlen, args.num_heads):
        out, saved, projections, read = _one_launch(args)
    else:
        queries = queries_of(args, ids)
        if args.rows is None:
            projections = [product(x, weight, bias)[0]]
        else:
            projected, _ = product(queries.x, weight[:width], bias[:width])
            projections = [projected, product(x, weight[width:], bias[width:])[0]]
        mask = dropout(queries.row_ids, args.seed, args.attention_dropout_p)
        qkv, scale = heads_of(projections, args.num_heads), 1 / math.sqrt(width // args.num_heads)
        read, lse = attend(qkv, queries.packing, mask, scale)
        z, _ = product(read.flatten(1), args.out_weight, args.out_bias)
        mask = dropout(queries.row_ids, args.seed, args.dropout_p)
        norm = (args.norm_weight, args.norm_bias)
        out, statistics = normalised_sum(z, queries.x, norm, mask, args.eps, into_x=True)
        saved = [z, *statistics, lse]
    return out, [*saved, *projections, *([] if reads_again(read, args.max_seqlen) else [read])]


class Queries(NamedTuple):
    """The rows that are queries."""

    x: Any  # (R, D), or a Normed if the rows are not saved
    row_ids: Tensor  # (R,)
    packing: Packing


def queries_of(args: Any, ids: Tensor | None) -> Queries:
    """The queries of an AttentionBlockArguments; ids: their row ids, if the caller has them."""
    keys = (args.cu_seqlens, args.max_seqlen)
    if args.rows is None:
        return Queries(args.x, args.row_ids, Packing(*keys, *keys))
    ids = args.row_ids[args.rows] if ids is None else ids
    return Queries(args.x[args.rows], ids, Packing(args.cu_rows, args.max_rows, *keys))


def heads_of(projections: list[Tensor], heads: int) -> list[Tensor]:
    """Queries, keys and values, (., H, D / H) each, as views of one projection (T, 3 D) or of two, (R, D) and
    (T, 2 D)."""
    width = projections[-1].shape[1]
    *queries, others = projections
    count = 2 if queries else 3
    views = others.unflatten(1, (count, heads, width // count // heads)).unbind(1)
    return [*(q.unflatten(1, (heads, -1)) for q in queries), *views]
