"""attention on the GPU: out = dropout(softmax(scale Q K^T)) V of packed sequences, in one launch each way.

attention_fwd_kernel: a program computes a block of queries of one sequence and head, and goes over its keys in blocks.
If all keys fit in one block (WHOLE), the softmax needs no running maximum. Sequences of up to 128 tokens are one
program for each head, so K and V are read once. It writes out (T, H, D) and, for the backward, the log-sum-exps of the
scores (H, T), in powers of two. Causal attention skips the blocks above the diagonal, forward and backward.

The backward is in attention_bwd.py. For 129 to 512 keys both ways are in attention_resident.py, if the table has a tile
for it.

Cost at N sequences of S tokens, H heads of D: 4 N H S^2 D flops forward, 10 backward in place of 4 (14 where S > 128);
bytes in bf16: 8 T H D + 4 T H forward, 16 T H D + 4 T H backward. ELECTRA-Small, 128 x 128 tokens, 4 heads of 64:
2.1 GF and 34 MB forward, 5.4 GF and 67 MB backward; at 790 TFLOP/s and 4.3 TB/s that is 2.7 and 6.8 us of products,
7.9 and 16 us of traffic, and a Philox call for 16 scores: bandwidth is the limit at S = 128. Base, 256 x 512, 12 heads:
103 GF and 0.8 GB forward, 131 us of products and 189 us of traffic; 361 GF and 1.6 GB backward, 457 and 376 us.

Launches: 1 forward, 1 backward; eager PyTorch 6 (two products, scale, mask, softmax, dropout) and 9. Planned occupancy
at D = 64 in bf16: with 128 keys 2 programs of 8 warps forward (118 registers, 48 KB) and 1 backward (196 registers);
with 512, whose keys and values take 128 KB, 1 each way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .attention_bwd import attention_bwd_kernel
from .attention_resident import attention_bwd_resident_kernel, attention_fwd_resident_kernel
from .parts.attention_tiles import LOG2E, Sequences, head_rows, keys_before, program_of, seen, span
from .parts.device import entry
from .parts.groups import Dropout, Heads, Matrix, dropout, heads
from .parts.philox import dropout_keep
from .parts.rows import put_rows, rows_of

# (bytes of an element, padded head width, kind[, generation]) -> tile; see device.py. A kind is the most keys that a
# sequence has; "few" is for up to 128 keys and 64 queries, "long" for all other lengths.
FWD = {
    (2, 32, "64"): dict(BLOCK_M=64, BLOCK_N=64, num_warps=4, num_stages=1),
    (2, 32, "few"): dict(BLOCK_M=64, BLOCK_N=128, num_warps=4, num_stages=1),
    (2, 32, "128"): dict(BLOCK_M=128, BLOCK_N=128, num_warps=8, num_stages=1),
    (2, 32, "512"): dict(BLOCK_M=128, BLOCK_N=64, num_warps=8, num_stages=1),
    (2, 32, "512", 80): {},  # an A100's tensor cores read registers, not shared memory
    (2, 32, "long"): dict(BLOCK_M=128, BLOCK_N=64, num_warps=8, num_stages=2),
    (2, 64, "64"): dict(BLOCK_M=64, BLOCK_N=64, num_warps=4, num_stages=1),
    (2, 64, "few"): dict(BLOCK_M=64, BLOCK_N=128, num_warps=4, num_stages=1),
    (2, 64, "128"): dict(BLOCK_M=128, BLOCK_N=128, num_warps=8, num_stages=1),
    (2, 64, "512"): dict(BLOCK_M=128, BLOCK_N=64, num_warps=8, num_stages=1),
    (2, 64, "512", 80): {},  # an A100's tensor cores read registers, not shared memory
    (2, 64, "long"): dict(BLOCK_M=128, BLOCK_N=64, num_warps=8, num_stages=2),
    (2, 128, "64"): dict(BLOCK_M=64, BLOCK_N=64, num_warps=4, num_stages=1),
    (2, 128, "few"): dict(BLOCK_M=64, BLOCK_N=128, num_warps=4, num_stages=1),
    (2, 128, "128"): dict(BLOCK_M=128, BLOCK_N=128, num_warps=8, num_stages=1),
    (2, 128, "long"): dict(BLOCK_M=128, BLOCK_N=64, num_warps=8, num_stages=2),
    (4, 32, "long"): dict(BLOCK_M=32, BLOCK_N=32, num_warps=4, num_stages=1),
    (4, 64, "long"): dict(BLOCK_M=32, BLOCK_N=32, num_warps=4, num_stages=1),
    (4, 128, "long"): dict(BLOCK_M=16, BLOCK_N=16, num_warps=4, num_stages=1),
    (2, 128, "128", 80): dict(BLOCK_M=64, BLOCK_N=128, num_warps=8, num_stages=1),
    (2, 128, "long", 80): dict(BLOCK_M=64, BLOCK_N=64, num_warps=8, num_stages=2),
}
BWD = {
    (2, 32, "64"): dict(BLOCK_M=64, BLOCK_N=64, num_warps=4, num_stages=1),
    (2, 32, "128"): dict(BLOCK_M=64, BLOCK_N=128, num_warps=8, num_stages=1),
    (2, 32, "512"): dict(BLOCK_M=64, BLOCK_N=128, num_warps=8, num_stages=1),
    (2, 32, "512", 80): {},  # an A100's tensor cores read registers, not shared memory
    (2, 32, "long"): dict(BLOCK_M=64, BLOCK_N=128, num_warps=8, num_stages=2),
    (2, 64, "64"): dict(BLOCK_M=64, BLOCK_N=64, num_warps=4, num_stages=1),
    (2, 64, "128"): dict(BLOCK_M=64, BLOCK_N=128, num_warps=8, num_stages=1),
    (2, 64, "512"): dict(BLOCK_M=64, BLOCK_N=128, num_warps=8, num_stages=1),
    (2, 64, "512", 80): {},  # an A100's tensor cores read registers, not shared memory
    (2, 64, "long"): dict(BLOCK_M=64, BLOCK_N=128, num_warps=8, num_stages=2),
    (2, 128, "64"): dict(BLOCK_M=64, BLOCK_N=64, num_warps=8, num_stages=1),
    (2, 128, "128"): dict(BLOCK_M=32, BLOCK_N=128, num_warps=8, num_stages=1),
    (2, 128, "long"): dict(BLOCK_M=64, BLOCK_N=64, num_warps=8, num_stages=1),
    (4, 32, "long"): dict(BLOCK_M=32, BLOCK_N=32, num_warps=4, num_stages=1),
    (4, 64, "long"): dict(BLOCK_M=32, BLOCK_N=32, num_warps=4, num_stages=1),
    (4, 128, "long"): dict(BLOCK_M=16, BLOCK_N=16, num_warps=4, num_stages=1),
    (2, 32, "long", 80): dict(BLOCK_M=32, BLOCK_N=64, num_warps=8, num_stages=2),
    (2, 64, "64", 80): dict(BLOCK_M=32, BLOCK_N=64, num_warps=8, num_stages=1),
    (2, 64, "128", 80): dict(BLOCK_M=32, BLOCK_N=128, num_warps=8, num_stages=1),
    (2, 64, "long", 80): dict(BLOCK_M=32, BLOCK_N=64, num_warps=8, num_stages=1),
    (2, 128, "128", 80): {},  # with all keys at once it spills
}


def tile(table: dict, q: Tensor, max_seqlen: int, max_seqlen_k: int, causal: bool = False) -> dict:
    """The kernel's options: a tile of the table and what follows from it. If LENGTH is among them, they are for the
    kernels of attention_resident.py, which compute all scores and so are not for causal attention."""
    size, width = q.element_size(), max(32, triton.next_power_of_2(q.shape[2]))
    precision = "ieee" if size == 4 else "tf32"  # matters for 32-bit products only
    longest = max_seqlen_k if table is FWD else max(max_seqlen, max_seqlen_k)
    kinds = ["64"] * (max_seqlen_k <= 64) + ["few"] * (max_seqlen <= 64) + ["128"] if max_seqlen_k <= 128 else []
    kinds += ["512"] * (max_seqlen_k > 128 and longest <= 512 and not causal) + ["long"]
    kind, chosen = next((k, t) for k in kinds if (t := entry(table, (size, width, k), q)))
    follows = dict(WIDTH=q.shape[2], BLOCK_D=width, PRECISION=precision, enable_fp_fusion=True)
    if kind == "512":
        return chosen | follows | dict(LENGTH=256 if longest <= 256 else 512)
    return chosen | follows | dict(WHOLE=max_seqlen_k <= chosen["BLOCK_N"], CAUSAL=causal)


def reads_again(q: Tensor, max_seqlen_k: int) -> bool:
    """Whether the backward can compute the forward's output again: if one block has all keys, and the registers suffice
    for one more sum."""
    return q.element_size() == 2 and q.shape[2] <= 64 and tile(BWD, q, 0, max_seqlen_k).get("WHOLE", False)


@triton.jit
def attention_fwd_kernel(
    q,
    k,
    v,
    out_ptr,
    lse_ptr,
    sequences,
    dropout,
    scale,
    blocks,
    WHOLE: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    PRECISION: tl.constexpr,
    CAUSAL: tl.constexpr,
):
    """blocks: how many blocks of queries a sequence has at most. WHOLE: one block has all keys of a sequence. CAUSAL: a
    block of queries goes over the keys that its last one sees."""
    sequences = Sequences(*sequences)
    n, head, block = program_of(blocks, sequences.heads)
    start, queries = span(sequences.cu_seqlens, n)
    start_k, keys = span(sequences.cu_seqlens_k, n)
    if block * BLOCK_M >= queries:
        return
    offs_m = block * BLOCK_M + tl.arange(0, BLOCK_M)
    q_block = rows_of(head_rows(Heads(*q), start, head), offs_m, queries, WIDTH, BLOCK_D)
    k_rows = head_rows(Heads(*k), start_k, head)
    v_rows = head_rows(Heads(*v), start_k, head)
    keep_scale = 1.0
    if dropout is not None:
        dropout = Dropout(*dropout)
        keep_scale = dropout.scale
        seed = tl.load(dropout.seed)
        ids = tl.load(dropout.row_ids + start + offs_m, mask=offs_m < queries, other=0)
    m_i = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    l_i = tl.zeros((BLOCK_M,), tl.float32)
    acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    last = keys_before((block + 1) * BLOCK_M, queries, keys, CAUSAL)
    for first in range(0, BLOCK_N if WHOLE else last, BLOCK_N):
        offs_n = first + tl.arange(0, BLOCK_N)
        k_block = rows_of(k_rows, offs_n, keys, WIDTH, BLOCK_D)
        v_block = rows_of(v_rows, offs_n, keys, WIDTH, BLOCK_D)
        s = tl.dot(q_block, tl.trans(k_block), input_precision=PRECISION) * (scale * LOG2E)
        s = tl.where(seen(offs_n[None, :], offs_m[:, None], queries, keys, CAUSAL), s, float("-inf"))
        m_new = tl.maximum(m_i, tl.max(s, 1))
        m_safe = tl.where(m_new == float("-inf"), 0.0, m_new)
        p = tl.exp2(s - m_safe[:, None])
        if not WHOLE:
            alpha = tl.exp2(m_i - m_safe)
            acc = acc * alpha[:, None]
            l_i = l_i * alpha
        l_i += tl.sum(p, 1)
        m_i = m_new
        if dropout is not None:
            keep = dropout_keep(seed, ids, first, 1 + head, dropout.threshold, BLOCK_M, BLOCK_N)
            p = tl.where(keep, p, 0.0)
        acc = tl.dot(p.to(v_block.dtype), v_block, acc, input_precision=PRECISION)
    some = l_i != 0.0  # false for a query without keys, whose output is 0
    l_i = tl.where(some, l_i, 1.0)
    out = acc * (keep_scale / l_i)[:, None]
    heads = sequences.heads
    put_rows(Matrix(out_ptr + (start * heads + head) * WIDTH, heads * WIDTH), offs_m, queries, out, WIDTH, BLOCK_D)
    lse = tl.where(some, m_i + tl.log2(l_i), 0.0)
    tl.store(lse_ptr + head * sequences.tokens + start + offs_m, lse, mask=offs_m < queries)


class Packing(NamedTuple):
    """How the sequences of the queries, and those of the keys, are packed."""

    cu_seqlens: Tensor  # (N + 1,) int32: the row where the queries of each sequence begin, and at the end T
    max_seqlen: int  # the most queries of a sequence, or more
    cu_seqlens_k: Tensor  # the same for the keys
    max_seqlen_k: int


def packing_of(args: Any) -> Packing:
    """The Packing of an AttentionArguments."""
    return Packing(args.cu_seqlens, args.max_seqlen, args.cu_seqlens_k, args.max_seqlen_k)


def attention_fwd(args: Any) -> tuple[Tensor, list[Tensor]]:
    """-> out (T, H, D), [lse (H, T) float32].

    args: an AttentionArguments (electra_fast/ops/attention.py)
    """
    mask = dropout(args.row_ids, args.seed, args.dropout_p)
    out, lse = attend((args.q, args.k, args.v), packing_of(args), mask, args.softmax_scale, args.causal)
    return out, [lse]


def attend(
    qkv: Sequence[Tensor], packing: Packing, mask: tuple | None, softmax_scale: float, causal: bool = False
) -> tuple[Tensor, Tensor]:
    """-> out (T, H, D), and the scores' log-sum-exps (H, T) float32.

    qkv: queries, keys and values, (., H, D) each
    mask: the Dropout of the probabilities, or None
    """
    q, k, v = _unit_stride(*qkv)
    tokens, num_heads, _ = q.shape
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    lse = q.new_empty(num_heads, tokens, dtype=torch.float32)
    chosen = tile(FWD, q, packing.max_seqlen, packing.max_seqlen_k, causal)
    programs = (packing.cu_seqlens.shape[0] - 1) * num_heads
    sequences = (packing.cu_seqlens.contiguous(), packing.cu_seqlens_k.contiguous(), tokens, num_heads)
    views = (heads(q), heads(k), heads(v))
    if "LENGTH" in chosen:
        attention_fwd_resident_kernel[(programs,)](*views, out, lse, sequences, mask, softmax_scale, **chosen)
    elif programs := programs * (blocks := triton.cdiv(packing.max_seqlen, chosen["BLOCK_M"])):
        attention_fwd_kernel[(programs,)](*views, out, lse, sequences, mask, softmax_scale, blocks, **chosen)
    return out, lse


def attention_bwd(grads: list[Tensor], args: Any, saved: list[Tensor]) -> list[Tensor]:
    """grads [dout], saved [out, lse] -> [dq, dk, dv].

    args: an AttentionArguments
    """
    qkv, mask = (args.q, args.k, args.v), dropout(args.row_ids, args.seed, args.dropout_p)
    gradients = [torch.empty_like(t, memory_format=torch.contiguous_format) for t in qkv]
    put_gradients(gradients, grads[0], qkv, saved, packing_of(args), mask, args.softmax_scale, args.causal)
    return gradients


def put_gradients(
    gradients: list[Tensor],
    dout: Tensor,
    qkv: Sequence[Tensor],
    saved: list[Tensor],
    packing: Packing,
    mask: tuple | None,
    softmax_scale: float,
    causal: bool = False,
    again: bool = False,
) -> None:
    """Writes dq, dk and dv to `gradients`, of any strides, such as views of one packed projection's gradient.

    qkv, mask: as `attend` takes them
    saved: out and the log-sum-exps
    again: out is an empty buffer, which is filled, too; allowed if `reads_again`
    """
    out, lse = saved
    q, k, v, dout = _unit_stride(*qkv, dout)
    tokens, num_heads, _ = q.shape
    most, most_keys = packing.max_seqlen, packing.max_seqlen_k
    chosen = tile(BWD, q, most, most_keys, causal)
    programs = (packing.cu_seqlens.shape[0] - 1) * num_heads
    if programs == 0 or max(most, most_keys) == 0:
        return
    views, places = [heads(t) for t in (q, k, v)], [heads(t) for t in gradients]
    inputs = (*views, out.contiguous(), heads(dout), lse)
    sequences = (packing.cu_seqlens.contiguous(), packing.cu_seqlens_k.contiguous(), tokens, num_heads)
    numbers = (sequences, mask, softmax_scale)
    if "LENGTH" in chosen:
        statistics = lse.new_empty(2, programs, chosen["LENGTH"])
        ids = lse.new_empty(programs, chosen["LENGTH"], dtype=torch.int64)
        attention_bwd_resident_kernel[(2 * programs,)](*inputs, statistics, ids, *places, *numbers, **chosen)
        return
    blocks = max(triton.cdiv(most, chosen["BLOCK_M"]), triton.cdiv(most_keys, chosen["BLOCK_N"]))
    blocks = 1 if chosen["WHOLE"] else blocks
    attention_bwd_kernel[(programs * blocks,)](*inputs, *places, *numbers, blocks, AGAIN=again, **chosen)


def _unit_stride(*tensors: Tensor) -> list[Tensor]:
    """The tensors with a last dimension of stride 1, as views of a packed projection have; others are copied."""
    return [t if t.stride(-1) == 1 else t.contiguous() for t in tensors]
