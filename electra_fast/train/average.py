"""A running mean of the weights, which is evaluated and saved in place of the last ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class WeightAverage:
    """The exponential moving average of a model's parameters over the steps.

        average = d average + (1 - d) p        d = min(decay, (1 + t) / (10 + t)), so that it forgets the first weights

    model: the parameters that are trained. decay: in [0, 1); t counts steps from 1.

    Source: Polyak and Juditsky, 1992; the d of the first steps, TensorFlow's ExponentialMovingAverage.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay = model, decay
        self.tensors = {name: p.detach().clone() for name, p in model.named_parameters()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the parameters after a step; step: how many are done."""
        decay = min(self.decay, (1 + step) / (10 + step))
        for name, p in self.model.named_parameters():
            self.tensors[name].lerp_(p, 1 - decay)

    @contextmanager
    @torch.no_grad()
    def in_place(self) -> Iterator[None]:
        """Within it the model's parameters are the averages; afterwards they are what they were, to the bit."""
        kept = {name: p.detach().clone() for name, p in self.model.named_parameters()}
        self._set(self.tensors)
        try:
            yield
        finally:
            self._set(kept)

    @torch.no_grad()
    def load(self, tensors: dict[str, Tensor]) -> None:
        """Copy the averages of a checkpoint. Raises ValueError if they are another model's."""
        if tensors.keys() != self.tensors.keys():
            differing = sorted(tensors.keys() ^ self.tensors.keys())[:5]
            raise ValueError(f"averages of other parameters: {differing} differ")
        for name, tensor in tensors.items():
            self.tensors[name].copy_(tensor)

    @torch.no_grad()
    def _set(self, tensors: dict[str, Tensor]) -> None:
        for name, p in self.model.named_parameters():
            p.copy_(tensors[name])
