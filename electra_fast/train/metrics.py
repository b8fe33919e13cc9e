"""How well a pair does: losses, accuracy of the generator, and how the discriminator tells replaced tokens apart."""

from __future__ import annotations

from collections.abc import Callable
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
    scores: Tensor  # (T,), or more where the batch was filled up; (0,) without a discriminator
    is_replaced: Tensor  # bool, as many
    replaceable: Callable[[], Tensor]  # gives (T,) bool: the tokens that may be replaced
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
        """Of the tokens that may be replaced."""
        allowed = self.replaceable()[: self.tokens].to(self.scores.device)
        return auc(self.scores[: self.tokens][allowed], self.is_replaced[: self.tokens][allowed])

    def row(self) -> dict[str, float]:
        """All figures, rounded for a log."""
        scored = ("discriminator_loss", "auc") if len(self.scores) else ()
        names = ("loss", "generator_loss", *scored, "grad_norm", "learning_rate")
        return {name: float(f"{getattr(self, name):.6g}") for name in names}


class NonFinite:
    """Of the steps whose loss or gradients' norm is not finite, how many and the first; kept on the device, where
    nobody waits for it.

    With `stop` nothing is updated after the first: the parameters stay as they were before it, however late it is read.
    """

    def __init__(self, device: torch.device, stop: bool) -> None:
        self.stop = stop
        self.count = torch.zeros(1, dtype=torch.int64, device=device)
        self.first = torch.zeros(3, dtype=torch.float64, device=device)  # its step, loss and norm; -1 where none
        self.start()

    def start(self, count: int = 0) -> None:
        """Afresh, with so many counted."""
        self.count.fill_(count)
        self.first.fill_(-1)

    def guard(self, losses: Tensor) -> Tensor:
        """(1,): not finite where this step is to change nothing."""
        return torch.where(self.first[:1] >= 0, torch.nan, losses[:1]) if self.stop else losses[:1]

    def note(self, step: Tensor, losses: Tensor, norm: Tensor) -> None:
        """step (1,) int64, losses (3,), norm (1,)."""
        found = torch.cat([step.double(), losses[:1].double(), norm.double()])
        wrong = ~found.isfinite().all()
        self.first.copy_(torch.where(wrong & (self.first[0] < 0), found, self.first))
        self.count += wrong
