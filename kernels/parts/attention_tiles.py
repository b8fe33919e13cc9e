"""What the attention kernels share: where a program's sequence, head and block are, and the backward of one block of
scores."""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from .groups import Matrix
from .philox import dropout_keep

LOG2E = tl.constexpr(1.4426950408889634)


class Sequences(NamedTuple):
    """Where each packed sequence lies, and the sizes of q, (tokens, heads, D)."""

    cu_seqlens: Any  # address of (N + 1,) int32: offsets of the queries
    cu_seqlens_k: Any  # address of (N + 1,) int32: offsets of the keys
    tokens: Any
    heads: Any


class Mask(NamedTuple):
    """What decides which scores of a block of queries are dropped."""

    seed: Any  # int64
    ids: Any  # (queries,) int64 row ids
    plane: Any  # 1 + head: each head draws bytes of its own
    threshold: Any  # a byte below it drops its score
    scale: Any  # what is kept is multiplied by it


@triton.jit
def span(cu_ptr, n):
    """First row of sequence n, 64-bit, and how many rows it has."""
    start = tl.load(cu_ptr + n).to(tl.int64)
    return start, (tl.load(cu_ptr + n + 1) - start).to(tl.int32)


@triton.jit
def program_of(blocks, heads):
    """Sequence, head and block of this program, the first two 64-bit: blocks of a head are neighbours, then heads."""
    pid = tl.program_id(0).to(tl.int64)
    return pid // blocks // heads, pid // blocks % heads, (pid % blocks).to(tl.int32)


@triton.jit
def head_rows(view, start, head):
    """The rows of one head from row `start` on, as a Matrix: view is a Heads, start and head are 64-bit."""
    return Matrix(view.ptr + start * view.row + head * view.head, view.row)


@triton.jit
def scores_bwd(
    q,
    k,
    v,
    dout,
    lse,
    delta,
    allowed,
    mask,
    first_key,
    scale,
    PRECISION: tl.constexpr,
):
    """P after dropout and dS, both (keys, queries), of a block of queries and the block of keys from first_key on; and
    delta = rowsum(dO O) = rowsum(P dP), (queries,).

    Where these are all the keys, delta may be None: it follows from P and dP, and what the queries read, (queries, D),
    is returned in its place. `allowed` (keys, queries) says which scores there are.
    """
    s = tl.dot(k, tl.trans(q), input_precision=PRECISION) * (scale * LOG2E)
    p = tl.exp2(tl.where(allowed, s, float("-inf")) - lse[None, :])
    dp = tl.dot(v, tl.trans(dout), input_precision=PRECISION)
    dropped = p
    if mask is not None:
        keep = dropout_keep(mask.seed, mask.ids, first_key, mask.plane, mask.threshold, q.shape[0], k.shape[0]).trans()
        dp = tl.where(keep, dp * mask.scale, 0.0)
        dropped = tl.where(keep, p * mask.scale, 0.0)
    dropped = dropped.to(q.dtype)
    read = delta
    if delta is None:
        read = tl.dot(tl.trans(dropped), v, input_precision=PRECISION)
        delta = tl.sum(p * dp, 0)
    ds = p * (dp - delta[None, :])
    return dropped, ds.to(q.dtype), read
