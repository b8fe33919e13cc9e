"""The sizes of the networks, and the settings of the objective, as frozen dataclasses that check their fields."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import cache
from types import NoneType
from typing import Any, Literal, get_args, get_origin, get_type_hints

from electra_fast.objective_config import ObjectiveConfig
from electra_fast.special_ids import SpecialIds

Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "float32", "bfloat16"]
Learning = Literal["both", "generator", "discriminator"]
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

    threads: int | None = None
    """Threads on the CPU. (default: as many as the process may use cores, by its affinity and its CPU quota)"""


@dataclass(frozen=True, kw_only=True)
class PrecisionOptions:
    """Hardware: the number format of the computation."""

    precision: Precision = "auto"
    """Number format of the forward and backward pass: auto is bfloat16 on CUDA and float32 on the CPU. Parameters,
    moments and checkpoints are float32 in either."""


@dataclass(frozen=True)
class EncoderConfig:
    """The sizes, dropout probabilities and initial weights of an encoder, in Hugging Face's names."""

    vocab_size: int = 30522
    """Words of the vocabulary, which are the rows of the word table."""

    embedding_size: int = 128
    """Width of the embedding tables. If it is not hidden_size, a linear layer projects the embeddings to that."""

    hidden_size: int = 256
    """Width of the layers; a multiple of num_attention_heads."""

    num_hidden_layers: int = 12
    """Transformer layers, each an attention block and an FFN block."""

    num_attention_heads: int = 4
    """Attention heads of each layer."""

    intermediate_size: int = 1024
    """Width between the two linear layers of an FFN block."""

    hidden_dropout_prob: float = 0.1
    """Probability with which training sets an element of the embeddings and of each block's output to 0."""

    attention_probs_dropout_prob: float = 0.1
    """Probability with which training sets an attention probability to 0."""

    max_position_embeddings: int = 512
    """Rows of the position table: tokens of the longest sequence."""

    type_vocab_size: int = 2
    """Rows of the token type table: a text's first and second segment."""

    layer_norm_eps: float = 1e-12
    """Number that each LayerNorm adds to the variance; above 0."""

    initializer_range: float = 0.02
    """Standard deviation of the initial weights; above 0."""


@dataclass(frozen=True)
class NetworkConfig(EncoderConfig):
    """The config of one network, generator or discriminator, in Hugging Face's names.

    Raises ValueError if a field is out of its range.
    """

    pad_token_id: int = 0
    """Id of [PAD], kept for config.json: padding is told by the attention mask."""

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
        """Width of one attention head."""
        return self.hidden_size // self.num_attention_heads


@dataclass(frozen=True)
class ElectraConfig(ObjectiveConfig, EncoderConfig):
    """The config of generator and discriminator and of the objective that trains them.

    The encoder's fields are the discriminator's. The generator has the same embeddings, a hidden_size of generator_size
    times the discriminator's, heads 64 wide, and an intermediate_size of four times its hidden_size.

    The methods `tiny`, `small`, `small_plus`, `base` and `large` make one with the sizes of that model. They take any
    field as a keyword argument, to change it.

    Raises ValueError if a field is out of its range, or if special tokens share an id or lie outside the vocabulary.

    Source: Clark et al., "ELECTRA", ICLR 2020, table 6.
    """

    generator_size: float = 0.25
    """Width of the generator as a share of the discriminator's; above 0, at most 4."""

    generator_layers: float = 1.0
    """Layers of the generator as a share of the discriminator's; above 0, at most 4."""

    pad_token_id: int = 0
    """Id of [PAD]."""

    unk_token_id: int = 100
    """Id of [UNK], the only special token that may be masked."""

    cls_token_id: int = 101
    """Id of [CLS]."""

    sep_token_id: int = 102
    """Id of [SEP]."""

    mask_token_id: int = 103
    """Id of [MASK]."""

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("generator_size", "generator_layers"):
            if not 0 < getattr(self, name) <= 4:
                raise ValueError(f"{name} is {getattr(self, name)}; it must lie above 0 and at most 4")
        self.check_objective()
        special = SpecialIds.of(self).token_ids
        for name, value in special.items():
            if not 0 <= value < self.vocab_size:
                raise ValueError(
                    f"{name} is {value}, outside the vocabulary of {self.vocab_size}; "
                    f"take it from the tokenizer, or enlarge vocab_size"
                )
        if len(set(special.values())) < len(special):
            raise ValueError(f"the special tokens share an id: {special}; give each its own")
        _ = self.discriminator, self.generator

    @property
    def discriminator(self) -> NetworkConfig:
        """The discriminator's config."""
        names = (field.name for field in dataclasses.fields(NetworkConfig))
        return NetworkConfig(**{name: getattr(self, name) for name in names})

    @property
    def generator(self) -> NetworkConfig:
        """The generator's config."""
        hidden = round(self.hidden_size * self.generator_size)
        p = self.generator_dropout
        dropout: dict[str, Any] = {} if p is None else dict(hidden_dropout_prob=p, attention_probs_dropout_prob=p)
        return dataclasses.replace(
            self.discriminator,
            **dropout,
            hidden_size=hidden,
            num_hidden_layers=max(1, round(self.num_hidden_layers * self.generator_layers)),
            num_attention_heads=max(1, hidden // 64),
            intermediate_size=4 * hidden,
        )

    @classmethod
    def tiny(cls, **changes: Any) -> ElectraConfig:
        """2 layers of 192 in both networks, which learn something in minutes on two cores; not of the paper."""
        sizes = dict(embedding_size=128, hidden_size=192, num_hidden_layers=2, num_attention_heads=3)
        return cls(**(sizes | dict(intermediate_size=768, generator_size=1.0) | _ids(changes)))

    @classmethod
    def small(cls, **changes: Any) -> ElectraConfig:
        """ELECTRA-Small of the paper: 12 layers of 256, and a generator a quarter as wide."""
        return cls(**_ids(changes))

    @classmethod
    def small_plus(cls, **changes: Any) -> ElectraConfig:
        """ELECTRA-Small++ as released: 12 layers of 256, and a generator as wide as the discriminator."""
        return cls(**(dict(generator_size=1.0) | _ids(changes)))

    @classmethod
    def base(cls, **changes: Any) -> ElectraConfig:
        """ELECTRA-Base: 12 layers of 768, and a generator a third as wide."""
        sizes = dict(embedding_size=768, hidden_size=768, num_attention_heads=12, intermediate_size=3072)
        return cls(**(sizes | dict(generator_size=1 / 3) | _ids(changes)))

    @classmethod
    def large(cls, **changes: Any) -> ElectraConfig:
        """ELECTRA-Large: 24 layers of 1024, a generator a quarter as wide, and a quarter of the tokens masked."""
        sizes = dict(embedding_size=1024, hidden_size=1024, num_hidden_layers=24, num_attention_heads=16)
        return cls(**(sizes | dict(intermediate_size=4096, generator_size=0.25, mask_prob=0.25) | _ids(changes)))


def _ids(changes: dict[str, Any]) -> dict[str, Any]:
    """The changes, with ids 0 to 4 for the special tokens if the vocabulary is too small to hold BERT's (100 to 103).

    A tokenizer that is trained here has them there.
    """
    if changes.get("vocab_size", 30522) > 103:
        return changes
    return SpecialIds(0, 1, 2, 3, 4).token_ids | changes
