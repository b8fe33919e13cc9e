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

from .parts.attention_tiles import Mask, Sequences, head_rows, program_of, scores_bwd, span
from .parts.groups import Dropout, Heads, Matrix
from .parts.rows import put_rows, rows_of


@triton.jit
def attention_bwd_kernel(
    q,
    k,
    v,
    out_ptr,
    dout,
    lse_ptr,
    dq,
    dk,
    dv,
    sequences,
    dropout,
    scale,
    blocks,
    AGAIN: tl.constexpr,
    WHOLE: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """WHOLE: one block has all keys of a sequence. AGAIN: `out` is an empty buffer, which is filled again."""
    sequences = Sequences(*sequences)
    heads = sequences.heads
    n, head, block = program_of(blocks, heads)
    start, queries = span(sequences.cu_seqlens, n)
    start_k, keys = span(sequences.cu_seqlens_k, n)
    if dropout is not None:
        dropout = Dropout(*dropout)
        seed = tl.load(dropout.seed)
        row_ids_ptr = dropout.row_ids + start
    q_rows = head_rows(Heads(*q), start, head)
    k_rows = head_rows(Heads(*k), start_k, head)
    v_rows = head_rows(Heads(*v), start_k, head)
    dout_rows = head_rows(Heads(*dout), start, head)
    out_rows = Matrix(out_ptr + (start * heads + head) * WIDTH, heads * WIDTH)
    dq_rows = head_rows(Heads(*dq), start, head)
    lse_ptr += head * sequences.tokens + start
    slope = tl.where(keys > 1, scale, 0.0)  # the softmax of one score is 1 whatever the score

    if block * BLOCK_N < keys or WHOLE:  # dK and dV of a block of keys
        offs_n = block * BLOCK_N + tl.arange(0, BLOCK_N)
        k_block = rows_of(k_rows, offs_n, keys, WIDTH, BLOCK_D)
        v_block = rows_of(v_rows, offs_n, keys, WIDTH, BLOCK_D)
        dk_sum = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
        dv_sum = tl.zeros((BLOCK_N, BLOCK_D), tl.float32)
        for first in tl.range(0, queries, BLOCK_M, disable_licm=True):
            offs_m = first + tl.arange(0, BLOCK_M)
            inside = offs_m < queries
            q_block = rows_of(q_rows, offs_m, queries, WIDTH, BLOCK_D)
            dout_block = rows_of(dout_rows, offs_m, queries, WIDTH, BLOCK_D)
            delta = None
            if not AGAIN:
                out = rows_of(out_rows, offs_m, queries, WIDTH, BLOCK_D)
                delta = tl.sum(out.to(tl.float32) * dout_block.to(tl.float32), 1)
            lse = tl.load(lse_ptr + offs_m, mask=inside, other=0.0)
            mask = None
            if dropout is not None:
                ids = tl.load(row_ids_ptr + offs_m, mask=inside, other=0)
                mask = Mask(seed, ids, 1 + head, dropout.threshold, dropout.scale)
            allowed = (offs_n[:, None] < keys) & inside[None, :]
            p, ds, read = scores_bwd(
                q_block, k_block, v_block, dout_block, lse, delta, allowed, mask, block * BLOCK_N, scale, PRECISION
            )
            if AGAIN:
                put_rows(out_rows, offs_m, queries, read, WIDTH, BLOCK_D)
            dv_sum = tl.dot(p, dout_block, dv_sum, input_precision=PRECISION)
            dk_sum = tl.dot(ds, q_block, dk_sum, input_precision=PRECISION)
            if WHOLE:
                dq_block = tl.dot(tl.trans(ds), k_block, input_precision=PRECISION)
                put_rows(dq_rows, offs_m, queries, dq_block * slope, WIDTH, BLOCK_D)
        put_rows(head_rows(Heads(*dk), start_k, head), offs_n, keys, dk_sum * slope, WIDTH, BLOCK_D)
        put_rows(head_rows(Heads(*dv), start_k, head), offs_n, keys, dv_sum, WIDTH, BLOCK_D)

    if not WHOLE:  # noqa: SIM102  decided as it compiles
        if block * BLOCK_M < queries:  # dQ of a block of queries
            offs_m = block * BLOCK_M + tl.arange(0, BLOCK_M)
            inside = offs_m < queries
            q_block = rows_of(q_rows, offs_m, queries, WIDTH, BLOCK_D)
            dout_block = rows_of(dout_rows, offs_m, queries, WIDTH, BLOCK_D)
            out = rows_of(out_rows, offs_m, queries, WIDTH, BLOCK_D)
            delta = tl.sum(out.to(tl.float32) * dout_block.to(tl.float32), 1)
            lse = tl.load(lse_ptr + offs_m, mask=inside, other=0.0)
            mask = None
            if dropout is not None:
                ids = tl.load(row_ids_ptr + offs_m, mask=inside, other=0)
                mask = Mask(seed, ids, 1 + head, dropout.threshold, dropout.scale)
            dq_sum = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
            for first in tl.range(0, keys, BLOCK_N, disable_licm=True):
                offs_n = first + tl.arange(0, BLOCK_N)
                k_block = rows_of(k_rows, offs_n, keys, WIDTH, BLOCK_D)
                v_block = rows_of(v_rows, offs_n, keys, WIDTH, BLOCK_D)
                allowed = (offs_n[:, None] < keys) & inside[None, :]
                _, ds, _ = scores_bwd(
                    q_block, k_block, v_block, dout_block, lse, delta, allowed, mask, first, scale, PRECISION
                )
                dq_sum = tl.dot(tl.trans(ds), k_block, dq_sum, input_precision=PRECISION)
            put_rows(dq_rows, offs_m, queries, dq_sum * slope, WIDTH, BLOCK_D)
