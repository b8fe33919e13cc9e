"""The backward of attention that goes over blocks of keys and queries, of any lengths.

attention_bwd_kernel: where all keys fit in one block (WHOLE) one program a sequence and head keeps K and V, goes over
the queries, takes S = Q K^T and dP = dO V^T once and gives dQ, dK and dV: five products. Longer sequences: a program
gives dK and dV of its block of keys, then dQ of its block of queries, computing the scores for each: seven products.
Gradients go wherever strides say, as into one (T, 3, H, D). Nothing is added from two programs, so no atomics, and two
runs give the same bits. rowsum(dO O) is taken on the way.

With all keys in the block what was read can be made again (AGAIN), a sixth product beside the scores, so that an
attention block need not keep it: 1.1 GF (1.4 us) for ELECTRA-Small at 128 x 128, and no byte more, as O is written in
place of read. It takes up to 253 registers at heads of 64, and would spill at 128 or in float32 (`reads_again`).
"""

from __future__ import annotations

import triton
import triton.language as tl

from .parts.attention_tiles import pair, program_of, span
from .parts.rows import put_rows, rows_of


@triton.jit
def attention_bwd_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    dout_ptr,
    lse_ptr,
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
    blocks,
    scale,
    threshold,
    keep_scale,
    DROPOUT: tl.constexpr,
    AGAIN: tl.constexpr,
    WHOLE: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """AGAIN: `out` is not what was read, but room for it."""
    n, head, block = program_of(blocks, heads)
    start, queries = span(cu_seqlens_ptr, n)
    start_k, keys = span(cu_seqlens_k_ptr, n)
    seed = tl.load(seed_ptr)
    q_ptr += start * q_row + head * q_head
    k_ptr += start_k * k_row + head * k_head
    v_ptr += start_k * v_row + head * v_head
    dout_ptr += start * dout_row + head * dout_head
    packed = heads * WIDTH
    out_ptr += (start * heads + head) * WIDTH
    dq_ptr += start * dq_row + head * dq_head
    dk_ptr += start_k * dk_row + head * dk_head
    dv_ptr += start_k * dv_row + head * dv_head
    lse_ptr += head * tokens + start
    row_ids_ptr += start
    slope = tl.where(keys > 1, scale, 0.0)  # the softmax of one score is 1 whatever the score

    if block * BLOCK_N < keys or WHOLE:  # dK and dV of a block of keys
        offs_n = block * BLOCK_N + tl.arange(0, BLOCK_N)
        k = rows_of(k_ptr, k_row, offs_n, keys, WIDTH, BLOCK_D)
        v = rows_of(v_ptr, v_row, offs_n, keys, WIDTH, BLOCK_D)
        dk = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
        dv = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
        for first in tl.range(0, queries, BLOCK_M, disable_licm=True):
            offs_m = first + tl.arange(0, BLOCK_M)
            there = offs_m < queries
            q = rows_of(q_ptr, q_row, offs_m, queries, WIDTH, BLOCK_D)
            dout = rows_of(dout_ptr, dout_row, offs_m, queries, WIDTH, BLOCK_D)
            delta = None
            if not AGAIN:
                out = rows_of(out_ptr, packed, offs_m, queries, WIDTH, BLOCK_D)
                delta = tl.sum(out.to(tl.float32) * dout.to(tl.float32), 1)
            lse = tl.load(lse_ptr + offs_m, mask=there, other=0.0)
            ids = tl.load(row_ids_ptr + offs_m, mask=there, other=0)
            p, ds, read = pair(
                q,
                k,
                v,
                dout,
                lse,
                delta,
                ids,
                (offs_n[:, None] < keys) & there[None, :],
                seed,
                1 + head,
                block * BLOCK_N,
                scale,
                threshold,
                keep_scale,
                DROPOUT,
                AGAIN,
                PRECISION,
            )
            if AGAIN:
                put_rows(out_ptr, packed, offs_m, queries, read, WIDTH, BLOCK_D)
            dv = tl.dot(p, dout, dv, input_precision=PRECISION)
            dk = tl.dot(ds, q, dk, input_precision=PRECISION)
            if WHOLE:
                dq = tl.dot(tl.trans(ds), k, input_precision=PRECISION)
                put_rows(dq_ptr, dq_row, offs_m, queries, dq * slope, WIDTH, BLOCK_D)
        put_rows(dk_ptr, dk_row, offs_n, keys, dk * slope, WIDTH, BLOCK_D)
        put_rows(dv_ptr, dv_row, offs_n, keys, dv, WIDTH, BLOCK_D)

    if not WHOLE:  # noqa: SIM102  decided as it compiles
        if block * BLOCK_M < queries:  # dQ of a block of queries
            offs_m = block * BLOCK_M + tl.arange(0, BLOCK_M)
            there = offs_m < queries
            q = rows_of(q_ptr, q_row, offs_m, queries, WIDTH, BLOCK_D)
            dout = rows_of(dout_ptr, dout_row, offs_m, queries, WIDTH, BLOCK_D)
            out = rows_of(out_ptr, packed, offs_m, queries, WIDTH, BLOCK_D)
            delta = tl.sum(out.to(tl.float32) * dout.to(tl.float32), 1)
            lse = tl.load(lse_ptr + offs_m, mask=there, other=0.0)
            ids = tl.load(row_ids_ptr + offs_m, mask=there, other=0)
            dq = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
            for first in tl.range(0, keys, BLOCK_N, disable_licm=True):
                offs_n = first + tl.arange(0, BLOCK_N)
                k = rows_of(k_ptr, k_row, offs_n, keys, WIDTH, BLOCK_D)
                v = rows_of(v_ptr, v_row, offs_n, keys, WIDTH, BLOCK_D)
                _, ds, _ = pair(
                    q,
                    k,
                    v,
                    dout,
                    lse,
                    delta,
                    ids,
                    (offs_n[:, None] < keys) & there[None, :],
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
                dq = tl.dot(tl.trans(ds), k, dq, input_precision=PRECISION)
            put_rows(dq_ptr, dq_row, offs_m, queries, dq * slope, WIDTH, BLOCK_D)
