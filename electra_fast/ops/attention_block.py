"""attention_block: y = LayerNorm(x + dropout(Wo attention(Wqkv x + bqkv) + bo)), the first half of a transformer layer.

With `rows`, only these R rows of x are queries, and the result is (R, D). The generator's last layer uses this: its
output is needed at the masked positions only, but its keys and values at every position. The random bytes of both
dropouts are keyed by the row ids of the queries (_philox.py).
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from electra_fast.ops._backend import Backend, triton_backend
from electra_fast.ops._check import (
    check_devices,
    check_floats,
    check_integers,
    check_matrix,
    check_probability,
    check_queries,
    check_query_values,
    check_shape,
    seed_tensor,
)
from electra_fast.ops._core import core
from electra_fast.ops._differentiable import DifferentiableOp
from electra_fast.ops._library import Size
from electra_fast.ops._structs import (
    Affine,
    AttentionBlock,
    AttentionKept,
    AttentionWeights,
    Dropout,
    Normed,
    Rows,
    Sequences,
    dropout_threshold,
)
from electra_fast.ops.attention import AttentionArguments, attention_reference
from electra_fast.ops.dropout_add_layer_norm import DropoutAddLayerNormArguments, dropout_add_layer_norm_reference


class AttentionBlockArguments(NamedTuple):
    """The arguments of `attention_block`, in the order of the dispatcher op; max_rows is 0 without rows."""

    x: Tensor
    qkv_weight: Tensor
    qkv_bias: Tensor
    out_weight: Tensor
    out_bias: Tensor
    norm_weight: Tensor
    norm_bias: Tensor
    cu_seqlens: Tensor
    max_seqlen: Size
    row_ids: Tensor
    num_heads: int
    rows: Tensor | None
    cu_rows: Tensor | None
    max_rows: Size
    seed: Tensor
    eps: float
    attention_dropout_p: float
    dropout_p: float


class Queries(NamedTuple):
    """The rows that are queries: all of x, or those that `rows` names."""

    x: Tensor  # (R, D)
    cu_seqlens: Tensor  # (N + 1,) int32
    max_seqlen: int
    row_ids: Tensor  # (R,) int64


def attention_block(
    x: Tensor,
    qkv_weight: Tensor,
    qkv_bias: Tensor,
    out_weight: Tensor,
    out_bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    row_ids: Tensor,
    *,
    num_heads: int,
    rows: Tensor | None = None,
    cu_rows: Tensor | None = None,
    max_rows: int | None = None,
    eps: float = 1e-12,
    attention_dropout_p: float = 0.0,
    dropout_p: float = 0.0,
    seed: int | Tensor = 0,
) -> Tensor:
    """The attention block of a post-LN transformer layer: LayerNorm(x + dropout(Wo attention(Wqkv x + bqkv) + bo)).

    x: (T, D), packed rows, of a floating-point dtype that all weights have.
    qkv_weight, qkv_bias: (3 D, D) and (3 D,), the rows of Q, then of K, then of V.
    out_weight, out_bias: (D, D) and (D,), the output projection.
    norm_weight, norm_bias: (D,), those of the LayerNorm.
    cu_seqlens: (N + 1,) int32, the row where each sequence begins, and at the end T.
    max_seqlen: the length of the longest sequence, or more.
    row_ids: (T,) int64, the ids of the rows, by which both dropouts' random numbers are keyed.
    num_heads: H, which divides D.
    rows: (R,) int64, the rows of x that are queries, in the order of the sequences; all rows by default.
    cu_rows: (N + 1,) int32, the element of `rows` where each sequence begins, and at the end R.
    max_rows: the number of `rows` of the sequence that has most, or more.
    eps: the number that the LayerNorm adds to the variance.
    attention_dropout_p, dropout_p: the probabilities with which an attention probability, and an element of the
        projection, are set to 0, rounded to 1/256.
    seed: of both dropouts, an int of 64 bits or a one-element int64 tensor.

    Returns (T, D), or (R, D) with rows.

    Raises TypeError if the dtypes differ, ValueError if shapes or offsets do not fit, heads do not divide D, or a
    probability lies outside [0, 1], RuntimeError if the tensors are on several devices, and on the CPU IndexError if
    `rows` names a row that is not in x.

    Cost: 6 T D D + 2 R D D + 4 D sum(R_n S_n) flops forward, over the sequences' queries and keys, and about twice that
    backward.

    Source: Vaswani et al., NeurIPS 2017 (the post-LN transformer).
    """
    name = "attention_block"
    check_matrix(name, x=x)
    width = x.shape[1]
    weights: dict[str, Any] = dict(qkv_weight=qkv_weight, qkv_bias=qkv_bias, out_weight=out_weight, out_bias=out_bias)
    norms: dict[str, Any] = dict(norm_weight=norm_weight, norm_bias=norm_bias)
    integers = dict(row_ids=row_ids, rows=rows)
    check_devices(name, x=x, **weights, **norms, **integers, cu_seqlens=cu_seqlens, cu_rows=cu_rows)
    check_floats(name, x=x, **weights, **norms)
    check_integers(name, torch.int64, **integers)
    check_shape(name, "qkv_weight", qkv_weight, 3 * width, width)
    check_shape(name, "qkv_bias", qkv_bias, 3 * width)
    check_shape(name, "out_weight", out_weight, width, width)
    for label, tensor in dict(out_bias=out_bias, **norms).items():
        check_shape(name, label, tensor, width)
    args = AttentionBlockArguments(
        x,
        **weights,
        **norms,
        cu_seqlens=cu_seqlens,
        max_seqlen=max_seqlen,
        row_ids=row_ids,
        num_heads=num_heads,
        rows=rows,
        cu_rows=cu_rows,
        max_rows=max_rows or 0,
        seed=seed_tensor(name, seed, x.device),
        eps=float(eps),
        attention_dropout_p=check_probability(name, "attention_dropout_p", attention_dropout_p),
        dropout_p=check_probability(name, "dropout_p", dropout_p),
    )
    check_queries(name, args, max_rows)
    return _attention_block(args)


def attention_block_reference(args: AttentionBlockArguments) -> Tensor:
    x, weight, bias, heads = args.x, args.qkv_weight, args.qkv_bias, args.num_heads
    queries, width = _queries(args), x.shape[1]
    q = F.linear(queries.x, weight[:width], bias[:width])
    k, v = F.linear(x, weight[width:], bias[width:]).split(width, 1)
    q, k, v = (t.unflatten(1, (heads, width // heads)) for t in (q, k, v))
    scale = 1 / math.sqrt(max(1, width // heads))
    offsets = (queries.cu_seqlens, queries.max_seqlen, args.cu_seqlens, args.max_seqlen)
    p = args.attention_dropout_p
    read = attention_reference(AttentionArguments(q, k, v, *offsets, queries.row_ids, args.seed, scale, p, False))
    projected = F.linear(read.flatten(1), args.out_weight, args.out_bias)
    norm = (args.norm_weight, args.norm_bias, queries.row_ids, args.seed, args.eps, args.dropout_p)
    return dropout_add_layer_norm_reference(DropoutAddLayerNormArguments(projected, queries.x, *norm))


def _queries(args: AttentionBlockArguments) -> Queries:
    if args.rows is None or args.cu_rows is None:
        return Queries(args.x, args.cu_seqlens, args.max_seqlen, args.row_ids)
    return Queries(args.x[args.rows], args.cu_rows, args.max_rows, args.row_ids[args.rows])


def _count(args: AttentionBlockArguments) -> int:
    """R, the number of queries."""
    return (args.x if args.rows is None else args.rows).shape[0]


def _fake(args: AttentionBlockArguments) -> tuple[Tensor]:
    return (args.x.new_empty(_count(args), args.x.shape[1]),)


def _saves(args: AttentionBlockArguments) -> list[Tensor]:
    """Queries (R, D), keys and values (T, 2 D), the output of attention (R, D), the log-sum-exps of its scores (R, H),
    and the normalised rows (R, D) with 1 / standard deviation of each (R,)."""
    new, count, (total, width) = args.x.new_empty, _count(args), args.x.shape
    kept = (new(count, width), new(total, 2 * width), new(count, width), new(count, args.num_heads))
    return [*kept, new(count, width), new(count)]


def _kept(saved: list[Tensor]) -> AttentionKept:
    queries, keys_values, read, lse, xhat, rstd = (t.contiguous() for t in saved)
    return AttentionKept(queries, keys_values, read, lse, Normed(xhat, rstd))


def _weights(args: AttentionBlockArguments) -> AttentionWeights:
    return AttentionWeights(
        Affine.of(args.qkv_weight, args.qkv_bias),
        Affine.of(args.out_weight, args.out_bias),
        Affine.of(args.norm_weight, args.norm_bias),
    )


def _struct(args: AttentionBlockArguments, queries: Queries) -> AttentionBlock:
    x = Rows.of(args.x)
    return AttentionBlock(
        x,
        x if args.rows is None else Rows.of(queries.x),
        Sequences.of(queries.cu_seqlens, args.cu_seqlens),
        args.num_heads,
        Dropout.of(queries.row_ids, args.seed, args.dropout_p),
        dropout_threshold(args.attention_dropout_p),
    )


def _forward_cpu(args: AttentionBlockArguments) -> tuple[Tensor, list[Tensor]]:
    block, out, saved = _struct(args, _queries(args)), _fake(args)[0], _saves(args)
    core.attention_block_fwd(block, _weights(args), args.eps, out, _kept(saved), torch.get_num_threads())
    return out, saved


def _backward_cpu(grads: list[Tensor], args: AttentionBlockArguments, saved: list[Tensor]) -> list[Tensor]:
    _out, *kept = saved
    block, weights, dx = _struct(args, _queries(args)), _weights(args), args.x.new_empty(args.x.shape)
    dqueries = dx if args.rows is None else torch.empty_like(block.queries.data)
    gradients = [Affine(*(t.new_empty(t.shape) for t in layer)) for layer in weights]
    read = (grads[0].contiguous(), block, weights, _kept(kept))
    core.attention_block_bwd(*read, dx, dqueries, AttentionWeights(*gradients), torch.get_num_threads())
    dx = dx if args.rows is None else dx.index_add_(0, args.rows, dqueries)
    return [dx, *(t for layer in gradients for t in layer)]


def saves_cuda(args: AttentionBlockArguments) -> list[Tensor]:
    """What the Triton forward saves, in this order.

    The LayerNorm's input (R, D), its mean and 1 / standard deviation (R,), and the scores' log-sum-exps (H, R). The
    projection (T, 3 D), or with `rows` the queries (R, D), and keys and values (T, 2 D). The output of attention
    (R, H, D / H), unless the backward computes it again.
    """
    x, count, (total, width) = args.x, _count(args), args.x.shape
    statistics = [x.new_empty(shape, dtype=torch.float32) for shape in ((count,), (count,), (args.num_heads, count))]
    shapes = [(total, 3 * width)] if args.rows is None else [(count, width), (total, 2 * width)]
    z, *projections = (x.new_empty(shape) for shape in ((count, width), *shapes))
    read = [x.new_empty(count, args.num_heads, width // args.num_heads)] if saves_read(args) else []
    return [z, *statistics, *projections, *read]


def saves_read(args: AttentionBlockArguments) -> bool:
    """Whether the Triton forward saves the output of attention. If one block holds all keys of a sequence, the backward
    computes it again instead."""
    from electra_fast.kernels.attention import reads_again  # which imports triton

    heads = args.x.unflatten(1, (args.num_heads, args.x.shape[1] // args.num_heads))
    return not reads_again(heads, args.max_seqlen)


_attention_block = DifferentiableOp(
    "attention_block",
    AttentionBlockArguments,
    outputs=("out",),
    differentiable=("x", "qkv_weight", "qkv_bias", "out_weight", "out_bias", "norm_weight", "norm_bias"),
    reference=attention_block_reference,
    fake=_fake,
    cpu=Backend(_forward_cpu, _backward_cpu, _saves),
    cuda=triton_backend(
        ("attention_block", "attention_block_fwd"),
        ("attention_block_bwd", "attention_block_bwd"),
        saves=saves_cuda,
        takes=lambda args: args.x.shape[1] <= min(4096, 128 * args.num_heads),
        limit="rows up to 4096 wide and heads up to 128",
    ),
    check=lambda args: check_query_values("attention_block", args),
)
