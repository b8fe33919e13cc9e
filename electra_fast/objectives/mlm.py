"""Plain masked language modelling (Devlin et al., NAACL 2019): what ELECTRA is held against."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from electra_fast.config import ElectraConfig
from electra_fast.data.batch import Batch
from electra_fast.model.flops import generator_flops
from electra_fast.model.networks import Generator
from electra_fast.model.seeds import scalars
from electra_fast.objectives.base import ElectraOutput, Objective
from electra_fast.ops.masking import Masked


class MaskedLanguageModel(Objective):
    """One network of the discriminator's size that fills blanks: a Generator, without anyone to check on it.

    Blanks are as ELECTRA's: 15 % of the tokens are predicted (mask_prob), of which 85 % are seen as [MASK] and the
    others as they are (replace_prob). BERT's 80 % / 10 % random / 10 % as they are is not computed.
    """

    leading = "generator"

    def __init__(self, config: ElectraConfig, generator: Generator | None = None) -> None:
        super().__init__(config)
        self.generator = generator or Generator(config.discriminator)

    def forward(
        self,
        batch: Batch,
        seed: int | Tensor = 0,
        step: int | Tensor = 0,
        masked: Masked | None = None,
        denominators: tuple[Tensor, int | Tensor] | None = None,
    ) -> ElectraOutput:
        """Mask and fill: loss = -mean log p(original) over the slots. No token is scored: those fields have T = 0."""
        key, at = scalars(batch, seed, step)
        masked = self.mask(batch, key, at) if masked is None else masked
        used = (masked.labels != -100).sum() if denominators is None else denominators[0]
        loss, sampled, rows = self.fill(batch, masked, key, at, used)
        none = rows.new_zeros(0)
        found = (batch.input_ids[:0], none.bool(), none, masked, sampled, rows.detach())
        return ElectraOutput(loss, loss, loss.new_zeros(()), *found)

    def step_flops(self, lengths: list[int], slots: int) -> int:
        return generator_flops(self.generator.config, lengths, slots)

    def save_pretrained(self, path: str | Path) -> None:
        """To a directory with generator/, which `Generator.from_pretrained` and transformers load."""
        self.generator.save_pretrained(Path(path) / "generator")
