"""The pre-training step of ELECTRA in plain PyTorch on padded (B, S) tensors: masking, both losses, sampling."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from electra_fast.config import ElectraConfig
from electra_fast.reference.networks import (
    Dropout,
    ReferenceDiscriminator,
    ReferenceGenerator,
    keep_mask,
    torch_dropout,
)
from electra_fast.special_ids import SpecialIds

UNUSED = -100  # the label of a slot that predicts nothing


def _wide(x: Tensor) -> Tensor:
    """x in float32 if it is of a 16-bit type, which is too coarse for sums of losses and for the noise of a sample."""
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


class ReferenceOutput(NamedTuple):
    """The results of one step on B sequences of S columns with M prediction slots."""

    loss: Tensor  # gen_weight * generator_loss + disc_weight * discriminator_loss
    generator_loss: Tensor
    discriminator_loss: Tensor
    sampled_ids: Tensor  # (M,) int64
    corrupted_ids: Tensor  # (B, S) int64: the discriminator's input
    is_replaced: Tensor  # (B, S) bool: its labels; a sample equal to the original id counts as original
    discriminator_logits: Tensor  # (B, S), 0 at padding


class ReferenceElectra(nn.Module):
    """Generator and discriminator, which share their embeddings (words, positions, types and the LayerNorm)."""

    def __init__(self, config: ElectraConfig, dropout: Dropout = torch_dropout) -> None:
        super().__init__()
        self.config = config
        self.generator = ReferenceGenerator(config.generator, dropout)
        self.discriminator = ReferenceDiscriminator(config.discriminator, dropout)
        self.discriminator.electra.embeddings = self.generator.electra.embeddings

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None,
        token_type_ids: Tensor | None,
        masked_ids: Tensor,
        masked_positions: Tensor,
        labels: Tensor,
        sampled_ids: Tensor | None = None,
        temperature: float | None = None,
    ) -> ReferenceOutput:
        """Compute both losses of a batch.

            generator_loss     = sum over used slots of -log p(label) / (used slots + 1e-6)
            discriminator_loss = sum over tokens but padding of BCE(logit, is_replaced) / (tokens + 1e-6)

        input_ids, attention_mask, token_type_ids: (B, S), the text.
        masked_ids: (B, S) int64, the generator's input.
        masked_positions: (M,) int64, for each slot an index into the B * S tokens.
        labels: (M,) int64, the original ids there; -100 in unused slots.
        sampled_ids: (M,) int64, the generator's samples; drawn by default. No gradient passes through them.
        temperature: of the samples; the config's by default, and 0 takes the most likely token.

        If several slots have one position (drawn with replacement), the token there becomes the mean of their samples'
        ids, rounded down, as in Google's code.
        """
        config, keep, used = self.config, keep_mask(input_ids, attention_mask), labels != UNUSED
        _, logits = self.generator(masked_ids, attention_mask, token_type_ids, masked_positions)
        nll = F.cross_entropy(_wide(logits), labels, ignore_index=UNUSED, reduction="sum")
        generator_loss = nll / (used.sum().to(nll.dtype) + 1e-6)

        if sampled_ids is None:
            temperature = config.temperature if temperature is None else temperature
            sampled_ids = self.sample(logits.detach(), labels, temperature)
        flat = input_ids.flatten()
        count = torch.zeros_like(flat).index_add(0, masked_positions, used.long())
        total = torch.zeros_like(flat).index_add(0, masked_positions, sampled_ids * used)
        mean = total.div(count.clamp(min=1), rounding_mode="floor")
        corrupted_ids = torch.where(count > 0, mean, flat).view_as(input_ids)
        is_replaced = corrupted_ids != input_ids

        scores = _wide(self.discriminator(corrupted_ids, attention_mask, token_type_ids))
        bce = F.binary_cross_entropy_with_logits(
            scores, is_replaced.to(scores.dtype), keep.to(scores.dtype), reduction="sum"
        )
        discriminator_loss = bce / (keep.sum().to(bce.dtype) + 1e-6)
        loss = config.gen_weight * generator_loss + config.disc_weight * discriminator_loss
        return ReferenceOutput(
            loss, generator_loss, discriminator_loss, sampled_ids, corrupted_ids, is_replaced, scores
        )

    def sample(self, logits: Tensor, labels: Tensor, temperature: float) -> Tensor:
        """Draw ids (M,) from softmax(logits / temperature) of logits (M, V), by adding Gumbel noise."""
        logits = _wide(logits) / (temperature or 1.0)
        if self.config.disallow_correct:
            logits = logits - 1000.0 * F.one_hot(labels.clamp(min=0), logits.shape[1])
        if temperature == 0:
            return logits.argmax(-1)
        return (logits - torch.empty_like(logits).exponential_().log_()).argmax(-1)


class ReferenceMasked(NamedTuple):
    """The tokens that `mask_tokens` chose and hid, in M slots."""

    masked_ids: Tensor  # (B, S) int64
    masked_positions: Tensor  # (M,) int64, into B * S
    labels: Tensor  # (M,) int64


def mask_tokens(
    input_ids: Tensor, attention_mask: Tensor, config: ElectraConfig, generator: torch.Generator | None = None
) -> ReferenceMasked:
    """Choose and hide tokens without replacement: round-half-even(mask_prob n), at least 1, in a sequence of n tokens.

    [CLS], [SEP], [MASK] and [PAD] are never chosen. A share of replace_prob of the chosen tokens become [MASK]. Every
    sequence has as many slots as a full one would use, so that no shape depends on the data, and nothing waits for the
    device; the slots that are left over have label -100.
    """
    rows, width = input_ids.shape
    candidate = attention_mask.bool()
    for token in SpecialIds.of(config).never_masked:
        candidate = candidate & (input_ids != token)
    wanted = torch.round(attention_mask.sum(1, dtype=torch.float64) * config.mask_prob)
    wanted = wanted.clamp(min=1, max=config.max_predictions)
    slots = max(1, min(round(width * config.mask_prob), config.max_predictions or width))
    noise = torch.rand(rows, width, device=input_ids.device, generator=generator).masked_fill(~candidate, -1)
    best, columns = noise.topk(slots)  # distinct columns, so unused slots collide with no used one
    used = (best >= 0) & (torch.arange(slots, device=input_ids.device) < wanted[:, None])
    originals = input_ids.gather(1, columns)
    hidden = used & (torch.rand(rows, slots, device=input_ids.device, generator=generator) < config.replace_prob)
    masked_ids = input_ids.scatter(1, columns, originals.masked_fill(hidden, config.mask_token_id))
    positions = columns + torch.arange(rows, device=input_ids.device)[:, None] * width
    return ReferenceMasked(masked_ids, positions.flatten(), originals.masked_fill(~used, UNUSED).flatten())
