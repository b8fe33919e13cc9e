"""mask_units on the GPU, one launch; the results are those of electra_fast/ops/mask_units.py, to the bit.

mask_units_kernel finds the unit of each token, a word or a span. There is one program for each sequence, of any length,
which goes through it BLOCK tokens at a time and carries three numbers from block to block: how many words began, the
number of the word that opened the last span, and where the last unit starts. Cost: 25 T bytes, with spans a Philox call
a token; the launch, 2 to 3 us, is the limit. No products.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .parts.philox import philox

OPTIONS = dict(BLOCK=512, num_warps=4)


@triton.jit
def _larger(a, b):
    return tl.maximum(a, b)


@triton.jit
def _is_candidate(ids, inside, SPECIAL: tl.constexpr):
    candidate = inside
    for i in tl.static_range(len(SPECIAL)):
        candidate = candidate & (ids != SPECIAL[i])
    return candidate


@triton.jit
def mask_units_kernel(
    ids_ptr,
    cu_ptr,
    rows_ptr,
    starts_ptr,
    seed_ptr,
    out_ptr,
    opens_below,
    SPECIAL: tl.constexpr,
    SPANS: tl.constexpr,
    LONGEST: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """starts_ptr: (T,) int8, which tokens start a word. out_ptr: (T,), the row id of the first token of each unit."""
    n = tl.program_id(0).to(tl.int64)
    start, end = tl.load(cu_ptr + n).to(tl.int64), tl.load(cu_ptr + n + 1).to(tl.int64)
    lane = tl.arange(0, BLOCK).to(tl.int64)
    words = start * 0
    opened = start * 0
    unit = start
    for first in range(start, end, BLOCK):
        offs = first + lane
        inside = offs < end
        candidate = _is_candidate(tl.load(ids_ptr + offs, mask=inside, other=0), inside, SPECIAL)
        follows = inside & (offs > start)
        after = _is_candidate(tl.load(ids_ptr + offs - 1, mask=follows, other=0), follows, SPECIAL)
        leads = candidate & (after == 0)
        begins = leads | (candidate & (tl.load(starts_ptr + offs, mask=inside, other=0) != 0))
        rows = tl.load(rows_ptr + offs, mask=inside, other=0)
        starts = begins
        if SPANS:
            number = words + tl.cumsum(begins.to(tl.int64))
            _, _, coin, _ = philox(tl.load(seed_ptr), rows, 0, 0)
            opens = leads | (begins & (coin.to(tl.int64) < opens_below))
            latest = tl.maximum(opened, tl.associative_scan(tl.where(opens, number, 0), 0, _larger))
            starts = begins & ((number - latest) % LONGEST == 0)
            words += tl.sum(begins.to(tl.int64))
            opened = tl.max(latest)
        units = tl.maximum(unit, tl.associative_scan(tl.where(starts, offs, 0), 0, _larger))
        unit = tl.max(units)
        chosen = tl.load(rows_ptr + units, mask=candidate, other=0)
        tl.store(out_ptr + offs, tl.where(candidate, chosen, rows), mask=inside)


def mask_units_fwd(args: Any) -> Tensor:
    """-> the row id of each token's unit, (T,) int64.

    args: a MaskUnitsArguments (electra_fast/ops/mask_units.py)
    """
    out = torch.empty_like(args.input_ids, memory_format=torch.contiguous_format)
    if sequences := args.cu_seqlens.shape[0] - 1:
        mask_units_kernel[(sequences,)](
            args.input_ids.contiguous(),
            args.cu_seqlens.contiguous(),
            args.row_ids.contiguous(),
            args.starts_word.contiguous().view(torch.int8),
            args.seed,
            out,
            round(2**32 / 5),
            SPECIAL=tuple(args.special_ids),
            SPANS=args.spans,
            LONGEST=10,
            **OPTIONS,
        )
    return out
