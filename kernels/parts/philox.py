"""Philox-4x32-10 inside the kernels; the conventions are those of electra_fast/ops/_philox.py, bit for bit.

Ten rounds are 20 products and about 60 other integer instructions for 128 bits, so a dropout byte costs about 6.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def philox(seed, row, group, plane):
    """The four uint32 words of the counters (row, group, plane), which are broadcast together. seed, row: int64."""
    zero = (row * 0 + group * 0).to(tl.int32)
    low = (row & 0xFFFFFFFF).to(tl.uint32) + zero.to(tl.uint32)
    high = ((row >> 32) & 0xFFFFFFFF).to(tl.uint32) + zero.to(tl.uint32)
    return tl.philox(seed, low, high, (zero + group).to(tl.uint32), (zero + plane).to(tl.uint32))


@triton.jit
def dropout_keep(seed, rows, first_column, plane, threshold, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """Returns (ROWS, COLUMNS) bool, True where an element is kept.

    rows: (ROWS,) int64, the row ids
    first_column, COLUMNS: multiples of 16

    A call of Philox gives the bytes of 16 columns. join and reshape put its words, and then their bytes, into the order
    of the columns, so that no call is made twice.
    """
    group = first_column // 16 + tl.arange(0, COLUMNS // 16)
    w0, w1, w2, w3 = philox(seed, rows[:, None], group[None, :], plane)
    words = tl.join(tl.join(w0, w2), tl.join(w1, w3)).reshape(ROWS, COLUMNS // 4)  # w0 w1 w2 w3 in order
    shifts = (tl.arange(0, 4) * 8).to(tl.uint32)
    lanes = (words[:, :, None] >> shifts[None, None, :]) & 0xFF
    return lanes.reshape(ROWS, COLUMNS).to(tl.int32) >= threshold


@triton.jit
def uniform(word):
    """A uint32 word as a float32 in (0, 1], rounded as the reference rounds it."""
    return (word.to(tl.float32) + 0.5) * (1.0 / 4294967296.0)
