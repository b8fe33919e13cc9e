"""What every objective here begins with: choose tokens, blank them, let a generator fill the blanks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from electra_fast import ops
from electra_fast.config import ElectraConfig
from electra_fast.data.batch import Batch
from electra_fast.model.networks import Generator
from electra_fast.model.seeds import GENERATOR, MASKING, SAMPLING, scalars
from electra_fast.ops._philox import derive_seeds
from electra_fast.ops.masking import Masked
from electra_fast.special_ids import SpecialIds


@dataclass(frozen=True)
class ElectraOutput:
    """Losses are means over the prediction slots and over the tokens; M slots, T packed tokens.

    Without any slot in use, or any token, they are 0 and so are their gradients, where torch's own mean is NaN. T is 0
    where no discriminator looks at the tokens.
    """

    loss: Tensor  # gen_weight * generator_loss + disc_weight * discriminator_loss
    generator_loss: Tensor
    discriminator_loss: Tensor
    corrupted_ids: Tensor  # (T,): the discriminator's input
    is_replaced: Tensor  # (T,) bool
    discriminator_logits: Tensor  # (T,)
    slots: Masked  # with the slots that only fill
    slot_samples: Tensor  # (M,)
    slot_rows: Tensor  # (M, E): the generator's head before the word table

    @property
    def masked_positions(self) -> Tensor:
        """(M,) index into the packed tokens, of the slots in use."""
        return self.slots.positions[self.slots.labels != -100]

    @property
    def sampled_ids(self) -> Tensor:
        """(M,) the generator's samples at masked_positions."""
        return self.slot_samples[self.slots.labels != -100]


class Objective(nn.Module):
    """A model that a Pretrainer can train: called with a batch and its keys, it gives an ElectraOutput."""

    generator: Generator
    leading: ClassVar[str]  # the network that the config's first fields describe

    def __init__(self, config: ElectraConfig) -> None:
        super().__init__()
        self.config = config

    @property
    def special_ids(self) -> list[int]:
        """The ids of the tokens that are never masked: all special ones but [UNK]."""
        return SpecialIds.of(self.config).never_masked

    def replaceable(self, input_ids: Tensor) -> Tensor:
        """Which tokens may be masked and so replaced: all but the special ones.

        input_ids (T,) int64 -> (T,) bool. Figures of a discriminator are of these tokens alone, as [CLS] and [SEP] are
        never replaced and easy to tell.
        """
        allowed = torch.ones_like(input_ids, dtype=torch.bool)
        for token in self.special_ids:  # no tensor of them, which a CUDA graph could not copy
            allowed &= input_ids != token
        return allowed

    def mask(self, batch: Batch, seed: int | Tensor = 0, step: int | Tensor = 0) -> Masked:
        """Choose what the generator predicts: a pure function of (seed, step, row ids)."""
        config = self.config
        key, at = scalars(batch, seed, step)
        slots, num_slots, max_slots = batch.slots(config.mask_prob, config.max_predictions)
        return ops.masking(
            batch.input_ids,
            batch.cu_seqlens,
            slots,
            num_slots,
            max_slots,
            batch.row_ids,
            special_ids=self.special_ids,
            mask_id=config.mask_token_id,
            replace_prob=config.replace_prob,
            faithful=config.faithful,
            seed=derive_seeds(key, at, MASKING, 1),
        )

    def fill(
        self, batch: Batch, masked: Masked, key: Tensor, at: Tensor, used: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The generator fills the blanks -> loss (a mean over `used` slots), samples (M,), its head's rows (M, E)."""
        config = self.config
        rows = self.generator.transform(self.generator.encoder(batch, masked.masked_ids, key, at, GENERATOR, masked))
        losses, sampled = self.generator.head(
            rows,
            masked.labels,
            seed=derive_seeds(key, at, SAMPLING, 1),
            row_ids=masked.sample_rows,
            temperature=config.temperature,
            disallow_correct=config.disallow_correct,
        )
        wide = torch.promote_types(losses.dtype, torch.float32)  # for sums, where the networks run in bfloat16
        return losses.sum(dtype=wide) / (used.to(wide) + 1e-6), sampled, rows

    def forward(
        self,
        batch: Batch,
        seed: int | Tensor = 0,
        step: int | Tensor = 0,
        masked: Masked | None = None,
        denominators: tuple[Tensor, int | Tensor] | None = None,
    ) -> ElectraOutput:
        """One pass, every random number keyed by (seed, step).

        masked: what `mask` gave for these keys, where it is at hand. denominators (slots in use, tokens) are those of
        the whole batch where this is one of its micro-batches.
        """
        raise NotImplementedError

    def save_pretrained(self, path: str | Path) -> None:
        """Each network to a directory of its name, which transformers loads."""
        raise NotImplementedError

    def step_flops(self, lengths: list[int], slots: int) -> int:
        """Flops of a training step on sequences of these lengths with so many prediction slots."""
        raise NotImplementedError
