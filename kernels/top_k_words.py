"""top_k_words on the GPU: the k most likely words of each row, from the tiles' maxima of generator_head's sweep.

The sweep of generator_head.py (or, for wide rows, that of generator_head_chunked.py) writes the largest logit of each
tile of 128 words, and the sums for the log-sum-exp. The k best words of a row lie in the k tiles with the largest
maxima: a word of another tile has k words before it, one in each of these.
top_k_words_kernel: a program for each row takes these tiles one after the other, computes their logits again (or reads
them where they are stored) and puts them into scratch memory. Then it takes the largest k times. Of equal ones it takes
the lower, tile or word, so no atomics and no order but this one.

Cost: the sweep's 2 M V E flops, and 2 M k 128 E for the tiles; for k = 8 and V = 30522 3 % more. Launches: 2. Eager
PyTorch stores (M, V) logits, and its log-softmax and topk read them twice. Planned occupancy: 4 programs a
multiprocessor for k <= 16.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .generator_head import in_chunks, sweep
from .generator_head_chunked import chunks, sweep_chunk
from .generator_head_sample import LN2, LOG2E, TILE, Statistics, Words, words
from .parts.groups import Matrix, matrix
from .parts.rows import rows_of

NONE = tl.constexpr(2**31 - 1)  # more than any word


@triton.jit
def _take(values, left):
    """The index of the largest value that is left, the lowest of equal ones, and what is left without it."""
    index = tl.arange(0, values.shape[0])
    largest = tl.max(tl.where(left, values, float("-inf")), 0)
    taken = tl.min(tl.where(left & (values == largest), index, NONE), 0)
    return taken, left & (index != taken)


@triton.jit
def top_k_words_kernel(
    hidden,
    words,
    logits_ptr,
    statistics,
    scratch_ptr,
    log_probs_ptr,
    ids_ptr,
    rows,
    k,
    WIDTH: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_E: tl.constexpr,
    TILES: tl.constexpr,
    SHARES: tl.constexpr,
    TAKEN: tl.constexpr,
):
    """logits_ptr: None where the logits are not stored. scratch_ptr: (rows, TAKEN * BLOCK_N) float32. TAKEN: a power of
    two, at least the number of tiles that are taken, k or all."""
    hidden, words, statistics = Matrix(*hidden), Words(*words), Statistics(*statistics)
    row = tl.program_id(0).to(tl.int64)
    share = tl.arange(0, SHARES).to(tl.int64)
    m = tl.load(statistics.share_max + share * rows + row, mask=share < statistics.shares, other=float("-inf"))
    total = tl.load(statistics.share_sum + share * rows + row, mask=share < statistics.shares, other=0.0)
    largest = tl.max(m, 0)
    lse = largest + LN2 * tl.log2(tl.sum(total * tl.exp2((m - largest) * LOG2E), 0))

    columns, lanes = tl.arange(0, BLOCK_E), tl.arange(0, BLOCK_N)
    if logits_ptr is None:
        x = tl.load(hidden.ptr + row * hidden.row + columns, mask=columns < WIDTH, other=0.0).to(tl.float32)
    tiles = tl.arange(0, TILES)
    m = tl.load(
        statistics.tile_max + tiles.to(tl.int64) * rows + row, mask=tiles < statistics.tiles, other=float("-inf")
    )
    m = tl.where(m == m, m, float("-inf"))  # NaN, which no comparison would find
    left = tiles < statistics.tiles
    places, slots = tl.arange(0, TAKEN * BLOCK_N), tl.arange(0, TAKEN)
    taken = tl.full((TAKEN,), 0, tl.int32)
    scratch_ptr += row * (TAKEN * BLOCK_N)
    count = tl.minimum(k, statistics.tiles)
    for i in range(count):
        tile, left = _take(m, left)
        taken = tl.where(slots == i, tile, taken)
        offs_n = tile.to(tl.int64) * BLOCK_N + lanes
        inside = offs_n < words.count
        if logits_ptr is not None:
            logits = tl.load(logits_ptr + row * words.count + offs_n, mask=inside, other=0.0).to(tl.float32)
        else:
            weights = rows_of(Matrix(words.weight, words.row), offs_n, words.count, WIDTH, BLOCK_E).to(tl.float32)
            logits = tl.sum(weights * x[None, :], 1)
            logits += tl.load(words.bias + offs_n, mask=inside, other=0.0).to(tl.float32)
        tl.store(scratch_ptr + tl.cast(i, tl.int64) * BLOCK_N + lanes, logits)
    tl.debug_barrier()  # other threads of the program read them
    logits = tl.load(scratch_ptr + places, mask=places < count * BLOCK_N, other=float("-inf"))
    logits = tl.where(logits == logits, logits, float("-inf"))
    ids = (taken[:, None] * BLOCK_N + lanes[None, :]).reshape(TAKEN * BLOCK_N)
    left = (places < count * BLOCK_N) & (ids < words.count)
    for i in range(k):
        largest = tl.max(tl.where(left, logits, float("-inf")), 0)
        word = tl.min(tl.where(left & (logits == largest), ids, NONE), 0)
        left = left & (ids != word)
        tl.store(log_probs_ptr + row * k + i, (largest - lse).to(log_probs_ptr.dtype.element_ty))
        tl.store(ids_ptr + row * k + i, word.to(tl.int64))


def top_k_words(args: Any) -> tuple[Tensor, Tensor]:
    """-> log_probs (M, k), ids (M, k) int64.

    args: a TopKWordsArguments (electra_fast/ops/top_k_words.py)
    """
    hidden, weight = (t if t.stride(1) == 1 else t.contiguous() for t in (args.hidden, args.weight))
    (count, _), bias, k = hidden.shape, args.bias.contiguous(), args.k
    labels = hidden.new_zeros(count, dtype=torch.int64)  # a word: no row is left out
    log_probs, ids = hidden.new_empty(count, k), hidden.new_empty(count, k, dtype=torch.int64)
    if count and not in_chunks(hidden):
        _take_words(hidden, weight, bias, sweep(hidden, weight, bias, labels), None, log_probs, ids)
    elif count:
        for rows in chunks(hidden, weight):
            statistics, logits = sweep_chunk(hidden[rows], weight, bias, labels[rows])
            _take_words(hidden[rows], weight, bias, statistics, logits, log_probs[rows], ids[rows])
    return log_probs, ids


def _take_words(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    statistics: tuple,
    logits: Tensor | None,
    log_probs: Tensor,
    ids: Tensor,
) -> None:
    """Fills log_probs and ids (rows, k) from the Statistics of a sweep; logits (rows, V): where it stored them."""
    (rows, k), (*_, tiles, shares) = log_probs.shape, statistics
    taken = triton.next_power_of_2(min(k, tiles))
    top_k_words_kernel[(rows,)](
        matrix(hidden),
        words(weight, bias),
        logits,
        statistics,
        hidden.new_empty(rows, taken * TILE, dtype=torch.float32),
        log_probs,
        ids,
        rows,
        k,
        WIDTH=hidden.shape[1],
        BLOCK_N=TILE,
        BLOCK_E=max(64, triton.next_power_of_2(hidden.shape[1])),
        TILES=triton.next_power_of_2(tiles),
        SHARES=triton.next_power_of_2(shares),
        TAKEN=taken,
        num_warps=4 if taken <= 16 else 8 if taken <= 64 else 16,
        enable_fp_fusion=True,
    )
