"""The streams of random numbers that the parts of a step draw from, so that no two draw the same numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from electra_fast.data.batch import Batch

# The number of each stream, from which `derive_seeds` derives a seed. A network takes one stream for each of its ops,
# counted from its number here.
MASKING, SAMPLING, GENERATOR, DISCRIMINATOR, DECODER, RIGHT_TO_LEFT = 0, 1, 1 << 16, 2 << 16, 4 << 16, 5 << 16


def scalars(batch: Batch, seed: int | Tensor, step: int | Tensor) -> tuple[Tensor, Tensor]:
    """Turn seed and step into (1,) int64 tensors on the batch's device, unless they are tensors already."""
    device = batch.input_ids.device
    tensors = [
        value if isinstance(value, Tensor) else torch.full((1,), value, dtype=torch.int64, device=device)
        for value in (seed, step)
    ]
    return tensors[0], tensors[1]
