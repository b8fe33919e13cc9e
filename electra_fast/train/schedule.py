"""The learning rate of each step, and the factor of each layer in fine-tuning."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

from electra_fast.train.settings import PretrainConfig

STABLE = 0.8  # share of its steps that a stable schedule stays at its highest, unless told otherwise


def learning_rate(config: PretrainConfig, step: int, faithful: bool = False) -> float:
    """The learning rate of step t of T: base fall(t / T) min(1, (t + 1) / warmup).

        linear: fall(x) = (1 - x)^power        cosine: fall(x) = (1 + cos(pi x)) / 2
        stable: fall(x) = min(1, (1 - x) / (1 - d)), with d T the step from which it falls

    Warm-up and decay multiply each other, as in Google's code (model/optimization.py of google-research/electra). The
    steps in which the generator learns alone, and those after them, each rise and fall so; t and T count theirs.

    config: gives base, T, power, d T and warmup as learning_rate, steps, decay_power, decay_from and warmup, and for
        the generator alone base and T as generator_learning_rate and generator_steps; its d is 4/5.
    step: counted from 0.
    faithful: warm up by t / warmup, as Google's code does; its first step has rate 0.
    """
    first, base = config.generator_steps, config.learning_rate
    t, steps = step - first, config.steps - first
    if step < first:
        t, steps, base = step, first, config.generator_learning_rate or base
    warmup = config.warmup(steps)
    ramp = 1.0 if warmup == 0 else min(1.0, (t if faithful else t + 1) / warmup)
    return base * _fall(config, step, t / steps) * ramp


def _fall(config: PretrainConfig, step: int, x: float) -> float:
    """The factor of the learning rate at the share x of its steps."""
    left = max(0.0, 1 - x)
    if config.schedule == "linear":
        return left**config.decay_power
    if config.schedule == "cosine":
        return (1 - math.cos(math.pi * left)) / 2
    if config.schedule == "stable":
        share = 1 - STABLE
        if config.decay_from is not None and step >= config.generator_steps:
            share = (config.steps - config.decay_from) / (config.steps - config.generator_steps)
        return min(1.0, left / share)
    raise NotImplementedError(f"schedule {config.schedule} has no curve; give it one in electra_fast/train/schedule.py")


def layerwise_scales(names: Iterable[str], layers: int, decay: float, faithful: bool = False) -> dict[str, float]:
    """The factor of each parameter's learning rate in fine-tuning: lower layers learn more slowly (paper, appendix B).

        head: 1        layer i = 0 to n - 1: decay^(n - i)        embeddings and their projection: decay^(n + 1)

    names: of the parameters of a model with an `encoder` and a head.
    layers: n.
    decay: in (0, 1]; 1 turns the decay off.
    faithful: one power more for everything but the head, as Google's code has it, whose depths are 0 for the
        embeddings, i + 1 for layer i and n + 2 for the head.

    Returns name -> factor.
    """
    scales = {}
    for name in names:
        layer = re.match(r"encoder\.layers\.(\d+)\.", name)
        depth = int(layer[1]) + 1 if layer else 0
        scales[name] = decay ** (layers + 1 + faithful - depth) if name.startswith("encoder.") else 1.0
    return scales
