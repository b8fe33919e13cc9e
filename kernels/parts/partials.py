"""totals = sum over p of partials (P, N), float32: the second half of every sum over rows.

A kernel that sums over rows writes one row of partial sums for each program, and sum_partials_kernel adds these rows in
order, so no atomics are needed, and two runs give the same bits. A program adds a few columns of one matrix. A launch
has up to three matrices, for a block of the encoder those of its two weights (with their biases; few rows, long) and
that of its norm (many rows, short). Few rows are added one after the other, many rows by a tree. The totals are written
to two tensors each, such as a weight's gradient and its bias's.

Cost: P N flops and 4 P N bytes, mostly from the cache. A block of ELECTRA-Small has 16 rows (8 in the FFN) of 264,192
(525,568) columns, 17 MB or 3.9 us at 4.3 TB/s, and for its norm P = 256 (128), N = 512, 0.5 MB; the launch has no
products. It replaces six sums of PyTorch. Planned occupancy: 10 programs of 4 warps a multiprocessor.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

Sum = tuple[Tensor, Tensor, Tensor]  # (P, ...) float32; its sum over P is put into the second tensor, then the third

SUM = dict(BLOCK_P=128, BLOCK_N=16, num_warps=4)  # tile for many rows
FEW = 64  # the most rows that are added one after the other, BLOCK columns a program
BLOCK = 512


class Partials(NamedTuple):
    """A Sum, as the kernel takes it."""

    parts: Any  # address of (count, size) float32
    first: Any  # address of the tensor that gets the first first_size totals
    second: Any  # address of the tensor that gets the other ones
    count: Any
    first_size: Any
    size: Any


@triton.jit
def _sum(program, sums, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr):
    """The totals of BLOCK_N columns of a Partials, BLOCK_P of its rows at a time."""
    sums = Partials(*sums)
    columns = program * BLOCK_N + tl.arange(0, BLOCK_N)
    acc = tl.zeros((BLOCK_P, BLOCK_N), tl.float32)
    for start in range(0, sums.count, BLOCK_P):
        rows = (start + tl.arange(0, BLOCK_P)).to(tl.int64)
        inside = (rows[:, None] < sums.count) & (columns[None, :] < sums.size)
        acc += tl.load(sums.parts + rows[:, None] * sums.size + columns[None, :], mask=inside, other=0.0)
    total = tl.sum(acc, 0)
    tl.store(sums.first + columns, total.to(sums.first.dtype.element_ty), mask=columns < sums.first_size)
    of_second = (columns >= sums.first_size) & (columns < sums.size)
    tl.store(sums.second + columns - sums.first_size, total.to(sums.second.dtype.element_ty), mask=of_second)


@triton.jit
def sum_partials_kernel(
    a,
    b,
    c,
    a_programs,
    b_programs,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """a, b and c are each a Partials or None; a and b have few rows, c has many. The programs of a come first, then
    those of b, then those of c."""
    program = tl.program_id(0).to(tl.int64)
    if c is not None and program >= a_programs + b_programs:
        _sum(program - a_programs - b_programs, c, BLOCK_P, BLOCK_N)
    elif b is not None and program >= a_programs:
        _sum(program - a_programs, b, 1, BLOCK)
    elif a is not None:
        _sum(program, a, 1, BLOCK)


def sum_partials(*sums: Sum) -> None:
    """Sums each (P, ...) of float32 over P, and puts the totals into the second tensor and then the third. A launch
    takes up to three of these sums, of which two have at most FEW rows."""
    left = sorted(sums, key=lambda s: (s[0].shape[0], -s[0].numel()))
    while left:
        many = left.pop() if left[-1][0].shape[0] > FEW or len(left) > 2 else None
        few = [left.pop() if left and left[-1][0].shape[0] <= FEW else None for _ in range(2)]
        groups: list[tuple | None] = []
        programs = []
        for one, block in zip([*few, many], (BLOCK, BLOCK, SUM["BLOCK_N"]), strict=True):
            if one is None:
                groups.append(None)
                programs.append(0)
                continue
            parts, first, second = one
            size = first.numel() + second.numel()
            groups.append((parts, first, second, parts.shape[0], first.numel(), size))
            programs.append(triton.cdiv(size, block))
        sum_partials_kernel[(sum(programs),)](*groups, *programs[:2], BLOCK=BLOCK, enable_fp_fusion=True, **SUM)
