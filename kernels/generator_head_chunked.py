"""generator_head for wide rows: for a chunk of rows at a time, the logits are stored, but no further than the L2.

torch.addmm computes a chunk's logits. generator_head_tiles_kernel reads them once: a program takes BLOCK_M rows and 16
tiles, and writes each tile's maximum and sum of exponentials and those of its share, as generator_head_fwd_kernel does.
generator_head_sample.py draws from the stored logits. The backward computes the logits again.
generator_head_bwd_logits_kernel replaces a tile of them by their gradients, and writes the sums over its rows for the
bias, (blocks, V). Two products follow: dhidden, and the weight's gradient, which is summed from chunk to chunk and
rounded to its dtype, as the reference's is. No atomics: no two programs write to one place.

Cost: 2 M V E flops forward, 6 M V E backward. Why chunks: not to store logits costs 2 M V E flops more (a sweep for
each gradient), 2 E / 790 ps a logit; to write and read a bfloat16 logit and its gradient, 8 bytes, costs 8 / 4.3 ps.
These are equal at E = 735, and from E = 257 on a row leaves no room for the sums on chip. In the L2 the 8 bytes cost
less than in memory; but each chunk reads and writes the weight's gradient, 4 V E bytes. ELECTRA-Base, 20,224 rows, V =
30,522, E = 768: 948 GF forward and 2,844 backward, 1.2 and 3.6 ms at 790 TFLOP/s; 40 chunks of 512 rows, 31 MB of
logits each; weights and their gradient 47 + 94 MB a chunk, 5.6 GB, 1.3 ms at 4.3 TB/s, beside the products. Launches: 3
a chunk forward, 5 backward; eager PyTorch, without chunks, moves 7.4 GB more.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .generator_head_sample import LOG2E, TILE, Statistics, largest_and_sum, new_statistics, sample, sharpened

CHUNK = 2**25  # bytes of logits in a chunk: an A100's L2 has 40 MB, an H100's 50, an H200's 60
TILES = dict(BLOCK_M=32, BLOCK_N=TILE, num_warps=8)  # a program has 16 logits a thread at once
SHARE = 16  # tiles of a share


class Target(NamedTuple):
    """The probabilities that the loss compares with: the label's, and that of each other word."""

    label: Any
    each: Any


def target_of(label_smoothing: float, vocabulary: int) -> tuple:
    """The Target of labels smoothed over the vocabulary."""
    each = label_smoothing / vocabulary
    return 1 - label_smoothing + each, each


@triton.jit
def generator_head_tiles_kernel(
    logits_ptr,
    labels_ptr,
    statistics,
    rows,
    vocabulary,
    tiles_per_share,
    sharpness,
    SAME: tl.constexpr,
    DISALLOW: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """SAME: the sample is drawn from the probabilities of the loss, so one sum serves both."""
    statistics = Statistics(*statistics)
    block, share = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    offs_m = block * BLOCK_M + tl.arange(0, BLOCK_M)
    inside = offs_m < rows
    labels = tl.load(labels_ptr + offs_m, mask=inside, other=-100)
    m_i = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    l_i = tl.zeros((BLOCK_M,), tl.float32)
    first = share * tiles_per_share
    for number in range(first, tl.minimum(first + tiles_per_share, statistics.tiles)):
        offs_n = number * BLOCK_N + tl.arange(0, BLOCK_N)
        ptrs = logits_ptr + offs_m[:, None] * vocabulary + offs_n[None, :]
        in_chunk = inside[:, None] & (offs_n[None, :] < vocabulary)
        logits = tl.load(ptrs, mask=in_chunk, other=float("-inf")).to(tl.float32)
        safe, total = largest_and_sum(logits)
        m_new = tl.maximum(m_i, safe)
        l_i = l_i * tl.exp2((m_i - m_new) * LOG2E) + total * tl.exp2((safe - m_new) * LOG2E)
        m_i = m_new
        if not SAME:
            safe, total = largest_and_sum(sharpened(logits, sharpness, labels, offs_n, DISALLOW))
        tl.store(statistics.tile_max + number * rows + offs_m, safe, mask=inside)
        tl.store(statistics.tile_sum + number * rows + offs_m, total, mask=inside)
    tl.store(statistics.share_max + share * rows + offs_m, m_i, mask=inside)
    tl.store(statistics.share_sum + share * rows + offs_m, l_i, mask=inside)


@triton.jit
def generator_head_bwd_logits_kernel(
    logits_ptr,
    labels_ptr,
    lse_ptr,
    dloss_ptr,
    sums_ptr,
    rows,
    vocabulary,
    target,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Replaces logits by their gradients; sums_ptr (blocks, vocabulary): their sums over each block of rows."""
    target = Target(*target)
    across = tl.cdiv(vocabulary, BLOCK_N)
    block, tile = tl.program_id(0).to(tl.int64) // across, tl.program_id(0).to(tl.int64) % across
    offs_m, offs_n = block * BLOCK_M + tl.arange(0, BLOCK_M), tile * BLOCK_N + tl.arange(0, BLOCK_N)
    labels = tl.load(labels_ptr + offs_m, mask=offs_m < rows, other=-100)
    used = (labels >= 0) & (labels < vocabulary)
    dloss = tl.load(dloss_ptr + offs_m, mask=used, other=0.0).to(tl.float32)
    lse = tl.load(lse_ptr + offs_m, mask=used, other=0.0)
    ptrs = logits_ptr + offs_m[:, None] * vocabulary + offs_n[None, :]
    inside = (offs_m[:, None] < rows) & (offs_n[None, :] < vocabulary)
    logits = tl.load(ptrs, mask=inside & used[:, None], other=float("-inf")).to(tl.float32)
    probs = tl.exp2((logits - lse[:, None]) * LOG2E)
    dlogits = (probs - tl.where(offs_n[None, :] == labels[:, None], target.label, target.each)) * dloss[:, None]
    tl.store(ptrs, dlogits.to(logits_ptr.dtype.element_ty), mask=inside)
    tl.store(sums_ptr + block * vocabulary + offs_n, tl.sum(dlogits, 0), mask=offs_n < vocabulary)


def chunks(hidden: Tensor, weight: Tensor) -> list[slice]:
    """The chunks of rows: each has as many rows as fit in CHUNK bytes, a multiple of 128 if that is 128 or more."""
    most = max(1, CHUNK // (weight.shape[0] * hidden.element_size()))
    most = most // 128 * 128 or most
    return [slice(start, start + most) for start in range(0, hidden.shape[0], most)]


def _without_nan(hidden: Tensor, labels: Tensor) -> Tensor:
    """hidden, where NaN and infinity in rows without a label are 0: 0 times them would be NaN in dW."""
    return torch.where((labels == -100)[:, None], hidden.nan_to_num(0.0, 0.0, 0.0), hidden)


def chunked_fwd(args: Any) -> tuple[Tensor, Tensor, list[Tensor]]:
    """-> loss (M,), sampled (M,), [lse (M,) float32].

    args: a GeneratorHeadArguments (electra_fast/ops/generator_head.py)
    """
    parts = []
    for rows in chunks(args.hidden, args.weight):
        labels = args.labels[rows]
        clean = _without_nan(args.hidden[rows], labels)
        chunk = args._replace(hidden=clean, labels=labels, row_ids=args.row_ids[rows])
        swept = sweep_chunk(clean, args.weight, args.bias, labels, args.temperature, args.disallow_correct)
        parts.append(sample(chunk, *swept))
    loss, sampled, lse = (torch.cat(part) for part in zip(*parts, strict=True))
    return loss, sampled, [lse]


def sweep_chunk(
    hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, temperature: float = 1.0, disallow: bool = False
) -> tuple[tuple, Tensor]:
    """The Statistics of a chunk of rows over the vocabulary, and their logits (rows, V).

    disallow: whether the label is lowered for the sample
    """
    sharpness = 1 / temperature if temperature else 1.0
    logits = torch.addmm(bias, hidden, weight.t())
    count, vocabulary = logits.shape
    tiles = triton.cdiv(vocabulary, TILE)
    shares = triton.cdiv(tiles, SHARE)
    statistics = new_statistics(logits, tiles, shares)
    generator_head_tiles_kernel[(triton.cdiv(count, TILES["BLOCK_M"]), shares)](
        logits,
        labels,
        statistics,
        count,
        vocabulary,
        SHARE,
        sharpness,
        SAME=sharpness == 1.0 and not disallow,
        DISALLOW=disallow,
        enable_fp_fusion=True,
        **TILES,
    )
    return statistics, logits


def chunked_bwd(dloss: Tensor, args: Any, lse: Tensor) -> list[Tensor]:
    """-> [dhidden, dweight, dbias].

    args: a GeneratorHeadArguments
    """
    hidden, weight, bias, vocabulary = args.hidden, args.weight, args.bias, args.weight.shape[0]
    target, dhidden = target_of(args.label_smoothing, vocabulary), hidden.new_empty(hidden.shape)
    dweight = weight.new_zeros(weight.shape)
    dbias = bias.new_zeros(bias.shape, dtype=torch.float32)
    for rows in chunks(hidden, weight):
        clean = _without_nan(hidden[rows], args.labels[rows])
        logits = torch.addmm(bias, clean, weight.t())
        count = logits.shape[0]
        blocks = triton.cdiv(count, TILES["BLOCK_M"])
        sums = logits.new_empty(blocks, vocabulary, dtype=torch.float32)
        grid = (blocks * triton.cdiv(vocabulary, TILES["BLOCK_N"]),)
        generator_head_bwd_logits_kernel[grid](
            logits,
            args.labels[rows],
            lse[rows],
            dloss[rows],
            sums,
            count,
            vocabulary,
            target,
            enable_fp_fusion=True,
            **TILES,
        )
        torch.mm(logits, weight, out=dhidden[rows])
        dweight.addmm_(logits.t(), clean)
        dbias += sums.sum(0)
    return [dhidden, dweight, dbias.to(bias.dtype)]
