"""The settings of a model and of its training, as frozen dataclasses that check themselves."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

PRECISIONS = ("auto", "float32", "bfloat16")
HEADS = ("google", "huggingface")
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
    """Hold every field of a config against its declared type, and the probabilities against [0, 1]."""
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        kinds: dict[str, Any] = {"int": int, "float": (int, float), "bool": bool, "str": str}
        kind, optional = field.type.removesuffix(" | None"), field.type.endswith(" | None")
        if value is None and optional:
            continue
        right = isinstance(value, kinds[kind]) and (kind == "bool") == isinstance(value, bool)
        if not right or (kind == "float" and not math.isfinite(value)):
            raise ValueError(f"{field.name} is {value!r}, a {type(value).__name__}; it must be a finite {kind}")
        if field.name.endswith("_prob") and not 0 <= value <= 1:
            raise ValueError(f"{field.name} is {value}; a probability lies between 0 and 1")


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


@dataclass(frozen=True)
class PretrainConfig:
    """How to pre-train: Google's recipe for Small by default (paper, table 6)."""

    batch_size: int = 128  # sequences of one optimiser step, over all micro-batches
    micro_batch_size: int | None = None  # sequences that pass through the networks at once; None: the whole batch
    steps: int = 1_000_000
    learning_rate: float = 5e-4
    warmup_steps: int | None = None  # None: 10,000, or a tenth of a run shorter than 100,000 steps
    decay_power: float = 1.0
    weight_decay: float = 0.01
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-6
    max_grad_norm: float = 1.0
    non_finite: str = "stop"  # or "skip": a step whose loss or gradient is not finite is left out and counted
    precision: str = "auto"  # of forward and backward, or "float32", "bfloat16"; auto: bfloat16 on CUDA alone
    seed: int = 0

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("batch_size", "micro_batch_size", "steps"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")
        for name in ("learning_rate", "eps", "max_grad_norm"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be positive")
        for name in ("weight_decay", "decay_power", "warmup_steps"):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must not be negative")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must lie in [0, 1)")
        for name, allowed in (("non_finite", ("stop", "skip")), ("precision", PRECISIONS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}; allowed: {', '.join(allowed)}")
        if not -(2**63) <= self.seed < 2**63:
            raise ValueError(f"seed is {self.seed}; it must fit in 64 bits")

    @property
    def warmup(self) -> int:
        return min(10_000, self.steps // 10) if self.warmup_steps is None else self.warmup_steps


@dataclass(frozen=True)
class FinetuneConfig:
    """How to fine-tune: Google's code's recipe by default (configure_finetuning.py).

    faithful reproduces it where it is odd: the loss is summed over the batch and so nearly always clipped, the last
    layer's rate is decayed twice, the first step has rate 0, every token of a sentence to tag has type 1, and a window
    without the answer counts as answerable where its question is.
    """

    learning_rate: float = 1e-4  # of the head; 5e-5 for Large
    layerwise_decay: float = 0.8  # of the rate, from each layer to the one below; 0.9 for Large
    weight_decay: float = 0.01
    batch_size: int = 32
    epochs: float | None = None  # None: 3; 10 for RTE and STS-B, 2 for qa
    warmup_prob: float = 0.1  # share of the steps
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-6
    max_grad_norm: float = 1.0
    max_length: int | None = None  # tokens of a sequence; None: 128, 512 for qa, or what the model has
    head: str = "google"  # or "huggingface": transformers' classes load what is saved
    double_unordered: bool | None = None  # train on (b, a) as well as (a, b); None: for MRPC and STS-B
    query_length: int = 64  # tokens of a question, at most
    stride: int = 128  # tokens from one window on a long text to the next
    answer_length: int = 30  # tokens of an answer, at most
    beam: int = 20  # starts, and ends for each, that are looked at
    answerable_weight: float = 0.5
    precision: str = "auto"
    faithful: bool = False

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("learning_rate", "layerwise_decay", "epochs", "eps", "max_grad_norm"):
            if getattr(self, name) is not None and getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be positive")
        for name, least in dict(
            batch_size=1, query_length=1, stride=1, answer_length=1, beam=1, max_length=8,
            weight_decay=0, answerable_weight=0,
        ).items():  # fmt: skip
            if getattr(self, name) is not None and getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if self.layerwise_decay > 1:
            raise ValueError(f"layerwise_decay is {self.layerwise_decay}; it must be at most 1, which turns it off")
        for name, allowed in (("head", HEADS), ("precision", PRECISIONS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}; allowed: {', '.join(allowed)}")
        _ = self.optimisation(1, 0)

    def optimisation(self, steps: int, seed: int) -> PretrainConfig:
        """The optimiser's settings over so many steps."""
        names = "batch_size learning_rate weight_decay beta1 beta2 eps max_grad_norm precision".split()
        warmup = int(steps * self.warmup_prob)
        return PretrainConfig(steps=steps, warmup_steps=warmup, seed=seed, **{n: getattr(self, n) for n in names})
