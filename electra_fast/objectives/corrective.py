"""Corrective language modelling: the discriminator also names the original token, at every position."""

from __future__ import annotations

import torch
from torch import Tensor

from electra_fast.config import ElectraConfig
from electra_fast.data.batch import Batch
from electra_fast.model.flops import word_head_flops
from electra_fast.model.networks import Discriminator, Generator
from electra_fast.objectives.electra import Electra


class Corrective(Electra):
    """ELECTRA whose discriminator has a second head, over the vocabulary, that names each token's original.

        correction_loss = sum over tokens of sigmoid(logit) * -log p(original token) / (used slots + 1e-6)
        loss            = ELECTRA's + correction_weight * correction_loss

    A token that the discriminator takes for original is copied, so its name counts as much as the discriminator
    suspects it; no gradient passes through that factor. The head is `corrector`, a Generator whose encoder is the
    discriminator's, which is saved as a network of its own.

    config, generator, discriminator: as for Electra.

    Source: Meng et al., "COCO-LM", NeurIPS 2021, section 4.1, and its code (the factor). There the masked positions
    alone are named, here all are; its contrast of sequences is left out.
    """

    def __init__(
        self, config: ElectraConfig, generator: Generator | None = None, discriminator: Discriminator | None = None
    ) -> None:
        super().__init__(config, generator, discriminator)
        self.corrector = Generator(config.discriminator, self.discriminator.encoder.embeddings)
        self.corrector.encoder = self.discriminator.encoder

    def further(self, batch: Batch, hidden: Tensor, logits: Tensor, used: Tensor) -> Tensor:
        rows = self.corrector.transform(hidden)
        nats, _ = self.corrector.head(rows, batch.input_ids, temperature=0.0)
        wide = torch.promote_types(nats.dtype, torch.float32)
        named = batch.counted(nats * logits.sigmoid()).sum(dtype=wide)
        return self.config.correction_weight * named / (used.to(wide) + 1e-6)

    def step_flops(self, lengths: list[int], slots: int) -> int:
        names = 3 * word_head_flops(self.discriminator.config, sum(lengths)) if self.learning != "generator" else 0
        return super().step_flops(lengths, slots) + names
