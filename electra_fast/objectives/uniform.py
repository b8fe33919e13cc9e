"""ELECTRA without a generator that learns: replacements are drawn from one distribution over the vocabulary."""

from __future__ import annotations

import torch
from torch import Tensor

from electra_fast.config import ElectraConfig
from electra_fast.data.batch import Batch
from electra_fast.model.fixed_distribution import FixedDistribution
from electra_fast.model.networks import Discriminator
from electra_fast.objectives.base import Filled
from electra_fast.objectives.detection import Detection
from electra_fast.ops.masking import Masked


class Uniform(Detection):
    """A discriminator that tells words drawn by chance from those of the text.

        loss = gen_weight * -log p(original tokens) + disc_weight * discriminator_loss

    The first part is a number from which nothing learns, since the distribution is fixed. Special tokens but
    [UNK] are never drawn.

    config: the sizes of the discriminator and the objective's settings.
    discriminator: a trained network to start from; by default a new one with random weights.

    Source: google-research/electra, run_pretraining.py (uniform_generator, which draws special tokens too).
    """

    generator: FixedDistribution

    def __init__(self, config: ElectraConfig, discriminator: Discriminator | None = None) -> None:
        super().__init__(config)
        self.discriminator = discriminator or Discriminator(config.discriminator)
        self.draw_by(torch.ones(config.vocab_size))

    def draw_by(self, weights: Tensor) -> None:
        """Draw words by these weights (V,) from now on, such as how often each stands in the text."""
        self.generator = FixedDistribution(weights, self.special_ids).to(self.discriminator.out.weight.device)

    def fill(self, batch: Batch, masked: Masked, key: Tensor, at: Tensor, used: Tensor) -> Filled:
        rows = self.generator.rows(len(masked.labels))
        with torch.no_grad():
            losses, sampled = self.draw(rows, masked, key, at)
        return Filled(losses.sum() / (used + 1e-6), sampled, rows)

    def step_flops(self, lengths: list[int], slots: int) -> int:
        return self.detection_flops(lengths)
