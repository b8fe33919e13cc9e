"""The training of one model: its examples in order, a step of the optimiser on each batch, rows of metrics."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from electra_fast.data.tokenizer import Tokenizer
from electra_fast.report.log import Log
from electra_fast.report.terminal import progress_bar, say
from electra_fast.tasks.batch import collate
from electra_fast.tasks.features import Feature, Featurizer
from electra_fast.tasks.model import TaskModel
from electra_fast.tasks.settings import FinetuneConfig
from electra_fast.tasks.windows import closer_windows
from electra_fast.train.optimizer import AdamW, working_copy
from electra_fast.train.schedule import layerwise_scales, learning_rate

EPOCHS = {"rte": 10, "stsb": 10, "squad1": 2, "squad2": 2}  # Google's; 2 for other questions, 3 elsewhere
UNORDERED = ("mrpc", "stsb")  # benchmarks whose pairs mean the same in either order


def train_model(
    model: TaskModel, tokenizer: Tokenizer, examples: Sequence[Any], seed: int, log: Log, log_every: int
) -> None:
    """Trains a model in place, by its own settings.

    Args:
        model: an encoder with a head, on its device.
        tokenizer: the encoder's tokenizer.
        examples: labelled Examples, Sentences or Questions.
        seed: every random number is a function of it.
        log: gets a row of kind "train" after every log_every steps and after the last.
        log_every: number of steps.

    Raises:
        ValueError: max_length is more than the model's positions.
        FloatingPointError: a loss is not finite.
    """
    config, benchmark = model.settings, model.task.benchmark or ""
    features = training_features(model, tokenizer, examples)
    epochs = config.epochs or EPOCHS.get(benchmark, 2 if model.task.kind == "qa" else 3)
    steps = max(1, int(len(features) * epochs / config.batch_size))
    finetuner = Finetuner(model, config, steps, seed)
    tokens, since = 0, time.monotonic()
    with progress_bar(total=steps, unit="step", desc=f"seed {seed}") as bar:
        for names in batches(len(features), config.batch_size, steps, seed):
            batch = [features[i] for i in names]
            loss, norm = finetuner.step(batch, names.tolist())
            tokens += sum(len(feature.ids) for feature in batch)
            bar.update()
            if (done := finetuner.steps_done) % log_every == 0 or done == steps:
                now = time.monotonic()
                speed, tokens, since = tokens / max(1e-9, now - since), 0, now
                log.write("train", done, {"seed": seed, "loss": loss, "grad_norm": norm, "tokens_per_s": speed})
                bar.set_postfix_str(f"loss {loss:.3f}, {speed:,.0f} tokens/s")


def training_features(model: TaskModel, tokenizer: Tokenizer, examples: Sequence[Any]) -> list[Feature]:
    """The sequences that a model is trained on. What is cut or moved is printed."""
    config, task, positions = model.settings, model.task, model.config.max_position_embeddings
    if model.max_length > positions:
        raise ValueError(
            f"max_length is {model.max_length}, and the model reads sequences of at most {positions} tokens; lower "
            "--max-length"
        )
    featurizer = Featurizer(tokenizer, task.kind, task.labels, config, model.max_length)
    swap = task.benchmark in UNORDERED if config.double_unordered is None else config.double_unordered
    features = featurizer(examples, task.scale, swap)
    if featurizer.truncated:
        say(f"{featurizer.truncated:,} training examples are longer than {model.max_length} tokens and are cut")
    if featurizer.closer:
        say(closer_windows(featurizer.closer, "training", config.stride, model.max_length))
    return features


def batches(count: int, size: int, steps: int, seed: int) -> Iterator[np.ndarray]:
    """The examples of each step. Each epoch takes every example once, in a random order of its own.

    A batch may hold the last examples of one epoch and the first of the next.

    Args:
        count: number of examples.
        size: examples in a batch.
        steps: number of batches.
        seed: the orders are a function of (seed, epoch).

    Yields: (size,) int64, indices of examples.
    """
    epoch, left = 0, np.zeros(0, np.int64)
    for _ in range(steps):
        while len(left) < size:
            left = np.concatenate([left, np.random.default_rng((seed % 2**64, epoch)).permutation(count)])
            epoch += 1
        yield left[:size]
        left = left[size:]


class Finetuner:
    """Trains a TaskModel one batch at a time. Every random number is a function of (seed, step, example)."""

    def __init__(self, model: TaskModel, config: FinetuneConfig, steps: int, seed: int) -> None:
        """model: trained in place. steps: optimiser steps of the whole training, which set the learning rate."""
        self.model, self.steps_done = model, 0
        self.settings = config.optimisation(steps, seed)
        self.working = working_copy(model, config.precision)
        parameters = dict(model.named_parameters())
        scales = layerwise_scales(parameters, model.config.num_hidden_layers, config.layerwise_decay, config.faithful)
        copies = () if self.working is model else self.working.named_parameters()
        self.optimizer = AdamW(parameters.items(), self.settings, copies, scales)
        self.seed = torch.full((1,), seed, dtype=torch.int64, device=next(model.parameters()).device)

    def step(self, features: Sequence[Feature], names: Sequence[int]) -> tuple[float, float]:
        """Updates the model once.

        Args:
            features: the batch.
            names: a number for each feature; its random numbers depend on it and not on its place in the batch.

        Returns: (mean loss, norm of the gradients before clipping).

        Raises:
            FloatingPointError: the loss or the norm is not finite. The model is unchanged then.
        """
        config = self.model.settings
        batch = collate(features, names, self.model.task.kind).to(self.seed.device)
        losses = self.working.train().losses(batch, self.seed, torch.full_like(self.seed, self.steps_done))
        loss = losses.sum() if config.faithful else losses.mean()
        loss.backward()
        rate = learning_rate(self.settings, self.steps_done, config.faithful)
        norm = self.optimizer.step(rate, loss.detach().reshape(1).float())
        mean, size = losses.detach().mean().item(), norm.item()
        if not np.isfinite([mean, size]).all():
            raise FloatingPointError(
                f"step {self.steps_done}: the loss is {mean}, the gradients' norm {size}; lower --learning-rate "
                f"({self.settings.learning_rate})"
            )
        self.steps_done += 1
        return mean, size
