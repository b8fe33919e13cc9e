"""The learning rate of each step, and what each layer's is multiplied by."""

from __future__ import annotations

import re
from collections.abc import Iterable

from electra_fast.train.settings import PretrainConfig


def learning_rate(config: PretrainConfig, step: int, faithful: bool = False) -> float:
    """base (1 - t / T)^power min(1, t / warmup) at step t: a product, as Google's code has it.

    Google's first step has rate 0 (faithful); here the warm-up begins with its first step, (t + 1) / warmup.
    """
    ramp = 1.0 if config.warmup == 0 else min(1.0, (step if faithful else step + 1) / config.warmup)
    return config.learning_rate * max(0.0, 1 - step / config.steps) ** config.decay_power * ramp


def layerwise_scales(names: Iterable[str], layers: int, decay: float, faithful: bool = False) -> dict[str, float]:
    """What multiplies the learning rate of each parameter of an encoder of n layers with a head on it.

    decay^(n - i) for layer i = 0 to n - 1, less by one power in each layer above the embeddings and their projection,
    decay^(n + 1); 1 for the head. Google's code has one power more for all but the head (faithful): its depths are 0
    for the embeddings, i + 1 for layer i and n + 2 for the head, its scale decay^(n + 2 - depth).
    """
    found = {}
    for name in names:
        layer = re.match(r"encoder\.layers\.(\d+)\.", name)
        depth = int(layer[1]) + 1 if layer else 0
        found[name] = decay ** (layers + 1 + faithful - depth) if name.startswith("encoder.") else 1.0
    return found
