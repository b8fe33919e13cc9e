"""The choice of the device that a run computes on."""

from __future__ import annotations

from typing import get_args

import torch

from electra_fast.config import Device


def chosen_device(name: str) -> torch.device:
    """The torch device for a name.

    name: "cpu", "cuda", or "auto", which is CUDA if torch sees a GPU and the CPU otherwise.

    Raises ValueError for another name, and for "cuda" if torch sees no GPU.
    """
    if name not in get_args(Device):
        raise ValueError(f"device is {name!r}; allowed: {', '.join(get_args(Device))}")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is cuda, but torch sees no GPU; use --device cpu, or install torch for CUDA")
    return torch.device(name if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu")
