"""generator_head's sample: of each row the loss, and a word drawn exactly from per-tile sums; see generator_head.py.

generator_head_sample_kernel: a program a row joins the shares to the loss, finds the sample's tile by inverse CDF over
the tiles' sums, then the word in it: of 128 logits computed again, or, where they are stored (STORED), read again.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .parts.groups import Matrix
from .parts.philox import philox, uniform
from .parts.rows import rows_of

TILE = 128  # words; the convention of the samples
LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)


@triton.jit
def largest_and_sum(logits):
    """Of each row of a tile: its largest logit, and the sum of exp of what is below it, 0 and 0 where there is none."""
    largest = tl.max(logits, 1)
    safe = tl.where(largest == float("-inf"), 0.0, largest)
    return safe, tl.sum(tl.exp2((logits - safe[:, None]) * LOG2E), 1)


@triton.jit
def sharpened(logits, sharpness, labels, offs_n, DISALLOW: tl.constexpr):
    """What the sample is drawn from: logits / temperature, the label's far down if it is not allowed."""
    logits = logits * sharpness
    if DISALLOW:
        logits -= tl.where(offs_n[None, :] == labels[:, None], 1000.0, 0.0)
    return logits


@triton.jit
def _inverse_cdf(weights, u, BLOCK: tl.constexpr):
    """First index whose running sum exceeds u times the whole, else the last of a weight above 0; 0 for NaN."""
    index = tl.arange(0, BLOCK)
    running = tl.cumsum(weights, 0)
    whole = tl.sum(tl.where(index == BLOCK - 1, running, 0.0), 0)
    last = tl.max(tl.where(weights > 0, index, 0), 0)
    return tl.min(tl.where((weights > 0) & (running > u * whole), index, last), 0)


@triton.jit
def generator_head_sample_kernel(
    hidden_ptr,
    weight_ptr,
    bias_ptr,
    logits_ptr,
    labels_ptr,
    row_ids_ptr,
    seed_ptr,
    tile_max_ptr,
    tile_sum_ptr,
    share_max_ptr,
    share_sum_ptr,
    loss_ptr,
    lse_ptr,
    sampled_ptr,
    hidden_row,
    weight_row,
    rows,
    vocabulary,
    tiles,
    shares,
    sharpness,
    STORED: tl.constexpr,
    LIKELIEST: tl.constexpr,
    DISALLOW: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_E: tl.constexpr,
    TILES: tl.constexpr,
    SHARES: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    label = tl.load(labels_ptr + row)
    columns = tl.arange(0, BLOCK_E)
    if not STORED:
        hidden = tl.load(hidden_ptr + row * hidden_row + columns, mask=columns < WIDTH, other=0.0).to(tl.float32)
        if label == -100:
            hidden = tl.where(tl.abs(hidden) < float("inf"), hidden, 0.0)

    share = tl.arange(0, SHARES).to(tl.int64)
    m = tl.load(share_max_ptr + share * rows + row, mask=share < shares, other=float("-inf"))
    total = tl.load(share_sum_ptr + share * rows + row, mask=share < shares, other=0.0)
    largest = tl.max(m, 0)
    lse = largest + LN2 * tl.log2(tl.sum(total * tl.exp2((m - largest) * LOG2E), 0))
    word = (label >= 0) & (label < vocabulary)
    wanted = tl.where(word, label, 0).to(tl.int64)
    if STORED:
        logit = tl.load(logits_ptr + row * vocabulary + wanted).to(tl.float32)
    else:
        target = tl.load(weight_ptr + wanted * weight_row + columns, mask=columns < WIDTH, other=0.0)
        logit = tl.sum(hidden * target.to(tl.float32), 0) + tl.load(bias_ptr + wanted).to(tl.float32)
    loss = tl.where(word, lse - logit, float("nan"))  # never a plausible loss, nor a bad read
    loss = tl.where(label == -100, 0.0, loss)
    tl.store(lse_ptr + row, lse)
    tl.store(loss_ptr + row, loss.to(loss_ptr.dtype.element_ty))

    w0, w1, _, _ = philox(tl.load(seed_ptr), tl.load(row_ids_ptr + row), 0, 0)
    number = tl.arange(0, TILES)
    m = tl.load(tile_max_ptr + number.to(tl.int64) * rows + row, mask=number < tiles, other=float("-inf"))
    total = tl.load(tile_sum_ptr + number.to(tl.int64) * rows + row, mask=number < tiles, other=0.0)
    if LIKELIEST:
        chosen = tl.argmax(m, 0)
    else:
        chosen = _inverse_cdf(total * tl.exp2((m - tl.max(m, 0)) * LOG2E), uniform(w0), TILES)
    chosen = tl.minimum(chosen, tiles - 1).to(tl.int64)
    offs_n = chosen * BLOCK_N + tl.arange(0, BLOCK_N)
    if STORED:
        logits = tl.load(logits_ptr + row * vocabulary + offs_n, mask=offs_n < vocabulary, other=0.0).to(tl.float32)
    else:
        weight = rows_of(Matrix(weight_ptr, weight_row), offs_n, vocabulary, WIDTH, BLOCK_E).to(tl.float32)
        bias = tl.load(bias_ptr + offs_n, mask=offs_n < vocabulary, other=0.0).to(tl.float32)
        logits = tl.sum(weight * hidden[None, :], 1) + bias
    logits *= sharpness
    if DISALLOW:
        logits -= tl.where(offs_n == label, 1000.0, 0.0)
    logits = tl.where(offs_n < vocabulary, logits, float("-inf"))
    if LIKELIEST:
        within = tl.argmax(logits, 0)
    else:
        within = _inverse_cdf(tl.exp2((logits - tl.max(logits, 0)) * LOG2E), uniform(w1), BLOCK_N)
    tl.store(sampled_ptr + row, tl.minimum(chosen * BLOCK_N + within, vocabulary - 1))


def sample(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor,
    labels: Tensor,
    row_ids: Tensor,
    seed: Tensor,
    temperature: float,
    disallow_correct: bool,
    tile_statistics: Tensor,
    share_statistics: Tensor,
    logits: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Maxima and sums (2, tiles, M) and (2, shares, M), and the logits (M, V) where they are stored -> loss (M,),
    sampled (M,), lse (M,) float32."""
    rows, vocabulary = hidden.shape[0], weight.shape[0]
    loss, lse = hidden.new_empty(rows), hidden.new_empty(rows, dtype=torch.float32)
    sampled = torch.empty_like(labels)
    tiles, shares = tile_statistics.shape[1], share_statistics.shape[1]
    generator_head_sample_kernel[(rows,)](
        hidden,
        weight,
        bias,
        hidden if logits is None else logits,
        labels,
        row_ids,
        seed,
        *tile_statistics,
        *share_statistics,
        loss,
        lse,
        sampled,
        hidden.stride(0),
        weight.stride(0),
        rows,
        vocabulary,
        tiles,
        shares,
        1 / temperature if temperature else 1.0,
        STORED=logits is not None,
        LIKELIEST=temperature == 0,
        DISALLOW=disallow_correct,
        WIDTH=hidden.shape[1],
        BLOCK_N=TILE,
        BLOCK_E=max(64, triton.next_power_of_2(hidden.shape[1])),
        TILES=triton.next_power_of_2(tiles),
        SHARES=triton.next_power_of_2(shares),
        num_warps=4,
        enable_fp_fusion=True,
    )
    return loss, sampled, lse
