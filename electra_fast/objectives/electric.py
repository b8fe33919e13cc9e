"""Electric: two towers predict every token, and the discriminator learns by noise-contrastive estimation."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from electra_fast import ops
from electra_fast.config import ElectraConfig
from electra_fast.data.batch import Batch
from electra_fast.model.flops import encoder_flops, word_head_flops
from electra_fast.model.networks import Discriminator
from electra_fast.model.residual_embeddings import ResidualEmbeddings
from electra_fast.model.seeds import DISCRIMINATOR
from electra_fast.model.towers import TwoTowers
from electra_fast.objectives.base import ElectraOutput
from electra_fast.objectives.detection import Detection, is_drawn
from electra_fast.ops.masking import Masked


class Electric(Detection):
    """Electric: the discriminator's logit becomes an energy, -log p(token | the others) up to a constant.

        q(x_t | others)    by the two towers, from the original text
        z_t                = logit_t + log q(x_t | others) + log(mask_prob / (1 - mask_prob))
        generator_loss     = sum over tokens that may be masked of -log q(original token) / (their number + 1e-6)
        discriminator_loss = sum over tokens of BCE(z_t, is_drawn) / (tokens + 1e-6)
        loss               = gen_weight * generator_loss + disc_weight * discriminator_loss

    Here x_t is the token that the discriminator sees, and no gradient passes through log q. A token that the generator
    drew counts as drawn, be it the original one. The output's discriminator_logits are z.

    config: the sizes of both networks, and the objective's settings; a tower has the sizes of its generator.
    discriminator: a trained network to start from; by default a new one with random weights. The towers share its
        embeddings unless the config says otherwise.

    Source: Clark et al., "Electric", EMNLP 2020, section 2; google-research/electra, run_pretraining.py
    (electric_objective, two_tower_generator).
    """

    generator: TwoTowers

    def __init__(self, config: ElectraConfig, discriminator: Discriminator | None = None) -> None:
        super().__init__(config)
        self.discriminator = discriminator or Discriminator(config.discriminator)
        shared = self.discriminator.encoder.embeddings if config.share_embeddings else None
        self.generator = TwoTowers(config.generator, shared)
        if shared is not None and config.disentangled:
            self.discriminator.encoder.embeddings = ResidualEmbeddings(config.discriminator, shared)

    def predictions(self, batch: Batch, masked: Masked) -> Tensor:
        return batch.counted(self.replaceable(batch.input_ids).float()).sum()

    def losses(
        self, batch: Batch, masked: Masked, key: Tensor, at: Tensor, denominators: tuple[Tensor, int | Tensor]
    ) -> ElectraOutput:
        config, (predictions, tokens) = self.config, denominators
        every = self.generator(batch, key, at)
        nats, _ = self.generator.head(every, batch.input_ids, temperature=0.0)
        wide = torch.promote_types(nats.dtype, torch.float32)
        predicted = batch.counted(nats * self.replaceable(batch.input_ids))
        generator_loss = predicted.sum(dtype=wide) / (predictions.to(wide) + 1e-6)

        with torch.no_grad():
            rows = every[masked.positions]
            _, sampled = self.draw(rows, masked, key, at)
            used, drawn = masked.labels != -100, is_drawn(batch, masked)
            nats_of_sampled, _ = self.generator.head(rows, torch.where(used, sampled, -100), temperature=0.0)
            log_q = torch.where(drawn, 0.0, -nats.detach()).index_add(0, masked.positions, -nats_of_sampled)
        corrupted, _ = ops.corrupt(batch.input_ids, masked.positions, masked.labels, sampled)
        hidden = self.discriminator.encoder(batch, corrupted, key, at, DISCRIMINATOR)
        energy = self.discriminator.logits(hidden).to(wide)
        z = energy + log_q.to(wide) + math.log(config.mask_prob / (1 - config.mask_prob))
        cost = F.binary_cross_entropy_with_logits(z, drawn.to(wide), reduction="none")
        discriminator_loss = batch.counted(cost).sum() / (tokens + 1e-6)
        loss = config.gen_weight * generator_loss + config.disc_weight * discriminator_loss
        details = (corrupted, drawn, z.detach(), masked, sampled, rows)
        return ElectraOutput(loss, generator_loss, discriminator_loss, *details)

    def step_flops(self, lengths: list[int], slots: int) -> int:
        tower = self.generator.config
        both = 2 * encoder_flops(tower, lengths) + 2 * sum(lengths) * tower.hidden_size * tower.embedding_size
        return self.detection_flops(lengths) + 3 * (both + word_head_flops(tower, sum(lengths)))
