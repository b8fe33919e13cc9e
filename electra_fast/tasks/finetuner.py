"""One model in training: the order of its examples, and a step of the optimiser on a batch of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch

from electra_fast.tasks.features import Feature, collate
from electra_fast.tasks.model import TaskModel
from electra_fast.tasks.settings import FinetuneConfig
from electra_fast.train.optimizer import AdamW, working_copy
from electra_fast.train.schedule import layerwise_scales, learning_rate


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
