"""The keys and values of the tokens that are written so far, so that each step computes one token a target alone."""

from __future__ import annotations

import torch
from torch import Tensor

from electra_fast import ops


class Cache:
    """Keys and values of R targets of equal length, for each layer (R, t, 2, H, head dim).

    layers: their number.
    """

    def __init__(self, layers: int) -> None:
        self.parts: list[Tensor | None] = [None] * layers

    def select(self, parents: Tensor) -> None:
        """Let row r continue what was row parents[r]; rows that are nobody's parent are dropped."""
        self.parts = [None if part is None else part[parents] for part in self.parts]

    def attend(self, layer: int, qkv: Tensor) -> Tensor:
        """Add a token to each target and let it attend to all so far.

        layer: its number. qkv: (R, 3, H, head dim), queries, keys and values of the new tokens.

        Returns (R, H, head dim).
        """
        part, new = self.parts[layer], qkv[:, None, 1:]
        part = new if part is None else torch.cat([part, new], 1)
        self.parts[layer] = part
        rows, length = part.shape[:2]
        starts = torch.arange(rows + 1, dtype=torch.int32, device=qkv.device)
        keys, values = part.flatten(0, 1).unbind(1)
        return ops.attention(qkv[:, 0], keys, values, starts, 1, starts * length, length)
