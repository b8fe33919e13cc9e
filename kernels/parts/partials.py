"""Sums over rows, the second half: what each program summed over its own rows is summed here, in order.

sum_partials_kernel: a program takes a few columns of all partial sums, (P, N) float32, of one of up to three such
matrices: those of a block's two weights, with their biases, few and long, and its norm's, many and short. A few are
added one by one, many by a tree. Nothing depends on which program came first, so two runs give the same bits.
Cost: P N flops and 4 P N bytes, mostly from the cache: for a block of ELECTRA-Small 16 shares (8 in the FFN) of 264,192
(525,568) numbers, 17 MB or 3.9 us at 4.3 TB/s, and for its norm P = 256 (128), N = 512, 0.5 MB; no products for 790
TFLOP/s. One launch a block, where torch's sums would be six. Planned occupancy: 10 programs of 4 warps a
multiprocessor.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl
from torch import Tensor

Sum = tuple[Tensor, Tensor, Tensor]  # (P, ...) float32, whose rows are the elements of the second, then of the third

SUM = dict(BLOCK_P=128, BLOCK_N=16, num_warps=4)  # of many
FEW = 64  # partial sums at most that are added one by one, BLOCK columns a program
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
