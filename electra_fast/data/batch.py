"""A batch of token sequences, packed: no padding inside the engine."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from electra_fast.ops._cu_seqlens import cu_seqlens_of
from electra_fast.ops.masking import count_slots

if TYPE_CHECKING:
    from typing_extensions import Self

PLACES = 2**20  # row id = example id * PLACES + place in the sequence


@dataclass(frozen=True)
class Batch:
    """The T tokens of N sequences, packed: one sequence after the other, without padding.

    `Batch.from_padded` and `Batch.from_examples` make one. A token's row id is the same in every batch. The random
    numbers of masks, samples and dropout are keyed by it, so packing, padding and micro-batches change no bit of them.
    """

    input_ids: Tensor
    """Tokens, (T,) int64."""

    token_type_ids: Tensor
    """Segment of each token, (T,) int64: 0 or 1."""

    position_ids: Tensor
    """Position of each token, (T,) int64: its column in the padded input."""

    row_ids: Tensor
    """Row id of each token, (T,) int64: example id * 2**20 + place among the sequence's tokens."""

    cu_seqlens: Tensor
    """Offsets of the sequences, (N + 1,) int32: sequence n has tokens cu_seqlens[n] to cu_seqlens[n + 1]."""

    lengths: Tensor
    """Tokens of each sequence, (N,) int64, always on the host."""

    width: int
    """Columns of the padded input."""

    @classmethod
    def from_padded(
        cls,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        example_ids: Tensor | None = None,
    ) -> Batch:
        """Pack padded sequences, as transformers takes them.

        input_ids: (B, S), whole numbers.
        attention_mask: (B, S), 1 for a token and 0 for padding, which may be on either side or inside; all tokens are
            real by default.
        token_type_ids: (B, S), 0 or 1; all 0 by default.
        example_ids: (B,) int64, names of the sequences, by which their random numbers are keyed; 0 to B - 1 by default.

        Returns a Batch on the device of input_ids, with int64 ids.

        Raises ValueError if shapes differ or the mask holds other values, TypeError if input_ids are no whole numbers.
        """
        if input_ids.dim() != 2:
            raise ValueError(f"input_ids has shape {tuple(input_ids.shape)}; (sequences, columns) is needed")
        for name, tensor in (("attention_mask", attention_mask), ("token_type_ids", token_type_ids)):
            if tensor is not None and tensor.shape != input_ids.shape:
                raise ValueError(
                    f"{name} has shape {tuple(tensor.shape)}, input_ids {tuple(input_ids.shape)}; give one shape"
                )
        if input_ids.is_floating_point():
            raise TypeError(f"input_ids is {input_ids.dtype}; integers are needed: the tokenizer's ids")
        rows, width = input_ids.shape
        device = input_ids.device
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        if ((mask != 0) & (mask != 1)).any():
            raise ValueError("attention_mask holds values other than 0 and 1; pass the (B, S) mask of the tokenizer")
        keep = mask.bool()
        lengths = keep.sum(1)
        place = keep.cumsum(1) - 1
        names = torch.arange(rows, device=device) if example_ids is None else example_ids.to(device).long()
        types = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        columns = torch.arange(width, device=device).expand(rows, width)
        return cls(
            input_ids[keep].long(),
            types[keep].long(),
            columns[keep],
            (names[:, None] * PLACES + place)[keep],
            cu_seqlens_of(lengths),
            lengths.cpu(),
            width,
        )

    @classmethod
    def from_examples(cls, examples: Sequence[tuple[np.ndarray, int]], example_ids: Sequence[int]) -> Batch:
        """Pack examples of a Corpus, on the CPU.

        examples: for each its ids, and the place where its second segment begins, which is its length if it has none.
        example_ids: names of the examples, by which their random numbers are keyed.

        Returns a Batch.
        """
        lengths = np.array([len(ids) for ids, _ in examples], dtype=np.int64)
        cu_seqlens = np.concatenate([[0], lengths.cumsum()])
        places = np.arange(cu_seqlens[-1]) - np.repeat(cu_seqlens[:-1], lengths)
        second = np.repeat(np.array([start for _, start in examples], dtype=np.int64), lengths)
        names = np.repeat(np.array(example_ids, dtype=np.int64), lengths)
        ids = np.concatenate([np.asarray(ids, dtype=np.int64) for ids, _ in examples] or [np.zeros(0, np.int64)])
        return cls(
            torch.from_numpy(ids),
            torch.from_numpy((places >= second).astype(np.int64)),
            torch.from_numpy(places),
            torch.from_numpy(names * PLACES + places),
            torch.from_numpy(cu_seqlens.astype(np.int32)),
            torch.from_numpy(lengths),
            int(lengths.max(initial=0)),
        )

    def __len__(self) -> int:
        """N, the number of sequences."""
        return self.lengths.numel()

    @property
    def num_tokens(self) -> int:
        """T, the number of packed tokens."""
        return self.input_ids.numel()

    @property
    def tokens(self) -> int | Tensor:
        """The number of tokens that count in a loss; a tensor on the device if the batch is filled up (budget.py)."""
        return self.num_tokens

    def counted(self, values: Tensor) -> Tensor:
        """The values (T,), with 0 for tokens that only fill up a batch (budget.py). Here no token does."""
        return values

    @property
    def max_seqlen(self) -> int:
        """The number of tokens of the longest sequence."""
        return int(self.lengths.max()) if len(self) else 0

    def slots(self, mask_prob: float, max_predictions: int | None) -> tuple[Tensor, int, int]:
        """Count the prediction slots of the sequences, as ops.masking takes them.

        mask_prob: the share of a sequence's tokens that is predicted.
        max_predictions: the most slots of one sequence; None for no limit.

        Returns the offsets (N + 1,) int32 on the batch's device, the number of all slots, and that of the sequence with
        most.
        """
        offsets = count_slots(self.lengths, mask_prob, max_predictions)
        most = int(offsets.diff().max()) if len(self) else 0
        return offsets.to(self.input_ids.device, non_blocking=True), int(offsets[-1]), most

    def pad(self, values: Tensor) -> Tensor:
        """Put packed values into the places of the padded input.

        values: (T, ...), one for each token.

        Returns (B, S, ...), 0 at padding.
        """
        out = values.new_zeros(len(self), self.width, *values.shape[1:])
        row = torch.repeat_interleave(self.lengths.to(values.device), output_size=values.shape[0])
        return out.index_put((row, self.position_ids), values)

    def split(self, sequences: int) -> list[Batch]:
        """Split the batch into micro-batches of at most `sequences` sequences each, in order."""
        bounds = [*range(0, len(self), sequences), len(self)]
        return [self._sequences(a, b) for a, b in pairwise(bounds)]

    def _sequences(self, first: int, last: int) -> Batch:
        """The sequences number `first` to `last` - 1 as a batch."""
        start = int(self.lengths[:first].sum())
        end = start + int(self.lengths[first:last].sum())
        return Batch(
            self.input_ids[start:end],
            self.token_type_ids[start:end],
            self.position_ids[start:end],
            self.row_ids[start:end],
            self.cu_seqlens[first : last + 1] - self.cu_seqlens[first],
            self.lengths[first:last],
            self.width,
        )

    def to(self, device: torch.device | str) -> Self:
        """Move the batch to another device; the lengths stay on the host."""
        names = ("input_ids", "token_type_ids", "position_ids", "row_ids", "cu_seqlens")
        return dataclasses.replace(self, **{name: getattr(self, name).to(device, non_blocking=True) for name in names})
