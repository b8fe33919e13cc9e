"""Which stream of random numbers each part of a step draws from."""

from __future__ import annotations

import torch
from torch import Tensor

from electra_fast.data.batch import Batch

# Streams of random numbers within a step: what Philox is asked for is (seed, stream, step, row, element).
MASKING, SAMPLING, GENERATOR, DISCRIMINATOR = 0, 1, 1 << 16, 2 << 16


def scalars(batch: Batch, seed: int | Tensor, step: int | Tensor) -> tuple[Tensor, Tensor]:
    """seed and step as (1,) int64 on the batch's device."""
    device = batch.input_ids.device
    key, at = (
        value if isinstance(value, Tensor) else torch.full((1,), value, dtype=torch.int64, device=device)
        for value in (seed, step)
    )
    return key, at
