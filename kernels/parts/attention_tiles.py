"""What the attention kernels share: a program's sequence, head and block, and the backward of one block of scores."""

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
    """Dropout of the scores of one block of queries (philox.py)."""

    seed: Any  # int64
    ids: Any  # (queries,) int64 row ids
    plane: Any  # 1 + head, so that each head has random bytes of its own
    threshold: Any  # a score is dropped if its byte is below
    scale: Any  # factor of the scores that are kept


@triton.jit
def span(cu_ptr, n):
    """Returns (first row of sequence n, 64-bit; number of its rows)."""
    start = tl.load(cu_ptr + n).to(tl.int64)
    return start, (tl.load(cu_ptr + n + 1) - start).to(tl.int32)


@triton.jit
def program_of(blocks, heads):
    """Returns this program's sequence and head, 64-bit, and its block. Consecutive programs have the blocks of a head,
    then those of the sequence's next head."""
    pid = tl.program_id(0).to(tl.int64)
    return pid // blocks // heads, pid // blocks % heads, (pid % blocks).to(tl.int32)


@triton.jit
def head_rows(view, start, head):
    """The rows of one head from row `start` on, as a Matrix. view: a Heads; start, head: 64-bit."""
    return Matrix(view.ptr + start * view.row + head * view.head, view.row)


@triton.jit
def seen(offs_n, offs_m, queries, keys, CAUSAL: tl.constexpr):
    """Whether there is a key offs_n, and with CAUSAL whether query offs_m sees it: the last query sees all keys, each
    query before it one less than the next."""
    return offs_n < (tl.minimum(keys, offs_m + (keys - queries + 1)) if CAUSAL else keys)


@triton.jit
def keys_before(after, queries, keys, CAUSAL: tl.constexpr):
    """How many keys the queries before query `after` see, the first ones."""
    return tl.minimum(keys, after + keys - queries) if CAUSAL else keys


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
    """Returns (P after dropout, dS, out) of a block of queries and the block of keys from first_key on: P and dS are
    (keys, queries), out is what `delta` says.

    delta: rowsum(dO O) (queries,), which equals rowsum(P dP); it is returned as `out`. None, if the block has all keys:
        then delta is computed as rowsum(P dP), and `out` is the queries' output P V, (queries, D).
    allowed: (keys, queries), False beyond the last key or query.
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
    out = delta
    if delta is None:
        out = tl.dot(tl.trans(dropped), v, input_precision=PRECISION)
        delta = tl.sum(p * dp, 0)
    ds = p * (dp - delta[None, :])
    return dropped, ds.to(q.dtype), out
