"""`core` is the compiled core, or None if it does not load; `why` says which instruction set it uses, or why it is
None."""

from __future__ import annotations

import importlib
import os
import warnings
from typing import Any

core: Any = None
try:
    core = importlib.import_module("electra_fast._C")
    why = f"{core.isa()} (of {', '.join(core.isas())})"
except ImportError as error:
    if os.environ.get("ELECTRA_FAST_ISA"):  # a user who names an instruction set wants the core or an error
        raise ImportError(f"ELECTRA_FAST_ISA asks for the C++ core, which does not load: {error}") from None
    if isinstance(error, ModuleNotFoundError):
        why = "the C++ core is not built: install a C++17 compiler and electra_fast again (in a checkout: make core)"
    else:
        why = f"the C++ core does not load: {error}"
    warnings.warn(f"electra_fast runs its slower reference on the CPU; {why}", RuntimeWarning, stacklevel=2)
