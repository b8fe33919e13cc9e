"""attention_block: y = LayerNorm(x + dropout(Wo attention(Wqkv x + bqkv) + bo)), the first half of a layer.

x (T, D), Wqkv (3 D, D) with the rows of Q, K and V in turn, Wo (D, D), LayerNorm weight and bias (D,) -> (T, D).
With `rows` (R,) only these rows of x ask, and the result is (R, D): the last layer of the generator is needed at the
masked positions alone, its keys and values everywhere. Both dropouts are keyed by the row ids of the asking rows
(_philox.py). Cost: 2 T D (3 D) + 2 R D D + 4 D sum(R_n S_n) flops forward, about twice that backward.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from electra_fast.ops._check import (
    check_asking,
    check_devices,
    check_floats,
    check_integers,
    check_matrix,
    check_probability,
    check_shape,
    seed_tensor,
)
from electra_fast.ops._core import core
from electra_fast.ops._library import Backend, DifferentiableOp, launcher
from electra_fast.ops._philox import dropout_threshold
from electra_fast.ops.attention import attention_reference
from electra_fast.ops.dropout_add_layer_norm import dropout_add_layer_norm_reference


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
    num_heads: int,
    rows: Tensor | None = None,
    cu_rows: Tensor | None = None,
    max_rows: int | None = None,
    eps: float = 1e-12,
    attention_dropout_p: float = 0.0,
    dropout_p: float = 0.0,
    seed: int | Tensor = 0,
) -> Tensor:
    """x (T, D), qkv (3 D, D) and (3 D,), out (D, D) and (D,), norm (D,) twice, row_ids (T,) int64 -> (T, D).

    rows (R,) int64 index x, grouped by sequence as cu_rows (N + 1,) int32 says, at most max_rows in one -> (R, D).
    Raises IndexError on a row that is not in x (on the CPU), TypeError on mixed dtypes, ValueError on shapes, offsets,
    heads that do not divide D or probabilities outside [0, 1], RuntimeError on mixed devices.
    """
    name = "attention_block"
    check_matrix(name, x=x)
    width = x.shape[1]
    weights = dict(qkv_weight=qkv_weight, qkv_bias=qkv_bias, out_weight=out_weight, out_bias=out_bias)
    norms = dict(norm_weight=norm_weight, norm_bias=norm_bias)
    integers = dict(row_ids=row_ids, rows=rows)
    check_devices(name, x=x, **weights, **norms, **integers, cu_seqlens=cu_seqlens, cu_rows=cu_rows)
    check_floats(name, x=x, **weights, **norms)
    check_integers(name, torch.int64, **integers)
    check_shape(name, "qkv_weight", qkv_weight, 3 * width, width)
    check_shape(name, "qkv_bias", qkv_bias, 3 * width)
    check_shape(name, "out_weight", out_weight, width, width)
    for label, tensor in dict(out_bias=out_bias, **norms).items():
        check_shape(name, label, tensor, width)
    check_asking(name, x, cu_seqlens, max_seqlen, row_ids, num_heads, rows, cu_rows, max_rows)
    return _attention_block(
        x,
        *weights.values(),
        *norms.values(),
        cu_seqlens,
        max_seqlen,
        row_ids,
        num_heads,
        rows,
        cu_rows,
        max_rows or 0,
        seed_tensor(name, seed, x.device),
        float(eps),
        check_probability(name, "attention_dropout_p", attention_dropout_p),
        check_probability(name, "dropout_p", dropout_p),
    )


def attention_block_reference(
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
    num_heads: int,
    rows: Tensor | None,
    cu_rows: Tensor | None,
    max_rows: int,
    seed: Tensor,
    eps: float,
    attention_dropout_p: float,
    dropout_p: float,
) -> Tensor:
    width = x.shape[1]
    asking, ids = (x, row_ids) if rows is None else (x[rows], row_ids[rows])
    q = F.linear(asking, qkv_weight[:width], qkv_bias[:width])
    k, v = F.linear(x, qkv_weight[width:], qkv_bias[width:]).split(width, 1)
    q, k, v = (t.unflatten(1, (num_heads, width // num_heads)) for t in (q, k, v))
    cu_q, max_q = (cu_seqlens, max_seqlen) if cu_rows is None else (cu_rows, max_rows)
    scale = 1 / math.sqrt(width // num_heads)
    read = attention_reference(q, k, v, cu_q, max_q, cu_seqlens, max_seqlen, ids, seed, scale, attention_dropout_p)
    projected = F.linear(read.flatten(1), out_weight, out_bias)
    return dropout_add_layer_norm_reference(projected, asking, norm_weight, norm_bias, ids, seed, eps, dropout_p)


def _fake(x: Tensor, *args: Tensor) -> tuple[Tensor]:
    rows = args[10]
    return (x.new_empty((x if rows is None else rows).shape[0], x.shape[1]),)


def _asking(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The rows that ask, their offsets and their ids."""
    x, cu_seqlens, row_ids, rows, cu_rows = args[0], args[7], args[9], args[11], args[12]
    return (x, cu_seqlens, row_ids) if rows is None else (x[rows], cu_rows, row_ids[rows])


def _sizes(*args: Any) -> list[int]:
    x, cu_seqlens, num_heads = args[0], args[7], args[10]
    return [cu_seqlens.numel() - 1, _fake(*args)[0].shape[0], x.shape[0], num_heads, x.shape[1]]


def _saves(*args: Any) -> list[Tensor]:
    """queries (R, D), keys and values (T, 2 D), what was read (R, D), its log-sum-exps (R, H), rows normalised (R, D)
    and what each was divided by, inverted (R,)."""
    x = args[0]
    _, asking, total, heads, width = _sizes(*args)
    shapes = (asking, width), (total, 2 * width), (asking, width), (asking, heads), (asking, width), (asking,)
    return [x.new_empty(shape) for shape in shapes]


def _forward_cpu(*args: Any) -> tuple[Tensor, list[Tensor]]:
    seed, eps, attention_dropout_p, dropout_p = args[14:]
    asking, cu_rows, ids = _asking(*args)
    given = [t.contiguous() for t in (args[0], asking, *args[1:7], cu_rows, args[7], ids)]
    out, saved = _fake(*args)[0], _saves(*args)
    core.attention_block_fwd(
        *(t.data_ptr() for t in given),
        *_sizes(*args),
        seed.item(),
        eps,
        dropout_threshold(attention_dropout_p),
        dropout_threshold(dropout_p),
        *(t.data_ptr() for t in (out, *saved)),
        torch.get_num_threads(),
    )
    return out, saved


def _backward_cpu(grads: list[Tensor], *args: Any) -> list[Tensor]:
    *arguments, saved = args
    x, qkv_weight, _, out_weight, _, norm_weight, _ = weights = [t.contiguous() for t in arguments[:7]]
    rows, seed, _, attention_dropout_p, dropout_p = arguments[11], *arguments[14:]
    asking, cu_rows, ids = _asking(*arguments)
    offsets = (cu_rows, arguments[7], ids)
    read = (grads[0], x, asking, qkv_weight, out_weight, norm_weight, *offsets, *saved[1:])
    held = [t.contiguous() for t in read]
    dx, *others = [torch.empty_like(t) for t in weights]
    dasking = dx if rows is None else torch.empty_like(held[2])
    core.attention_block_bwd(
        *(t.data_ptr() for t in held[:9]),
        *_sizes(*arguments),
        seed.item(),
        dropout_threshold(attention_dropout_p),
        dropout_threshold(dropout_p),
        *(t.data_ptr() for t in (*held[9:], dx, dasking, *others)),
        torch.get_num_threads(),
    )
    return [dx if rows is None else dx.index_add_(0, rows, dasking), *others]


def _saves_cuda(*args: Any) -> list[Tensor]:
    """What goes into the norm (R, D), its mean and 1 / deviation (R,), the scores' log-sum-exps (H, R); the projection
    (T, 3 D), or queries (R, D) and keys and values (T, 2 D); what was read (R, H, D / H), unless the backward has all
    of a sequence's keys at once and makes it again."""
    from electra_fast.kernels.attention import reads_again  # which imports triton

    x, max_seqlen, rows = args[0], args[8], args[11]
    _, asking, total, heads, width = _sizes(*args)
    statistics = [x.new_empty(shape, dtype=torch.float32) for shape in ((asking,), (asking,), (heads, asking))]
    shapes = [(total, 3 * width)] if rows is None else [(asking, width), (total, 2 * width)]
    z, *projections = (x.new_empty(shape) for shape in ((asking, width), *shapes))
    read = x.new_empty(asking, heads, width // heads)
    return [z, *statistics, *projections, *([] if reads_again(read, max_seqlen) else [read])]


_attention_block = DifferentiableOp(
    "attention_block",
    "Tensor x, Tensor qkv_weight, Tensor qkv_bias, Tensor out_weight, Tensor out_bias, Tensor norm_weight, "
    "Tensor norm_bias, Tensor cu_seqlens, SymInt max_seqlen, Tensor row_ids, int num_heads, Tensor? rows, "
    "Tensor? cu_rows, SymInt max_rows, Tensor seed, float eps, float attention_dropout_p, float dropout_p",
    outputs=("out",),
    differentiable=("x", "qkv_weight", "qkv_bias", "out_weight", "out_bias", "norm_weight", "norm_bias"),
    reference=attention_block_reference,
    fake=_fake,
    cpu=Backend(_forward_cpu, _backward_cpu, _saves),
    cuda=Backend(
        launcher("attention_block", "attention_block_fwd"),
        launcher("attention_block_bwd", "attention_block_bwd"),
        saves=_saves_cuda,
        takes=lambda *args: args[0].shape[1] <= min(4096, 128 * args[10]),
        limit="rows up to 4096 wide and heads up to 128",
    ),
)
