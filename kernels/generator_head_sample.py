"""generator_head's last step: each row's loss, and a word drawn exactly from its softmax, by sums over tiles.

generator_head_sample_kernel: a program for each row joins the shares' sums to the log-sum-exp and the loss. It finds
the sample's tile by the inverse of the cumulative distribution over the tiles' sums, with one uniform number, and the
word in it by that over the tile's words, with another. The tile's 128 logits are computed again, or read again where
they are stored. It writes loss, log-sum-exp and word. See generator_head.py for the cost.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .parts.groups import Matrix, affine, matrix
from .parts.philox import philox, uniform
from .parts.rows import rows_of

TILE = 128  # words of a tile; every backend samples in tiles of 128
LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


class Words(NamedTuple):
    """The vocabulary: the parameters of its logits, hidden W^T + b."""

    weight: Any  # address of W (V, E)
    row: Any  # elements from one row of W to the next
    bias: Any  # address of b (V,)
    count: Any  # V


def words(weight: Tensor, bias: Tensor) -> tuple:
    """The Words of a weight (V, E), whose columns have stride 1, and a bias (V,)."""
    return *affine(weight, bias), weight.shape[0]


class Statistics(NamedTuple):
    """Maxima m and sums of exp(l - m) over logits l of each row: addresses of float32."""

    tile_max: Any  # (tiles, M): over the words of each tile, of the logits that the sample is drawn from
    tile_sum: Any
    share_max: Any  # (shares, M): over the tiles of each share, of the logits of the loss
    share_sum: Any
    tiles: Any
    shares: Any


def new_statistics(like: Tensor, tiles: int, shares: int) -> tuple:
    """Empty Statistics for the rows of `like`."""
    of_tiles, of_shares = (like.new_empty(2, n, like.shape[0], dtype=torch.float32) for n in (tiles, shares))
    return *of_tiles, *of_shares, tiles, shares


class Draw(NamedTuple):
    """The key of each row's random words: addresses of row ids (M,) and of the seed, int64."""

    row_ids: Any
    seed: Any


class Results(NamedTuple):
    """Where loss (M,), log-sum-exp (M,) and sampled word (M,) go."""

    loss: Any
    lse: Any
    sampled: Any


@triton.jit
def largest_and_sum(logits):
    """Returns each row's largest logit m and its sum of exp(l - m); 0 and 0 if all its logits are -inf."""
    largest = tl.max(logits, 1)
    safe = tl.where(largest == float("-inf"), 0.0, largest)
    return safe, tl.sum(tl.exp2((logits - safe[:, None]) * LOG2E), 1)


@triton.jit
def sharpened(logits, sharpness, labels, offs_n, DISALLOW: tl.constexpr):
    """The logits that the sample is drawn from: logits / temperature, with that of the label 1000 lower if DISALLOW."""
    logits = logits * sharpness
    if DISALLOW:
        logits -= tl.where(offs_n[None, :] == labels[:, None], 1000.0, 0.0)
    return logits


@triton.jit
def _inverse_cdf(weights, u, BLOCK: tl.constexpr):
    """The first index whose running sum exceeds u times the total, else the last one of positive weight; 0 for NaN."""
    index = tl.arange(0, BLOCK)
    running = tl.cumsum(weights, 0)
    whole = tl.sum(tl.where(index == BLOCK - 1, running, 0.0), 0)
    last = tl.max(tl.where(weights > 0, index, 0), 0)
    return tl.min(tl.where((weights > 0) & (running > u * whole), index, last), 0)


@triton.jit
def generator_head_sample_kernel(
    hidden,
    words,
    logits_ptr,
    labels_ptr,
    draw,
    statistics,
    results,
    rows,
    sharpness,
    LIKELIEST: tl.constexpr,
    DISALLOW: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_E: tl.constexpr,
    TILES: tl.constexpr,
    SHARES: tl.constexpr,
):
    """logits_ptr: None where the logits are not stored, but computed again from hidden and words."""
    hidden, words, statistics = Matrix(*hidden), Words(*words), Statistics(*statistics)
    draw, results = Draw(*draw), Results(*results)
    row = tl.program_id(0).to(tl.int64)
    label = tl.load(labels_ptr + row)
    columns = tl.arange(0, BLOCK_E)
    if logits_ptr is None:
        x = tl.load(hidden.ptr + row * hidden.row + columns, mask=columns < WIDTH, other=0.0).to(tl.float32)
        if label == -100:
            x = tl.where(tl.abs(x) < float("inf"), x, 0.0)

    share = tl.arange(0, SHARES).to(tl.int64)
    m = tl.load(statistics.share_max + share * rows + row, mask=share < statistics.shares, other=float("-inf"))
    total = tl.load(statistics.share_sum + share * rows + row, mask=share < statistics.shares, other=0.0)
    largest = tl.max(m, 0)
    lse = largest + LN2 * tl.log2(tl.sum(total * tl.exp2((m - largest) * LOG2E), 0))
    word = (label >= 0) & (label < words.count)
    target = tl.where(word, label, 0).to(tl.int64)
    if logits_ptr is not None:
        logit = tl.load(logits_ptr + row * words.count + target).to(tl.float32)
    else:
        weight = tl.load(words.weight + target * words.row + columns, mask=columns < WIDTH, other=0.0)
        logit = tl.sum(x * weight.to(tl.float32), 0) + tl.load(words.bias + target).to(tl.float32)
    loss = tl.where(word, lse - logit, float("nan"))  # a label that is no word shows, and is never read
    loss = tl.where(label == -100, 0.0, loss)
    tl.store(results.lse + row, lse)
    tl.store(results.loss + row, loss.to(results.loss.dtype.element_ty))

    w0, w1, _, _ = philox(tl.load(draw.seed), tl.load(draw.row_ids + row), 0, 0)
    number = tl.arange(0, TILES)
    m = tl.load(
        statistics.tile_max + number.to(tl.int64) * rows + row, mask=number < statistics.tiles, other=float("-inf")
    )
    total = tl.load(statistics.tile_sum + number.to(tl.int64) * rows + row, mask=number < statistics.tiles, other=0.0)
    if LIKELIEST:
        chosen = tl.argmax(m, 0)
    else:
        chosen = _inverse_cdf(total * tl.exp2((m - tl.max(m, 0)) * LOG2E), uniform(w0), TILES)
    chosen = tl.minimum(chosen, statistics.tiles - 1).to(tl.int64)
    offs_n = chosen * BLOCK_N + tl.arange(0, BLOCK_N)
    if logits_ptr is not None:
        logits = tl.load(logits_ptr + row * words.count + offs_n, mask=offs_n < words.count, other=0.0).to(tl.float32)
    else:
        weights = rows_of(Matrix(words.weight, words.row), offs_n, words.count, WIDTH, BLOCK_E).to(tl.float32)
        bias = tl.load(words.bias + offs_n, mask=offs_n < words.count, other=0.0).to(tl.float32)
        logits = tl.sum(weights * x[None, :], 1) + bias
    logits *= sharpness
    if DISALLOW:
        logits -= tl.where(offs_n == label, 1000.0, 0.0)
    logits = tl.where(offs_n < words.count, logits, float("-inf"))
    if LIKELIEST:
        within = tl.argmax(logits, 0)
    else:
        within = _inverse_cdf(tl.exp2((logits - tl.max(logits, 0)) * LOG2E), uniform(w1), BLOCK_N)
    tl.store(results.sampled + row, tl.minimum(chosen * BLOCK_N + within, words.count - 1))


def sample(args: Any, statistics: tuple, logits: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
    """The rows' loss (M,), sampled word (M,) and log-sum-exp (M,) float32, from the Statistics that the sweep over the
    vocabulary has filled.

    args: a GeneratorHeadArguments (electra_fast/ops/generator_head.py)
    logits: (M, V), where the sweep stored them
    """
    hidden, labels, temperature = args.hidden, args.labels, args.temperature
    rows = hidden.shape[0]
    loss, lse = hidden.new_empty(rows), hidden.new_empty(rows, dtype=torch.float32)
    sampled = torch.empty_like(labels)
    *_, tiles, shares = statistics
    generator_head_sample_kernel[(rows,)](
        matrix(hidden),
        words(args.weight, args.bias),
        logits,
        labels,
        (args.row_ids, args.seed),
        statistics,
        (loss, lse, sampled),
        rows,
        1 / temperature if temperature else 1.0,
        LIKELIEST=temperature == 0,
        DISALLOW=args.disallow_correct,
        WIDTH=hidden.shape[1],
        BLOCK_N=TILE,
        BLOCK_E=max(64, triton.next_power_of_2(hidden.shape[1])),
        TILES=triton.next_power_of_2(tiles),
        SHARES=triton.next_power_of_2(shares),
        num_warps=4,
        enable_fp_fusion=True,
    )
    return loss, sampled, lse
