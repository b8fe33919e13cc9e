"""Groups of kernel arguments that belong together, so that functions take a few named things.

A launcher passes a group as a plain tuple, made by `matrix`, `affine`, `heads` or `dropout` where several launchers
need it. The kernel gives the fields their names, `x = Matrix(*x)`, and passes the group on whole. None stands for a
group that is absent: Triton compiles the kernel without it.

Plain tuples, because they launch faster: to bind the arguments of attention_bwd_kernel, 33 beside its constants, took
12.2 us on a CPU one by one, 8.5 us in tuples and 15.0 us in NamedTuples, with triton 3.6 and 3.9 alike; to make the
tuples took 0.5 us, the NamedTuples 3.7 us. The machine code costs no more: of 15 configurations compiled for sm_90 with
triton 3.9, 14 have the registers, spills and shared memory that they have with arguments one by one, and
attention_block_fwd_kernel without dropout has 211 registers in place of 219.

Triton's cache on disk knows a kernel by its source, which does not contain these classes: rename a class when the
order of its fields changes, or a cached kernel will take one field for another.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor


class Matrix(NamedTuple):
    """A matrix (T, D) in memory, whose columns have stride 1."""

    ptr: Any  # address of the first row
    row: Any  # elements from one row to the next


def matrix(t: Tensor) -> tuple:
    """t (T, D) as a Matrix."""
    return t, t.stride(0)


class Affine(NamedTuple):
    """The parameters of x W^T + b."""

    weight: Any  # address of W's first row; its columns lie side by side
    row: Any  # elements from one row of W to the next
    bias: Any  # address of b


def affine(weight: Tensor, bias: Tensor) -> tuple:
    """weight (N, K), whose columns have stride 1, and bias (N,) as an Affine."""
    return weight, weight.stride(0), bias.contiguous()


class Heads(NamedTuple):
    """A tensor (T, H, D) in memory, whose last dimension has stride 1."""

    ptr: Any  # address of the first row's first head
    row: Any  # elements from one row to the next
    head: Any  # elements from one head to the next


def heads(t: Tensor) -> tuple:
    """t (T, H, D) as a Heads."""
    return t, *t.stride()[:2]


class Dropout(NamedTuple):
    """Dropout of the elements of rows (philox.py)."""

    row_ids: Any  # address of (T,) int64
    seed: Any  # address of one int64
    threshold: Any  # an element is dropped if its random byte is below
    scale: Any  # factor of the elements that are kept


def dropout(row_ids: Tensor, seed: Tensor, p: float) -> tuple | None:
    """The Dropout of probability p, rounded to a multiple of 1 / 256; None if that is 0."""
    threshold = round(256 * p)
    return (row_ids.contiguous(), seed, threshold, 256 / max(1, 256 - threshold)) if threshold else None
