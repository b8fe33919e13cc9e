"""Words planted in a text at random, as a person would plant them to see whether a discriminator finds them.

A trained generator writes words that fit, so that much of what it replaces cannot be told even by a person. Words that
were drawn at random do not fit, and a discriminator that has learnt anything finds them.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from electra_fast.data.batch import Batch
from electra_fast.model.networks import Discriminator
from electra_fast.model.seeds import DISCRIMINATOR, scalars
from electra_fast.objectives.base import Objective
from electra_fast.train.metrics import auc, precision_recall


class Planted(NamedTuple):
    """A text with words planted in it, and what the discriminator makes of it; T tokens."""

    input_ids: Tensor
    """The text, (T,) int64."""

    is_planted: Tensor
    """(T,) bool: True where a word was planted that differs from the original one."""

    logits: Tensor
    """The discriminator's logits, (T,): above 0 where a token looks replaced."""


@torch.no_grad()
def plant(model: Objective, discriminator: Discriminator, batch: Batch, seed: int = 0) -> Planted:
    """Replace the tokens that would be masked by each other, and let the discriminator judge the text.

    So a planted word is as frequent as the words of the text are, and stands anywhere.

    model: chooses the tokens, those that it masks for this seed; in evaluation mode.
    discriminator: its discriminator.
    batch: on the networks' device.
    """
    key, at = scalars(batch, seed, 0)
    slots = model.mask(batch, key, at)
    used = slots.labels != -100
    words = slots.labels[used]
    input_ids = batch.input_ids.clone()
    input_ids[slots.positions[used]] = words.roll(len(words) // 2)
    logits = discriminator.logits(discriminator.encoder(batch, input_ids, key, at, DISCRIMINATOR))
    return Planted(input_ids, input_ids != batch.input_ids, logits)


def find_planted(
    model: Objective, discriminator: Discriminator, batches: Iterable[Batch], seed: int = 0
) -> dict[str, float]:
    """Measure on held-out batches how well the discriminator finds words that `plant` planted.

    Returns auc_planted, precision_planted and recall_planted, of the tokens that may be replaced, as `evaluate` does
    for the generator's replacements.
    """
    scores, labels = [], []
    for batch in batches:
        batch = batch.to(next(model.parameters()).device)
        planted, allowed = plant(model, discriminator, batch, seed), model.replaceable(batch.input_ids)
        scores.append(planted.logits[allowed].cpu())
        labels.append(planted.is_planted[allowed].cpu())
    score, label = torch.cat(scores), torch.cat(labels)
    precision, recall = precision_recall(score, label)
    return {"auc_planted": auc(score, label), "precision_planted": precision, "recall_planted": recall}
