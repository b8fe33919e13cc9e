"""How well a pair does: losses, accuracy of the generator, and how the discriminator tells replaced tokens apart."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


def auc(scores: Tensor, positive: Tensor) -> float:
    """Area under the ROC curve: the chance that a replaced token scores above an original one, ties counting half.

    scores (T,), positive (T,) bool. NaN where one class is missing. Cost: a sort of T.
    """
    positives = int(positive.sum())
    negatives = positive.numel() - positives
    if not positives or not negatives:
        return float("nan")
    _, inverse, counts = torch.unique(scores.double(), return_inverse=True, return_counts=True)
    rank = counts.cumsum(0) - (counts - 1) / 2  # mean rank of equal scores, from 1
    rank_sum = rank[inverse][positive].sum().item()
    return (rank_sum - positives * (positives + 1) / 2) / (positives * negatives)


def precision_recall(scores: Tensor, positive: Tensor) -> tuple[float, float]:
    """Of the tokens scored above 0, the share that was replaced; of those replaced, the share scored above 0."""
    hits = int((positive & (scores > 0)).sum())
    return hits / max(1, int((scores > 0).sum())), hits / max(1, int(positive.sum()))


@dataclass(frozen=True)
class StepMetrics:
    """What one optimiser step measured. Tensors are kept, and read when a property asks: no step waits for a figure."""

    losses: Tensor  # (3,): total, generator's, discriminator's
    norm: Tensor  # (1,)
    scores: Tensor  # (T,)
    is_replaced: Tensor  # (T,) bool
    learning_rate: float
    tokens: int

    @cached_property
    def _losses(self) -> list[float]:
        return self.losses.tolist()

    @property
    def loss(self) -> float:
        return self._losses[0]

    @property
    def generator_loss(self) -> float:
        return self._losses[1]

    @property
    def discriminator_loss(self) -> float:
        return self._losses[2]

    @property
    def grad_norm(self) -> float:
        """Before clipping."""
        return float(self.norm)

    @cached_property
    def auc(self) -> float:
        return auc(self.scores, self.is_replaced)

    def row(self) -> dict[str, float]:
        """All figures, rounded for a log."""
        names = ("loss", "generator_loss", "discriminator_loss", "auc", "grad_norm", "learning_rate")
        return {name: float(f"{getattr(self, name):.6g}") for name in names}
