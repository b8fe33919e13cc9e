"""Attention of 129 to 512 keys: what passes by meets what stays on chip, so that nothing is read twice by a program.

attention_fwd_resident_kernel: a program a sequence and head keeps K and V in shared memory, LENGTH rows of each (64 +
64 KB at 512 keys of 64 in bf16), while the queries pass by. The usual loop reads them from the L2 again for every block
of queries: for Base at 256 x 512 1.6 GB in place of 0.4, 290 us at 5.5 TB/s where the products take 131.
attention_bwd_resident_kernel: two programs a sequence and head. One keeps Q and dO while keys pass by and gives dK and
dV, one keeps K and V while queries pass by and gives dQ. Each sum stays in registers until it is whole, and nothing is
added by two programs. Seven products, as in the loop, which reads 1.8 MB a sequence and head where these read 0.6.
(With five, dQ of 512 queries stays beside dK and dV, 192 registers a thread of 8 warps, and all else spills.) The
first program leaves each query's log-sum-exp, rowsum(dO O) and row id in memory of its own: held, or masked, they would
be in every thread's registers.

The blocks are unrolled, as what lies in shared memory has no index. `lane < keys - i BLOCK_N`, disable_licm and a seed
read where it is needed keep the rest from being worked out before the loop and held: that spills. Planned occupancy:
one program a multiprocessor, 8 warps, at 512; two at 256.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .parts.attention_tiles import LOG2E, pair, span
from .parts.philox import dropout_keep
from .parts.rows import put_rows, rows_of


@triton.jit
def attention_fwd_resident_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    lse_ptr,
    cu_seqlens_ptr,
    cu_seqlens_k_ptr,
    row_ids_ptr,
    seed_ptr,
    q_row,
    q_head,
    k_row,
    k_head,
    v_row,
    v_head,
    tokens,
    heads,
    scale,
    threshold,
    keep_scale,
    DROPOUT: tl.constexpr,
    WIDTH: tl.constexpr,
    LENGTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    pid = tl.program_id(0).to(tl.int64)
    n, head = pid // heads, pid % heads
    start, queries = span(cu_seqlens_ptr, n)
    start_k, keys = span(cu_seqlens_k_ptr, n)
    seed = tl.load(seed_ptr)
    q_ptr += start * q_row + head * q_head
    k_ptr += start_k * k_row + head * k_head
    v_ptr += start_k * v_row + head * v_head
    ks = ()
    vs = ()
    for i in tl.static_range(LENGTH // BLOCK_N):
        offs_n = i * BLOCK_N + tl.arange(0, BLOCK_N)
        ks = ks + (rows_of(k_ptr, k_row, offs_n, keys, WIDTH, BLOCK_D),)
        vs = vs + (rows_of(v_ptr, v_row, offs_n, keys, WIDTH, BLOCK_D),)
    for first in tl.range(0, queries, BLOCK_M, disable_licm=True):
        offs_m = first + tl.arange(0, BLOCK_M)
        q = rows_of(q_ptr, q_row, offs_m, queries, WIDTH, BLOCK_D)
        ids = tl.load(row_ids_ptr + start + offs_m, mask=offs_m < queries, other=0)
        m_i = tl.full((BLOCK_M,), float("-inf"), tl.float32)
        l_i = tl.zeros((BLOCK_M,), tl.float32)
        acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
        for i in tl.static_range(LENGTH // BLOCK_N):
            s = tl.dot(q, tl.trans(ks[i]), input_precision=PRECISION) * (scale * LOG2E)
            s = tl.where(tl.arange(0, BLOCK_N)[None, :] < keys - i * BLOCK_N, s, float("-inf"))
            m_new = tl.maximum(m_i, tl.max(s, 1))
            m_safe = tl.where(m_new == float("-inf"), 0.0, m_new)
            p = tl.exp2(s - m_safe[:, None])
            alpha = tl.exp2(m_i - m_safe)
            acc = acc * alpha[:, None]
            l_i = l_i * alpha + tl.sum(p, 1)
            m_i = m_new
            if DROPOUT:
                keep = dropout_keep(seed, ids, i * BLOCK_N, 1 + head, threshold, BLOCK_M, BLOCK_N)
                p = tl.where(keep, p, 0.0)
            acc = tl.dot(p.to(q.dtype), vs[i], acc, input_precision=PRECISION)
        some = l_i != 0.0  # else a query without keys: 0
        l_i = tl.where(some, l_i, 1.0)
        out = acc * (keep_scale / l_i)[:, None]
        put_rows(out_ptr + (start * heads + head) * WIDTH, heads * WIDTH, offs_m, queries, out, WIDTH, BLOCK_D)
        lse = tl.where(some, m_i + tl.log2(l_i), 0.0)
        tl.store(lse_ptr + head * tokens + start + offs_m, lse, mask=offs_m < queries)


@triton.jit
def attention_bwd_resident_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    dout_ptr,
    lse_ptr,
    statistics_ptr,
    ids_ptr,
    dq_ptr,
    dk_ptr,
    dv_ptr,
    cu_seqlens_ptr,
    cu_seqlens_k_ptr,
    row_ids_ptr,
    seed_ptr,
    q_row,
    q_head,
    k_row,
    k_head,
    v_row,
    v_head,
    dout_row,
    dout_head,
    dq_row,
    dq_head,
    dk_row,
    dk_head,
    dv_row,
    dv_head,
    tokens,
    heads,
    scale,
    threshold,
    keep_scale,
    DROPOUT: tl.constexpr,
    WIDTH: tl.constexpr,
    LENGTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    pid = tl.program_id(0).to(tl.int64)
    n, head = pid // 2 // heads, pid // 2 % heads
    start, queries = span(cu_seqlens_ptr, n)
    start_k, keys = span(cu_seqlens_k_ptr, n)
    q_ptr += start * q_row + head * q_head
    k_ptr += start_k * k_row + head * k_head
    v_ptr += start_k * v_row + head * v_head
    out_ptr += (start * heads + head) * WIDTH
    dout_ptr += start * dout_row + head * dout_head
    lse_ptr += head * tokens + start
    row_ids_ptr += start
    lane_m, lane_n = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
    slope = tl.where(keys > 1, scale, 0.0)  # the softmax of one score is 1 whatever the score

    if pid % 2 == 0:
        statistics_ptr += pid * LENGTH
        ids_ptr += pid // 2 * LENGTH
        for first in tl.range(0, LENGTH, BLOCK_M, disable_licm=True):
            offs_m = first + lane_m
            dout = rows_of(dout_ptr, dout_row, offs_m, queries, WIDTH, BLOCK_D)
            out = rows_of(out_ptr, heads * WIDTH, offs_m, queries, WIDTH, BLOCK_D)
            lse = tl.load(lse_ptr + offs_m, mask=offs_m < queries, other=float("inf"))  # P of no query is 0
            tl.store(statistics_ptr + offs_m, lse)
            tl.store(statistics_ptr + LENGTH + offs_m, tl.sum(out.to(tl.float32) * dout.to(tl.float32), 1))
            tl.store(ids_ptr + offs_m, tl.load(row_ids_ptr + offs_m, mask=offs_m < queries, other=0))
        tl.debug_barrier()  # other threads of the program read them
        qs = ()
        douts = ()
        for i in tl.static_range(LENGTH // BLOCK_M):
            qs = qs + (rows_of(q_ptr, q_row, i * BLOCK_M + lane_m, queries, WIDTH, BLOCK_D),)
            douts = douts + (rows_of(dout_ptr, dout_row, i * BLOCK_M + lane_m, queries, WIDTH, BLOCK_D),)
        seed = tl.load(seed_ptr)
        for first in tl.range(0, keys, BLOCK_N, disable_licm=True):
            offs_n = first + lane_n
            k = rows_of(k_ptr, k_row, offs_n, keys, WIDTH, BLOCK_D)
            v = rows_of(v_ptr, v_row, offs_n, keys, WIDTH, BLOCK_D)
            dk = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
            dv = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
            for i in tl.static_range(LENGTH // BLOCK_M):
                p, ds, _ = pair(
                    qs[i],
                    k,
                    v,
                    douts[i],
                    tl.load(statistics_ptr + i * BLOCK_M + lane_m),
                    tl.load(statistics_ptr + LENGTH + i * BLOCK_M + lane_m),
                    tl.load(ids_ptr + i * BLOCK_M + lane_m),
                    lane_n[:, None] < keys - first,
                    seed,
                    1 + head,
                    first,
                    scale,
                    threshold,
                    keep_scale,
                    DROPOUT,
                    False,
                    PRECISION,
                )
                dv = tl.dot(p, douts[i], dv, input_precision=PRECISION)
                dk = tl.dot(ds, qs[i], dk, input_precision=PRECISION)
            put_rows(dk_ptr + start_k * dk_row + head * dk_head, dk_row, offs_n, keys, dk * slope, WIDTH, BLOCK_D)
            put_rows(dv_ptr + start_k * dv_row + head * dv_head, dv_row, offs_n, keys, dv, WIDTH, BLOCK_D)
    else:
        seed = tl.load(seed_ptr)
        ks = ()
        vs = ()
        for i in tl.static_range(LENGTH // BLOCK_N):
            ks = ks + (rows_of(k_ptr, k_row, i * BLOCK_N + lane_n, keys, WIDTH, BLOCK_D),)
            vs = vs + (rows_of(v_ptr, v_row, i * BLOCK_N + lane_n, keys, WIDTH, BLOCK_D),)
        for first in tl.range(0, queries, BLOCK_M, disable_licm=True):
            offs_m = first + lane_m
            there = offs_m < queries
            q = rows_of(q_ptr, q_row, offs_m, queries, WIDTH, BLOCK_D)
            dout = rows_of(dout_ptr, dout_row, offs_m, queries, WIDTH, BLOCK_D)
            out = rows_of(out_ptr, heads * WIDTH, offs_m, queries, WIDTH, BLOCK_D)
            delta = tl.sum(out.to(tl.float32) * dout.to(tl.float32), 1)
            lse = tl.load(lse_ptr + offs_m, mask=there, other=float("inf"))
            ids = tl.load(row_ids_ptr + offs_m, mask=there, other=0)
            dq = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
            for i in tl.static_range(LENGTH // BLOCK_N):
                _, ds, _ = pair(
                    q,
                    ks[i],
                    vs[i],
                    dout,
                    lse,
                    delta,
                    ids,
                    lane_n[:, None] < keys - i * BLOCK_N,
                    seed,
                    1 + head,
                    i * BLOCK_N,
                    scale,
                    threshold,
                    keep_scale,
                    DROPOUT,
                    False,
                    PRECISION,
                )
                dq = tl.dot(tl.trans(ds), ks[i], dq, input_precision=PRECISION)
            put_rows(dq_ptr + start * dq_row + head * dq_head, dq_row, offs_m, queries, dq * slope, WIDTH, BLOCK_D)
