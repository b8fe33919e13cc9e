"""corrupt: put the generator's samples into the text, and label the tokens that they change.

A slot whose label is -100 holds no token and changes nothing. With `faithful`, several slots may have one position, and
the token there becomes the mean of their samples' ids, rounded down. Only integers are computed, so every backend has
the same bits. Its C++ and its kernel are beside those of masking: csrc/masking.cpp, kernels/masking.py.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from electra_fast.ops._check import check_devices, check_ids, check_integers, check_shape
from electra_fast.ops._core import core
from electra_fast.ops._library import define, launcher
from electra_fast.ops._structs import Slots


class CorruptArguments(NamedTuple):
    """The arguments of `corrupt`, in the order of the dispatcher op."""

    input_ids: Tensor
    positions: Tensor
    labels: Tensor
    sampled_ids: Tensor
    faithful: bool


def corrupt(
    input_ids: Tensor, positions: Tensor, labels: Tensor, sampled_ids: Tensor, *, faithful: bool = False
) -> tuple[Tensor, Tensor]:
    """Put the generator's samples into the text, and label the tokens that they change.

    input_ids: (T,) int64, the original ids.
    positions: (M,) int64, the token of each slot.
    labels: (M,) int64, the original id of each slot; a slot with label -100 changes nothing.
    sampled_ids: (M,) int64, the generator's sample in each slot; a sample equal to the original id counts as original.
    faithful: whether several slots may have one position, where the mean of their samples' ids is taken, rounded down,
        as in Google's code. Without it, slots in use have different positions.

    Returns corrupted_ids (T,) int64, and is_replaced (T,) bool, which is corrupted_ids != input_ids.

    Raises TypeError if ids are not int64, ValueError if a shape does not fit, RuntimeError if the tensors are on
    several devices, and on the CPU IndexError for a position outside the batch.

    Cost: a few reads and writes for each of T tokens and M slots, no floating point.

    Source: Clark et al., ICLR 2020 (ELECTRA), section 2; google-research/electra, pretrain/pretrain_helpers.py.
    """
    tensors = dict(input_ids=input_ids, positions=positions, labels=labels, sampled_ids=sampled_ids)
    check_devices("corrupt", **tensors)
    check_integers("corrupt", torch.int64, **tensors)
    check_shape("corrupt", "input_ids", input_ids, input_ids.numel())
    check_shape("corrupt", "positions", positions, positions.numel())
    check_shape("corrupt", "labels", labels, *positions.shape)
    check_shape("corrupt", "sampled_ids", sampled_ids, *positions.shape)
    return _corrupt(*tensors.values(), faithful)


def _check_corrupt(args: CorruptArguments) -> None:
    slots = dict(positions=args.positions, labels=args.labels, sampled_ids=args.sampled_ids)
    check_integers("corrupt", torch.int64, input_ids=args.input_ids, **slots)
    for name, tensor in slots.items():
        check_shape("corrupt", name, tensor, args.positions.numel())
    size = args.input_ids.shape[0]
    check_ids("corrupt", "positions", args.positions, size, "batch", "positions index its packed tokens")


def corrupt_reference(args: CorruptArguments) -> tuple[Tensor, Tensor]:
    used = (args.labels != -100).long()
    count = torch.zeros_like(args.input_ids).index_add_(0, args.positions, used)
    total = torch.zeros_like(args.input_ids).index_add_(0, args.positions, args.sampled_ids * used)
    # If every slot has its own position, the mean is the sample itself.
    corrupted = torch.where(count > 0, total.div(count.clamp(min=1), rounding_mode="floor"), args.input_ids)
    return corrupted, corrupted != args.input_ids


def _corrupt_cpu(args: CorruptArguments) -> tuple[Tensor, Tensor]:
    ids, positions, labels = args.input_ids.contiguous(), args.positions.contiguous(), args.labels.contiguous()
    corrupted, replaced = torch.empty_like(ids), torch.empty(ids.shape, dtype=torch.bool)
    slots = Slots(positions, labels, args.sampled_ids.contiguous(), positions.numel())
    core.corrupt(ids, ids.numel(), slots, args.faithful, corrupted, replaced)
    return corrupted, replaced


def _corrupt_fake(args: CorruptArguments) -> tuple[Tensor, Tensor]:
    return torch.empty_like(args.input_ids), args.input_ids.new_empty(args.input_ids.shape, dtype=torch.bool)


_corrupt = define(
    "corrupt",
    CorruptArguments,
    "(Tensor, Tensor)",
    reference=corrupt_reference,
    fake=_corrupt_fake,
    cpu=_corrupt_cpu,
    floats=False,
    cuda=launcher("masking", "corrupt_fwd"),
    check=_check_corrupt,
)
