"""Features as packed batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from electra_fast.data.batch import Batch
from electra_fast.tasks.features import Feature

TOKENS = 4096  # in a batch without gradients


@dataclass(frozen=True)
class TaskBatch:
    """A packed batch of T tokens in N sequences, and what the head is to say of it.

    Attributes:
        positions: (W,) int64, the packed tokens whose hidden rows are classified: [CLS] of each sequence, or the first
            piece of each word (tagging). Empty for qa.
        labels: the truth. classification, tagging: (W,) int64, classes; multilabel: (W, C) float, 0 or 1; regression:
            (W,) float; qa: (N, 2) int64, the first and last packed token of the answer, [CLS] for none. Empty if it is
            to be predicted, except for qa.
        context: (T,) bool, whether an answer may lie on a token. qa only.
        impossible: (N,) bool, whether a sequence has no answer. qa only.
    """

    batch: Batch
    positions: Tensor
    labels: Tensor
    context: Tensor
    impossible: Tensor

    def to(self, device: torch.device) -> TaskBatch:
        tensors = (self.positions, self.labels, self.context, self.impossible)
        return TaskBatch(self.batch.to(device), *(t.to(device) for t in tensors))


def collate(features: Sequence[Feature], names: Sequence[int], kind: str) -> TaskBatch:
    """Packs features into one batch on the CPU.

    Args:
        features: N sequences, all with labels or all without.
        names: N numbers; the random numbers of a sequence in training depend on its number.
        kind: the kind of task.
    """
    batch = Batch.from_examples([(np.array(f.ids), f.second) for f in features], names)
    starts = batch.cu_seqlens[:-1].tolist()
    positions = [start + place for start, f in zip(starts, features, strict=True) for place in f.positions]
    context = torch.zeros(batch.num_tokens, dtype=torch.bool)
    if kind == "qa":
        for start, f in zip(starts, features, strict=True):
            context[start + f.context[0] : start + f.context[1]] = True
        spans = [[start + int(place) for place in f.labels] for start, f in zip(starts, features, strict=True)]
        labels = torch.tensor(spans)
    elif kind == "multilabel":
        labels = torch.tensor([f.labels for f in features], dtype=torch.float32)
    else:
        flat = [label for f in features for label in f.labels]
        labels = torch.tensor(flat, dtype=torch.float32 if kind == "regression" else torch.int64)
    impossible = torch.tensor([f.impossible for f in features])
    return TaskBatch(batch, torch.tensor(positions, dtype=torch.int64), labels, context, impossible)


def bucketed(features: Sequence[Feature]) -> Iterator[list[int]]:
    """Batches for inference: indices of features of like length, at most TOKENS tokens together or one feature."""
    order = sorted(range(len(features)), key=lambda i: len(features[i].ids))
    batch: list[int] = []
    tokens = 0
    for i in order:
        if batch and tokens + len(features[i].ids) > TOKENS:
            yield batch
            batch, tokens = [], 0
        batch.append(i)
        tokens += len(features[i].ids)
    if batch:
        yield batch
