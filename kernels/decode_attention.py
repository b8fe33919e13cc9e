"""decode_attention on the GPU: one query of each sequence against its keys and values in pages, in one launch.

decode_attention_kernel: a program has one (sequence, head) and goes over its keys in blocks, whose pages it looks up.
It keeps the query and a running maximum, so keys and values are read once. There is one query, so products are sums
over the head's columns, without tensor cores.

Cost: 4 H D flops and 2 H D elements of the cache for each key. 64 beams of 128 tokens, 4 heads of 64 in bf16: 8.4 MB,
2 us at 4.3 TB/s, and 256 programs of 4 warps; beams that share pages find them in the L2. Eager PyTorch gathers the
pages first: 7 launches, and three times the traffic. Planned occupancy: 8 programs a multiprocessor.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .parts.attention_tiles import LOG2E
from .parts.groups import Heads, heads

TILE = dict(BLOCK_N=64, num_warps=4)  # keys at once


class Pages(NamedTuple):
    """Keys or values in pages (P, page, H, D), whose last dimension has stride 1."""

    ptr: Any  # address of the first page
    page: Any  # elements from one page to the next
    row: Any  # elements from one token to the next
    head: Any  # elements from one head to the next


@triton.jit
def _paged_rows(pages, page, slot, head, present, WIDTH: tl.constexpr, BLOCK_D: tl.constexpr):
    """The rows of one head in the given slots of pages, (keys, BLOCK_D) float32; 0 where none is present."""
    pages = Pages(*pages)
    columns = tl.arange(0, BLOCK_D)
    rows = pages.ptr + page * pages.page + slot * pages.row + head * pages.head
    mask = present[:, None]
    if WIDTH != BLOCK_D:
        mask = mask & (columns[None, :] < WIDTH)
    return tl.load(rows[:, None] + columns[None, :], mask=mask, other=0.0).to(tl.float32)


@triton.jit
def decode_attention_kernel(
    q,
    k,
    v,
    table_ptr,
    lengths_ptr,
    out_ptr,
    num_heads,
    blocks,
    tokens,
    scale,
    WIDTH: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """table_ptr: (N, blocks), the pages of each sequence. tokens: those of a page."""
    q = Heads(*q)
    n, head = tl.program_id(0).to(tl.int64) // num_heads, tl.program_id(0).to(tl.int64) % num_heads
    keys = tl.load(lengths_ptr + n)
    columns = tl.arange(0, BLOCK_D)
    query = tl.load(q.ptr + n * q.row + head * q.head + columns, mask=columns < WIDTH, other=0.0).to(tl.float32)
    query *= scale * LOG2E
    largest = tl.full((1,), float("-inf"), tl.float32)
    total = tl.zeros((1,), tl.float32)
    acc = tl.zeros((BLOCK_D,), tl.float32)
    for first in range(0, keys, BLOCK_N):
        offs_n = first + tl.arange(0, BLOCK_N)
        present = offs_n < keys
        page = tl.load(table_ptr + n * blocks + offs_n // tokens, mask=present, other=0).to(tl.int64)
        slot = (offs_n % tokens).to(tl.int64)
        s = tl.sum(_paged_rows(k, page, slot, head, present, WIDTH, BLOCK_D) * query[None, :], 1)
        s = tl.where(present, s, float("-inf"))
        now = tl.maximum(largest, tl.max(s, 0))
        p, before = tl.exp2(s - now), tl.exp2(largest - now)
        total = total * before + tl.sum(p, 0)
        acc = acc * before + tl.sum(_paged_rows(v, page, slot, head, present, WIDTH, BLOCK_D) * p[:, None], 0)
        largest = now
    out = acc / tl.where(keys > 0, total, 1.0)
    ptrs = out_ptr + (n * num_heads + head) * WIDTH + columns
    tl.store(ptrs, out.to(out_ptr.dtype.element_ty), mask=columns < WIDTH)


def decode_attention(args: Any) -> Tensor:
    """-> out (N, H, D).

    args: a DecodeAttentionArguments (electra_fast/ops/decode_attention.py)
    """
    q, k_pages, v_pages = (t if t.stride(-1) == 1 else t.contiguous() for t in (args.q, args.k_pages, args.v_pages))
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    count, num_heads, width = q.shape
    if programs := count * num_heads:
        decode_attention_kernel[(programs,)](
            heads(q),
            (k_pages, *k_pages.stride()[:3]),
            (v_pages, *v_pages.stride()[:3]),
            args.pages.contiguous(),
            args.lengths.contiguous(),
            out,
            num_heads,
            args.pages.shape[1],
            k_pages.shape[1],
            args.softmax_scale,
            WIDTH=width,
            BLOCK_D=max(16, triton.next_power_of_2(width)),
            enable_fp_fusion=True,
            **TILE,
        )
    return out
