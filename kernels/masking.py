"""masking and corrupt on the GPU, one launch each; the results are those of electra_fast/ops/masking.py, to the bit.

masking_fwd_kernel chooses the tokens to predict: of a sequence's candidates (tokens that are not special), the `count`
with the smallest random words. There is one program for each sequence, of any length. It finds the count-th smallest
word bit by bit, by 32 counts, so nothing is sorted, and the host need not know the lengths. Words of the first BLOCK
tokens stay in registers; the others are computed again for every count. It writes the masked ids, and the position,
label and row id of each slot. Cost for T tokens and M slots: a Philox call (about 80 integer operations) and 32
comparisons a token; 24 T + 24 M bytes, which at 4.3 TB/s is 0.1 us for 16,384 tokens, so the launch, 2 to 3 us, is the
limit. No products. Planned occupancy: 3 programs of 8 warps a multiprocessor, so that 396 sequences run at once.

corrupt_fwd_kernel replaces masked tokens by the generator's samples. A program copies a run of tokens, and then looks
through all slots for those in its run. It writes the corrupted ids and which tokens differ from the original ones.
Cost: 17 T + 24 M bytes from memory, 8 M more for each program from the cache; the launch is the limit again. Planned
occupancy: 4 programs of 4 warps a multiprocessor, so all 16 of ELECTRA-Small run at once. A step has one launch of
each; in PyTorch's operations the two are 25 to 30.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .parts.philox import philox

MASKING = dict(BLOCK=512, num_warps=8)  # BLOCK tokens at once; sequences may be longer
CORRUPT = dict(BLOCK=1024, num_warps=4)
PROGRAMS = 256  # the most programs of corrupt, since each reads all positions


@triton.jit
def _candidates(ids_ptr, rows_ptr, offs, end, seed, SPECIAL: tl.constexpr):
    """Returns for the tokens at offs: ids, row ids, whether each is a candidate, and two random words, int64. The first
    decides whether the token is chosen, the second whether it is hidden."""
    there = offs < end
    ids = tl.load(ids_ptr + offs, mask=there, other=0)
    rows = tl.load(rows_ptr + offs, mask=there, other=0)
    candidate = there
    for i in tl.static_range(len(SPECIAL)):
        candidate = candidate & (ids != SPECIAL[i])
    choice, replace, _, _ = philox(seed, rows, 0, 0)
    return ids, rows, candidate, choice.to(tl.int64), replace.to(tl.int64)


class Masked(NamedTuple):
    """Where masking puts its results: addresses of int64."""

    ids: Any  # (T,)
    positions: Any  # (M,)
    labels: Any  # (M,)
    sample_rows: Any  # (M,)


@triton.jit
def masking_fwd_kernel(
    ids_ptr,
    cu_ptr,
    slots_ptr,
    rows_ptr,
    seed_ptr,
    masked,
    mask_id,
    threshold,
    SPECIAL: tl.constexpr,
    FAITHFUL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """cu_ptr, slots_ptr: (N + 1,), the first token and the first slot of each sequence. A chosen token is hidden, which
    means replaced by mask_id, if its word is below threshold. SPECIAL: ids that are never chosen."""
    masked = Masked(*masked)
    n = tl.program_id(0).to(tl.int64)
    start, end = tl.load(cu_ptr + n).to(tl.int64), tl.load(cu_ptr + n + 1).to(tl.int64)
    slot, last = tl.load(slots_ptr + n).to(tl.int64), tl.load(slots_ptr + n + 1).to(tl.int64)
    seed = tl.load(seed_ptr)
    lane = tl.arange(0, BLOCK).to(tl.int64)
    ids, rows, candidate, choice, replace = _candidates(ids_ptr, rows_ptr, start + lane, end, seed, SPECIAL)
    candidates = tl.sum(candidate.to(tl.int64))
    if FAITHFUL:
        # With replacement. The positions of the candidates, in order, are in masked.ids until it receives the ids.
        rank = tl.cumsum(candidate.to(tl.int64)) - 1
        tl.store(masked.ids + start + rank, start + lane, mask=candidate)
        for first in range(start + BLOCK, end, BLOCK):
            _, _, more, _, _ = _candidates(ids_ptr, rows_ptr, first + lane, end, seed, SPECIAL)
            rank = candidates + tl.cumsum(more.to(tl.int64)) - 1
            tl.store(masked.ids + start + rank, first + lane, mask=more)
            candidates += tl.sum(more.to(tl.int64))
        tl.debug_barrier()
        row = tl.load(rows_ptr + start, mask=start < end, other=0)
        stop = tl.where(candidates > 0, last, slot)
        for first in range(slot, last, BLOCK):
            draw = first + lane
            used = draw < stop
            _, _, pick, _ = philox(seed, row + (draw - slot), 0, 0)
            chosen = (pick.to(tl.int64) * candidates) >> 32
            at = tl.load(masked.ids + start + chosen, mask=used, other=0)
            at = tl.where(used, at, start)
            label = tl.load(ids_ptr + at, mask=used, other=-100)
            tl.store(masked.positions + draw, at, mask=draw < last)
            tl.store(masked.labels + draw, label, mask=draw < last)
            tl.store(masked.sample_rows + draw, tl.where(used, row + (draw - slot), row), mask=draw < last)
        tl.debug_barrier()
        for first in range(start, end, BLOCK):
            there = first + lane < end
            tl.store(masked.ids + first + lane, tl.load(ids_ptr + first + lane, mask=there), mask=there)
        tl.debug_barrier()
        for first in range(slot, last, BLOCK):
            draw = first + lane
            used = draw < stop
            _, _, _, hide = philox(seed, row + (draw - slot), 0, 0)
            at = tl.load(masked.positions + draw, mask=used, other=0)
            tl.store(masked.ids + at, lane * 0 + mask_id, mask=used & (hide.to(tl.int64) < threshold))
    else:
        for first in range(start + BLOCK, end, BLOCK):
            _, _, more, _, _ = _candidates(ids_ptr, rows_ptr, first + lane, end, seed, SPECIAL)
            candidates += tl.sum(more.to(tl.int64))
        count = tl.minimum(last - slot, candidates)
        # The count-th smallest word is the largest one with fewer than `count` candidates below it.
        largest = start * 0
        below = start * 0
        for bit in range(32):
            trial = largest + (tl.full((), 1, tl.int64) << (31 - bit))
            fewer = tl.sum((candidate & (choice < trial)).to(tl.int64))
            for first in range(start + BLOCK, end, BLOCK):
                _, _, more, words, _ = _candidates(ids_ptr, rows_ptr, first + lane, end, seed, SPECIAL)
                fewer += tl.sum((more & (words < trial)).to(tl.int64))
            if fewer < count:
                largest = trial
                below = fewer
        equal = count - below  # of the candidates with exactly that word, the first `equal` are chosen
        for first in range(start, end, BLOCK):
            if first > start:
                ids, rows, candidate, choice, replace = _candidates(ids_ptr, rows_ptr, first + lane, end, seed, SPECIAL)
            same = candidate & (choice == largest)
            taken = (candidate & (choice < largest)) | (same & (tl.cumsum(same.to(tl.int64)) <= equal))
            at = slot + tl.cumsum(taken.to(tl.int64)) - 1
            tl.store(masked.positions + at, first + lane, mask=taken)
            tl.store(masked.labels + at, ids, mask=taken)
            tl.store(masked.sample_rows + at, rows, mask=taken)
            hidden = tl.where(taken & (replace < threshold), mask_id, ids)
            tl.store(masked.ids + first + lane, hidden, mask=first + lane < end)
            slot += tl.sum(taken.to(tl.int64))
            equal -= tl.sum(same.to(tl.int64))
        row = tl.load(rows_ptr + start, mask=start < end, other=0)
        for first in range(slot, last, BLOCK):  # slots that are left over, if there are more than candidates
            empty = first + lane < last
            tl.store(masked.positions + first + lane, lane * 0 + start, mask=empty)
            tl.store(masked.labels + first + lane, lane * 0 - 100, mask=empty)
            tl.store(masked.sample_rows + first + lane, lane * 0 + row, mask=empty)


def masking_fwd(args: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """-> masked ids (T,), and positions, labels and sample rows (M,), all int64.

    args: a MaskingArguments (electra_fast/ops/masking.py)
    """
    ids, rows = args.input_ids.contiguous(), args.row_ids.contiguous()
    masked_ids = torch.empty_like(ids)
    positions, labels, sample_rows = (ids.new_empty(args.num_slots) for _ in range(3))
    if sequences := args.cu_seqlens.shape[0] - 1:
        masking_fwd_kernel[(sequences,)](
            ids,
            args.cu_seqlens.contiguous(),
            args.slots.contiguous(),
            rows,
            args.seed,
            (masked_ids, positions, labels, sample_rows),
            args.mask_id,
            args.threshold,
            SPECIAL=tuple(args.special_ids),
            FAITHFUL=args.faithful,
            **MASKING,
        )
    return masked_ids, positions, labels, sample_rows


@triton.jit
def corrupt_fwd_kernel(
    ids_ptr,
    positions_ptr,
    labels_ptr,
    sampled_ptr,
    corrupted_ptr,
    replaced_ptr,
    draws_ptr,
    tokens,
    slots,
    span,
    FAITHFUL: tl.constexpr,
    BLOCK: tl.constexpr,
):
    start = tl.program_id(0).to(tl.int64) * span
    end = tl.minimum(start + span, tokens)
    lane = tl.arange(0, BLOCK).to(tl.int64)
    for first in range(start, end, BLOCK):
        there = first + lane < end
        ids = tl.load(ids_ptr + first + lane, mask=there)
        tl.store(corrupted_ptr + first + lane, lane * 0 if FAITHFUL else ids, mask=there)
        tl.store(replaced_ptr + first + lane, (lane * 0).to(tl.int8), mask=there)
        if FAITHFUL:
            tl.store(draws_ptr + first + lane, lane * 0, mask=there)
    tl.debug_barrier()
    for first in range(0, slots, BLOCK):
        there = first + lane < slots
        at = tl.load(positions_ptr + first + lane, mask=there, other=-1)
        ours = there & (at >= start) & (at < end)
        ours = ours & (tl.load(labels_ptr + first + lane, mask=ours, other=-100) != -100)
        sampled = tl.load(sampled_ptr + first + lane, mask=ours, other=0)
        if FAITHFUL:  # integers that no other program adds to, so the order does not matter
            tl.atomic_add(corrupted_ptr + at, sampled, mask=ours)
            tl.atomic_add(draws_ptr + at, lane * 0 + 1, mask=ours)
        else:
            differs = sampled != tl.load(ids_ptr + at, mask=ours, other=0)
            tl.store(corrupted_ptr + at, sampled, mask=ours)
            tl.store(replaced_ptr + at, differs.to(tl.int8), mask=ours)
    if FAITHFUL:
        tl.debug_barrier()
        for first in range(start, end, BLOCK):
            there = first + lane < end
            ids = tl.load(ids_ptr + first + lane, mask=there)
            draws = tl.load(draws_ptr + first + lane, mask=there, other=0)
            total = tl.load(corrupted_ptr + first + lane, mask=there, other=0)
            mean = tl.where(draws > 0, total // tl.maximum(draws, 1), ids)
            tl.store(corrupted_ptr + first + lane, mean, mask=there)
            tl.store(replaced_ptr + first + lane, (mean != ids).to(tl.int8), mask=there)


def corrupt_fwd(args: Any) -> tuple[Tensor, Tensor]:
    """-> corrupted ids (T,) int64, and which of them differ from the original ones (T,) bool.

    args: a CorruptArguments (electra_fast/ops/corrupt.py)
    """
    tensors = (args.input_ids, args.positions, args.labels, args.sampled_ids)
    ids, at, wanted, sampled = (t.contiguous() for t in tensors)
    corrupted, replaced = torch.empty_like(ids), torch.empty_like(ids, dtype=torch.int8)
    if tokens := ids.shape[0]:
        block = CORRUPT["BLOCK"]
        span = triton.cdiv(triton.cdiv(tokens, PROGRAMS), block) * block
        corrupt_fwd_kernel[(triton.cdiv(tokens, span),)](
            ids,
            at,
            wanted,
            sampled,
            corrupted,
            replaced,
            torch.empty_like(ids) if args.faithful else None,
            tokens,
            at.shape[0],
            span,
            FAITHFUL=args.faithful,
            **CORRUPT,
        )
    return corrupted, replaced.view(torch.bool)
