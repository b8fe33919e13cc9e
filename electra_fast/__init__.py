"""electra_fast: pre-train and fine-tune ELECTRA, fast, on GPU and CPU."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from electra_fast.info import info, version

if TYPE_CHECKING:
    from electra_fast import ops
    from electra_fast.config import ElectraConfig, NetworkConfig
    from electra_fast.data.batch import Batch
    from electra_fast.interop.accelerate import accelerate as accelerate
    from electra_fast.interop.register_attention import register_attention as register_attention
    from electra_fast.model.encoder_decoder import EncoderDecoder
    from electra_fast.model.encoder_decoder_config import EncoderDecoderConfig
    from electra_fast.model.networks import Discriminator, Generator
    from electra_fast.objectives.base import ElectraOutput
    from electra_fast.objectives.electra import Electra
    from electra_fast.train.evaluate import evaluate
    from electra_fast.train.settings import PretrainConfig
    from electra_fast.train.trainer import Pretrainer

__version__ = version()
__all__ = [
    "Batch",
    "Discriminator",
    "Electra",
    "ElectraConfig",
    "ElectraOutput",
    "EncoderDecoder",
    "EncoderDecoderConfig",
    "Generator",
    "NetworkConfig",
    "PretrainConfig",
    "Pretrainer",
    "evaluate",
    "info",
    "ops",
]  # without accelerate and register_attention: `import *` would load transformers with them
_MODULES = {
    "Batch": "data.batch",
    "Discriminator": "model.networks",
    "Electra": "objectives.electra",
    "ElectraConfig": "config",
    "ElectraOutput": "objectives.base",
    "EncoderDecoder": "model.encoder_decoder",
    "EncoderDecoderConfig": "model.encoder_decoder_config",
    "Generator": "model.networks",
    "NetworkConfig": "config",
    "PretrainConfig": "train.settings",
    "Pretrainer": "train.trainer",
    "accelerate": "interop.accelerate",
    "evaluate": "train.evaluate",
    "register_attention": "interop.register_attention",
}


def __getattr__(name: str) -> Any:
    """Import a public name at its first use, so that `electra-fast --help` loads neither torch nor transformers."""
    if name == "ops":
        return importlib.import_module("electra_fast.ops")
    if name not in _MODULES:
        raise AttributeError(f"module 'electra_fast' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"electra_fast.{_MODULES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, "accelerate", "register_attention"])
