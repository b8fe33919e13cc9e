"""The settings of a pre-training run: what it reads, trains and writes, and how.

Each field's docstring is the help of its option on the command line. A class that starts with "Name:" is the group of
that name there. `(default: ...)` at the end of a docstring says what None stands for.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict

from electra_fast.config import DeviceOptions, PrecisionOptions, check_fields

ModelName = Literal["tiny", "small", "small_plus", "base", "large"]
ObjectiveName = Literal["electra", "mlm"]
Packing = Literal["pairs", "plain"]


class Recipe(TypedDict):
    """What a model is trained with unless the run says otherwise."""

    batch_size: int
    learning_rate: float
    steps: int
    max_length: int


# The paper's table 6. tiny is ours, for minutes on two cores: among few tokens the networks find a word's neighbours
# within some hundred steps, among 64 of them they do not in thousands.
RECIPES: dict[str, Recipe] = {
    "tiny": Recipe(batch_size=128, learning_rate=6e-4, steps=2000, max_length=16),
    "small": Recipe(batch_size=128, learning_rate=5e-4, steps=1_000_000, max_length=128),
    "small_plus": Recipe(batch_size=128, learning_rate=5e-4, steps=1_000_000, max_length=512),
    "base": Recipe(batch_size=256, learning_rate=2e-4, steps=766_000, max_length=512),
    "large": Recipe(batch_size=2048, learning_rate=2e-4, steps=400_000, max_length=512),
}


@dataclass(frozen=True)
class PretrainConfig(PrecisionOptions):
    """Optimisation: how to pre-train; by default Google's recipe for Small (paper, table 6)."""

    batch_size: int = 128
    """Sequences of one optimiser step, over all micro-batches."""

    micro_batch_size: int | None = None
    """Sequences that pass through the networks at once: fewer need less memory and give the same step. (default: the
    whole batch)"""

    steps: int = 1_000_000
    """Optimiser steps."""

    learning_rate: float = 5e-4
    """Learning rate at its highest, which is at the end of the warm-up."""

    warmup_steps: int | None = None
    """Steps over which the learning rate rises from 0. (default: 10,000, or a tenth of a run shorter than 100,000
    steps)"""

    decay_power: float = 1.0
    """Power of the fall of the learning rate to 0 after the warm-up: 1 is linear."""

    weight_decay: float = 0.01
    """AdamW's decoupled weight decay, of all but biases and LayerNorm."""

    beta1: float = 0.9
    """AdamW's decay of the gradient's running mean."""

    beta2: float = 0.999
    """AdamW's decay of the squared gradient's running mean."""

    eps: float = 1e-6
    """Number AdamW adds to the denominator."""

    max_grad_norm: float = 1.0
    """Norm that larger gradients are scaled down to."""

    non_finite: Literal["stop", "skip"] = "stop"
    """What a step does whose loss or gradient is not finite: stop ends the run, skip leaves the step out and counts
    it."""

    seed: int = 0
    """Seed of the initial weights, the order of the examples, masks, samples and dropout."""

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
        if not -(2**63) <= self.seed < 2**63:
            raise ValueError(f"seed is {self.seed}; it must fit in 64 bits")

    @property
    def warmup(self) -> int:
        return min(10_000, self.steps // 10) if self.warmup_steps is None else self.warmup_steps

    @classmethod
    def recipe(cls, model: ModelName, **changes: Any) -> PretrainConfig:
        """The recipe of a model, a key of RECIPES, with changes to it."""
        chosen: dict[str, Any] = {name: value for name, value in RECIPES[model].items() if name != "max_length"}
        return cls(**(chosen | changes))


@dataclass(frozen=True, kw_only=True)
class DataOptions:
    """Data: the text, or the corpus that `electra-fast prepare` made of it."""

    data: tuple[Path, ...] = ()
    """Text files, or one prepared directory. (default: English text that every Python carries)"""

    tokenizer: Path | None = None
    """Tokenizer of the text: tokenizer.json, vocab.txt, or a directory with one. (default: that of the weights to start
    from, else a vocabulary is trained on the text)"""

    vocab_size: int | None = None
    """Entries of a vocabulary trained here. (default: 8,192, or 1,000 without --data)"""

    max_length: int | None = None
    """Tokens of a sequence. (default: that of the prepared data, else the model's recipe)"""

    packing: Packing | None = None
    """How text is cut into sequences: pairs is Google's pairs of segments, plain is one stream that drops nothing.
    (default: as prepared, else pairs)"""


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Model: what is trained, and from where it starts."""

    model: ModelName = "tiny"
    """Sizes of the networks: the paper's, or tiny, which learns something in minutes on two cores."""

    objective: ObjectiveName = "electra"
    """What is learned: electra trains a generator and a discriminator, mlm one network of the discriminator's size that
    fills blanks."""

    mask_prob: float | None = None
    """Share of a sequence's tokens that are masked and predicted. (default: 0.15, and 0.25 of large)"""

    dropout: float | None = None
    """Dropout of hidden rows and attention probabilities in both networks. (default: 0.1, or that of the weights to
    start from)"""

    init_generator: Path | None = None
    """Hugging Face directory of a generator to start from. (default: random weights)"""

    init_discriminator: Path | None = None
    """Hugging Face directory of a discriminator to start from. (default: random weights)"""

    faithful: bool = False
    """Reproduce Google's code where it is odd: masked positions drawn with replacement, a first learning rate of 0."""


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """Output: what is written, and how often."""

    out: Path
    """Directory of checkpoints, metrics and final weights."""

    resume: bool = False
    """Continue from the newest checkpoint in --out."""

    allow_change: tuple[str, ...] = ()
    """Settings that may differ from the checkpoint's on --resume, by the names that its refusal lists. (default:
    none)"""

    save_every: int = 1000
    """Steps from one checkpoint to the next."""

    keep: int = 3
    """Newest checkpoints to keep."""

    eval_every: int = 100
    """Steps from one evaluation on held-out text to the next."""

    log_every: int = 10
    """Steps from one row of metrics to the next."""


@dataclass(frozen=True, kw_only=True)
class RunConfig(DataOptions, ModelOptions, OutputOptions, DeviceOptions):
    """What a run reads, trains and writes, and on which device."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.objective == "mlm" and self.init_discriminator is not None:
            raise ValueError(
                f"objective is mlm, which has no discriminator, and init_discriminator is {self.init_discriminator}; "
                f"leave it out, or start by --init-generator from the final/generator of another run of mlm"
            )
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; it must lie between 0 (none) and 1, not including 1")
        for name in ("save_every", "keep", "eval_every", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
