"""What this installation is made of, and what each op runs on."""

from __future__ import annotations

import importlib.metadata
import platform
from typing import Any

import torch

from electra_fast.ops._core import core, why
from electra_fast.ops._library import backends


def info() -> dict[str, Any]:
    """Versions, devices, the instruction set of the C++ core, and for each op the backend of each device and why."""
    versions = {}
    for package in ("electra_fast", "torch", "triton", "transformers", "tokenizers", "safetensors", "numpy"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = "not installed"
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "versions": versions,
        "threads": torch.get_num_threads(),
        "gpus": gpus or "none",
        "core": f"C++, {why}" if core is not None else f"none: {why}",
        "ops": backends,
    }
