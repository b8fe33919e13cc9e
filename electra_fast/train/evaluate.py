"""Figures of a model on held-out batches."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

import torch

from electra_fast.data.batch import Batch
from electra_fast.data.corpus import Corpus
from electra_fast.objectives.base import Objective
from electra_fast.train.metrics import auc, precision_recall

EVALUATED = 16_384  # tokens, at most, of an evaluation during a run


def heldout_batches(corpus: Corpus) -> list[Batch]:
    """The batches that a run on this corpus is evaluated on, of at most EVALUATED tokens in all.

    They come from the corpus's held-out split, or from its training examples if the text was too small to have one.
    """
    with suppress(ValueError):
        corpus = Corpus(corpus.path, "heldout")
    names = range(min(max(1, EVALUATED // corpus.max_length), len(corpus)))
    parts = [names[i : i + 32] for i in range(0, len(names), 32)]
    return [Batch.from_examples([corpus[i] for i in part], part) for part in parts]


@torch.no_grad()
def evaluate(model: Objective, batches: Iterable[Batch], seed: int = 0) -> dict[str, float]:
    """Held-out figures, without dropout, masks and samples keyed by (seed, example): the same at every call.

    generator_loss, generator_accuracy (its most likely token), discriminator_loss, auc, precision, recall, and
    replaced (share of the tokens, the rate a guess would have to beat); of a masked language model the first two.
    Losses are means over all slots and tokens.
    """
    was_training = model.training
    model.eval()
    slots = right = tokens = 0
    losses = torch.zeros(2, dtype=torch.float64)
    scores, labels = [], []
    for batch in batches:
        out = model(batch.to(next(model.parameters()).device), seed)
        wanted = out.slots.labels
        _, likely = model.generator.head(out.slot_rows, wanted, temperature=0.0)
        used = int((wanted != -100).sum())
        losses += torch.stack([out.generator_loss * used, out.discriminator_loss * batch.num_tokens]).double().cpu()
        slots, tokens, right = slots + used, tokens + batch.num_tokens, right + int((likely == wanted).sum())
        scores.append(out.discriminator_logits.cpu())
        labels.append(out.is_replaced.cpu())
    model.train(was_training)
    if not tokens:
        raise ValueError("evaluate: no tokens to evaluate on; give at least one batch that is not empty")
    filled = {"generator_loss": losses[0].item() / max(1, slots), "generator_accuracy": right / max(1, slots)}
    score, label = torch.cat(scores), torch.cat(labels)
    if not len(score):
        return filled
    precision, recall = precision_recall(score, label)
    return filled | {
        "discriminator_loss": losses[1].item() / tokens,
        "auc": auc(score, label),
        "precision": precision,
        "recall": recall,
        "replaced": label.double().mean().item(),
    }
