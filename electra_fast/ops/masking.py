"""masking: choose the tokens to predict and hide them; corrupt: put the generator's samples in and label them.

Sequence n owns slots[n + 1] - slots[n] prediction slots, round-half-even(mask_prob * length) of them (`count_slots`).
Candidates are its tokens but for the special ids. With w0..w3 the words of a token's row id (_philox.py, group and
plane 0), the candidates with the smallest (w0, index) are chosen, in ascending position; each becomes [MASK] iff
w1 < replace_prob 2**32 and else stays visible. Integers alone, so every backend agrees to the bit.

faithful: as Google's code draws, with replacement: draw j of a sequence takes the words of row id (its first + j),
candidate number w2 C >> 32 of its C, and becomes [MASK] iff w3 < replace_prob 2**32; `corrupt` averages the ids of
duplicates, rounding down.

A slot without a token (fewer candidates than slots) has label -100 and points at the start of its sequence; an empty
sequence owns no slots.
Cost: a sort of T keys, no floating point.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from electra_fast.ops._check import (
    check_cu_seqlens,
    check_devices,
    check_ids,
    check_integers,
    check_probability,
    check_shape,
    seed_tensor,
)
from electra_fast.ops._core import core
from electra_fast.ops._library import define, launcher
from electra_fast.ops._philox import philox


class Masked(NamedTuple):
    """What `masking` chose. M slots, T tokens."""

    masked_ids: Tensor  # (T,) int64: the generator's input
    positions: Tensor  # (M,) int64: packed index of each slot
    labels: Tensor  # (M,) int64: the original ids, -100 in unused slots
    sample_rows: Tensor  # (M,) int64: row ids that key the samples
    slots: Tensor  # (N + 1,) int32: sequence n owns slots slots[n] to slots[n + 1]
    max_slots: int  # the most that one sequence owns


def count_slots(lengths: Tensor, mask_prob: float, max_predictions: int | None = None) -> Tensor:
    """(N,) lengths on the host -> (N + 1,) int32 offsets of the prediction slots.

    A sequence has round-half-even(mask_prob * length) in float64, at least one if it is not empty, at most
    max_predictions.
    """
    counts = torch.round(lengths.double() * mask_prob).long().clamp(min=1, max=max_predictions)
    counts = torch.where(lengths > 0, counts, 0)
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)]).to(torch.int32)


def masking(
    input_ids: Tensor,
    cu_seqlens: Tensor,
    slots: Tensor,
    num_slots: int,
    max_slots: int,
    row_ids: Tensor,
    special_ids: list[int],
    mask_id: int,
    replace_prob: float = 0.85,
    faithful: bool = False,
    seed: int | Tensor = 0,
) -> Masked:
    """input_ids, row_ids (T,) int64, cu_seqlens, slots (N + 1,) int32, num_slots = slots[N] = M,
    max_slots the most of one sequence -> Masked.

    Raises TypeError on other integer types, ValueError on shapes, offsets or a replace_prob outside [0, 1],
    RuntimeError on mixed devices.
    """
    check_devices("masking", input_ids=input_ids, cu_seqlens=cu_seqlens, slots=slots, row_ids=row_ids)
    check_integers("masking", torch.int64, input_ids=input_ids, row_ids=row_ids)
    check_shape("masking", "row_ids", row_ids, *input_ids.shape)
    check_shape("masking", "slots", slots, *cu_seqlens.shape)
    check_cu_seqlens("masking", "cu_seqlens", cu_seqlens, input_ids.shape[0])
    check_cu_seqlens("masking", "slots", slots, num_slots, max_slots)
    threshold = round(check_probability("masking", "replace_prob", replace_prob) * 2**32)
    seed = seed_tensor("masking", seed, input_ids.device)
    arguments = (input_ids, cu_seqlens, slots, num_slots, row_ids, special_ids, mask_id, threshold, faithful, seed)
    masked_ids, positions, labels, sample_rows = _masking(*arguments)
    return Masked(masked_ids, positions, labels, sample_rows, slots, max_slots)


def masking_reference(
    input_ids: Tensor,
    cu_seqlens: Tensor,
    slots: Tensor,
    num_slots: int,
    row_ids: Tensor,
    special_ids: list[int],
    mask_id: int,
    threshold: int,
    faithful: bool,
    seed: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    total, device = input_ids.shape[0], input_ids.device
    if num_slots == 0 or total == 0:
        nowhere = input_ids.new_zeros(num_slots)
        return input_ids.clone(), nowhere, nowhere - 100, nowhere.clone()
    cu, slots = cu_seqlens.long(), slots.long()
    candidate = ~torch.isin(input_ids, torch.tensor(special_ids, device=device))
    owner = torch.searchsorted(cu[1:].contiguous(), torch.arange(total, device=device), right=True)
    running = torch.cat([cu.new_zeros(1), candidate.cumsum(0)])
    candidates = running[cu[1:]] - running[cu[:-1]]  # (N,)

    slot = torch.arange(num_slots, device=device)
    sequence = torch.searchsorted(slots[1:].contiguous(), slot, right=True)
    draw = slot - slots[sequence]
    start = cu[sequence].clamp(max=total - 1)
    words = philox(seed, row_ids, 0, 0)
    if faithful:
        used = candidates[sequence] > 0
        sample_rows = row_ids[start] + draw * used
        _, _, pick, replace = philox(seed, sample_rows, 0, 0)
        order = torch.argsort(2 * owner + ~candidate, stable=True)  # a sequence's candidates first, ascending
        chosen = order[(start + (pick * candidates[sequence] >> 32)).clamp(max=total - 1)]
    else:
        used = draw < candidates[sequence]
        order = torch.argsort(owner * 2**33 + torch.where(candidate, words[0], 2**32), stable=True)
        rank = torch.empty_like(order).scatter_(0, order, torch.arange(total, device=device)) - cu[owner]
        taken = candidate & (rank < (slots[owner + 1] - slots[owner]))
        before = torch.cat([cu.new_zeros(1), taken.cumsum(0)])  # chosen tokens before each token
        chosen = torch.empty(num_slots + 1, dtype=torch.int64, device=device)
        target = torch.where(taken, slots[owner] + before[:-1] - before[cu[owner]], num_slots)
        chosen = chosen.fill_(0).scatter_(0, target, torch.arange(total, device=device))[:-1]
        sample_rows, replace = row_ids[torch.where(used, chosen, start)], words[1][chosen]
    positions = torch.where(used, chosen, start)
    labels = torch.where(used, input_ids[positions], -100)
    hidden = torch.zeros(total, dtype=torch.int64, device=device)
    hidden.scatter_reduce_(0, positions, (used & (replace < threshold)).long(), "amax")
    return torch.where(hidden > 0, mask_id, input_ids), positions, labels, sample_rows


def _masking_cpu(
    input_ids: Tensor,
    cu_seqlens: Tensor,
    slots: Tensor,
    num_slots: int,
    row_ids: Tensor,
    special_ids: list[int],
    mask_id: int,
    threshold: int,
    faithful: bool,
    seed: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    ids, cu, owned, rows = (t.contiguous() for t in (input_ids, cu_seqlens, slots, row_ids))
    special = torch.tensor(special_ids, dtype=torch.int64)
    masked_ids = torch.empty_like(ids)
    positions, labels, sample_rows = (ids.new_empty(num_slots) for _ in range(3))
    core.masking(
        ids.data_ptr(),
        ids.numel(),
        cu.data_ptr(),
        cu.numel() - 1,
        owned.data_ptr(),
        rows.data_ptr(),
        special.data_ptr(),
        special.numel(),
        mask_id,
        threshold,
        faithful,
        seed.item(),
        masked_ids.data_ptr(),
        positions.data_ptr(),
        labels.data_ptr(),
        sample_rows.data_ptr(),
        torch.get_num_threads(),
    )
    return masked_ids, positions, labels, sample_rows


_masking = define(
    "masking",
    "(Tensor input_ids, Tensor cu_seqlens, Tensor slots, SymInt num_slots, Tensor row_ids, int[] special_ids, "
    "int mask_id, int threshold, bool faithful, Tensor seed) -> (Tensor, Tensor, Tensor, Tensor)",
    masking_reference,
    lambda ids, cu, slots, num_slots, *_: (torch.empty_like(ids), *(ids.new_empty(num_slots) for _ in range(3))),
    _masking_cpu,
    floats=False,
    cuda=launcher("masking", "masking_fwd"),
)


def corrupt(
    input_ids: Tensor, positions: Tensor, labels: Tensor, sampled_ids: Tensor, faithful: bool = False
) -> tuple[Tensor, Tensor]:
    """input_ids (T,), positions, labels, sampled_ids (M,) int64 -> corrupted_ids (T,) int64, is_replaced (T,) bool.

    Slots with label -100 change nothing. A sample equal to the original counts as original. Raises IndexError on
    a position outside the batch (on the CPU), TypeError on other integer types, ValueError on shapes, RuntimeError on
    mixed devices.
    """
    tensors = dict(input_ids=input_ids, positions=positions, labels=labels, sampled_ids=sampled_ids)
    check_devices("corrupt", **tensors)
    check_integers("corrupt", torch.int64, **tensors)
    check_shape("corrupt", "input_ids", input_ids, input_ids.numel())
    check_shape("corrupt", "positions", positions, positions.numel())
    check_shape("corrupt", "labels", labels, *positions.shape)
    check_shape("corrupt", "sampled_ids", sampled_ids, *positions.shape)
    check_ids("corrupt", "positions", positions, input_ids.shape[0], "batch", "positions index its packed tokens")
    return _corrupt(*tensors.values(), faithful)


def corrupt_reference(
    input_ids: Tensor, positions: Tensor, labels: Tensor, sampled_ids: Tensor, faithful: bool
) -> tuple[Tensor, Tensor]:
    used = (labels != -100).long()
    count = torch.zeros_like(input_ids).index_add_(0, positions, used)
    total = torch.zeros_like(input_ids).index_add_(0, positions, sampled_ids * used)
    # Without duplicates (not faithful) the mean is the sample itself.
    corrupted = torch.where(count > 0, total.div(count.clamp(min=1), rounding_mode="floor"), input_ids)
    return corrupted, corrupted != input_ids


def _corrupt_cpu(
    input_ids: Tensor, positions: Tensor, labels: Tensor, sampled_ids: Tensor, faithful: bool
) -> tuple[Tensor, Tensor]:
    ids, at, wanted, drawn = (t.contiguous() for t in (input_ids, positions, labels, sampled_ids))
    corrupted, replaced = torch.empty_like(ids), torch.empty(ids.shape, dtype=torch.bool)
    core.corrupt(
        ids.data_ptr(),
        ids.numel(),
        at.data_ptr(),
        wanted.data_ptr(),
        drawn.data_ptr(),
        at.numel(),
        faithful,
        corrupted.data_ptr(),
        replaced.data_ptr(),
    )
    return corrupted, replaced


_corrupt = define(
    "corrupt",
    "(Tensor input_ids, Tensor positions, Tensor labels, Tensor sampled_ids, bool faithful) -> (Tensor, Tensor)",
    corrupt_reference,
    lambda ids, positions, labels, sampled, faithful: (
        torch.empty_like(ids),
        ids.new_empty(ids.shape, dtype=torch.bool),
    ),
    _corrupt_cpu,
    floats=False,
    cuda=launcher("masking", "corrupt_fwd"),
)
