"""What this installation is made of, and what each op runs on."""

from __future__ import annotations

import platform
import re
from pathlib import Path
from typing import Any


def version() -> str:
    """The version of electra_fast.

    It stands in pyproject.toml alone. A checkout reads it there, since another version may be installed beside it; an
    installed package reads it from its metadata.

    Returns:
        The version, such as "0.1.0"; "unknown" for a copy of the package with neither file.
    """
    project = Path(__file__).parents[1] / "pyproject.toml"
    text = project.read_text() if project.is_file() else ""
    declared = re.search(r'^name = "electra_fast"\nversion = "(.+)"$', text, re.M)
    return declared[1] if declared else _installed("electra_fast") or "unknown"


def info() -> dict[str, Any]:
    """Describe this installation, for a report of a fault or of a measurement.

    Returns:
        python, machine: the interpreter's version, the operating system and the processor.
        versions: package -> version, or "not installed".
        threads: those that torch uses on the CPU.
        gpus: the names of the GPUs that torch sees, or "none".
        core: the instruction set of the C++ core, or why there is no core.
        ops: op -> device -> the backend that computes it there, and why that one.
    """
    import torch  # not above, since `import electra_fast` imports this module

    from electra_fast.ops._core import core, why
    from electra_fast.ops._library import backends

    packages = ("torch", "triton", "transformers", "tokenizers", "numpy")
    versions = {"electra_fast": version()} | {name: _installed(name) or "not installed" for name in packages}
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


def _installed(package: str) -> str | None:
    """The version of an installed package, or None."""
    import importlib.metadata

    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
