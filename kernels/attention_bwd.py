"""The backward of attention: dV = P^T dO, dP = dO V^T, dS = P (dP - rowsum(dO O)), dQ = scale dS K, dK = scale dS^T Q.

attention_bwd_kernel: if all keys of a sequence fit in one block (WHOLE), there is one program for each sequence and
head. It keeps K and V, goes over the queries, computes S = Q K^T and dP once, and writes dQ, dK and dV: five products.
For longer sequences a program computes dK and dV of its block of keys, and then dQ of its block of queries, with the
scores computed for each: seven products. It reads q, k, v, out, dout and the log-sum-exps, and computes rowsum(dO O) on
the way. Gradients are written with any strides, such as into one (T, 3, H, D). No sum has terms of two programs, so no
atomics, and two runs give the same bits.

If the block has all keys, the forward's output can be computed again (AGAIN), by a sixth product beside the scores, so
an attention block need not save it. That costs 1.1 GF (1.4 us) for ELECTRA-Small at 128 x 128 and no traffic, as O is
written instead of read. It takes up to 253 registers for heads of 64, and would spill for heads of 128 or in float32
(`reads_again`).
"""

from __future__ import annotations

import triton
import triton.language as tl

from .parts.attention_tiles import Mask, Sequences, head_rows, keys_before, program_of, scores_bwd, seen, span
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
    CAUSAL: tl.constexpr,
):
    """blocks: how many blocks of queries or keys a sequence has at most. WHOLE: one block has all keys of a sequence.
    AGAIN: out is an empty buffer, which is filled, too."""
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
        begin = 0
        if CAUSAL and not WHOLE:  # the block of the first query that sees a key of this block
            begin = tl.maximum(block * BLOCK_N - (keys - queries), 0) // BLOCK_M * BLOCK_M
        for first in tl.range(begin, queries, BLOCK_M, disable_licm=True):
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
            allowed = seen(offs_n[:, None], offs_m[None, :], queries, keys, CAUSAL) & inside[None, :]
            p, ds, output = scores_bwd(
                q_block, k_block, v_block, dout_block, lse, delta, allowed, mask, block * BLOCK_N, scale, PRECISION
            )
            if AGAIN:
                put_rows(out_rows, offs_m, queries, output, WIDTH, BLOCK_D)
            dv_sum = tl.dot(p, dout_block, dv_sum, input_precision=PRECISION)
            dk_sum = tl.dot(ds, q_block, dk_sum, input_precision=PRECISION)
            if WHOLE:
                dq_block = tl.dot(tl.trans(ds), k_block, input_precision=PRECISION)
                put_rows(dq_rows, offs_m, queries, dq_block * slope, WIDTH, BLOCK_D)
        put_rows(head_rows(Heads(*dk), start_k, head), offs_n, keys, dk_sum * slope, WIDTH, BLOCK_D)
        put_rows(head_rows(Heads(*dv), start_k, head), offs_n, keys, dv_sum, WIDTH, BLOCK_D)

    if not WHOLE:  # noqa: SIM102  a condition of the compiler, which `and` would mix with one of the program
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
            last = keys_before((block + 1) * BLOCK_M, queries, keys, CAUSAL)
            for first in tl.range(0, last, BLOCK_N, disable_licm=True):
                offs_n = first + tl.arange(0, BLOCK_N)
                k_block = rows_of(k_rows, offs_n, keys, WIDTH, BLOCK_D)
                v_block = rows_of(v_rows, offs_n, keys, WIDTH, BLOCK_D)
                allowed = seen(offs_n[:, None], offs_m[None, :], queries, keys, CAUSAL) & inside[None, :]
                _, ds, _ = scores_bwd(
                    q_block, k_block, v_block, dout_block, lse, delta, allowed, mask, first, scale, PRECISION
                )
                dq_sum = tl.dot(tl.trans(ds), k_block, dq_sum, input_precision=PRECISION)
            put_rows(dq_rows, offs_m, queries, dq_sum * slope, WIDTH, BLOCK_D)
