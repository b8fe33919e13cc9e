"""ELECTRA on one network: the same encoder fills the blanks and tells the replaced tokens."""

from __future__ import annotations

from electra_fast.config import ElectraConfig
from electra_fast.model.flops import generator_flops
from electra_fast.model.networks import Discriminator, Generator
from electra_fast.objectives.detection import Detection


class OneNetwork(Detection):
    """Generator and discriminator are one encoder with two heads, so that it learns from both losses.

        loss = gen_weight * generator_loss + disc_weight * discriminator_loss

    config: the sizes of the discriminator, which are those of the encoder, and the objective's settings.
    discriminator: a trained network to start from; by default a new one with random weights.

    Source: google-research/electra, run_pretraining.py (untied_generator = False).
    """

    generator: Generator

    def __init__(self, config: ElectraConfig, discriminator: Discriminator | None = None) -> None:
        super().__init__(config)
        self.discriminator = discriminator or Discriminator(config.discriminator)
        self.generator = Generator(config.discriminator, self.discriminator.encoder.embeddings)
        self.generator.encoder = self.discriminator.encoder

    def step_flops(self, lengths: list[int], slots: int) -> int:
        return self.detection_flops(lengths) + generator_flops(self.generator.config, lengths, slots)
