"""generator_head on the GPU: the cross-entropy of logits hidden W^T + b, and a word drawn from each row's softmax.

One sweep over the vocabulary serves loss and sample, and no (M, V) tensor is ever in memory.

generator_head_fwd_kernel: a program keeps BLOCK_M rows of hidden and sweeps a share of the vocabulary, 128 words (a
tile) at a time. It writes the maximum and sum of exponentials of each tile, for the sample, (2, M, V / 128), and those
of the share, for the loss, (2, M, shares).
generator_head_sample_kernel (generator_head_sample.py): a program for each row joins the shares to the loss, finds the
sample's tile by the inverse of the cumulative distribution over the tiles, and computes that tile's 128 logits again to
find the word.
generator_head_bwd_hidden_kernel: a program computes BLOCK_M rows of dhidden over a share of the vocabulary; PyTorch
adds the shares. generator_head_bwd_weight_kernel: a program computes BLOCK_N words of dW and db over all rows. Each
computes the logits again, and their gradients from the saved log-sum-exps. Sums over shares are taken in order: no
atomics, and two runs give the same bits.

Cost: 2 M V E flops forward, 8 M V E backward (6 are needed; logits are computed once for each of the two kernels);
bytes: 2 (M + V) E + 8 M V / 128 forward, about as many again for the sample's tiles (256 E a row, from the cache),
8 (M + V) E backward. ELECTRA-Small, 2432 rows, 30522 words, E = 128: 19 GF and 13 MB forward, 76 GF backward; at
790 TFLOP/s and 4.3 TB/s 24 and 96 us of products, 3 and 8 us of traffic: the products, and an exponential for each
logit, are the limit. A row has at most 512 bytes; for wider ones, chunks of rows have their logits in the L2
(generator_head_chunked.py).

Launches a step: 2 forward, 4 backward; eager PyTorch about 9 and 5 (product, log-softmax, gather, noise, argmax and
gradients), which move 7.4 GB. Planned occupancy at E = 128: one program of 8 warps a multiprocessor in each sweep,
whose sums are 64 registers a thread and which has 64 to 129 KB of weights in flight; 4 of 4 warps for the sample.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .generator_head_chunked import Target, chunked_bwd, chunked_fwd, target_of
from .generator_head_sample import (
    LOG2E,
    TILE,
    Statistics,
    Words,
    largest_and_sum,
    new_statistics,
    sample,
    sharpened,
    words,
)
from .parts.device import entry
from .parts.groups import Matrix, matrix
from .parts.rows import rows_of

PROGRAMS = 264  # at least as many are wanted, by shares: two for each of an H100's 132 multiprocessors

# (bytes of an element, padded E[, generation]) -> tile; see device.py.
FWD = {
    (2, 64): dict(BLOCK_M=128, BLOCK_N=TILE, num_warps=8, num_stages=3),
    (2, 128): dict(BLOCK_M=128, BLOCK_N=TILE, num_warps=8, num_stages=3),
    (2, 256): dict(BLOCK_M=64, BLOCK_N=TILE, num_warps=4, num_stages=2),
    (4, 64): dict(BLOCK_M=16, BLOCK_N=TILE, num_warps=8, num_stages=1),
    (4, 128): dict(BLOCK_M=32, BLOCK_N=TILE, num_warps=8, num_stages=1),
    (2, 64, 100): dict(BLOCK_M=64, BLOCK_N=TILE, num_warps=8, num_stages=3),
    (2, 128, 100): dict(BLOCK_M=64, BLOCK_N=TILE, num_warps=8, num_stages=3),
    (2, 128, 80): dict(BLOCK_M=64, BLOCK_N=TILE, num_warps=8, num_stages=2),
    (2, 256, 80): dict(BLOCK_M=64, BLOCK_N=TILE, num_warps=8, num_stages=2),
}
BWD_HIDDEN = {
    (2, 64): dict(BLOCK_M=128, BLOCK_N=128, num_warps=8, num_stages=2),
    (2, 128): dict(BLOCK_M=128, BLOCK_N=64, num_warps=8, num_stages=2),
    (2, 256): dict(BLOCK_M=64, BLOCK_N=64, num_warps=8, num_stages=2),
    (4, 64): dict(BLOCK_M=32, BLOCK_N=32, num_warps=8, num_stages=1),
    (4, 128): dict(BLOCK_M=16, BLOCK_N=32, num_warps=8, num_stages=1),
    (2, 64, 100): dict(BLOCK_M=128, BLOCK_N=64, num_warps=8, num_stages=2),
    (2, 64, 80): dict(BLOCK_M=128, BLOCK_N=64, num_warps=8, num_stages=2),
    (2, 128, 80): dict(BLOCK_M=64, BLOCK_N=64, num_warps=8, num_stages=2),
}
BWD_WEIGHT = {  # BLOCK_N words a program, BLOCK_M rows at a time
    (2, 64): dict(BLOCK_M=64, BLOCK_N=128, num_warps=8, num_stages=2),
    (2, 128): dict(BLOCK_M=64, BLOCK_N=128, num_warps=8, num_stages=2),
    (2, 256): dict(BLOCK_M=64, BLOCK_N=64, num_warps=8, num_stages=2),
    (4, 64): dict(BLOCK_M=32, BLOCK_N=32, num_warps=8, num_stages=1),
    (4, 128): dict(BLOCK_M=32, BLOCK_N=16, num_warps=8, num_stages=1),
    (2, 64, 80): dict(BLOCK_M=32, BLOCK_N=64, num_warps=8, num_stages=2),
    (2, 128, 80): dict(BLOCK_M=32, BLOCK_N=64, num_warps=8, num_stages=2),
    (2, 256, 80): dict(BLOCK_M=32, BLOCK_N=32, num_warps=8, num_stages=2),
}


def in_chunks(hidden: Tensor) -> bool:
    """Whether rows have more than 512 bytes: they do not fit on chip beside the sums."""
    return hidden.shape[1] * hidden.element_size() > 512


def tile(table: dict, hidden: Tensor) -> dict:
    """The kernel's options: a tile of the table, and what follows from it."""
    size, width = hidden.element_size(), max(64, triton.next_power_of_2(hidden.shape[1]))
    precision = "ieee" if size == 4 else "tf32"  # matters for 32-bit products only
    return entry(table, (size, width), hidden) | dict(
        WIDTH=hidden.shape[1], BLOCK_E=width, PRECISION=precision, enable_fp_fusion=True
    )


@triton.jit
def _hidden_rows(hidden, labels, offs, count, WIDTH: tl.constexpr, BLOCK_E: tl.constexpr):
    """Rows of hidden, a Matrix. In a row without a label, NaN and infinity become 0, since 0 times them is NaN."""
    rows = rows_of(hidden, offs, count, WIDTH, BLOCK_E)
    odd = (labels[:, None] == -100) & ~(tl.abs(rows.to(tl.float32)) < float("inf"))
    return tl.where(odd, 0.0, rows).to(rows.dtype)


@triton.jit
def _word_rows(words, offs, WIDTH: tl.constexpr, BLOCK_E: tl.constexpr):
    """Rows of the weight of a Words, 0 beyond the last word."""
    return rows_of(Matrix(words.weight, words.row), offs, words.count, WIDTH, BLOCK_E)


@triton.jit
def generator_head_fwd_kernel(
    hidden,
    words,
    labels_ptr,
    statistics,
    rows,
    tiles_per_share,
    sharpness,
    SAME: tl.constexpr,
    DISALLOW: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_E: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """SAME: the sample is drawn from the probabilities of the loss, so one sum serves both."""
    words, statistics = Words(*words), Statistics(*statistics)
    block, share = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    offs_m = block * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = offs_m < rows
    labels = tl.load(labels_ptr + offs_m, mask=inside, other=-100)
    hidden_rows = _hidden_rows(Matrix(*hidden), labels, offs_m, rows, WIDTH, BLOCK_E)
    m_i = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    l_i = tl.zeros((BLOCK_M,), tl.float32)
    first = share * tiles_per_share
    for number in tl.range(first, tl.minimum(first + tiles_per_share, statistics.tiles), disable_licm=True):
        offs_n = number * BLOCK_N + tl.arange(0, BLOCK_N)
        weight = _word_rows(words, offs_n, WIDTH, BLOCK_E)
        bias = tl.load(words.bias + offs_n, mask=offs_n < words.count, other=0.0).to(tl.float32)
        logits = tl.dot(hidden_rows, tl.trans(weight), input_precision=PRECISION) + bias[None, :]
        logits = tl.where(offs_n[None, :] < words.count, logits, float("-inf"))
        safe, total = largest_and_sum(logits)
        m_new = tl.maximum(m_i, safe)
        l_i = l_i * tl.exp2((m_i - m_new) * LOG2E) + total * tl.exp2((safe - m_new) * LOG2E)
        m_i = m_new
        if not SAME:
            logits = sharpened(logits, sharpness, labels, offs_n, DISALLOW)
            safe, total = largest_and_sum(logits)
        tl.store(statistics.tile_max + number * rows + offs_m, safe, mask=inside)
        tl.store(statistics.tile_sum + number * rows + offs_m, total, mask=inside)
    tl.store(statistics.share_max + share * rows + offs_m, m_i, mask=inside)
    tl.store(statistics.share_sum + share * rows + offs_m, l_i, mask=inside)


def generator_head_fwd(args: Any) -> tuple[Tensor, Tensor, list[Tensor]]:
    """-> loss (M,), sampled (M,), [lse (M,) float32], without label smoothing.

    args: a GeneratorHeadArguments (electra_fast/ops/generator_head.py)
    """
    args = _laid_out(args._replace(row_ids=args.row_ids.contiguous()))
    hidden, labels = args.hidden, args.labels
    if hidden.shape[0] == 0:
        return hidden.new_empty(0), torch.empty_like(labels), [hidden.new_empty(0, dtype=torch.float32)]
    if in_chunks(hidden):
        return chunked_fwd(args)
    statistics = sweep(hidden, args.weight, args.bias, labels, args.temperature, args.disallow_correct)
    loss, sampled, lse = sample(args, statistics)
    return loss, sampled, [lse]


def sweep(
    hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, temperature: float = 1.0, disallow: bool = False
) -> tuple:
    """The Statistics of at least one row of at most 512 bytes over the vocabulary.

    disallow: whether the label is lowered for the sample
    """
    rows, chosen = hidden.shape[0], tile(FWD, hidden)
    tiles, blocks = triton.cdiv(weight.shape[0], TILE), triton.cdiv(rows, chosen["BLOCK_M"])
    tiles_per_share = triton.cdiv(tiles, min(tiles, triton.cdiv(PROGRAMS, blocks)))
    shares = triton.cdiv(tiles, tiles_per_share)
    statistics = new_statistics(hidden, tiles, shares)
    sharpness = 1 / temperature if temperature else 1.0
    generator_head_fwd_kernel[(blocks, shares)](
        matrix(hidden),
        words(weight, bias),
        labels,
        statistics,
        rows,
        tiles_per_share,
        sharpness,
        SAME=sharpness == 1.0 and not disallow,
        DISALLOW=disallow,
        **chosen,
    )
    return statistics


@triton.jit
def _scale(dloss_ptr, lse_ptr, labels, offs, rows, vocabulary):
    """Returns each row's dloss, 0 if its label is no word, and its log-sum-exp, infinite beyond the last row."""
    used = (labels >= 0) & (labels < vocabulary)
    dloss = tl.load(dloss_ptr + offs, mask=used, other=0.0).to(tl.float32)
    return dloss, tl.load(lse_ptr + offs, mask=offs < rows, other=float("inf"))


@triton.jit
def generator_head_bwd_hidden_kernel(
    hidden,
    words,
    labels_ptr,
    lse_ptr,
    dloss_ptr,
    dhidden_ptr,
    rows,
    words_per_share,
    target,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_E: tl.constexpr,
    PRECISION: tl.constexpr,
):
    words, target = Words(*words), Target(*target)
    block, share = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    offs_m = block * BLOCK_M + tl.arange(0, BLOCK_M)
    labels = tl.load(labels_ptr + offs_m, mask=offs_m < rows, other=-100)
    hidden_rows = _hidden_rows(Matrix(*hidden), labels, offs_m, rows, WIDTH, BLOCK_E)
    dloss, lse = _scale(dloss_ptr, lse_ptr, labels, offs_m, rows, words.count)
    acc = tl.zeros((BLOCK_M, BLOCK_E), tl.float32)
    start = share * words_per_share
    for first in tl.range(start, tl.minimum(start + words_per_share, words.count), BLOCK_N, disable_licm=True):
        offs_n = first + tl.arange(0, BLOCK_N)
        weight = _word_rows(words, offs_n, WIDTH, BLOCK_E)
        bias = tl.load(words.bias + offs_n, mask=offs_n < words.count, other=float("-inf")).to(tl.float32)
        logits = tl.dot(hidden_rows, tl.trans(weight), input_precision=PRECISION) + bias[None, :]
        probs = tl.exp2((logits - lse[:, None]) * LOG2E)
        dlogits = (probs - tl.where(offs_n[None, :] == labels[:, None], target.label, target.each)) * dloss[:, None]
        acc = tl.dot(dlogits.to(weight.dtype), weight, acc, input_precision=PRECISION)
    columns = tl.arange(0, BLOCK_E)
    inside = (offs_m[:, None] < rows) & (columns[None, :] < WIDTH)
    ptrs = dhidden_ptr + (share * rows + offs_m[:, None]) * WIDTH + columns[None, :]
    tl.store(ptrs, acc.to(dhidden_ptr.dtype.element_ty), mask=inside)


@triton.jit
def generator_head_bwd_weight_kernel(
    hidden,
    words,
    labels_ptr,
    lse_ptr,
    dloss_ptr,
    dweight_ptr,
    dbias_ptr,
    rows,
    target,
    WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_E: tl.constexpr,
    PRECISION: tl.constexpr,
):
    words, target = Words(*words), Target(*target)
    offs_n = tl.program_id(0).to(tl.int64) * BLOCK_N + tl.arange(0, BLOCK_N)
    weight = _word_rows(words, offs_n, WIDTH, BLOCK_E)
    bias = tl.load(words.bias + offs_n, mask=offs_n < words.count, other=float("-inf")).to(tl.float32)
    acc = tl.zeros((BLOCK_N, BLOCK_E), tl.float32)
    sums = tl.zeros((BLOCK_N,), tl.float32)
    for first in tl.range(0, rows, BLOCK_M, disable_licm=True):
        offs_m = first + tl.arange(0, BLOCK_M)
        labels = tl.load(labels_ptr + offs_m, mask=offs_m < rows, other=-100)
        hidden_rows = _hidden_rows(Matrix(*hidden), labels, offs_m, rows, WIDTH, BLOCK_E)
        dloss, lse = _scale(dloss_ptr, lse_ptr, labels, offs_m, rows, words.count)
        logits = tl.dot(weight, tl.trans(hidden_rows), input_precision=PRECISION) + bias[:, None]
        probs = tl.exp2((logits - lse[None, :]) * LOG2E)
        dlogits = (probs - tl.where(offs_n[:, None] == labels[None, :], target.label, target.each)) * dloss[None, :]
        sums += tl.sum(dlogits, 1)
        acc = tl.dot(dlogits.to(hidden_rows.dtype), hidden_rows, acc, input_precision=PRECISION)
    columns = tl.arange(0, BLOCK_E)
    inside = (offs_n[:, None] < words.count) & (columns[None, :] < WIDTH)
    ptrs = dweight_ptr + offs_n[:, None] * WIDTH + columns[None, :]
    tl.store(ptrs, acc.to(dweight_ptr.dtype.element_ty), mask=inside)
    tl.store(dbias_ptr + offs_n, sums.to(dbias_ptr.dtype.element_ty), mask=offs_n < words.count)


def generator_head_bwd(grads: list[Tensor], args: Any, saved: list[Tensor]) -> list[Tensor]:
    """grads [dloss], saved [loss, sampled, lse] -> [dhidden, dweight, dbias].

    args: a GeneratorHeadArguments
    """
    dweight, dbias = args.weight.new_empty(args.weight.shape), args.bias.new_empty(args.bias.shape)
    dloss, (_, _, lse) = grads[0].contiguous(), saved
    args = _laid_out(args)
    hidden, rows, vocabulary = args.hidden, args.hidden.shape[0], args.weight.shape[0]
    if rows == 0:
        return [hidden.new_empty(hidden.shape), dweight.zero_(), dbias.zero_()]
    if in_chunks(hidden):
        return chunked_bwd(dloss, args, lse)
    arguments = (matrix(hidden), words(args.weight, args.bias), args.labels, lse, dloss)
    target = target_of(args.label_smoothing, vocabulary)
    chosen = tile(BWD_HIDDEN, hidden)
    blocks, tiles = triton.cdiv(rows, chosen["BLOCK_M"]), triton.cdiv(vocabulary, chosen["BLOCK_N"])
    tiles_per_share = triton.cdiv(tiles, min(tiles, triton.cdiv(PROGRAMS // 2, blocks)))
    shares = triton.cdiv(tiles, tiles_per_share)
    parts = hidden.new_empty(shares, *hidden.shape, dtype=torch.float32)
    words_per_share = tiles_per_share * chosen["BLOCK_N"]
    generator_head_bwd_hidden_kernel[(blocks, shares)](*arguments, parts, rows, words_per_share, target, **chosen)
    dhidden = parts.sum(0).to(hidden.dtype)

    chosen = tile(BWD_WEIGHT, hidden)
    generator_head_bwd_weight_kernel[(triton.cdiv(vocabulary, chosen["BLOCK_N"]),)](
        *arguments, dweight, dbias, rows, target, **chosen
    )
    return [dhidden, dweight, dbias]


def _laid_out(args: Any) -> Any:
    """The arguments, with columns of hidden and weight of stride 1, bias and labels contiguous; others are copied."""
    hidden, weight = (t if t.stride(1) == 1 else t.contiguous() for t in (args.hidden, args.weight))
    return args._replace(hidden=hidden, weight=weight, bias=args.bias.contiguous(), labels=args.labels.contiguous())
