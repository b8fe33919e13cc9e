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

import triton
import triton.language as tl
from torch import Tensor

Sum = tuple[Tensor, Tensor, Tensor]  # (P, ...) float32, whose rows are the elements of the second, then of the third

SUM = dict(BLOCK_P=128, BLOCK_N=16, num_warps=4)  # of many
FEW = 64  # partial sums at most that are added one by one, BLOCK columns a program
BLOCK = 512


@triton.jit
def _sum(
    program, parts_ptr, first_ptr, second_ptr, count, first_size, size, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr
):
    columns = program * BLOCK_N + tl.arange(0, BLOCK_N)
    acc = tl.zeros((BLOCK_P, BLOCK_N), tl.float32)
    for start in range(0, count, BLOCK_P):
        rows = (start + tl.arange(0, BLOCK_P)).to(tl.int64)
        there = (rows[:, None] < count) & (columns[None, :] < size)
        acc += tl.load(parts_ptr + rows[:, None] * size + columns[None, :], mask=there, other=0.0)
    total = tl.sum(acc, 0)
    tl.store(first_ptr + columns, total.to(first_ptr.dtype.element_ty), mask=columns < first_size)
    second = (columns >= first_size) & (columns < size)
    tl.store(second_ptr + columns - first_size, total.to(second_ptr.dtype.element_ty), mask=second)


@triton.jit
def sum_partials_kernel(
    a_ptr,
    a_first_ptr,
    a_second_ptr,
    a_count,
    a_first_size,
    a_size,
    a_programs,
    b_ptr,
    b_first_ptr,
    b_second_ptr,
    b_count,
    b_first_size,
    b_size,
    b_programs,
    c_ptr,
    c_first_ptr,
    c_second_ptr,
    c_count,
    c_first_size,
    c_size,
    A: tl.constexpr,
    B: tl.constexpr,
    C: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A, B, C: whether there is such a matrix; those of A and B have few rows, those of C many."""
    program = tl.program_id(0).to(tl.int64)
    if C and program >= a_programs + b_programs:
        program -= a_programs + b_programs
        _sum(program, c_ptr, c_first_ptr, c_second_ptr, c_count, c_first_size, c_size, BLOCK_P, BLOCK_N)
    elif B and program >= a_programs:
        _sum(program - a_programs, b_ptr, b_first_ptr, b_second_ptr, b_count, b_first_size, b_size, 1, BLOCK)
    elif A:
        _sum(program, a_ptr, a_first_ptr, a_second_ptr, a_count, a_first_size, a_size, 1, BLOCK)


def sum_partials(*sums: Sum) -> None:
    """The sum over P of each first (P, ...) float32, whose rows are the second's elements, then the third's, is put
    into these: in one launch, of up to three, two of them of few rows."""
    left = sorted(sums, key=lambda s: (s[0].shape[0], -s[0].numel()))
    while left:
        many = left.pop() if left[-1][0].shape[0] > FEW or len(left) > 2 else None
        slots = [left.pop() if left and left[-1][0].shape[0] <= FEW else None for _ in range(2)] + [many]
        given, programs = [], []
        for found, block in zip(slots, (BLOCK, BLOCK, SUM["BLOCK_N"]), strict=True):
            parts, first, second = found or sums[0]
            size = first.numel() + second.numel()
            given.append([parts, first, second, parts.shape[0], first.numel(), size])
            programs.append(triton.cdiv(size, block) if found else 0)
        a, b, c = given
        sum_partials_kernel[(sum(programs),)](
            *a,
            programs[0],
            *b,
            programs[1],
            *c,
            **{name: found is not None for name, found in zip("ABC", slots, strict=True)},
            BLOCK=BLOCK,
            enable_fp_fusion=True,
            **SUM,
        )
