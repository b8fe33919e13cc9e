"""A generator that learns nothing: it draws every replacement from one distribution over the vocabulary."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, nn

from electra_fast.model.networks import word_head

NEVER = -1e4  # logit of a word that is never drawn


class FixedDistribution(nn.Module):
    """A distribution over words that does not depend on the text.

        p(word) = weight[word] / sum of all weights

    weights: (V,), not negative; all 1 for the uniform distribution, counts for that of the text.
    never: ids that are never drawn, such as [CLS].
    """

    bits: Tensor  # (V,) int32: the float32 logits, which a module's conversion to bfloat16 would round

    def __init__(self, weights: Tensor, never: Collection[int]) -> None:
        super().__init__()
        logits = weights.double().log().clamp(min=NEVER)
        logits[list(never)] = NEVER
        self.register_buffer("bits", logits.log_softmax(0).float().view(torch.int32), persistent=False)

    @property
    def logits(self) -> Tensor:
        """log p of each word, (V,) float32."""
        return self.bits.view(torch.float32)

    def rows(self, slots: int) -> Tensor:
        """The rows (slots, 1) that `head` takes, in the place of a network's hidden states."""
        return self.logits.new_zeros(slots, 1)

    def head(self, rows: Tensor, labels: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
        """Compute -log p(label) and draw a word, for each row; labels (M,) int64; options: those of `word_head`."""
        return word_head(rows, self.logits.new_zeros(len(self.logits), 1), self.logits, labels, **options)
