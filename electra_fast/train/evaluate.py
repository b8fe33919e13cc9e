"""How well a model does on held-out text."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress

import torch

from electra_fast.data.batch import Batch
from electra_fast.data.corpus import Corpus
from electra_fast.data.ngrams import NGrams
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
def evaluate(
    model: Objective, batches: Iterable[Batch], seed: int = 0, ngrams: NGrams | None = None
) -> dict[str, float]:
    """Measure a model on held-out batches, without dropout and without gradients.

    Masks and samples are a function of the seed and the batches' row ids, so every call measures the same task.

    model: an Electra or another Objective; it is in evaluation mode meanwhile, and in its former mode afterwards.
    batches: the held-out batches; they are moved to the model's device.
    seed: of the masks and samples.
    ngrams: counts of the training text, to measure what they reach on the same tokens.

    Returns, as floats:
        generator_loss: cross-entropy in nats, a mean over all masked positions.
        generator_accuracy: share of the masked positions whose most likely token is the original one.
        most_sampled: share of the most frequent token among the generator's samples.
        trigram_loss, with ngrams: what an interpolated trigram reaches in place of the generator, in nats.
        discriminator_loss: binary cross-entropy in nats, a mean over all tokens.
        auc: of the tokens that may be replaced, area under the ROC curve of replaced against original ones; 0.5 is a
            guess.
        precision, recall: of the same tokens, of those whose logit is above 0 and of those that were replaced.
        replaced: share of the same tokens that were replaced, which is the precision of a guess.
        score_spread: standard deviation of the logits of the same tokens.
        auc_pairs, with ngrams: the AUC of counts of neighbouring pairs on the same corrupted text.
    A masked language model has those of the generator only.

    Raises ValueError if the batches hold no token.
    """
    was_training = model.training
    model.eval()
    slots = correct = tokens = 0
    losses = torch.zeros(2, dtype=torch.float64)
    trigram_loss = 0.0
    scores, labels, suspicions, samples = [], [], [], []
    for batch in batches:
        out = model(batch.to(next(model.parameters()).device), seed)
        originals = out.slots.labels
        _, likeliest = model.generator.head(out.slot_rows, originals, temperature=0.0)
        used = int((originals != -100).sum())
        losses += torch.stack([out.generator_loss * used, out.discriminator_loss * batch.num_tokens]).double().cpu()
        slots, tokens = slots + used, tokens + batch.num_tokens
        correct += int((likeliest == originals).sum())
        samples.append(out.sampled_ids.cpu())
        if ngrams is not None:
            nats = ngrams.losses(batch.input_ids.cpu().numpy(), batch.lengths.numpy())
            trigram_loss += nats[out.masked_positions.cpu().numpy()].sum()
        if len(out.discriminator_logits):
            allowed = model.replaceable(batch.input_ids).cpu()
            scores.append(out.discriminator_logits.cpu()[allowed])
            labels.append(out.is_replaced.cpu()[allowed])
            if ngrams is not None:
                suspicion = ngrams.suspicion(out.corrupted_ids.cpu().numpy(), batch.lengths.numpy())
                suspicions.append(torch.from_numpy(suspicion)[allowed])
    model.train(was_training)
    if not tokens:
        raise ValueError("evaluate: no tokens to evaluate on; give at least one batch that is not empty")
    figures = {"generator_loss": losses[0].item() / max(1, slots), "generator_accuracy": correct / max(1, slots)}
    figures["most_sampled"] = torch.cat(samples).bincount(minlength=1).max().item() / max(1, slots)
    if ngrams is not None:
        figures["trigram_loss"] = trigram_loss / max(1, slots)
    if not scores:
        return figures
    score, label = torch.cat(scores), torch.cat(labels)
    precision, recall = precision_recall(score, label)
    figures |= {
        "discriminator_loss": losses[1].item() / tokens,
        "auc": auc(score, label),
        "precision": precision,
        "recall": recall,
        "replaced": label.double().mean().item(),
        "score_spread": score.double().std(correction=0).item(),
    }
    return figures | ({"auc_pairs": auc(torch.cat(suspicions), label)} if suspicions else {})
