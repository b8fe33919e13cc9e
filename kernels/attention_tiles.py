"""What the kernels of attention share: where a sequence lies, and P and dS of a pair of blocks."""

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
    PRECISION: tl.constexpr,
):
    """P after dropout and dS, (keys, queries) both, of a block of queries and a block of keys from first_key on."""
    s = tl.dot(k, tl.trans(q), input_precision=PRECISION) * (scale * LOG2E)
    p = tl.exp2(tl.where(allowed, s, float("-inf")) - lse[None, :])
    dp = tl.dot(v, tl.trans(dout), input_precision=PRECISION)
    if DROPOUT:
        keep = dropout_keep(seed, ids, first_key, plane, threshold, q.shape[0], k.shape[0]).trans()
        ds = p * (tl.where(keep, dp * keep_scale, 0.0) - delta[None, :])
        p = tl.where(keep, p * keep_scale, 0.0)
    else:
        ds = p * (dp - delta[None, :])
    return p.to(q.dtype), ds.to(q.dtype)
