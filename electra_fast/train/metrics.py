"""What a training step measured, and how well the discriminator tells replaced tokens from original ones."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


def auc(scores: Tensor, positive: Tensor) -> float:
    """Area under the ROC curve: the probability that a positive scores above a negative, where ties count half.

    Computed from the sum of the positives' ranks (Mann-Whitney's U); costs a sort.

    scores: (T,), any floating-point dtype.
    positive: (T,) bool.

    Returns a number in [0, 1]; NaN if there is no positive or no negative.
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
    """Precision and recall of calling a token positive if its score, a logit, is above 0.

    scores: (T,), any floating-point dtype.
    positive: (T,) bool.

    Returns (precision, recall); a share of nothing is 0.
    """
    hits = int((positive & (scores > 0)).sum())
    return hits / max(1, int((scores > 0).sum())), hits / max(1, int(positive.sum()))


@dataclass(frozen=True)
class StepMetrics:
    """What one optimiser step measured.

    Tensors stay on the device and are read when a property is asked for, so a step waits for no figure.

    losses: (3,) float32: total, generator's, discriminator's.
    norm: (1,) float32: the gradients' global norm before clipping.
    scores: (T,) logits of the discriminator, or more than T if the batch was filled up to a fixed size; (0,) without
        a discriminator.
    is_replaced: bool, of the shape of `scores`.
    replaceable: gives (T,) bool, the tokens that may be replaced.
    learning_rate: the rate of this step.
    tokens: T, the packed tokens of the batch.
    """

    losses: Tensor
    norm: Tensor
    scores: Tensor
    is_replaced: Tensor
    replaceable: Callable[[], Tensor]
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
        """The global norm of the gradients before clipping."""
        return float(self.norm)

    @cached_property
    def auc(self) -> float:
        """Area under the ROC curve of replaced against original tokens, among those that may be replaced."""
        allowed = self.replaceable()[: self.tokens].to(self.scores.device)
        return auc(self.scores[: self.tokens][allowed], self.is_replaced[: self.tokens][allowed])

    def row(self) -> dict[str, float]:
        """All figures, rounded to six digits for a log."""
        scored = ("discriminator_loss", "auc") if len(self.scores) else ()
        names = ("loss", "generator_loss", *scored, "grad_norm", "learning_rate")
        return {name: float(f"{getattr(self, name):.6g}") for name in names}


class NonFinite:
    """Counts the steps whose loss or gradients' norm is not finite, and remembers the first of them.

    Both are kept on the device, so a step does not wait for them to be read.

    device: where the losses are.
    stop: whether all later steps must leave the parameters as they are, however late the first one is noticed.
    """

    def __init__(self, device: torch.device, stop: bool) -> None:
        self.stop = stop
        self.count = torch.zeros(1, dtype=torch.int64, device=device)
        self.first = torch.zeros(3, dtype=torch.float64, device=device)  # step, loss and norm; -1 if there is none
        self.start()

    def start(self, count: int = 0) -> None:
        """Forget the first one and begin to count at `count`."""
        self.count.fill_(count)
        self.first.fill_(-1)

    def guard(self, losses: Tensor) -> Tensor:
        """The guard of this step's update, (1,): it is not finite if the step must change nothing.

        losses: (3,), the step's.
        """
        return torch.where(self.first[:1] >= 0, torch.nan, losses[:1]) if self.stop else losses[:1]

    def note(self, step: Tensor, losses: Tensor, norm: Tensor) -> None:
        """Count a step if it is not finite. step (1,) int64, losses (3,), norm (1,)."""
        figures = torch.cat([step.double(), losses[:1].double(), norm.double()])
        is_wrong = ~figures.isfinite().all()
        self.first.copy_(torch.where(is_wrong & (self.first[0] < 0), figures, self.first))
        self.count += is_wrong
