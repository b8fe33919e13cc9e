"""A narrow encoder on the GPU, all its layers in one launch: the generator of ELECTRA-Small, 64 wide, one head.

encoder_fwd_kernel: a program takes one sequence through every layer. A row never leaves its sequence, so programs have
no part in one another's work, and 128 rows of 64 stay in registers from the first layer to the last, through products,
scores, both dropouts, LayerNorms and the GELU. What it writes is what the backwards of attention_block.py and
ffn_block.py need, for all layers, rounded as theirs is; without `keep`, the last rows alone. Weights come as one
matrix, each layer's parameters end to end (`packed_layout`). No atomics; two runs give the same bits.

T = 16384 (128 x 128), D = 64, F = 256, 12 layers, bf16, at 790 TFLOP/s and 4.3 TB/s:
                flops      us    bytes moved    us     launches of a forward (half-blocks; eager PyTorch)
    keep        25.8 GF    33    206 MB         48     1 (24; 132)
    else        25.8 GF    33    4 MB           1      1 (24; 132)
Ordinary instructions take longer than either roof, 9,258 a warp and layer or 121 us, as in the half-blocks, which wait
at 24 boundaries besides: docs/whole-encoder.md counts both. Weights, 1.2 MB, stay in the L2; each program reads all of
them, 154 MB together.

Planned occupancy: one program of 8 warps a multiprocessor, of up to 255 registers, the (128, 128) scores being 64 of
them; 128 sequences are 128 programs on 132 multiprocessors. A short sequence wastes rows: products take 128 always.
With triton 3.6 it does not fit an sm_100 (608 columns of tensor memory of 512; 3.9 takes 256).
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from .dropout_add_layer_norm import normalise
from .linear import gelu_and_slope
from .philox import dropout_keep

LOG2E = tl.constexpr(1.4426950408889634)

# (bytes of an element, D) -> tile: sequences of BLOCK_S tokens at most, BLOCK_F columns of the GELU at a time.
FWD = {
    (2, 64): dict(BLOCK_S=128, BLOCK_F=64, num_warps=8, num_stages=2),
}


def packed_layout(width: int, inner: int) -> list[tuple[int, ...]]:
    """The shapes of a layer's parameters in the order of a row of `weights`: attention_block's six, ffn_block's six."""
    block = (3 * width, width), (3 * width,), (width, width), (width,), (width,), (width,)
    return [*block, (inner, width), (inner,), (width, inner), (width,), (width,), (width,)]


@triton.jit
def _matrix(ptr, row, rows, columns):
    return tl.load(ptr + rows[:, None] * row + columns[None, :])


@triton.jit
def _numbers(ptr, columns):
    return tl.load(ptr + columns).to(tl.float32)[None, :]


@triton.jit
def _put(ptr, row, places, columns, there, value, KEEP: tl.constexpr):
    if KEEP:
        tl.store(ptr + places[:, None] * row + columns[None, :], value, mask=there[:, None])


@triton.jit
def _finish(
    x,
    y,
    norm_ptr,
    statistics_ptr,
    tokens,
    places,
    there,
    seed,
    ids,
    eps,
    threshold,
    keep_scale,
    DROPOUT: tl.constexpr,
    KEEP: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """LayerNorm(x + dropout(y)); where no token is, the norm's bias: finite, as its values are added 0 times."""
    columns = tl.arange(0, WIDTH)
    y = y.to(tl.float32)
    if DROPOUT:
        y = tl.where(dropout_keep(seed, ids, 0, 0, threshold, BLOCK_S, WIDTH), y * keep_scale, 0.0)
    mean, rstd, xhat = normalise(x.to(tl.float32) + y, there[:, None] & (columns[None, :] < WIDTH), eps, WIDTH)
    if KEEP:
        tl.store(statistics_ptr + places[:, None], mean, mask=there[:, None])
        tl.store(statistics_ptr + tokens + places[:, None], rstd, mask=there[:, None])
    return (xhat * _numbers(norm_ptr, columns) + _numbers(norm_ptr + WIDTH, columns)).to(x.dtype)


@triton.jit
def encoder_fwd_kernel(
    x_ptr,
    weights_ptr,
    cu_seqlens_ptr,
    row_ids_ptr,
    seeds_ptr,
    qkv_ptr,
    read_ptr,
    lse_ptr,
    projected_ptr,
    statistics_ptr,
    middle_ptr,
    down_ptr,
    out_ptr,
    x_row,
    weights_row,
    tokens,
    layers,
    scale,
    eps,
    attention_threshold,
    attention_keep_scale,
    threshold,
    keep_scale,
    ATTENTION_DROPOUT: tl.constexpr,
    DROPOUT: tl.constexpr,
    KEEP: tl.constexpr,
    WIDTH: tl.constexpr,
    INNER: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_F: tl.constexpr,
):
    n = tl.program_id(0)
    start = tl.load(cu_seqlens_ptr + n).to(tl.int64)
    length = tl.load(cu_seqlens_ptr + n + 1).to(tl.int64) - start
    if length == 0:
        return
    place, columns = tl.arange(0, BLOCK_S), tl.arange(0, WIDTH)
    there = place < length
    ids = tl.load(row_ids_ptr + start + place, mask=there, other=0)
    x = tl.load(x_ptr + (start + place)[:, None] * x_row + columns[None, :], mask=there[:, None], other=0.0)
    for layer in tl.range(0, layers, disable_licm=True):
        rows = tl.cast(layer, tl.int64) * tokens + start + place
        qkv_weight = weights_ptr + tl.cast(layer, tl.int64) * weights_row
        qkv_bias = qkv_weight + 3 * WIDTH * WIDTH
        q = (tl.dot(x, tl.trans(_matrix(qkv_weight, WIDTH, columns, columns))) + _numbers(qkv_bias, columns)).to(
            x.dtype
        )
        _put(qkv_ptr, 3 * WIDTH, rows, columns, there, q, KEEP)
        outer = WIDTH + columns
        k = (tl.dot(x, tl.trans(_matrix(qkv_weight, WIDTH, outer, columns))) + _numbers(qkv_bias, outer)).to(x.dtype)
        _put(qkv_ptr, 3 * WIDTH, rows, outer, there, k, KEEP)
        outer = 2 * WIDTH + columns
        v = (tl.dot(x, tl.trans(_matrix(qkv_weight, WIDTH, outer, columns))) + _numbers(qkv_bias, outer)).to(x.dtype)
        _put(qkv_ptr, 3 * WIDTH, rows, outer, there, v, KEEP)

        seed = tl.load(seeds_ptr + 2 * layer)
        s = tl.where(there[None, :], tl.dot(q, tl.trans(k)) * (scale * LOG2E), float("-inf"))
        largest = tl.max(s, 1)
        p = tl.exp2(s - largest[:, None])
        total = tl.sum(p, 1)
        if ATTENTION_DROPOUT:
            p = tl.where(dropout_keep(seed, ids, 0, 1, attention_threshold, BLOCK_S, BLOCK_S), p, 0.0)
        read = (tl.dot(p.to(x.dtype), v) * (attention_keep_scale / total)[:, None]).to(x.dtype)
        _put(read_ptr, WIDTH, rows, columns, there, read, KEEP)
        if KEEP:
            tl.store(lse_ptr + rows, largest + tl.log2(total), mask=there)

        out_weight = qkv_bias + 3 * WIDTH
        out_bias = out_weight + WIDTH * WIDTH
        y = tl.dot(read, tl.trans(_matrix(out_weight, WIDTH, columns, columns))) + _numbers(out_bias, columns)
        y = y.to(x.dtype)
        _put(projected_ptr, WIDTH, rows, columns, there, y, KEEP)
        norm = out_bias + WIDTH
        places = rows + 3 * tl.cast(layer, tl.int64) * tokens  # four rows of statistics a layer
        x = _finish(
            x,
            y,
            norm,
            statistics_ptr,
            tokens,
            places,
            there,
            seed,
            ids,
            eps,
            threshold,
            keep_scale,
            DROPOUT,
            KEEP,
            WIDTH,
            BLOCK_S,
        )
        _put(middle_ptr, WIDTH, rows, columns, there, x, KEEP)

        up_weight = norm + 2 * WIDTH
        up_bias = up_weight + INNER * WIDTH
        down_weight = up_bias + INNER
        acc = tl.zeros((BLOCK_S, WIDTH), tl.float32)
        for first in range(0, INNER, BLOCK_F):
            offs_f = first + tl.arange(0, BLOCK_F)
            z = tl.dot(x, tl.trans(_matrix(up_weight, WIDTH, offs_f, columns))) + _numbers(up_bias, offs_f)
            h, _ = gelu_and_slope(z)
            acc = tl.dot(h.to(x.dtype), tl.trans(_matrix(down_weight, INNER, columns, offs_f)), acc)
        down_bias = down_weight + INNER * WIDTH
        y = (acc + _numbers(down_bias, columns)).to(x.dtype)
        _put(down_ptr, WIDTH, rows, columns, there, y, KEEP)
        x = _finish(
            x,
            y,
            down_bias + WIDTH,
            statistics_ptr,
            tokens,
            places + 2 * tokens,
            there,
            tl.load(seeds_ptr + 2 * layer + 1),
            ids,
            eps,
            threshold,
            keep_scale,
            DROPOUT,
            KEEP,
            WIDTH,
            BLOCK_S,
        )
        _put(out_ptr, WIDTH, rows, columns, there, x, KEEP)
    _put(out_ptr, WIDTH, start + place, columns, there, x, not KEEP)


def encoder_fwd(
    x: Tensor,
    weights: Tensor,
    inner: int,
    cu_seqlens: Tensor,
    row_ids: Tensor,
    seeds: Tensor,
    eps: float,
    attention_dropout_p: float,
    dropout_p: float,
    keep: bool,
) -> tuple[Tensor, list[Tensor]]:
    """x (T, D), weights (L, P) as `packed_layout` says, seeds (2 L,), a pair a layer -> out (T, D), [] or with `keep`
    [qkv (L, T, 3 D), read (L, T, 1, D), lse (L, 1, T), projected (L, T, D), statistics (L, 4, T), middle, down and
    out (L, T, D)]: mean and 1 / deviation of the first norm, then of the second. D is 64, a sequence 128 at most."""
    tokens, width = x.shape
    layers = weights.shape[0]
    x, weights = (t if t.stride(1) == 1 else t.contiguous() for t in (x, weights))
    kept = layers if keep else 0
    qkv, read = x.new_empty(kept, tokens, 3 * width), x.new_empty(kept, tokens, 1, width)
    projected, middle, down = (x.new_empty(kept, tokens, width) for _ in range(3))
    lse, statistics = (x.new_empty(kept, n, tokens, dtype=torch.float32) for n in (1, 4))
    out = x.new_empty(max(1, kept), tokens, width)
    thresholds = [round(256 * p) for p in (attention_dropout_p, dropout_p)]
    if sequences := cu_seqlens.shape[0] - 1:
        encoder_fwd_kernel[(sequences,)](
            x,
            weights,
            cu_seqlens.contiguous(),
            row_ids.contiguous(),
            seeds.contiguous(),
            qkv,
            read,
            lse,
            projected,
            statistics,
            middle,
            down,
            out,
            x.stride(0),
            weights.stride(0),
            tokens,
            layers,
            1 / math.sqrt(width),
            eps,
            *(number for t in thresholds for number in (t, 256 / max(1, 256 - t))),
            ATTENTION_DROPOUT=thresholds[0] > 0,
            DROPOUT=thresholds[1] > 0,
            KEEP=keep,
            WIDTH=width,
            INNER=inner,
            enable_fp_fusion=True,
            **FWD[x.element_size(), width],
        )
    return out[-1], [qkv, read, lse, projected, statistics, middle, down, out] if keep else []
