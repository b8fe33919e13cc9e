"""dW = dy^T x, and db = the sum of dy over the rows: one launch for a block's weights and biases, one for all sums.

linear_bwd_weight_kernel: a program computes a tile of dW over a share of the rows. db is another product, of dy^T with
ones, so it needs no pass over dy and no reduction between threads. If there is more than one share, a program writes
float32 sums, and partials.py adds the shares in order. Two products with the same tile, such as those of a block, are
one launch: together they have twice the tiles, so half the shares fill the GPU, and half the bytes of sums are written
and read again. The number of shares follows from the shapes alone (`share`). No atomics, and two runs give the same
bits.

Cost: 2 T K N flops, T (K + N) elements read, and for each share 8 bytes for each of its K N sums. ELECTRA-Small,
T = 16384, bf16, at 790 TFLOP/s and 4.3 TB/s, for a layer:
                          flops      us   shares   sums, us   launches (eager PyTorch)
    attention block       8.6 GF     11   16       34 MB, 8   1 (4)    alone: 22 and 66 shares, 69 MB, and 2
    FFN block             17 GF      22   8        34 MB, 8   1 (4)    alone: 16 shares each, 67 MB, and 2
Base, T = 131072: either product of the FFN has 72 tiles of 128 x 256 for 132 multiprocessors. Both in 11 shares are 12
even waves; in one share they would be 144 programs, whose second wave leaves 120 multiprocessors idle. Planned
occupancy: one program of 8 warps a multiprocessor.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .linear import in_matrix, input_gradient, tile, unit_stride
from .parts.groups import matrix
from .parts.partials import Sum, sum_partials

PROGRAMS = 132  # programs that run at once: an H100's multiprocessors
FLOPS, BYTES = 790e12, 4.3e12  # what it reaches in a second

# (bytes of an element, class of the shape[, generation]) -> tile, see device.py: BLOCK_M rows, BLOCK_N columns of dy,
# BLOCK_K of x.
BWD_WEIGHT = {
    (2, 1): dict(BLOCK_M=32, BLOCK_N=64, BLOCK_K=64, num_warps=4, num_stages=2),
    (2, 64): dict(BLOCK_M=64, BLOCK_N=64, BLOCK_K=64, num_warps=4, num_stages=3),
    (2, 128): dict(BLOCK_M=64, BLOCK_N=128, BLOCK_K=128, num_warps=8, num_stages=3),
    (2, 256): dict(BLOCK_M=64, BLOCK_N=128, BLOCK_K=256, num_warps=8, num_stages=3),
    (4, 1): dict(BLOCK_M=16, BLOCK_N=64, BLOCK_K=64, num_warps=8, num_stages=2),
    (4, 64): dict(BLOCK_M=16, BLOCK_N=64, BLOCK_K=64, num_warps=8, num_stages=2),
    (4, 128): dict(BLOCK_M=16, BLOCK_N=128, BLOCK_K=128, num_warps=8, num_stages=2),
    (2, 64, 100): dict(BLOCK_M=64, BLOCK_N=64, BLOCK_K=64, num_warps=8, num_stages=3),
    (2, 128, 80): dict(BLOCK_M=32, BLOCK_N=128, BLOCK_K=128, num_warps=8, num_stages=3),
    (2, 256, 80): dict(BLOCK_M=32, BLOCK_N=128, BLOCK_K=128, num_warps=8, num_stages=3),
    (2, 256, 100): dict(BLOCK_M=64, BLOCK_N=128, BLOCK_K=128, num_warps=8, num_stages=3),
}


class Product(NamedTuple):
    """dW = dout^T x (N, K) and db = sum of dout over the rows (N,)."""

    dout: Tensor  # (T, N)
    x: Tensor  # (T, K)
    into: tuple[Tensor, Tensor] | None = None  # dW and db, contiguous; None: new tensors


class _Job(NamedTuple):
    """A Product that is to be launched."""

    product: Product
    chosen: dict  # the kernel's options
    tiles: int  # of dW
    blocks: int  # of rows


class WeightGradient(NamedTuple):
    """A Product, as the kernel takes it."""

    dout: Any  # address of (rows, outer)
    dout_row: Any  # elements from one row to the next
    x: Any  # address of (rows, inner)
    x_row: Any
    rows: Any
    inner: Any
    outer: Any
    dweight: Any  # address of (outer, inner), or of the sums of the first share
    dbias: Any  # address of (outer,), or of the sums of the first share
    share_size: Any  # elements from the sums of one share to those of the next


@triton.jit
def _weight_gradient_tile(
    program,
    product,
    rows_per_share,
    EVEN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """A tile of dW, and for the first tile of its rows also db, summed over one share of the rows. `program`, 64-bit,
    counts the tiles of the first share, then those of the next."""
    product = WeightGradient(*product)
    inner, outer, rows = product.inner, product.outer, product.rows
    across = tl.cdiv(inner, BLOCK_K)
    tiles = tl.cdiv(outer, BLOCK_N) * across
    share, corner = program // tiles, program % tiles
    offs_n = corner // across * BLOCK_N + tl.arange(0, BLOCK_N)
    offs_k = corner % across * BLOCK_K + tl.arange(0, BLOCK_K)
    acc = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    sums = tl.zeros((BLOCK_N, 16), tl.float32)  # 16 equal columns: tl.dot has no narrower product
    ones = tl.full((BLOCK_M, 16), 1.0, product.x.dtype.element_ty)
    start = share * rows_per_share
    for first in range(start, tl.minimum(start + rows_per_share, rows), BLOCK_M):
        offs_m = first + tl.arange(0, BLOCK_M)
        inside = in_matrix(offs_m, rows, offs_n, outer, EVEN)
        dout = tl.load(product.dout + offs_m[:, None] * product.dout_row + offs_n[None, :], mask=inside, other=0.0)
        inside = in_matrix(offs_m, rows, offs_k, inner, EVEN)
        x = tl.load(product.x + offs_m[:, None] * product.x_row + offs_k[None, :], mask=inside, other=0.0)
        acc = tl.dot(tl.trans(dout), x, acc, input_precision=PRECISION)
        sums = tl.dot(tl.trans(dout), ones, sums, input_precision=PRECISION)
    inside = (offs_n[:, None] < outer) & (offs_k[None, :] < inner)
    places = share * product.share_size + offs_n[:, None] * inner + offs_k[None, :]
    tl.store(product.dweight + places, acc.to(product.dweight.dtype.element_ty), mask=inside)
    if corner % across == 0:
        total = tl.max(sums, 1).to(product.dbias.dtype.element_ty)
        tl.store(product.dbias + share * product.share_size + offs_n, total, mask=offs_n < outer)


@triton.jit
def linear_bwd_weight_kernel(
    product,
    other,
    programs,
    rows_per_share,
    EVEN: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """The first `programs` programs compute the WeightGradient `product`, those after them `other`, if it is not
    None."""
    program = tl.program_id(0).to(tl.int64)
    if program < programs:
        _weight_gradient_tile(program, product, rows_per_share, EVEN, BLOCK_M, BLOCK_N, BLOCK_K, PRECISION)
    elif other is not None:
        _weight_gradient_tile(program - programs, other, rows_per_share, EVEN, BLOCK_M, BLOCK_N, BLOCK_K, PRECISION)


def weight_gradients(*products: Product, also: Sequence[Sum] = ()) -> list[Tensor]:
    """-> [dweight (N, K), dbias (N,)] of each product, one after the other. also: more sums for the second launch."""
    gradients, jobs, sums = [], [], list(also)
    for dout, x, into in products:
        dout, x = unit_stride(dout, x)
        (rows, outer), inner = dout.shape, x.shape[1]
        into = into or (x.new_empty(outer, inner), x.new_empty(outer))
        gradients += into
        if rows == 0:
            for gradient in into:
                gradient.zero_()
            continue
        chosen = tile(BWD_WEIGHT, x, math.gcd(outer, inner))
        tiles = triton.cdiv(outer, chosen["BLOCK_N"]) * triton.cdiv(inner, chosen["BLOCK_K"])
        jobs.append(_Job(Product(dout, x, into), chosen, tiles, triton.cdiv(rows, chosen["BLOCK_M"])))
    while jobs:
        first, *others = jobs
        alike = [i for i, job in enumerate(others) if job.chosen == first.chosen]
        pair = [others.pop(i) for i in alike[:1]]
        sums += _launch([first, *pair])
        jobs = others
    sum_partials(*sums)
    return gradients


def _launch(jobs: list[_Job]) -> list[Sum]:
    """Launches one or two products of one tile, and returns the sums over shares that are left to be taken."""
    chosen, sums, groups, programs = jobs[0].chosen, [], [], []
    numbers = sum(job.product.dout.shape[1] * job.product.x.shape[1] for job in jobs)
    step = 2 * chosen["BLOCK_M"] * chosen["BLOCK_N"] * chosen["BLOCK_K"]
    blocks = share(tuple((job.tiles, job.blocks) for job in jobs), PROGRAMS, step, numbers)
    for (dout, x, (dweight, dbias)), _, tiles, all_blocks in jobs:
        (rows, outer), inner = dout.shape, x.shape[1]
        shares, size = triton.cdiv(all_blocks, blocks), outer * inner
        if shares > 1:
            parts = x.new_empty(shares, size + outer, dtype=torch.float32)
            sums.append((parts, dweight, dbias))
            dweight, dbias = parts, parts[:, size:]
        groups.append((*matrix(dout), *matrix(x), rows, inner, outer, dweight, dbias, size + outer))
        programs.append(tiles * shares)
    other = groups[1] if len(jobs) > 1 else None
    linear_bwd_weight_kernel[(sum(programs),)](groups[0], other, programs[0], blocks * chosen["BLOCK_M"], **chosen)
    return sums


@cache
def share(products: tuple[tuple[int, int], ...], programs: int, flops: int, numbers: int) -> int:
    """How many row blocks each program handles: the split with the least estimated time (waves x work per program +
    partial sums written).

    products: (tiles, row blocks) of each product in the launch
    programs: how many run at once
    flops: of one tile over one row block
    numbers: how many sums each share of the rows leaves
    """
    most = max(blocks for _, blocks in products)
    tiles = sum(tiles for tiles, _ in products)

    def seconds(shares: int) -> float:
        blocks_per_share = triton.cdiv(most, shares)
        waves = triton.cdiv(sum(tiles * triton.cdiv(blocks, blocks_per_share) for tiles, blocks in products), programs)
        return waves * blocks_per_share * flops * programs / FLOPS + (8 * numbers * shares / BYTES if shares > 1 else 0)

    return triton.cdiv(most, min(range(1, min(most, max(16, programs // tiles)) + 1), key=seconds))


def linear_bwd(grads: list[Tensor], args: Any, saved: list[Tensor]) -> list[Tensor]:
    """grads [dout], saved [out] or [out, slope] -> [dx, dweight, dbias].

    args: a LinearArguments (electra_fast/ops/linear.py)
    """
    dz = grads[0] * saved[1] if args.gelu else grads[0]
    return [input_gradient(dz, args.weight), *weight_gradients(Product(dz, args.x))]
