"""The gradients of the embedding's tables: each row's is the sum of dz over the tokens that use it, in order.

embedding_bwd_word_kernel: the tokens are sorted by word, stably, so those of a word are consecutive and in order. There
is a program for each token. It has work if its token is the first of its word, or at a multiple of RUN: it sums the
word's tokens up to the next multiple. If these are all the word's tokens, it writes the row of the gradient; else it
writes a part, and embedding_bwd_join_kernel adds the parts of each word in order.

embedding_bwd_position_kernel: positions and types have a few hundred rows, so their gradient is a product: a matrix of
ones where a token has the position or type, times dz. A program computes a tile over a share of the tokens, and
partials.py adds the shares. NaN and infinity in dz would reach every row, as 0 times them is NaN: they are left out of
the product, and if there were any, a second loop puts NaN into the rows of their tokens.
No atomics, and two runs give the same bits.

Cost: T E additions, and 2 T E (P + types) flops of product, less those of blocks of rows that no token of a block has;
bytes in bf16: 2 T E + 2 V E (zeros) + 30 T for the words, 2 T E and 8 E (P + types) a share for the rest. ELECTRA-
Small, T = 16,384, E = 128, V = 30,522, P = 512, of which 128 are in use: 12 and 13 MB, at 4.3 TB/s 6 us together;
0.8 GF, at 790 TFLOP/s 1 us. So the launches are the limit: 5 (zeros, words, join, product, sum), beside the sort, which
takes half the passes for keys of 16 bits (vocabularies up to 32,768) that it takes for 32; eager PyTorch sorts for each
of the three tables.

Tiles: the programs for words are many and small, and most have no work: 2 warps, 2,048 elements at once, planned 16 a
multiprocessor. The product's accumulator is 32 registers a thread: at least 2 programs of 4 warps.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .parts.device import entry
from .parts.groups import Matrix
from .parts.layer_norm import load_rows
from .parts.partials import sum_partials

RUN = 64  # the most tokens of a word that one program sums
SHARES = 16  # the most shares of the tokens in the product for positions and types

# (bytes of an element[, generation]) -> tile of that product, see device.py: BLOCK_P rows of the tables, BLOCK_T tokens
# at a time, BLOCK_E columns.
POSITION = {
    (2,): dict(BLOCK_P=64, BLOCK_T=64, BLOCK_E=64, num_warps=4, num_stages=2),
    (4,): dict(BLOCK_P=32, BLOCK_T=32, BLOCK_E=64, num_warps=4, num_stages=1),
}


@triton.jit
def embedding_bwd_word_kernel(
    dz_ptr,
    words_ptr,
    order_ptr,
    dword_ptr,
    parts_ptr,
    rows,
    WIDTH: tl.constexpr,
    RUN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    at = tl.program_id(0).to(tl.int64)
    word = tl.load(words_ptr + at)
    begins = tl.load(words_ptr + at - 1, mask=at > 0, other=-1) != word
    block = at // RUN
    if begins | (at == block * RUN):
        offs = at + tl.arange(0, RUN)
        inside = (offs < (block + 1) * RUN) & (offs < rows)
        count = tl.sum((tl.load(words_ptr + offs, mask=inside, other=-1) == word).to(tl.int32), 0)
        acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
        columns = tl.arange(0, BLOCK_D)
        for first in range(0, count, BLOCK_M):
            offs_m = first + tl.arange(0, BLOCK_M)
            tokens = tl.load(order_ptr + at + offs_m, mask=offs_m < count, other=0)
            acc += load_rows(
                Matrix(dz_ptr, WIDTH), tokens[:, None], (offs_m[:, None] < count) & (columns[None, :] < WIDTH)
            )
        total = tl.sum(acc, 0)
        after = at + count
        if begins & (tl.load(words_ptr + after, mask=after < rows, other=-1) != word):
            ptrs = dword_ptr + word.to(tl.int64) * WIDTH + columns
            tl.store(ptrs, total.to(dword_ptr.dtype.element_ty), mask=columns < WIDTH)
        else:  # (blocks, 2, E): the part of the word that began in an earlier block; that of the word that goes on
            tl.store(parts_ptr + (2 * block + begins.to(tl.int64)) * WIDTH + columns, total, mask=columns < WIDTH)


@triton.jit
def embedding_bwd_join_kernel(
    words_ptr,
    dword_ptr,
    parts_ptr,
    rows,
    WIDTH: tl.constexpr,
    RUN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    block = tl.program_id(0).to(tl.int64)
    first, after = block * RUN, (block + 1) * RUN
    word = tl.load(words_ptr + after - 1)
    before = tl.load(words_ptr + first - 1, mask=first > 0, other=-1)
    begins = (tl.load(words_ptr + first) != word) | (before != word)
    if begins & (tl.load(words_ptr + after) == word):
        columns = tl.arange(0, BLOCK_D)
        acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
        more = 1
        while more > 0:
            blocks = after // RUN + tl.arange(0, BLOCK_M)
            same = tl.load(words_ptr + blocks * RUN, mask=blocks * RUN < rows, other=-1) == word
            acc += load_rows(Matrix(parts_ptr, 2 * WIDTH), blocks[:, None], same[:, None] & (columns[None, :] < WIDTH))
            more = tl.min(same.to(tl.int32), 0)
            after += BLOCK_M * RUN
        total = tl.load(parts_ptr + (2 * block + 1) * WIDTH + columns, mask=columns < WIDTH, other=0.0)
        total += tl.sum(acc, 0)
        ptrs = dword_ptr + word.to(tl.int64) * WIDTH + columns
        tl.store(ptrs, total.to(dword_ptr.dtype.element_ty), mask=columns < WIDTH)


@triton.jit
def _has(places_ptr, types_ptr, offs_t, offs_p, positions, kinds, rows):
    """(P, T): whether a token uses row offs_p of the two tables, positions first and then types."""
    places = tl.load(places_ptr + offs_t, mask=offs_t < rows, other=-1).to(tl.int32)
    types = tl.load(types_ptr + offs_t, mask=offs_t < rows, other=kinds).to(tl.int32) + positions
    return (offs_p[:, None] == places[None, :]) | (offs_p[:, None] == types[None, :])


@triton.jit
def embedding_bwd_position_kernel(
    dz_ptr,
    places_ptr,
    types_ptr,
    parts_ptr,
    positions,
    kinds,
    rows,
    tokens_per_share,
    WIDTH: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_E: tl.constexpr,
    PRECISION: tl.constexpr,
):
    share = tl.program_id(1).to(tl.int64)
    offs_p = tl.program_id(0) * BLOCK_P + tl.arange(0, BLOCK_P)
    columns = tl.program_id(2).to(tl.int64) * BLOCK_E + tl.arange(0, BLOCK_E)
    acc = tl.zeros((BLOCK_P, BLOCK_E), tl.float32)
    start = share * tokens_per_share
    end = tl.minimum(start + tokens_per_share, rows)
    worst = 0.0
    for first in range(start, end, BLOCK_T):
        offs_t = first + tl.arange(0, BLOCK_T)
        has = _has(places_ptr, types_ptr, offs_t, offs_p, positions, kinds, rows)
        if tl.max(tl.max(has.to(tl.int32), 1), 0) > 0:
            inside = (offs_t[:, None] < rows) & (columns[None, :] < WIDTH)
            dz = tl.load(dz_ptr + offs_t[:, None] * WIDTH + columns[None, :], mask=inside, other=0.0)
            finite = tl.abs(dz.to(tl.float32)) < float("inf")
            worst = tl.maximum(worst, tl.max(tl.max(tl.where(finite, 0.0, 1.0), 1), 0))
            dz = tl.where(finite, dz, 0.0).to(dz.dtype)
            acc = tl.dot(has.to(dz.dtype), dz, acc, input_precision=PRECISION)
    if worst > 0:
        for first in range(start, end, BLOCK_T):
            offs_t = first + tl.arange(0, BLOCK_T)
            has = _has(places_ptr, types_ptr, offs_t, offs_p, positions, kinds, rows)
            inside = (offs_t[:, None] < rows) & (columns[None, :] < WIDTH)
            dz = tl.load(dz_ptr + offs_t[:, None] * WIDTH + columns[None, :], mask=inside, other=0.0)
            odd = ~(tl.abs(dz.to(tl.float32)) < float("inf"))
            theirs = tl.dot(has.to(dz.dtype), odd.to(dz.dtype), input_precision=PRECISION)
            acc = tl.where(theirs > 0, float("nan"), acc)
    inside = (offs_p[:, None] < positions + kinds) & (columns[None, :] < WIDTH)
    ptrs = parts_ptr + (share * (positions + kinds) + offs_p[:, None]) * WIDTH + columns[None, :]
    tl.store(ptrs, acc, mask=inside)


def sum_words(dz: Tensor, ids: Tensor, dword: Tensor) -> None:
    """dword (V, E): for each word the sum of the rows of dz (T, E) of its tokens, 0 if there are none."""
    rows, width = dz.shape
    words, order = ids.to(torch.int16 if dword.shape[0] <= 2**15 else torch.int32).sort(stable=True)
    padded = max(64, triton.next_power_of_2(width))
    sizes = dict(WIDTH=width, RUN=RUN, BLOCK_D=padded, BLOCK_M=max(1, 2048 // padded))
    options = dict(num_warps=2, enable_fp_fusion=True)
    blocks = triton.cdiv(rows, RUN)
    parts = dz.new_empty(blocks, 2, width, dtype=torch.float32)
    embedding_bwd_word_kernel[(rows,)](dz, words, order, dword.zero_(), parts, rows, **sizes, **options)
    if blocks > 1:
        embedding_bwd_join_kernel[(blocks - 1,)](words, dword, parts, rows, **sizes, **options)


def sum_positions(dz: Tensor, places: Tensor, types: Tensor, dposition: Tensor, dtoken_type: Tensor) -> None:
    """dposition (P, E) and dtoken_type (types, E): the same sums for each position and each type."""
    rows, width = dz.shape
    chosen = entry(POSITION, (dz.element_size(),), dz)
    chunks = triton.cdiv(rows, chosen["BLOCK_T"])
    chunks_per_share = triton.cdiv(chunks, SHARES)
    shares, positions, kinds = triton.cdiv(chunks, chunks_per_share), dposition.shape[0], dtoken_type.shape[0]
    parts = dz.new_empty(shares, positions + kinds, width, dtype=torch.float32)
    grid = (triton.cdiv(positions + kinds, chosen["BLOCK_P"]), shares, triton.cdiv(width, chosen["BLOCK_E"]))
    embedding_bwd_position_kernel[grid](
        dz,
        places,
        types,
        parts,
        positions,
        kinds,
        rows,
        chunks_per_share * chosen["BLOCK_T"],
        WIDTH=width,
        PRECISION="ieee" if dz.element_size() == 4 else "tf32",  # matters for 32-bit products only
        enable_fp_fusion=True,
        **chosen,
    )
    sum_partials((parts, dposition, dtoken_type))
