"""A budget of tokens, sequences and slots that batches are filled up to, so that every step has the same shapes.

Sequences at the end that fill it up hold nothing but [PAD], which is never masked: their slots predict nothing, and
their tokens weigh 0. They are several, none longer than a sequence may be, so that no kernel meets a longer one.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from electra_fast.data.batch import Batch
from electra_fast.ops.masking import count_slots

DEVIATIONS = 4  # of a batch's tokens and slots about their means: 6 batches in 100,000 do not fit
ROWS = 128  # tokens are a multiple of it: a tile of the kernels


@dataclass(frozen=True)
class Budget:
    """The shapes of a step: T = tokens, N = sequences + fillers, M = slots."""

    sequences: int  # of the text
    fillers: int  # that fill up
    tokens: int
    slots: int
    longest: int  # tokens of a sequence, at most
    most: int  # slots of a sequence, at most
    mask_prob: float
    max_predictions: int | None
    pad_id: int

    @classmethod
    def of(
        cls,
        lengths: Tensor,
        sequences: int,
        longest: int,
        mask_prob: float,
        max_predictions: int | None = None,
        pad_id: int = 0,
    ) -> Budget:
        """For batches of so many sequences, each of at most `longest` tokens; lengths (n,) of some, on the host.

        It holds DEVIATIONS more, and less, than a batch has on average.
        """
        counts = count_slots(lengths, mask_prob, max_predictions).diff()
        most = int(count_slots(torch.tensor([longest]), mask_prob, max_predictions)[1])
        (least, high), (fewest, slots) = (_span(values, sequences) for values in (lengths, counts))
        high, slots = min(high, sequences * longest), min(slots, sequences * most)
        least, fewest = max(least, sequences), max(fewest, sequences)
        # each filler has a token at least and `longest` at most, whatever of the budget a batch leaves
        fillers = max(math.ceil((high - least + ROWS) / max(1, longest - 1)), math.ceil((slots - fewest) / most), 1)
        tokens = math.ceil((high + fillers) / ROWS) * ROWS
        return cls(sequences, fillers, tokens, slots, longest, most, mask_prob, max_predictions, pad_id)

    def fill(self, batch: Batch) -> Filled | None:
        """The batch, on the host, filled up; None where it does not fit."""
        if len(batch) != self.sequences or batch.width > self.longest:
            return None
        owned = count_slots(batch.lengths, self.mask_prob, self.max_predictions)
        tokens, slots = self.tokens - batch.num_tokens, self.slots - int(owned[-1])
        fit = self.fillers <= tokens <= self.fillers * self.longest and 0 <= slots <= self.fillers * self.most
        if not fit:
            return None
        lengths = _shares(tokens, self.fillers)
        places = torch.arange(tokens) - torch.repeat_interleave(lengths.cumsum(0) - lengths, lengths)
        nothing = torch.zeros(tokens, dtype=torch.int64)
        return Filled(
            torch.cat([batch.input_ids, nothing + self.pad_id]),
            torch.cat([batch.token_type_ids, nothing]),
            torch.cat([batch.position_ids, places]),
            torch.cat([batch.row_ids, nothing]),
            _extended(batch.cu_seqlens, lengths),
            torch.cat([batch.lengths, lengths]),
            self.longest,
            self,
            _extended(owned, _shares(slots, self.fillers)),
        )


@dataclass(frozen=True)
class Filled(Batch):
    """A batch of its budget's shapes. What the device is told of its text is read there, from offsets alone."""

    budget: Budget
    offsets: Tensor  # (N + 1,) int32: of the slots

    @property
    def num_tokens(self) -> int:
        return int(self.lengths[: self.budget.sequences].sum())

    @property
    def tokens(self) -> Tensor:
        return self.cu_seqlens[self.budget.sequences]

    @property
    def max_seqlen(self) -> int:
        return self.budget.longest

    def counted(self, values: Tensor) -> Tensor:
        there = torch.arange(self.budget.tokens, device=values.device) < self.tokens
        return torch.where(there, values, 0.0)

    def slots(self, mask_prob: float, max_predictions: int | None) -> tuple[Tensor, int, int]:
        return self.offsets, self.budget.slots, self.budget.most

    def split(self, sequences: int) -> list[Batch]:
        """Itself: a budget is that of a step in one piece."""
        return [self]

    def to(self, device: torch.device | str) -> Filled:
        return dataclasses.replace(super().to(device), offsets=self.offsets.to(device, non_blocking=True))


def _span(values: Tensor, n: int) -> tuple[int, int]:
    """What the sum of n of them lies between, but for some in 100,000 sums."""
    mean, spread = values.double().mean().item() * n, values.double().std(correction=0).item() * math.sqrt(n)
    return math.floor(mean - DEVIATIONS * spread), math.ceil(mean + DEVIATIONS * spread)


def _shares(total: int, n: int) -> Tensor:
    """(n,) int64, as even as can be."""
    return total // n + (torch.arange(n) < total % n).long()


def _extended(offsets: Tensor, lengths: Tensor) -> Tensor:
    return torch.cat([offsets, offsets[-1] + lengths.cumsum(0).to(offsets.dtype)])
