"""The device a run computes on, chosen once."""

from __future__ import annotations

import torch

DEVICES = ("auto", "cpu", "cuda")


def chosen_device(name: str) -> torch.device:
    """The torch device that `name`, one of DEVICES, stands for: "auto" is CUDA where torch sees a GPU, else the CPU.

    Raises ValueError on another name, and on "cuda" where there is no GPU.
    """
    if name not in DEVICES:
        raise ValueError(f"device is {name!r}; allowed: {', '.join(DEVICES)}")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is cuda, but torch sees no GPU; use --device cpu, or install torch for CUDA")
    return torch.device(name if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu")
