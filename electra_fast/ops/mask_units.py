"""mask_units: group tokens to words or spans, so that masking chooses and hides each of them as a whole.

A token that is not special begins a word if it is the first of its sequence, follows a special token, or is marked as
the start of a word; the tokens after it that are not special and begin no word belong to it. Special tokens belong to
none.

Spans are runs of words, from a special token to the next. A word opens a span with probability 1/5, if its random word
w2 (_philox.py, group and plane 0) is below 2**32 / 5, and every tenth word after it opens one too. So a span has
min(Geometric(1/5), 10) words. Only integers are computed, so every backend has the same bits.

The result is a row id for each token, that of the first token of its unit. `masking` takes its random numbers from it,
so all tokens of a unit have the same two words: they are chosen one after the other, and all hidden or none. Of the
last unit only the first tokens are chosen, if there are fewer slots left than it has tokens.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from electra_fast.ops._check import check_cu_seqlens, check_integers, check_shape
from electra_fast.ops._core import core
from electra_fast.ops._library import define, launcher
from electra_fast.ops._philox import philox
from electra_fast.ops._structs import MaskingRule, Text

OPENS = round(2**32 / 5)  # a span is opened by random words below it
LONGEST = 10  # words of a span


class MaskUnitsArguments(NamedTuple):
    """The arguments of `mask_units`, in the order of the dispatcher op."""

    input_ids: Tensor  # (T,) int64
    cu_seqlens: Tensor  # (N + 1,) int32
    row_ids: Tensor  # (T,) int64
    starts_word: Tensor  # (T,) bool
    special_ids: list[int]
    spans: bool
    seed: Tensor  # (1,) int64, that of masking


def _check(args: MaskUnitsArguments) -> None:
    check_integers("mask_units", torch.int64, input_ids=args.input_ids, row_ids=args.row_ids)
    check_integers("mask_units", torch.bool, starts_word=args.starts_word)
    for name, tensor in dict(row_ids=args.row_ids, starts_word=args.starts_word).items():
        check_shape("mask_units", name, tensor, *args.input_ids.shape)
    check_cu_seqlens("mask_units", "cu_seqlens", args.cu_seqlens, args.input_ids.shape[0])


def mask_units_reference(args: MaskUnitsArguments) -> Tensor:
    ids, device = args.input_ids, args.input_ids.device
    if not len(ids):
        return args.row_ids.clone()
    at = torch.arange(len(ids), device=device)
    candidate = ~torch.isin(ids, torch.tensor(args.special_ids, dtype=ids.dtype, device=device))
    first = torch.zeros(len(ids) + 1, dtype=torch.bool, device=device)
    first[args.cu_seqlens.long()] = True
    leads = candidate & (first[:-1] | ~candidate.roll(1))  # the first of a run of tokens that are not special
    begins = candidate & (leads | args.starts_word)
    starts = begins
    if args.spans:
        number = begins.cumsum(0)  # of each word
        opens = leads | (begins & (philox(args.seed, args.row_ids, 0, 0)[2] < OPENS))
        opened = torch.where(opens, number, 0).cummax(0).values
        starts = begins & ((number - opened) % LONGEST == 0)
    unit = torch.where(starts, at, 0).cummax(0).values
    return args.row_ids[torch.where(candidate, unit, at)]


def _mask_units_cpu(args: MaskUnitsArguments) -> Tensor:
    ids, cu_seqlens = args.input_ids.contiguous(), args.cu_seqlens.contiguous()
    text = Text(ids, args.row_ids.contiguous(), ids.numel(), cu_seqlens, cu_seqlens.numel() - 1)
    special = torch.tensor(args.special_ids, dtype=torch.int64)
    rule = MaskingRule(special, special.numel(), 0, 0, False, int(args.seed.item()))
    out = torch.empty_like(ids)
    core.mask_units(text, args.starts_word.contiguous(), rule, args.spans, out, torch.get_num_threads())
    return out


mask_units = define(
    "mask_units",
    MaskUnitsArguments,
    "Tensor",
    reference=mask_units_reference,
    fake=lambda args: torch.empty_like(args.input_ids),
    cpu=_mask_units_cpu,
    floats=False,
    cuda=launcher("mask_units", "mask_units_fwd"),
    check=_check,
)
