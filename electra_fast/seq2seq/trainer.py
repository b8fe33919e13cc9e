"""The training of one model that writes: steps, validations, and checkpoints from which it goes on."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from electra_fast.report.log import Log
from electra_fast.report.terminal import progress_bar, say
from electra_fast.seq2seq.batches import by_length, token_batches
from electra_fast.seq2seq.learner import AT_ONCE, Feature, Learner
from electra_fast.seq2seq.metrics import PRIMARY, text_scores
from electra_fast.seq2seq.pairs import Pair
from electra_fast.seq2seq.settings import SequenceRun
from electra_fast.storage import checkpoint
from electra_fast.train.optimizer import AdamW, working_copy
from electra_fast.train.schedule import learning_rate


class Trainer:
    """Trains a Learner one batch at a time. Every random number is a function of (seed, step, example).

    learner: trained in place, on its device.
    steps: optimiser steps of the whole training, which set the learning rate.
    seed: of dropout.
    """

    def __init__(self, learner: Learner, steps: int, seed: int) -> None:
        config = learner.task.settings
        self.learner, self.steps_done = learner, 0
        self.settings = config.optimisation(steps, seed)
        self.working = working_copy(learner, config.precision)
        copies = () if self.working is learner else self.working.named_parameters()
        self.optimizer = AdamW(learner.named_parameters(), self.settings, copies)
        self.seed = torch.full((1,), seed, dtype=torch.int64, device=learner.device)

    def step(self, features: Sequence[Feature], names: Sequence[int]) -> tuple[float, float]:
        """Update the model once.

        features: the batch. names: a number for each, by which its random numbers are keyed.

        Returns (mean loss, norm of the gradients before clipping). Raises FloatingPointError if one of them is not
        finite; the model is unchanged then.
        """
        smoothing = self.learner.task.settings.label_smoothing
        at = torch.full_like(self.seed, self.steps_done)
        losses = self.working.train().losses(features, names, self.seed, at, smoothing)
        loss = losses.float().mean()
        loss.backward()
        norm = self.optimizer.step(learning_rate(self.settings, self.steps_done), loss.detach().reshape(1))
        figures = loss.item(), norm.item()
        if not all(map(math.isfinite, figures)):
            raise FloatingPointError(
                f"step {self.steps_done}: the loss is {figures[0]}, the gradients' norm {figures[1]}; lower "
                f"--learning-rate ({self.settings.learning_rate})"
            )
        self.steps_done += 1
        return figures

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """What a checkpoint holds."""
        return {"model": dict(self.learner.state_dict()), "optimizer": self.optimizer.state_dict()}

    def load(self, step: int, tensors: dict[str, dict[str, Tensor]]) -> None:
        """Go on from a checkpoint."""
        self.learner.load_state_dict(tensors["model"])
        self.optimizer.load_state_dict(tensors["optimizer"])
        self.steps_done = step


def train_learner(
    learner: Learner, train: Sequence[Pair], dev: Sequence[Pair], seed: int, run: SequenceRun, folder: Path, log: Log
) -> None:
    """Train a model; at the end it has the weights of its best validation.

    A validation writes the first run.dev_examples of dev and scores them; the best is that of the highest score. Each
    saves a checkpoint, from which the training goes on if there is one in `folder`.

    train, dev: examples with references. folder: for checkpoints. log: gets rows of kind "train" and "validation".

    Raises FloatingPointError if a loss is not finite, ValueError if a checkpoint is damaged.
    """
    config = learner.task.settings
    features, notes = learner.features(train, training=True)
    for note in notes:
        say(f"training: {note}")
    sizes = [feature.size for feature in features]
    per_epoch = len(token_batches(sizes, config.batch_tokens, seed, 0))
    steps = max(1, round(per_epoch * config.epochs))
    every = run.eval_every or per_epoch
    trainer = Trainer(learner, steps, seed)
    best, best_weights = -math.inf, {name: t.clone() for name, t in learner.state_dict().items()}
    if (saved := checkpoint.latest(folder)) is not None:
        step, tensors, state = checkpoint.load(saved)
        trainer.load(step, tensors)
        best, best_weights = float(state["best"]), {name: t.clone() for name, t in tensors["best"].items()}
        say(f"seed {seed} goes on from step {step}")
    validation = dev[: run.dev_examples]
    tokens, since = 0, time.monotonic()
    with progress_bar(total=steps, initial=trainer.steps_done, unit="step", desc=f"seed {seed}") as bar:
        for names in _batches(sizes, config.batch_tokens, seed, trainer.steps_done, steps):
            batch = [features[i] for i in names]
            loss, norm = trainer.step(batch, names)
            tokens += sum(feature.size for feature in batch)
            bar.update()
            done = trainer.steps_done
            if done % run.log_every == 0 or done == steps:
                now = time.monotonic()
                speed, tokens, since = tokens / max(1e-9, now - since), 0, now
                log.write("train", done, {"seed": seed, "loss": loss, "grad_norm": norm, "tokens_per_s": speed})
                bar.set_postfix_str(f"loss {loss:.3f}, best {best:.4g}, {speed:,.0f} tokens/s")
            if done % every == 0 or done == steps:
                figures = validate(learner, validation)
                log.write("validation", done, {"seed": seed, **figures})
                score = figures[PRIMARY[learner.task.task]]
                if score > best:
                    best, best_weights = score, {name: t.clone() for name, t in learner.state_dict().items()}
                if done < steps:
                    state = {"best": best}
                    checkpoint.save(folder, done, trainer.tensors() | {"best": best_weights}, state, keep=1)
                since = time.monotonic()  # validations do not count in the speed of training
    learner.load_state_dict(best_weights)
    learner.eval()


@torch.no_grad()
def validate(learner: Learner, pairs: Sequence[Pair]) -> dict[str, float]:
    """The loss and the scores of a model on examples with references, written greedily if it writes words."""
    learner.eval()
    written = learner.write(pairs, dataclasses.replace(learner.task.writing, num_beams=1, do_sample=False))
    return {"loss": dev_loss(learner, pairs), **text_scores(learner.task.task, written, [p.references for p in pairs])}


@torch.no_grad()
def dev_loss(learner: Learner, pairs: Sequence[Pair]) -> float:
    """The mean loss in nats of each token, or sentence, that is learned, without label smoothing and dropout."""
    learner.eval()
    features, _ = learner.features(pairs, training=False)
    zero = torch.zeros(1, dtype=torch.int64, device=learner.device)
    total, count = 0.0, 0
    for indices in by_length([feature.size for feature in features], AT_ONCE):
        losses = learner.losses([features[i] for i in indices], indices, zero, zero, 0.0)
        total, count = total + float(losses.double().sum()), count + losses.numel()
    return total / max(1, count)


def _batches(sizes: Sequence[int], most: int, seed: int, first: int, steps: int) -> Iterator[list[int]]:
    """The batches of the steps `first` to `steps` - 1."""
    done, epoch = 0, 0
    while done < steps:
        for batch in token_batches(sizes, most, seed, epoch):
            if first <= done < steps:
                yield batch
            done += 1
        epoch += 1
