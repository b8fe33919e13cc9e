"""The compiled core, `core`, or None where there is none; `why` says in words which it is."""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from pathlib import Path
from typing import Any

import torch  # noqa: F401  before the core, which then shares torch's OpenMP runtime

core: Any = None
try:
    core = importlib.import_module("electra_fast._C")
    why = f"{core.isa()} (of {', '.join(core.isas())})"
except ImportError as error:
    if os.environ.get("ELECTRA_FAST_ISA"):  # who names an instruction set wants the core, or an error
        said = f"ELECTRA_FAST_ISA asks for the C++ core, which does not load: {error}"
        if Path(sys.argv[0]).stem == "electra-fast":  # whose own code has not been reached yet
            print(f"electra-fast: {said}", file=sys.stderr)
            raise SystemExit(2) from None
        raise ImportError(said) from None
    if isinstance(error, ModuleNotFoundError):
        why = "the C++ core is not built: install a C++17 compiler and electra_fast again (in a checkout: make core)"
    else:
        why = f"the C++ core does not load: {error}"
    warnings.warn(f"electra_fast runs its slower reference on the CPU; {why}", RuntimeWarning, stacklevel=2)
