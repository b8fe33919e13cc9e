"""The streams of random numbers that the parts of a step draw from, so that no two draw the same numbers.

Each stream has a number, and its seed is `derive_seeds` (ops/_philox.py) of the run's seed, the step and that number. A
network takes a stream for each of its ops that drops, counted from the network's own number:

    encoder, 1 + 2 L streams    the embeddings' (model/encoder.py, which derives all of them), then for each layer the
                                attention block's and the FFN block's, which csrc/encoder.cpp and ops/_encoder_layers.py
                                hand to the blocks; interop/encoder.py derives them from 0 on
    decoder, 1 + 3 L streams    the embeddings', then for each layer the attention's, the cross-attention's and the FFN
                                block's (model/decoder.py); a tower of model/towers.py derives as many
    head of a task, 2 streams   the dropouts of tasks/heads.py (tasks/model.py)

Masking takes one stream and the sampling of words another (objectives/base.py, model/writer.py).
"""

from __future__ import annotations

import torch
from torch import Tensor

from electra_fast.data.batch import Batch

MASKING, SAMPLING = 0, 1
# The first stream of each network. RIGHT_TO_LEFT is the second tower of model/towers.py, whose first is the GENERATOR.
GENERATOR, DISCRIMINATOR, HEAD, DECODER, RIGHT_TO_LEFT = 1 << 16, 2 << 16, 3 << 16, 4 << 16, 5 << 16


def scalars(batch: Batch, seed: int | Tensor, step: int | Tensor) -> tuple[Tensor, Tensor]:
    """Turn seed and step into (1,) int64 tensors on the batch's device, unless they are tensors already."""
    device = batch.input_ids.device
    tensors = [
        value if isinstance(value, Tensor) else torch.full((1,), value, dtype=torch.int64, device=device)
        for value in (seed, step)
    ]
    return tensors[0], tensors[1]
