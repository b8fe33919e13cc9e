"""Where Triton keeps compiled kernels: its usual cache, or a temporary one if that cannot be written."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
import warnings
from functools import cache
from pathlib import Path


@cache
def make_cache_usable() -> None:
    """Point Triton at a new temporary directory, with one warning, if its cache cannot be written.

    Without it, a full home, a read-only one or none at all, as in many containers, would end a run at its first kernel.
    The directory is removed when the process exits. Several processes may compile at once in either: Triton writes a
    file under another name and renames it.
    """
    named = os.environ.get("TRITON_CACHE_DIR")
    usual = Path(named) if named else Path(os.environ.get("TRITON_HOME") or Path.home()) / ".triton" / "cache"
    try:
        usual.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=usual) as file:
            file.write(b"room for a block")
    except OSError as error:
        temporary = tempfile.mkdtemp(prefix="electra-fast-triton-")
        atexit.register(shutil.rmtree, temporary, ignore_errors=True)
        os.environ["TRITON_CACHE_DIR"] = temporary
        warnings.warn(
            f"Triton's cache {usual} cannot be written ({error}), so kernels are compiled anew in this run; free some "
            f"space there, or name a directory in TRITON_CACHE_DIR",
            RuntimeWarning,
            stacklevel=2,
        )
