"""attention of 129 to 512 keys: a program keeps whole matrices in shared memory, so it reads nothing twice.

attention_fwd_resident_kernel: one program for each sequence and head. It keeps K and V in shared memory, LENGTH rows of
each (64 + 64 KB for 512 keys of 64 in bf16), and goes over the queries. The loop of attention.py reads K and V from the
L2 again for every block of queries: for Base at 256 x 512 1.6 GB instead of 0.4, 290 us at 5.5 TB/s, where the products
take 131.
attention_bwd_resident_kernel: two programs for each sequence and head. One keeps Q and dO, goes over the keys and
computes dK and dV; the other keeps K and V, goes over the queries and computes dQ. Each sum stays in registers until it
is complete, and none has terms of two programs. That is seven products, as in the loop, which reads 1.8 MB for each
sequence and head where these programs read 0.6. (With five products, dQ of 512 queries would be kept beside dK and dV,
192 registers a thread of 8 warps, and everything else would spill.) The first program writes each query's log-sum-exp,
rowsum(dO O) and row id to memory of its own: kept on chip, or masked, they would be in the registers of every thread.

The blocks in shared memory are a tuple, and loops over them are unrolled, since Triton cannot index shared memory.
`lane < keys - i BLOCK_N`, disable_licm and loading the seed where it is used keep the compiler from computing values
before the loop and holding them, which spills. Planned occupancy: one program a multiprocessor, 8 warps, at 512 keys;
two at 256.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .parts.attention_tiles import LOG2E, Mask, Sequences, head_rows, scores_bwd, span
from .parts.groups import Dropout, Heads, Matrix
from .parts.philox import dropout_keep
from .parts.rows import put_rows, rows_of


@triton.jit
def attention_fwd_resident_kernel(
    q,
    k,
    v,
    out_ptr,
    lse_ptr,
    sequences,
    dropout,
    scale,
    WIDTH: tl.constexpr,
    LENGTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """LENGTH: the most keys of a sequence, 256 or 512."""
    sequences = Sequences(*sequences)
    heads = sequences.heads
    pid = tl.program_id(0).to(tl.int64)
    n, head = pid // heads, pid % heads
    start, queries = span(sequences.cu_seqlens, n)
    start_k, keys = span(sequences.cu_seqlens_k, n)
    keep_scale = 1.0
    if dropout is not None:
        dropout = Dropout(*dropout)
        keep_scale = dropout.scale
        seed = tl.load(dropout.seed)
    q_rows = head_rows(Heads(*q), start, head)
    k_rows = head_rows(Heads(*k), start_k, head)
    v_rows = head_rows(Heads(*v), start_k, head)
    out_rows = Matrix(out_ptr + (start * heads + head) * WIDTH, heads * WIDTH)
    ks = ()
    vs = ()
    for i in tl.static_range(LENGTH // BLOCK_N):
        offs_n = i * BLOCK_N + tl.arange(0, BLOCK_N)
        ks = ks + (rows_of(k_rows, offs_n, keys, WIDTH, BLOCK_D),)
        vs = vs + (rows_of(v_rows, offs_n, keys, WIDTH, BLOCK_D),)
    for first in tl.range(0, queries, BLOCK_M, disable_licm=True):
        offs_m = first + tl.arange(0, BLOCK_M)
        q_block = rows_of(q_rows, offs_m, queries, WIDTH, BLOCK_D)
        if dropout is not None:
            ids = tl.load(dropout.row_ids + start + offs_m, mask=offs_m < queries, other=0)
        m_i = tl.full((BLOCK_M,), float("-inf"), tl.float32)
        l_i = tl.zeros((BLOCK_M,), tl.float32)
        acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
        for i in tl.static_range(LENGTH // BLOCK_N):
            s = tl.dot(q_block, tl.trans(ks[i]), input_precision=PRECISION) * (scale * LOG2E)
            s = tl.where(tl.arange(0, BLOCK_N)[None, :] < keys - i * BLOCK_N, s, float("-inf"))
            m_new = tl.maximum(m_i, tl.max(s, 1))
            m_safe = tl.where(m_new == float("-inf"), 0.0, m_new)
            p = tl.exp2(s - m_safe[:, None])
            alpha = tl.exp2(m_i - m_safe)
            acc = acc * alpha[:, None]
            l_i = l_i * alpha + tl.sum(p, 1)
            m_i = m_new
            if dropout is not None:
                keep = dropout_keep(seed, ids, i * BLOCK_N, 1 + head, dropout.threshold, BLOCK_M, BLOCK_N)
                p = tl.where(keep, p, 0.0)
            acc = tl.dot(p.to(q_block.dtype), vs[i], acc, input_precision=PRECISION)
        some = l_i != 0.0  # false for a query without keys, whose output is 0
        l_i = tl.where(some, l_i, 1.0)
        out = acc * (keep_scale / l_i)[:, None]
        put_rows(out_rows, offs_m, queries, out, WIDTH, BLOCK_D)
        lse = tl.where(some, m_i + tl.log2(l_i), 0.0)
        tl.store(lse_ptr + head * sequences.tokens + start + offs_m, lse, mask=offs_m < queries)


@triton.jit
def attention_bwd_resident_kernel(
    q,
    k,
    v,
    out_ptr,
    dout,
    lse_ptr,
    statistics_ptr,
    ids_ptr,
    dq,
    dk,
    dv,
    sequences,
    dropout,
    scale,
    WIDTH: tl.constexpr,
    LENGTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """LENGTH: the most keys and queries of a sequence, 256 or 512. statistics_ptr, ids_ptr: scratch memory for LENGTH
    queries of each sequence and head, two float32 and one int64 each."""
    sequences = Sequences(*sequences)
    heads = sequences.heads
    pid = tl.program_id(0).to(tl.int64)
    n, head = pid // 2 // heads, pid // 2 % heads
    start, queries = span(sequences.cu_seqlens, n)
    start_k, keys = span(sequences.cu_seqlens_k, n)
    if dropout is not None:
        dropout = Dropout(*dropout)
    q_rows = head_rows(Heads(*q), start, head)
    k_rows = head_rows(Heads(*k), start_k, head)
    v_rows = head_rows(Heads(*v), start_k, head)
    dout_rows = head_rows(Heads(*dout), start, head)
    out_rows = Matrix(out_ptr + (start * heads + head) * WIDTH, heads * WIDTH)
    lse_ptr += head * sequences.tokens + start
    lane_m, lane_n = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
    slope = tl.where(keys > 1, scale, 0.0)  # the softmax of one score is 1 whatever the score

    if pid % 2 == 0:  # dK and dV: keeps Q and dO
        statistics_ptr += pid * LENGTH
        ids_ptr += pid // 2 * LENGTH
        for first in tl.range(0, LENGTH, BLOCK_M, disable_licm=True):
            offs_m = first + lane_m
            dout_block = rows_of(dout_rows, offs_m, queries, WIDTH, BLOCK_D)
            out = rows_of(out_rows, offs_m, queries, WIDTH, BLOCK_D)
            lse = tl.load(lse_ptr + offs_m, mask=offs_m < queries, other=float("inf"))  # beyond the queries P = 0
            tl.store(statistics_ptr + offs_m, lse)
            tl.store(statistics_ptr + LENGTH + offs_m, tl.sum(out.to(tl.float32) * dout_block.to(tl.float32), 1))
            if dropout is not None:
                ids = tl.load(dropout.row_ids + start + offs_m, mask=offs_m < queries, other=0)
                tl.store(ids_ptr + offs_m, ids)
        tl.debug_barrier()  # other threads of the program read them
        qs = ()
        douts = ()
        for i in tl.static_range(LENGTH // BLOCK_M):
            qs = qs + (rows_of(q_rows, i * BLOCK_M + lane_m, queries, WIDTH, BLOCK_D),)
            douts = douts + (rows_of(dout_rows, i * BLOCK_M + lane_m, queries, WIDTH, BLOCK_D),)
        dk_rows = head_rows(Heads(*dk), start_k, head)
        dv_rows = head_rows(Heads(*dv), start_k, head)
        if dropout is not None:
            seed = tl.load(dropout.seed)
        for first in tl.range(0, keys, BLOCK_N, disable_licm=True):
            offs_n = first + lane_n
            k_block = rows_of(k_rows, offs_n, keys, WIDTH, BLOCK_D)
            v_block = rows_of(v_rows, offs_n, keys, WIDTH, BLOCK_D)
            dk_sum = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
            dv_sum = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
            for i in tl.static_range(LENGTH // BLOCK_M):
                lse = tl.load(statistics_ptr + i * BLOCK_M + lane_m)
                delta = tl.load(statistics_ptr + LENGTH + i * BLOCK_M + lane_m)
                mask = None
                if dropout is not None:
                    ids = tl.load(ids_ptr + i * BLOCK_M + lane_m)
                    mask = Mask(seed, ids, 1 + head, dropout.threshold, dropout.scale)
                allowed = lane_n[:, None] < keys - first
                p, ds, _ = scores_bwd(
                    qs[i], k_block, v_block, douts[i], lse, delta, allowed, mask, first, scale, PRECISION
                )
                dv_sum = tl.dot(p, douts[i], dv_sum, input_precision=PRECISION)
                dk_sum = tl.dot(ds, qs[i], dk_sum, input_precision=PRECISION)
            put_rows(dk_rows, offs_n, keys, dk_sum * slope, WIDTH, BLOCK_D)
            put_rows(dv_rows, offs_n, keys, dv_sum, WIDTH, BLOCK_D)
    else:  # dQ: keeps K and V
        if dropout is not None:
            seed = tl.load(dropout.seed)
        ks = ()
        vs = ()
        for i in tl.static_range(LENGTH // BLOCK_N):
            ks = ks + (rows_of(k_rows, i * BLOCK_N + lane_n, keys, WIDTH, BLOCK_D),)
            vs = vs + (rows_of(v_rows, i * BLOCK_N + lane_n, keys, WIDTH, BLOCK_D),)
        dq_rows = head_rows(Heads(*dq), start, head)
        for first in tl.range(0, queries, BLOCK_M, disable_licm=True):
            offs_m = first + lane_m
            inside = offs_m < queries
            q_block = rows_of(q_rows, offs_m, queries, WIDTH, BLOCK_D)
            dout_block = rows_of(dout_rows, offs_m, queries, WIDTH, BLOCK_D)
            out = rows_of(out_rows, offs_m, queries, WIDTH, BLOCK_D)
            delta = tl.sum(out.to(tl.float32) * dout_block.to(tl.float32), 1)
            lse = tl.load(lse_ptr + offs_m, mask=inside, other=float("inf"))
            mask = None
            if dropout is not None:
                ids = tl.load(dropout.row_ids + start + offs_m, mask=inside, other=0)
                mask = Mask(seed, ids, 1 + head, dropout.threshold, dropout.scale)
            dq_sum = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
            for i in tl.static_range(LENGTH // BLOCK_N):
                allowed = lane_n[:, None] < keys - i * BLOCK_N
                _, ds, _ = scores_bwd(
                    q_block, ks[i], vs[i], dout_block, lse, delta, allowed, mask, i * BLOCK_N, scale, PRECISION
                )
                dq_sum = tl.dot(tl.trans(ds), ks[i], dq_sum, input_precision=PRECISION)
            put_rows(dq_rows, offs_m, queries, dq_sum * slope, WIDTH, BLOCK_D)
