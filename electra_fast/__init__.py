"""electra_fast: pre-train and fine-tune ELECTRA, fast, on GPU and CPU."""

from electra_fast import ops
from electra_fast.batch import Batch
from electra_fast.config import ElectraConfig, NetworkConfig, PretrainConfig
from electra_fast.info import info
from electra_fast.model import Discriminator, Electra, ElectraOutput, Generator
from electra_fast.trainer import Pretrainer, evaluate

__version__ = "0.1.0"
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
