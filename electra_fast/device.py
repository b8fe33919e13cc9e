"""The device a run computes on, chosen once."""

from __future__ import annotations

from typing import get_args

import torch

from electra_fast.config import Device


def chosen_device(name: str) -> torch.device:
    """The torch device that `name`, one of config.Device, stands for: "auto" is CUDA where torch sees a GPU.

    Raises ValueError on another name, and on "cuda" where there is no GPU.
    """
    if name not in get_args(Device):
        raise ValueError(f"device is {name!r}; allowed: {', '.join(get_args(Device))}")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is cuda, but torch sees no GPU; use --device cpu, or install torch for CUDA")
    return torch.device(name if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu")
