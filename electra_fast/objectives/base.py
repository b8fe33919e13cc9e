"""The part that all objectives share: choose tokens, hide them, and let a generator predict them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from electra_fast import ops
from electra_fast.config import ElectraConfig, Learning
from electra_fast.data.batch import Batch
from electra_fast.model.networks import Discriminator, Network
from electra_fast.model.seeds import GENERATOR, MASKING, SAMPLING, scalars
from electra_fast.ops._philox import derive_seeds
from electra_fast.ops.masking import Masked
from electra_fast.special_ids import SpecialIds


@dataclass(frozen=True)
class ElectraOutput:
    """The losses of a batch, and what the networks computed on the way.

        loss = gen_weight * generator_loss + disc_weight * discriminator_loss

    T is the number of packed tokens, M of prediction slots (Batch.slots). A slot of a sequence with too few tokens to
    choose from is unused: its label is -100 and it adds nothing to a loss. T is 0 in the output of an objective without
    a discriminator.

    Without any used slot, or any token, a loss and its gradients are 0, where torch's mean would be NaN.
    """

    loss: Tensor
    """Weighted sum of both losses, a scalar with gradients, in float32 or float64."""

    generator_loss: Tensor
    """Cross-entropy in nats of the generator, a mean over the used slots; a scalar with gradients."""

    discriminator_loss: Tensor
    """Binary cross-entropy in nats of the discriminator, a mean over the tokens; a scalar with gradients."""

    corrupted_ids: Tensor
    """Input of the discriminator, (T,) int64: the text with the generator's samples in it."""

    is_replaced: Tensor
    """Labels of the discriminator, (T,) bool: True where the token is not the original one. Of Electric: where
    the generator drew it, be it the original one."""

    discriminator_logits: Tensor
    """Logits of the discriminator, (T,), without gradients: above 0 where a token looks replaced."""

    slots: Masked
    """Tokens that were chosen and hidden, in M slots, unused ones among them."""

    slot_samples: Tensor
    """Token that the generator sampled in each slot, (M,) int64."""

    slot_rows: Tensor
    """Rows that enter the generator's word table, (M, E), without gradients."""

    @property
    def masked_positions(self) -> Tensor:
        """Positions of the used slots, int64 indices into the packed tokens."""
        return self.slots.positions[self.slots.labels != -100]

    @property
    def sampled_ids(self) -> Tensor:
        """The generator's samples at masked_positions, int64."""
        return self.slot_samples[self.slots.labels != -100]


class Filled(NamedTuple):
    """What the generator made of M slots."""

    loss: Tensor
    """Its loss in nats, a scalar with gradients."""

    sampled: Tensor
    """The tokens that it drew, (M,) int64."""

    rows: Tensor
    """The rows that enter its word table, (M, E)."""


class Objective(nn.Module):
    """A model that a Pretrainer can train: it is called with a batch, a seed and a step, and returns an ElectraOutput.

    config: the sizes of the networks and the settings of the objective.
    """

    generator: Any
    """What predicts the hidden tokens: a Generator, TwoTowers or a FixedDistribution."""

    discriminator: Discriminator | None
    """The network that tells replaced tokens from original ones, where the objective has one."""

    continues: Tensor | None
    """Which entries of the vocabulary continue a word, (V,) bool, as Tokenizer.continues gives it; needed to mask words
    or spans."""

    leading: ClassVar[str]
    """Name of the network that has the sizes of the config's first fields: generator or discriminator."""

    def __init__(self, config: ElectraConfig) -> None:
        super().__init__()
        self.config = config
        self.learning: Learning = "both"  # which network learns; see Electra
        self.register_buffer("continues", None, persistent=False)

    @property
    def networks(self) -> dict[str, Network]:
        """The networks that `save_pretrained` writes, by the names of their directories."""
        return {name: module for name, module in self.named_children() if isinstance(module, Network)}

    @property
    def special_ids(self) -> list[int]:
        """The ids of the tokens that are never masked: all special ones but [UNK]."""
        return SpecialIds.of(self.config).never_masked

    def replaceable(self, input_ids: Tensor) -> Tensor:
        """Tell which tokens may be masked, and so replaced: all but the special ones.

        Only these tokens count in a discriminator's AUC, precision and recall, since [CLS] and [SEP] are never replaced
        and easy to tell.

        input_ids: (T,) int64.

        Returns (T,) bool.
        """
        allowed = torch.ones_like(input_ids, dtype=torch.bool)
        for token in self.special_ids:  # one by one, since a CUDA graph cannot copy a tensor of them to the GPU
            allowed &= input_ids != token
        return allowed

    def mask(self, batch: Batch, seed: int | Tensor = 0, step: int | Tensor = 0) -> Masked:
        """Choose and hide the tokens that the generator predicts: a pure function of (seed, step, row ids).

        batch: the packed text.
        seed, step: ints, or (1,) int64 tensors on the batch's device.

        Returns the M slots as ops.masking does.

        Raises ValueError if words or spans are to be masked, and `continues` was not set.
        """
        config = self.config
        starts_word = None if config.mask_unit == "token" else ~self._continuing()[batch.input_ids]
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
            unit=config.mask_unit,
            starts_word=starts_word,
        )

    def _continuing(self) -> Tensor:
        """`continues`, if it was set."""
        if self.continues is None:
            raise ValueError(
                f"mask_unit is {self.config.mask_unit}, and the model does not know which tokens continue a word; set "
                f"model.continues = torch.tensor(tokenizer.continues(model.config.vocab_size))"
            )
        return self.continues

    def predictions(self, batch: Batch, masked: Masked) -> Tensor:
        """The number of predictions that the generator's loss is a mean over, (): here the used slots."""
        return (masked.labels != -100).sum()

    def fill(self, batch: Batch, masked: Masked, key: Tensor, at: Tensor, used: Tensor) -> Filled:
        """Let the generator predict the hidden tokens, and sample one for each slot.

        batch, masked: the packed text, and the slots that `mask` chose.
        key, at: (1,) int64, seed and step.
        used: (), the number of predictions that the loss is divided by.
        """
        rows = self.generator.transform(self.generator.encoder(batch, masked.masked_ids, key, at, GENERATOR, masked))
        if self._falling and torch.is_grad_enabled():  # the loss is that of the generator's own distribution
            losses, _ = self.generator.head(rows, masked.labels, temperature=0.0, label_smoothing=self._smoothing)
            with torch.no_grad():
                _, sampled = self.draw(rows, masked, key, at)
        else:
            losses, sampled = self.draw(rows, masked, key, at)
        wide = torch.promote_types(losses.dtype, torch.float32)  # for sums, where the networks run in bfloat16
        return Filled(losses.sum(dtype=wide) / (used.to(wide) + 1e-6), sampled, rows)

    def draw(self, rows: Tensor, masked: Masked, key: Tensor, at: Tensor) -> tuple[Tensor, Tensor]:
        """Sample a token for each slot, at the temperature of the step.

        rows: (M, E), those that enter the word table. masked, key, at: as for `fill`.

        Returns loss (M,), that of the distribution from which is sampled while the temperature falls, and sampled (M,)
        int64.
        """
        config = self.config
        return self.generator.head(
            rows,
            masked.labels,
            sharpness=1 / self.temperature(at) if self._falling else None,
            seed=derive_seeds(key, at, SAMPLING, 1),
            row_ids=masked.sample_rows,
            temperature=1.0 if self._falling else config.temperature,
            disallow_correct=config.disallow_correct,
            label_smoothing=self._smoothing,
        )

    def temperature(self, at: Tensor) -> Tensor:
        """The temperature of a step, (1,) float32; at: (1,) int64. It is on the device, so a CUDA graph can read it.

        x = min(1, step / steps)    linear: T = first + (last - first) x    exponential: T = first (last / first)^x
        """
        config = self.config
        first, last = config.temperature_from or config.temperature, config.temperature
        x = (at.float() / max(1, config.temperature_steps)).clamp(max=1)
        return first + (last - first) * x if config.temperature_fall == "linear" else first * (last / first) ** x

    @property
    def _falling(self) -> bool:
        """Whether the temperature depends on the step; evaluation always takes the last one."""
        return self.training and self.config.temperature_from is not None

    @property
    def _smoothing(self) -> float:
        return self.config.label_smoothing if self.training else 0.0

    def forward(
        self,
        batch: Batch,
        seed: int | Tensor = 0,
        step: int | Tensor = 0,
        masked: Masked | None = None,
        denominators: tuple[Tensor, int | Tensor] | None = None,
    ) -> ElectraOutput:
        """Compute the losses of a batch.

        Every random number (masks, samples, dropout) is a function of seed, step and the tokens' row ids.

        batch: the packed text, on the networks' device.
        seed, step: ints, or (1,) int64 tensors on that device.
        masked: the result of `mask` for these, if it is at hand; computed by default.
        denominators: the numbers of predictions and of tokens that the losses are divided by. A micro-batch gets those
            of its whole batch; by default they are the batch's own.

        Returns an ElectraOutput.

        Raises ValueError if a sequence is longer than max_position_embeddings, and on the CPU IndexError for an id
        outside the vocabulary.

        Cost: `step_flops` floating-point operations, with the backward.
        """
        key, at = scalars(batch, seed, step)
        masked = self.mask(batch, key, at) if masked is None else masked
        if denominators is None:
            denominators = (self.predictions(batch, masked), batch.tokens)
        return self.losses(batch, masked, key, at, denominators)

    def losses(
        self, batch: Batch, masked: Masked, key: Tensor, at: Tensor, denominators: tuple[Tensor, int | Tensor]
    ) -> ElectraOutput:
        """Compute the losses of a batch whose tokens have been hidden; `forward` describes the arguments.

        key, at: (1,) int64, seed and step.
        """
        raise NotImplementedError

    def save_pretrained(self, path: str | Path) -> None:
        """Save each of `networks` to a directory of its name inside `path`, which transformers loads."""
        for name, network in self.networks.items():
            network.save_pretrained(Path(path) / name)

    def step_flops(self, lengths: list[int], slots: int) -> int:
        """Floating-point operations of a training step (see model/flops.py).

        lengths: tokens of each sequence.
        slots: prediction slots of all sequences together.
        """
        raise NotImplementedError
