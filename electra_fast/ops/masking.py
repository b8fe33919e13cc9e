"""masking: choose the tokens that the generator predicts, and hide them.

Sequence n has slots[n + 1] - slots[n] prediction slots: round-half-even(mask_prob * length), by `count_slots`. Its
candidates are its tokens without the special ones. Let w0 to w3 be the four random words of a token's row id
(_philox.py, group and plane 0). The candidates of the smallest (w0, index) are chosen, in ascending position. A chosen
token becomes [MASK] if w1 < replace_prob 2**32, and stays visible otherwise. Only integers are computed, so every
backend has the same bits.

faithful: tokens are drawn with replacement, as in Google's code. Draw j of a sequence takes the random words of the row
id (id of the first token + j). It chooses candidate number w2 C >> 32 of the sequence's C candidates, which becomes
[MASK] if w3 < replace_prob 2**32. `corrupt` averages the samples of a token that is drawn several times.

If a sequence has fewer candidates than slots, the slots that are left over are unused: their label is -100, and their
position is the start of the sequence. An empty sequence has no slots.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from electra_fast.ops import _structs as structs
from electra_fast.ops._check import (
    check_cu_seqlens,
    check_devices,
    check_integers,
    check_offsets,
    check_probability,
    check_shape,
    seed_tensor,
)
from electra_fast.ops._core import core
from electra_fast.ops._cu_seqlens import cu_seqlens_of
from electra_fast.ops._library import Size, define, launcher
from electra_fast.ops._philox import philox
from electra_fast.ops._structs import MaskingRule, Text
from electra_fast.ops.mask_units import mask_units

MaskUnit = Literal["token", "word", "span"]


class MaskingArguments(NamedTuple):
    """The arguments of the op that `masking` calls. `threshold` is replace_prob 2**32, for 32-bit random words."""

    input_ids: Tensor
    cu_seqlens: Tensor
    slots: Tensor
    num_slots: Size
    row_ids: Tensor
    special_ids: list[int]
    mask_id: int
    threshold: int
    faithful: bool
    seed: Tensor


class Masked(NamedTuple):
    """The tokens that `masking` chose and hid, in M slots; T is the number of packed tokens."""

    masked_ids: Tensor  # (T,) int64: the generator's input
    positions: Tensor  # (M,) int64: the packed token of each slot
    labels: Tensor  # (M,) int64: the original ids, -100 in unused slots
    sample_rows: Tensor  # (M,) int64: row ids, by which the samples' random numbers are keyed
    slots: Tensor  # (N + 1,) int32: sequence n has the slots slots[n] to slots[n + 1]
    max_slots: int  # number of slots of the sequence that has most


def count_slots(lengths: Tensor, mask_prob: float, max_predictions: int | None = None) -> Tensor:
    """Count the prediction slots of each sequence: round-half-even(mask_prob * length), at least 1 unless it is empty.

    lengths: (N,), the number of tokens of each sequence, on the host.
    mask_prob: the share of the tokens to predict. The product is rounded in float64.
    max_predictions: the most slots of one sequence; no limit by default.

    Returns (N + 1,) int32, the slot where each sequence begins, and at the end the number of all slots, M.
    """
    counts = torch.round(lengths.double() * mask_prob).long().clamp(min=1, max=max_predictions)
    counts = torch.where(lengths > 0, counts, 0)
    return cu_seqlens_of(counts)


def masking(
    input_ids: Tensor,
    cu_seqlens: Tensor,
    slots: Tensor,
    num_slots: int,
    max_slots: int,
    row_ids: Tensor,
    *,
    special_ids: list[int],
    mask_id: int,
    replace_prob: float = 0.85,
    faithful: bool = False,
    seed: int | Tensor = 0,
    unit: MaskUnit = "token",
    starts_word: Tensor | None = None,
) -> Masked:
    """Choose the tokens that the generator predicts, and hide them. The result is a pure function of the arguments.

    input_ids: (T,) int64, packed tokens.
    cu_seqlens: (N + 1,) int32, the token where each sequence begins, and at the end T.
    slots: (N + 1,) int32, the slot where each sequence begins, and at the end M, as `count_slots` returns it.
    num_slots: M.
    max_slots: the number of slots of the sequence that has most, or more.
    row_ids: (T,) int64, the ids of the tokens, by which the choice's random numbers are keyed.
    special_ids: the ids of tokens that are never chosen.
    mask_id: the id of [MASK].
    replace_prob: the probability with which a chosen token becomes [MASK]; otherwise it stays visible.
    faithful: whether tokens are drawn with replacement, as in Google's code.
    seed: of the choice, an int of 64 bits or a one-element int64 tensor.
    unit: what is chosen and hidden as a whole: a token, a word, or a span of min(Geometric(1/5), 10) words
        (mask_units.py). The number of tokens that are chosen is the same: of the last unit only the first tokens are
        chosen, if there are fewer slots left.
    starts_word: (T,) bool, the tokens that start a word; needed for words and spans.

    Returns a Masked, with the generator's input and M slots.

    Raises TypeError if ids are not int64, ValueError if shapes or offsets do not fit, replace_prob lies outside [0,
    1], or unit is not a token with faithful or without starts_word, RuntimeError if the tensors are on several devices.

    Cost: a sort of T keys, no floating point.

    Source: Clark et al., ICLR 2020 (ELECTRA), section 2; google-research/electra, pretrain/pretrain_helpers.py; spans,
    Joshi et al., TACL 2020 (SpanBERT), section 3.1, which draws the first word of each span anew.
    """
    check_devices("masking", input_ids=input_ids, cu_seqlens=cu_seqlens, slots=slots, row_ids=row_ids)
    check_integers("masking", torch.int64, input_ids=input_ids, row_ids=row_ids)
    check_shape("masking", "row_ids", row_ids, *input_ids.shape)
    check_shape("masking", "slots", slots, *cu_seqlens.shape)
    check_offsets("masking", "cu_seqlens", cu_seqlens)
    check_offsets("masking", "slots", slots)
    if slots.device.type == "cpu" and not torch.compiler.is_compiling():  # here, since the op gets no max_slots
        check_cu_seqlens("masking", "slots", slots, num_slots, max_slots)
    threshold = round(check_probability("masking", "replace_prob", replace_prob) * 2**32)
    seed = seed_tensor("masking", seed, input_ids.device)
    rule = (special_ids, mask_id, threshold, faithful, seed)
    rows = row_ids
    if unit != "token":
        rows = _unit_rows(
            input_ids, cu_seqlens, row_ids, starts_word, special_ids, unit=unit, seed=seed, faithful=faithful
        )
    masked_ids, positions, labels, sample_rows = _masking(input_ids, cu_seqlens, slots, num_slots, rows, *rule)
    if unit != "token" and len(row_ids):
        sample_rows = row_ids[positions]  # each token of a unit has a sample of its own
    return Masked(masked_ids, positions, labels, sample_rows, slots, max_slots)


def _unit_rows(
    input_ids: Tensor,
    cu_seqlens: Tensor,
    row_ids: Tensor,
    starts_word: Tensor | None,
    special_ids: list[int],
    *,
    unit: str,
    seed: Tensor,
    faithful: bool,
) -> Tensor:
    """The row ids of units, by which `masking` then chooses."""
    if unit not in get_args(MaskUnit):
        raise ValueError(f"masking: unit is {unit!r}; allowed: {', '.join(get_args(MaskUnit))}")
    if faithful or starts_word is None:
        what = "faithful is True" if faithful else "starts_word is None"
        raise ValueError(f"masking: unit is {unit} and {what}; words and spans need starts_word, and are not of Google")
    check_devices("masking", input_ids=input_ids, starts_word=starts_word)
    check_integers("masking", torch.bool, starts_word=starts_word)
    check_shape("masking", "starts_word", starts_word, *input_ids.shape)
    return mask_units(input_ids, cu_seqlens, row_ids, starts_word, special_ids, unit == "span", seed)


def _check_masking(args: MaskingArguments) -> None:
    check_integers("masking", torch.int64, input_ids=args.input_ids, row_ids=args.row_ids)
    check_shape("masking", "row_ids", args.row_ids, *args.input_ids.shape)
    check_shape("masking", "slots", args.slots, *args.cu_seqlens.shape)
    check_cu_seqlens("masking", "cu_seqlens", args.cu_seqlens, args.input_ids.shape[0])
    check_cu_seqlens("masking", "slots", args.slots, args.num_slots)


def masking_reference(args: MaskingArguments) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    input_ids, num_slots, row_ids = args.input_ids, args.num_slots, args.row_ids
    total, device = input_ids.shape[0], input_ids.device
    if num_slots == 0 or total == 0:
        nowhere = input_ids.new_zeros(num_slots)
        return input_ids.clone(), nowhere, nowhere - 100, nowhere.clone()
    cu, slots = args.cu_seqlens.long(), args.slots.long()
    candidate = ~torch.isin(input_ids, torch.tensor(args.special_ids, device=device))
    owner = torch.searchsorted(cu[1:].contiguous(), torch.arange(total, device=device), right=True)
    running = torch.cat([cu.new_zeros(1), candidate.cumsum(0)])
    candidates = running[cu[1:]] - running[cu[:-1]]  # (N,)

    slot = torch.arange(num_slots, device=device)
    sequence = torch.searchsorted(slots[1:].contiguous(), slot, right=True)
    draw = slot - slots[sequence]
    start = cu[sequence].clamp(max=total - 1)
    words = philox(args.seed, row_ids, 0, 0)
    if args.faithful:
        used = candidates[sequence] > 0
        sample_rows = row_ids[start] + draw * used
        _, _, pick, replace = philox(args.seed, sample_rows, 0, 0)
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
    hidden.scatter_reduce_(0, positions, (used & (replace < args.threshold)).long(), "amax")
    return torch.where(hidden > 0, args.mask_id, input_ids), positions, labels, sample_rows


def _masking_cpu(args: MaskingArguments) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    ids, cu_seqlens = args.input_ids.contiguous(), args.cu_seqlens.contiguous()
    text = Text(ids, args.row_ids.contiguous(), ids.numel(), cu_seqlens, cu_seqlens.numel() - 1)
    special = torch.tensor(args.special_ids, dtype=torch.int64)
    numbers = (args.mask_id, args.threshold, args.faithful, int(args.seed.item()))
    rule = MaskingRule(special, special.numel(), *numbers)
    out = structs.Masked(torch.empty_like(ids), *(ids.new_empty(args.num_slots) for _ in range(3)))
    core.masking(text, args.slots.contiguous(), rule, out, torch.get_num_threads())
    return out.ids, out.positions, out.labels, out.sample_rows


def _masking_fake(args: MaskingArguments) -> tuple[Tensor, ...]:
    return torch.empty_like(args.input_ids), *(args.input_ids.new_empty(args.num_slots) for _ in range(3))


_masking = define(
    "masking",
    MaskingArguments,
    "(Tensor, Tensor, Tensor, Tensor)",
    reference=masking_reference,
    fake=_masking_fake,
    cpu=_masking_cpu,
    floats=False,
    cuda=launcher("masking", "masking_fwd"),
    check=_check_masking,
)
