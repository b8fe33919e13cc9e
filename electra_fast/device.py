"""The choice of the device that a run computes on, and of its threads."""

from __future__ import annotations

import os
from typing import get_args

import torch

from electra_fast.config import Device
from electra_fast.cores import usable_cores


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


def set_threads(threads: int | None) -> None:
    """Set how many threads torch and the C++ core compute with in this process, from now on.

    threads: their number. None leaves torch's choice, which OMP_NUM_THREADS can make, but lowers it to the cores that
        the process may use (see cores.py) if that variable is not set.

    Raises ValueError for a number below 1.
    """
    if threads is not None and threads < 1:
        raise ValueError(f"threads is {threads}; it must be at least 1, or be left out")
    if threads is None and "OMP_NUM_THREADS" not in os.environ:
        threads = min(torch.get_num_threads(), usable_cores())
    if threads is not None:
        torch.set_num_threads(threads)
