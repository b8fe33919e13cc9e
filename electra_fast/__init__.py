"""electra_fast: pre-train and fine-tune ELECTRA, fast, on GPU and CPU."""

import importlib
from typing import Any

from electra_fast import ops
from electra_fast.config import ElectraConfig, NetworkConfig, PretrainConfig
from electra_fast.data.batch import Batch
from electra_fast.info import info, version
from electra_fast.model.networks import Discriminator, Generator
from electra_fast.objectives.base import ElectraOutput
from electra_fast.objectives.electra import Electra
from electra_fast.train.evaluate import evaluate
from electra_fast.train.trainer import Pretrainer

__version__ = version()
__all__ = [
    "Batch",
    "Discriminator",
    "Electra",
    "ElectraConfig",
    "ElectraOutput",
    "Generator",
    "NetworkConfig",
    "PretrainConfig",
    "Pretrainer",
    "evaluate",
    "info",
    "ops",
]
_OF_TRANSFORMERS = {
    "accelerate": "interop.accelerate",
    "register_attention": "interop.attention",
}  # theirs import it


def __getattr__(name: str) -> Any:
    """What imports transformers is imported when it is asked for: accelerate, register_attention."""
    if name in _OF_TRANSFORMERS:
        return getattr(importlib.import_module(f"electra_fast.{_OF_TRANSFORMERS[name]}"), name)
    raise AttributeError(f"module 'electra_fast' has no attribute {name!r}")
