"""attention: softmax(scale Q K^T) V within each sequence of a packed batch, with dropout on the probabilities.

Sequence n has the rows cu_seqlens[n] to cu_seqlens[n + 1]. With cu_seqlens_k, queries and keys have different rows: the
queries may be fewer, or come from another text. Causal attention is aligned at the sequences' ends: the last query sees
all keys, the query before it all but the last, and so on. The result of a query that sees no keys is 0. The random
bytes of dropout are keyed by the query's row id, the head (plane 1 + h) and the key's place in its sequence
(_philox.py).
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from electra_fast.ops._backend import Backend, triton_backend
from electra_fast.ops._check import (
    check_cu_seqlens,
    check_devices,
    check_floats,
    check_integers,
    check_offsets,
    check_probability,
    check_shape,
    seed_tensor,
)
from electra_fast.ops._core import core
from electra_fast.ops._differentiable import DifferentiableOp
from electra_fast.ops._library import Size
from electra_fast.ops._philox import dropout_mask, dropout_scale
from electra_fast.ops._structs import Attention, Dropout, Heads, Sequences, dropout_threshold


class AttentionArguments(NamedTuple):
    """The arguments of `attention`, in the order of the dispatcher op; the keys' offsets are always there."""

    q: Tensor
    k: Tensor
    v: Tensor
    cu_seqlens: Tensor
    max_seqlen: Size
    cu_seqlens_k: Tensor
    max_seqlen_k: Size
    row_ids: Tensor
    seed: Tensor
    softmax_scale: float
    dropout_p: float
    causal: bool


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens: Tensor,
    max_seqlen: int,
    cu_seqlens_k: Tensor | None = None,
    max_seqlen_k: int | None = None,
    *,
    softmax_scale: float | None = None,
    dropout_p: float = 0.0,
    seed: int | Tensor = 0,
    causal: bool = False,
    row_ids: Tensor | None = None,
) -> Tensor:
    """Attention within each sequence of a packed batch, with dropout: dropout(softmax(softmax_scale q k^T)) v.

    q: (T, H, D) queries, of the dtype of k and v. All three may be strided views of one packed projection.
    k, v: (Tk, H, D) keys and values.
    cu_seqlens: (N + 1,) int32, the row of q where each sequence begins, and at the end T.
    max_seqlen: the number of queries of the longest sequence, or more.
    cu_seqlens_k, max_seqlen_k: the same for k and v; by default those of the queries.
    softmax_scale: the factor of the scores; 1 / sqrt(D) by default.
    dropout_p: the probability with which an attention probability is set to 0, rounded to 1/256.
    seed: of dropout, an int of 64 bits or a one-element int64 tensor.
    causal: whether query i of a sequence of S queries and S_k keys sees the keys 0 to S_k - S + i alone, as in a
        decoder; with S = S_k a token sees itself and those before it. If S > S_k, the first S - S_k queries see none.
    row_ids: (T,) int64, the ids of the queries, by which dropout's random numbers are keyed; 0 to T - 1 by default.

    Returns (T, H, D).

    Raises TypeError if the dtypes differ, ValueError if shapes or offsets do not fit or dropout_p lies outside [0, 1],
    RuntimeError if the tensors are on several devices.

    Cost: 4 H D sum(S S_k) flops forward, over the sequences' queries and keys, and 2.5 times that backward; with causal
    about half. C++ and Triton keep no scores in memory.

    Source: Vaswani et al., NeurIPS 2017; Dao et al., NeurIPS 2022 (FlashAttention).
    """
    cu_k = cu_seqlens if cu_seqlens_k is None else cu_seqlens_k
    max_k = max_seqlen if max_seqlen_k is None else max_seqlen_k
    row_ids = torch.arange(q.shape[0], device=q.device) if row_ids is None else row_ids
    check_devices("attention", q=q, k=k, v=v, cu_seqlens=cu_seqlens, cu_seqlens_k=cu_k, row_ids=row_ids)
    check_floats("attention", q=q, k=k, v=v)
    check_integers("attention", torch.int64, row_ids=row_ids)
    if q.dim() != 3:
        raise ValueError(f"attention: q has shape {tuple(q.shape)}; packed (tokens, heads, head dim) is needed")
    check_shape("attention", "k", k, k.shape[0], *q.shape[1:])
    check_shape("attention", "v", v, *k.shape)
    check_shape("attention", "row_ids", row_ids, q.shape[0])
    check_shape("attention", "cu_seqlens_k", cu_k, *cu_seqlens.shape)
    check_offsets("attention", "cu_seqlens", cu_seqlens)
    check_offsets("attention", "cu_seqlens_k", cu_k)
    p = check_probability("attention", "dropout_p", dropout_p)
    scale = 1 / math.sqrt(max(1, q.shape[2])) if softmax_scale is None else float(softmax_scale)
    seed = seed_tensor("attention", seed, q.device)
    offsets = (cu_seqlens, max_seqlen, cu_k, max_k)
    return _attention(AttentionArguments(q, k, v, *offsets, row_ids, seed, scale, p, causal))


def attention_reference(args: AttentionArguments) -> Tensor:
    """The formula on padded rows (N, S, H, D); a query and a key of different sequences never meet."""
    q, k, v, cu_seqlens = args.q, args.k, args.v, args.cu_seqlens
    if q.shape[0] == 0 or k.shape[0] == 0:
        return torch.zeros_like(q) + 0 * (k.sum() + v.sum())
    rows, is_query = _padded(cu_seqlens, args.max_seqlen)
    keys, is_key = _padded(args.cu_seqlens_k, args.max_seqlen_k)
    # (N, H, S, D) each, with 0 at padding, where a copy of another row could hold NaN, and 0 * NaN is NaN.
    query, key, value = (
        x[index].masked_fill(~real[:, :, None, None], 0.0).transpose(1, 2)
        for x, index, real in ((q, rows, is_query), (k, keys, is_key), (v, keys, is_key))
    )
    scores = (query @ key.transpose(2, 3)) * args.softmax_scale
    absent = ~is_key[:, None, None, :]
    if args.causal:
        surplus = args.cu_seqlens_k.diff() - cu_seqlens.diff()  # the keys before that of the first query
        place, place_k = (torch.arange(n, device=q.device) for n in (args.max_seqlen, args.max_seqlen_k))
        absent = absent | (place_k > place[:, None] + surplus[:, None, None])[:, None]
    probs = scores.masked_fill(absent, -math.inf).softmax(-1).masked_fill(absent, 0.0)
    if threshold := dropout_threshold(args.dropout_p):
        ids = args.row_ids[rows].flatten()
        kept = [dropout_mask(args.seed, ids, args.max_seqlen_k, threshold, 1 + h) for h in range(q.shape[1])]
        mask = torch.stack(kept, 1).unflatten(0, rows.shape).transpose(1, 2)
        probs = torch.where(mask, probs * dropout_scale(threshold), 0.0)
    out = probs @ value
    sequence = torch.searchsorted(cu_seqlens[1:].contiguous(), torch.arange(q.shape[0], device=q.device), right=True)
    place = torch.arange(q.shape[0], device=q.device) - cu_seqlens[sequence]
    return out.transpose(1, 2)[sequence, place]


def _padded(cu_seqlens: Tensor, max_seqlen: int) -> tuple[Tensor, Tensor]:
    """For each place (N, S) of each sequence, its packed row, and whether the sequence is that long. The row of a place
    beyond the end is 0, which is a valid index."""
    place = torch.arange(max_seqlen, device=cu_seqlens.device)
    start, end = cu_seqlens[:-1, None].long(), cu_seqlens[1:, None].long()
    index = start + place
    return torch.where(index < end, index, 0), index < end


def _check(args: AttentionArguments) -> None:
    check_integers("attention", torch.int64, row_ids=args.row_ids)
    check_shape("attention", "row_ids", args.row_ids, args.q.shape[0])
    check_shape("attention", "cu_seqlens_k", args.cu_seqlens_k, *args.cu_seqlens.shape)
    check_cu_seqlens("attention", "cu_seqlens", args.cu_seqlens, args.q.shape[0], args.max_seqlen)
    check_cu_seqlens("attention", "cu_seqlens_k", args.cu_seqlens_k, args.k.shape[0], args.max_seqlen_k)


def _struct(args: AttentionArguments) -> Attention:
    _, heads, width = args.q.shape
    return Attention(
        Heads.of(args.q),
        Heads.of(args.k),
        Heads.of(args.v),
        Sequences.of(args.cu_seqlens, args.cu_seqlens_k),
        heads,
        width,
        args.softmax_scale,
        Dropout.of(args.row_ids, args.seed, args.dropout_p),
        args.causal,
    )


def _forward_cpu(args: AttentionArguments) -> tuple[Tensor, list[Tensor]]:
    out = torch.empty_like(args.q, memory_format=torch.contiguous_format)
    lse = out.new_empty(out.shape[:2])
    core.attention_fwd(_struct(args), Heads.of(out), lse, torch.get_num_threads())
    return out, [lse]


def _backward_cpu(grads: list[Tensor], args: AttentionArguments, saved: list[Tensor]) -> list[Tensor]:
    _out, lse = saved
    gradients = [torch.empty_like(t, memory_format=torch.contiguous_format) for t in (args.q, args.k, args.v)]
    heads = map(Heads.of, gradients)
    core.attention_bwd(Heads.of(grads[0]), _struct(args), lse.contiguous(), *heads, torch.get_num_threads())
    return gradients


_attention = DifferentiableOp(
    "attention",
    AttentionArguments,
    outputs=("out",),
    differentiable=("q", "k", "v"),
    reference=attention_reference,
    fake=lambda args: (torch.empty_like(args.q, memory_format=torch.contiguous_format),),
    cpu=Backend(_forward_cpu, _backward_cpu, lambda args: [args.q.new_empty(args.q.shape[:2])]),
    cuda=triton_backend(
        ("attention", "attention_fwd"),
        ("attention", "attention_bwd"),
        saves=lambda args: [args.q.new_empty(args.q.shape[1], args.q.shape[0], dtype=torch.float32)],
        takes=lambda args: 0 < args.q.shape[2] <= 128,
        limit="heads up to 128 wide",
    ),
    check=_check,
)
