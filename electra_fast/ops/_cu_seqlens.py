"""The offsets of sequences among packed rows."""

from __future__ import annotations

import torch
from torch import Tensor


def cu_seqlens_of(lengths: Tensor) -> Tensor:
    """The offsets (N + 1,) int32 of sequences of these lengths (N,): the row where each begins, and at the end their
    sum."""
    return torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]).to(torch.int32)
