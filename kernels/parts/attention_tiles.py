"""What the kernels of attention share: whose a program is, where a sequence lies, and P and dS of a pair of blocks."""

from __future__ import annotations

import triton
import triton.language as tl

from .philox import dropout_keep

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def span(cu_ptr, n):
    """First row of sequence n, 64-bit, and how many it has."""
    start = tl.load(cu_ptr + n).to(tl.int64)
    return start, (tl.load(cu_ptr + n + 1) - start).to(tl.int32)


@triton.jit
def program_of(blocks, heads):
    """Sequence, head and block of this program, 64-bit: blocks of a head side by side, then heads."""
    pid = tl.program_id(0).to(tl.int64)
    return pid // blocks // heads, pid // blocks % heads, (pid % blocks).to(tl.int32)


@triton.jit
def pair(
    q,
    k,
    v,
    dout,
    lse,
    delta,
    ids,
    allowed,
    seed,
    plane,
    first_key,
    scale,
    threshold,
    keep_scale,
    DROPOUT: tl.constexpr,
    AGAIN: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """P after dropout and dS, (keys, queries) both, of a block of queries and a block of keys from first_key on; and
    delta, rowsum(dO O) = rowsum(P dP). AGAIN, where these are all keys: delta is not given, and in its place comes what
    the queries read, (queries, D)."""
    s = tl.dot(k, tl.trans(q), input_precision=PRECISION) * (scale * LOG2E)
    p = tl.exp2(tl.where(allowed, s, float("-inf")) - lse[None, :])
    dp = tl.dot(v, tl.trans(dout), input_precision=PRECISION)
    dropped = p
    if DROPOUT:
        keep = dropout_keep(seed, ids, first_key, plane, threshold, q.shape[0], k.shape[0]).trans()
        dp = tl.where(keep, dp * keep_scale, 0.0)
        dropped = tl.where(keep, p * keep_scale, 0.0)
    dropped = dropped.to(q.dtype)
    read = delta
    if AGAIN:
        read = tl.dot(tl.trans(dropped), v, input_precision=PRECISION)
        delta = tl.sum(p * dp, 0)
    ds = p * (dp - delta[None, :])
    return dropped, ds.to(q.dtype), read
