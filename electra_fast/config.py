"""The sizes of the networks and of the objective that trains them, as frozen dataclasses that check themselves."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import cache
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "float32", "bfloat16"]
LARGEST = {  # caps checked before anything is allocated: a typing error must not ask for terabytes
    "vocab_size": 4_000_000,
    "embedding_size": 65_536,
    "hidden_size": 65_536,
    "intermediate_size": 1_048_576,
    "num_hidden_layers": 1_000,
    "num_attention_heads": 4_096,
    "max_position_embeddings": 1_048_576,
    "type_vocab_size": 1_024,
}


def check_fields(config: Any) -> None:
    """Check every field of a config dataclass against its declared type, and probabilities (`*_prob`) against [0, 1].

    A field declared as a Literal must be one of its values; numbers must be finite. Other types are not looked at.

    Raises ValueError that names the field, its value and what is allowed.
    """
    for name, kind, optional in _declared(config.__class__):
        value = getattr(config, name)
        if value is None and optional:
            continue
        if get_origin(kind) is Literal:
            if value not in get_args(kind):
                raise ValueError(f"{name} is {value!r}; allowed: {', '.join(get_args(kind))}")
        elif kind in (int, float, bool, str):
            right = isinstance(value, (int, float) if kind is float else kind)
            if not right or (kind is bool) != isinstance(value, bool) or (kind is float and not math.isfinite(value)):
                raise ValueError(f"{name} is {value!r}, a {type(value).__name__}; it must be a finite {kind.__name__}")
        if name.endswith("_prob") and not 0 <= value <= 1:
            raise ValueError(f"{name} is {value}; a probability lies between 0 and 1")


@cache
def _declared(kind: type[Any]) -> list[tuple[str, Any, bool]]:
    """Name, type without None, and whether None is allowed, of each field of a dataclass."""
    hints = get_type_hints(kind)
    fields = [(field.name, get_args(hints[field.name]), hints[field.name]) for field in dataclasses.fields(kind)]
    return [(name, parts[0], True) if NoneType in parts else (name, hint, False) for name, parts, hint in fields]


@dataclass(frozen=True, kw_only=True)
class DeviceOptions:
    """Hardware: what the run computes on."""

    device: Device = "auto"
    """Device to compute on: auto is the GPU where torch sees one, and the CPU elsewhere."""


@dataclass(frozen=True, kw_only=True)
class PrecisionOptions:
    """Hardware: the number format of the computation."""

    precision: Precision = "auto"
    """Number format of the forward and backward pass: auto is bfloat16 on CUDA and float32 on the CPU. Parameters,
    moments and checkpoints are float32 in either."""


@dataclass(frozen=True)
class NetworkConfig:
    """One network (generator or discriminator), in Hugging Face's names."""

    vocab_size: int = 30522
    embedding_size: int = 128
    hidden_size: int = 256
    num_hidden_layers: int = 12
    num_attention_heads: int = 4
    intermediate_size: int = 1024
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02
    pad_token_id: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        for name, largest in LARGEST.items():
            if not 1 <= getattr(self, name) <= largest:
                raise ValueError(f"{name} is {getattr(self, name)}; it must lie between 1 and {largest}")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads "
                f"{self.num_attention_heads}; heads of 64 are usual: {max(1, self.hidden_size // 64)} here"
            )
        if self.layer_norm_eps <= 0 or self.initializer_range <= 0:
            raise ValueError(
                f"layer_norm_eps {self.layer_norm_eps} and initializer_range {self.initializer_range} must be positive"
            )

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads


@dataclass(frozen=True)
class ElectraConfig:
    """The pair of networks and the objective that trains them (Clark et al., ICLR 2020, table 6).

    The first fields are the discriminator's, in Hugging Face's names; the generator is `generator_size` as wide and
    `generator_layers` as deep, with heads of 64. `faithful` reproduces Google's code where it is odd: masked positions
    drawn with replacement, the ids of duplicates averaged, a learning rate of 0 at step 0.
    """

    vocab_size: int = 30522
    embedding_size: int = 128
    hidden_size: int = 256
    num_hidden_layers: int = 12
    num_attention_heads: int = 4
    intermediate_size: int = 1024
    hidden_dropout_prob: float = 0.1
    attention_probs_dropout_prob: float = 0.1
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    initializer_range: float = 0.02
    generator_size: float = 0.25
    generator_layers: float = 1.0
    mask_prob: float = 0.15  # share of a sequence's tokens that the generator predicts
    replace_prob: float = 0.85  # share of those that it sees as [MASK]; the others it sees as they are
    max_predictions: int | None = None  # cap for one sequence; Google's is int((mask_prob + .005) * length)
    temperature: float = 1.0  # of the samples; 0 takes the most likely token
    disallow_correct: bool = False  # never sample the original token
    gen_weight: float = 1.0
    disc_weight: float = 50.0
    faithful: bool = False
    pad_token_id: int = 0
    unk_token_id: int = 100
    cls_token_id: int = 101
    sep_token_id: int = 102
    mask_token_id: int = 103

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("generator_size", "generator_layers"):
            if not 0 < getattr(self, name) <= 4:
                raise ValueError(f"{name} is {getattr(self, name)}; it must lie above 0 and at most 4")
        if self.temperature < 0:
            raise ValueError(f"temperature is {self.temperature}; it must be 0 (the most likely token) or above")
        if self.max_predictions is not None and self.max_predictions < 1:
            raise ValueError(f"max_predictions is {self.max_predictions}; it must be at least 1, or None for no cap")
        special = {name: getattr(self, f"{name}_token_id") for name in ("pad", "unk", "cls", "sep", "mask")}
        for name, value in special.items():
            if not 0 <= value < self.vocab_size:
                raise ValueError(
                    f"{name}_token_id is {value}, outside the vocabulary of {self.vocab_size}; "
                    f"take it from the tokenizer, or enlarge vocab_size"
                )
        if len(set(special.values())) < len(special):
            raise ValueError(f"the special tokens share an id: {special}; give each its own")
        _ = self.discriminator, self.generator

    @property
    def discriminator(self) -> NetworkConfig:
        names = (field.name for field in dataclasses.fields(NetworkConfig))
        return NetworkConfig(**{name: getattr(self, name) for name in names})

    @property
    def generator(self) -> NetworkConfig:
        hidden = round(self.hidden_size * self.generator_size)
        return dataclasses.replace(
            self.discriminator,
            hidden_size=hidden,
            num_hidden_layers=max(1, round(self.num_hidden_layers * self.generator_layers)),
            num_attention_heads=max(1, hidden // 64),
            intermediate_size=4 * hidden,
        )

    @classmethod
    def tiny(cls, **changes: Any) -> ElectraConfig:
        """4 layers of 128: learns something in minutes on two cores.

        Initial weights are wider than BERT's 0.02, which is meant for widths of 768: 0.02 sqrt(768 / 128) = 0.05.
        """
        sizes = dict(embedding_size=64, hidden_size=128, num_hidden_layers=4, num_attention_heads=2)
        rest = dict(intermediate_size=512, generator_size=0.5, initializer_range=0.05)
        return cls(**(sizes | rest | _ids(changes)))

    @classmethod
    def small(cls, **changes: Any) -> ElectraConfig:
        """ELECTRA-Small of the paper: 12 layers of 256, generator a quarter as wide."""
        return cls(**_ids(changes))

    @classmethod
    def small_plus(cls, **changes: Any) -> ElectraConfig:
        """The released ELECTRA-Small++: as small, generator as wide as the discriminator."""
        return cls(**(dict(generator_size=1.0) | _ids(changes)))

    @classmethod
    def base(cls, **changes: Any) -> ElectraConfig:
        """ELECTRA-Base: 12 layers of 768, generator a third as wide."""
        sizes = dict(embedding_size=768, hidden_size=768, num_attention_heads=12, intermediate_size=3072)
        return cls(**(sizes | dict(generator_size=1 / 3) | _ids(changes)))

    @classmethod
    def large(cls, **changes: Any) -> ElectraConfig:
        """ELECTRA-Large: 24 layers of 1024, a quarter of the tokens masked."""
        sizes = dict(embedding_size=1024, hidden_size=1024, num_hidden_layers=24, num_attention_heads=16)
        return cls(**(sizes | dict(intermediate_size=4096, generator_size=0.25, mask_prob=0.25) | _ids(changes)))


def _ids(changes: dict[str, Any]) -> dict[str, Any]:
    """BERT's special ids (100-103) where the vocabulary has them, else the first five, as our tokenizer lays them."""
    if changes.get("vocab_size", 30522) > 103:
        return changes
    return dict(pad_token_id=0, unk_token_id=1, cls_token_id=2, sep_token_id=3, mask_token_id=4) | changes
