"""masking and corrupt: choose the tokens to predict and hide them; put samples in their places and label all tokens.

    python benches masking --device cpu --shapes 16x128

bytes: ids and row ids read, two rows of ids and the labels of all tokens written, and five numbers a slot. No flops.
Rivals work on ids padded to (N, S), as ports of ELECTRA do:

    topk             the tokens with the largest noise, scatter
    multinomial      Google's way: drawn with replacement, duplicates averaged; ours-faithful does the same
    reference        masking_reference and corrupt_reference
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from racing.clock import Step
from racing.race import Options, Race
from torch import Tensor

from electra_fast import ops
from electra_fast.config import ElectraConfig
from electra_fast.ops.corrupt import CorruptArguments, corrupt_reference
from electra_fast.ops.masking import MaskingArguments, count_slots, masking_reference
from electra_fast.special_ids import SpecialIds

SHAPES = ("16x128", "128x128")
REPLACE = 0.85
SEED = 3


class Chosen(NamedTuple):
    """What a call returns, packed: slots in the order of the sequences, unused ones left out."""

    masked_ids: Tensor  # (T,), as corrupted_ids and is_replaced
    positions: Tensor  # (M,), as labels
    labels: Tensor
    corrupted_ids: Tensor
    is_replaced: Tensor


@dataclass
class Case:
    """The inputs that all contestants share, packed for us and padded for the rivals."""

    ids: Tensor  # (N, S), 0 past a sequence's end
    there: Tensor  # (N, S) bool: which places are tokens
    slots: Tensor  # (N + 1,) int32
    used: Tensor  # (N, most slots) bool
    sampled: Tensor  # (N, most slots)
    special_ids: Tensor
    mask_id: int

    @classmethod
    def make(cls, config: ElectraConfig, shape: str, options: Options) -> Case:
        rows, columns = (int(n) for n in shape.split("x"))
        g = torch.Generator().manual_seed(0)
        lengths = torch.randint(columns // 8, columns + 1, (rows,), generator=g)
        if not options.ragged:
            lengths.fill_(columns)
        there = torch.arange(columns) < lengths[:, None]
        special = SpecialIds.of(config).never_masked
        ids = torch.randint(1000, config.vocab_size, (rows, columns), generator=g)
        ids[:, 0] = config.cls_token_id
        ids[torch.arange(rows), lengths - 1] = config.sep_token_id
        slots = count_slots(lengths, config.mask_prob)
        used = torch.arange(int(slots.diff().max())) < slots.diff()[:, None]
        sampled = torch.randint(1000, config.vocab_size, used.shape, generator=g)
        tensors = (ids * there, there, slots, used, sampled, torch.tensor(special))
        return cls(*(t.to(options.device) for t in tensors), config.mask_token_id)

    @property
    def tokens(self) -> int:
        return int(self.there.sum())

    @property
    def bytes(self) -> int:
        return (4 * 8 + 1) * self.tokens + 5 * 8 * int(self.used.sum())

    @property
    def candidates(self) -> Tensor:
        return ~torch.isin(self.ids, self.special_ids)

    def packed(self, masked: Tensor, chosen: Tensor, corrupted: Tensor, replaced: Tensor) -> Chosen:
        """Of a rival's results, ids (N, S) and chosen columns (N, most slots)."""
        place = self.there.flatten().cumsum(0).sub(1).view_as(self.there)
        positions, labels = (x.gather(1, chosen)[self.used] for x in (place, self.ids))
        return Chosen(masked[self.there], positions, labels, corrupted[self.there], replaced[self.there])


def packed_inputs(case: Case) -> tuple[Tensor, ...]:
    """input_ids, row_ids (T,), cu_seqlens (N + 1,), sampled (M,)."""
    ids = case.ids[case.there]
    cu_seqlens = F.pad(case.there.sum(1).cumsum(0), (1, 0)).to(torch.int32)
    return ids, torch.arange(len(ids), device=ids.device), cu_seqlens, case.sampled[case.used]


def ours(case: Case, faithful: bool = False) -> Step:
    ids, rows, cu_seqlens, sampled = packed_inputs(case)
    seed, special = torch.tensor([SEED], device=ids.device), case.special_ids.tolist()
    sizes = int(case.slots[-1]), int(case.slots.diff().max())

    def step() -> Chosen:
        rule = dict(special_ids=special, mask_id=case.mask_id, replace_prob=REPLACE, faithful=faithful, seed=seed)
        found = ops.masking(ids, cu_seqlens, case.slots, *sizes, rows, **rule)
        corrupted, replaced = ops.corrupt(ids, found.positions, found.labels, sampled, faithful=faithful)
        return Chosen(found.masked_ids, found.positions, found.labels, corrupted, replaced)

    return step


def reference(case: Case) -> Step:
    ids, rows, cu_seqlens, sampled = packed_inputs(case)
    seed, special, threshold = (
        torch.tensor([SEED], device=ids.device),
        case.special_ids.tolist(),
        round(REPLACE * 2**32),
    )

    def step() -> Chosen:
        slots = case.slots, len(sampled)
        rule = special, case.mask_id, threshold, False, seed
        masked, positions, labels, _ = masking_reference(MaskingArguments(ids, cu_seqlens, *slots, rows, *rule))
        filled = corrupt_reference(CorruptArguments(ids, positions, labels, sampled, False))
        return Chosen(masked, positions, labels, *filled)

    return step


def topk(case: Case) -> tuple[Tensor, ...]:
    noise = torch.rand(case.ids.shape, device=case.ids.device).masked_fill_(~case.candidates, -1)
    chosen = noise.topk(case.used.shape[1], dim=1).indices
    labels = case.ids.gather(1, chosen)
    hidden = case.used & (torch.rand(chosen.shape, device=chosen.device) < REPLACE)
    masked = case.ids.scatter(1, chosen, torch.where(hidden, case.mask_id, labels))
    corrupted = case.ids.scatter(1, chosen, torch.where(case.used, case.sampled, labels))
    return masked, chosen, corrupted, corrupted != case.ids


def multinomial(case: Case) -> tuple[Tensor, ...]:
    chosen = torch.multinomial(case.candidates.float(), case.used.shape[1], replacement=True)
    hidden = case.used & (torch.rand(chosen.shape, device=chosen.device) < REPLACE)

    def update(values: Tensor, used: Tensor) -> Tensor:
        count = torch.zeros_like(case.ids).scatter_add_(1, chosen, used.long())
        total = torch.zeros_like(case.ids).scatter_add_(1, chosen, values * used)
        return torch.where(count > 0, total // count.clamp(min=1), case.ids)

    masked, corrupted = update(torch.full_like(chosen, case.mask_id), hidden), update(case.sampled, case.used)
    return masked, chosen, corrupted, corrupted != case.ids


CONTESTANTS: dict[str, Callable[[Case], Step]] = {
    "ours": ours,
    "topk": lambda case: partial(topk, case),
    "ours-faithful": partial(ours, faithful=True),
    "multinomial": lambda case: partial(multinomial, case),
    "reference": reference,
}


def right(case: Case) -> Callable[[Step], str]:
    """Check that enough tokens are chosen, that 85 % of them are hidden, and that only they get samples and labels."""
    ids, _, _, sampled = packed_inputs(case)
    special = torch.isin(ids, case.special_ids)

    def check(step: Step) -> str:
        found: Any = step()
        found = found if isinstance(found, Chosen) else case.packed(*found)
        at, once = found.positions, found.positions.unique()
        chosen = torch.zeros_like(special).index_fill_(0, at, True)
        hidden, replaced = found.masked_ids != ids, found.corrupted_ids != ids
        if len(at) != len(sampled) or special[at].any() or not torch.equal(found.labels, ids[at]):
            return f"{len(at)} tokens chosen, {len(sampled)} wanted; or special ones, or their labels are others' ids"
        if hidden[~chosen].any() or not (found.masked_ids[hidden] == case.mask_id).all():
            return "a token that was not chosen is hidden, or hidden by another id"
        spread = 5 * (len(at) * REPLACE * (1 - REPLACE)) ** 0.5
        if not REPLACE * len(once) - spread < hidden.sum() < REPLACE * len(at) + spread:  # a token drawn twice, once
            return f"{hidden.sum()} of {len(once)} tokens are hidden"
        if replaced[~chosen].any() or not torch.equal(found.is_replaced, replaced):
            return "a token that was not chosen is replaced, or a label is wrong"
        if len(once) == len(at) and not torch.equal(found.corrupted_ids[at], sampled):
            return "a sample stands in another token's place"
        return ""

    return check


def races(options: Options) -> Iterator[Race]:
    for model in options.models or ("small",):
        for shape in options.shapes or SHAPES:
            case = Case.make(getattr(ElectraConfig, model)(), shape, options)
            yield Race(
                bench="masking",
                model=model,
                shape=f"{shape} ragged" if options.ragged else shape,
                contestants={name: partial(build, case) for name, build in CONTESTANTS.items()},
                check=right(case),
                dtype="int64",
                tokens=case.tokens,
                bytes=case.bytes,
            )


def bench_masking(benchmark: Any) -> None:
    """Measure our own time with pytest-benchmark, to compare from commit to commit."""
    case = Case.make(ElectraConfig.small(), "16x128", Options())
    step = ours(case)
    assert not right(case)(step)
    benchmark(step)
