"""Replaced token detection: a discriminator tells the tokens that something else put into a text from its own."""

from __future__ import annotations

import torch
from torch import Tensor

from electra_fast import ops
from electra_fast.data.batch import Batch
from electra_fast.model.flops import scoring_flops
from electra_fast.model.networks import Discriminator
from electra_fast.model.seeds import DISCRIMINATOR
from electra_fast.objectives.base import ElectraOutput, Filled, Objective
from electra_fast.ops.masking import Masked


class Detection(Objective):
    """An objective with a discriminator; what draws the replacements, a subclass says.

    discriminator_loss = sum over tokens of BCE(logit, is_replaced) / (tokens + 1e-6)
    loss               = gen_weight * generator_loss + disc_weight * discriminator_loss + further
    """

    discriminator: Discriminator
    leading = "discriminator"

    def losses(
        self, batch: Batch, masked: Masked, key: Tensor, at: Tensor, denominators: tuple[Tensor, int | Tensor]
    ) -> ElectraOutput:
        filled = self.fill(batch, masked, key, at, denominators[0])
        return self.detect(batch, masked, filled, key, at, denominators)

    def detect(
        self,
        batch: Batch,
        masked: Masked,
        filled: Filled,
        key: Tensor,
        at: Tensor,
        denominators: tuple[Tensor, int | Tensor],
    ) -> ElectraOutput:
        """Put the samples into the text, and let the discriminator judge it.

        filled: what the generator made of the slots. The other arguments are those of `losses`.
        """
        config, (used, tokens) = self.config, denominators
        slots = (masked.positions, masked.labels, filled.sampled)
        corrupted, is_replaced = ops.corrupt(batch.input_ids, *slots, faithful=config.faithful)
        hidden = self.discriminator.encoder(batch, corrupted, key, at, DISCRIMINATOR)
        losses, logits = self.discriminator.score(hidden, is_replaced)
        wide = torch.promote_types(losses.dtype, torch.float32)
        discriminator_loss = batch.counted(losses).sum(dtype=wide) / (tokens + 1e-6)
        loss = config.gen_weight * filled.loss + config.disc_weight * discriminator_loss
        further = self.further(batch, hidden, logits.detach(), used)
        details = (corrupted, is_replaced, logits.detach(), masked, filled.sampled, filled.rows.detach())
        return ElectraOutput(loss if further is None else loss + further, filled.loss, discriminator_loss, *details)

    def further(self, batch: Batch, hidden: Tensor, logits: Tensor, used: Tensor) -> Tensor | None:
        """A further part of the loss, by the discriminator's hidden states (T, D) and logits (T,); None for none."""
        return None

    def detection_flops(self, lengths: list[int]) -> int:
        """The discriminator's part of `step_flops`."""
        return scoring_flops(self.discriminator.config, lengths)

    @staticmethod
    def nothing_detected(filled: Filled, batch: Batch, masked: Masked, weight: float) -> ElectraOutput:
        """The output of a step in which the generator learns alone; weight: of its loss."""
        none = filled.rows.new_zeros(0)
        details = (batch.input_ids[:0], none.bool(), none, masked, filled.sampled, filled.rows.detach())
        return ElectraOutput(weight * filled.loss, filled.loss, none.sum(), *details)


def is_drawn(batch: Batch, masked: Masked) -> Tensor:
    """Which tokens stand in a used slot, (T,) bool, with no shape that depends on the data."""
    used = (masked.labels != -100).long()
    return torch.zeros_like(batch.input_ids).index_add(0, masked.positions, used) > 0
