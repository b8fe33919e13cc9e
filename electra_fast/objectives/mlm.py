"""Masked language modelling (Devlin et al., NAACL 2019), the objective that ELECTRA is compared with."""

from __future__ import annotations

from torch import Tensor

from electra_fast.config import ElectraConfig
from electra_fast.data.batch import Batch
from electra_fast.model.flops import generator_flops
from electra_fast.model.networks import Generator
from electra_fast.objectives.base import ElectraOutput, Objective
from electra_fast.ops.masking import Masked


class MaskedLanguageModel(Objective):
    """Masked language modelling: one network, a Generator of the discriminator's size, predicts hidden tokens.

        loss = sum over used slots of -log p(original token) / (used slots + 1e-6)

    Tokens are hidden as for ELECTRA: a share of mask_prob is predicted, and of these the network sees replace_prob as
    [MASK] and the others unchanged. (BERT makes 80 % [MASK] and 10 % random tokens, and leaves 10 % unchanged.)

    config: the sizes of the network, which are those of the config's discriminator, and the objective's settings.
    generator: a trained network to start from; by default a new one with random weights.

    Source: Devlin et al., "BERT", NAACL 2019, section 3.1.
    """

    generator: Generator
    discriminator = None
    leading = "generator"

    def __init__(self, config: ElectraConfig, generator: Generator | None = None) -> None:
        super().__init__(config)
        self.generator = generator or Generator(config.discriminator)

    def losses(
        self, batch: Batch, masked: Masked, key: Tensor, at: Tensor, denominators: tuple[Tensor, int | Tensor]
    ) -> ElectraOutput:
        """Compute the loss of a batch, which is the output's generator_loss too. T is 0, as in `ElectraOutput`."""
        loss, sampled, rows = self.fill(batch, masked, key, at, denominators[0])
        none = rows.new_zeros(0)
        details = (batch.input_ids[:0], none.bool(), none, masked, sampled, rows.detach())
        return ElectraOutput(loss, loss, loss.new_zeros(()), *details)

    def step_flops(self, lengths: list[int], slots: int) -> int:
        return generator_flops(self.generator.config, lengths, slots)
