"""The settings of a pre-training run: what it reads, trains and writes, and how.

Each field's docstring is the help of its option on the command line. A class that starts with "Name:" is the group of
that name there. `(default: ...)` at the end of a docstring says what None stands for.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from electra_fast.config import DeviceOptions, Learning, PrecisionOptions, check_fields
from electra_fast.train.model_options import ModelOptions
from electra_fast.train.recipes import ModelName, ObjectiveName, RecipeName, recipe_of

Packing = Literal["pairs", "plain"]
OptimizerName = Literal["adamw", "muon", "lamb"]
Updates = Literal["joint", "decoupled"]
GeneratorLater = Literal["learns", "frozen"]
Schedule = Literal["linear", "cosine", "stable"]


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

    optimizer: OptimizerName = "adamw"
    """How parameters are updated: adamw is Google's, without bias correction; muon takes orthogonal steps in the
    matrices of the layers, and adamw's in all else; lamb scales each tensor's step to the tensor, for large batches."""

    learning_rate: float = 5e-4
    """Learning rate at its highest, which is at the end of the warm-up."""

    generator_share: float = 0.0
    """Share of the steps, at the start, in which the generator learns alone; the discriminator learns in the others. 0
    trains both from the start."""

    generator_later: GeneratorLater | None = None
    """What the generator does in the other steps: it learns too, or is frozen and stays as it is. (default: frozen if
    it learned alone before, else learns)"""

    copy_generator: bool = False
    """Start the discriminator from the generator's encoder, when that has learned alone: each tensor whose shape is the
    same in both."""

    updates: Updates = "joint"
    """How the networks' gradients become updates: joint clips them by one norm, decoupled by one for each network, and
    the generator has a learning rate of its own."""

    generator_learning_rate: float | None = None
    """Learning rate at its highest of a generator that learns alone or decoupled; without one it is that of
    --learning-rate."""

    warmup_steps: int | None = None
    """Steps over which the learning rate rises from 0. (default: 10,000, or a tenth of a run shorter than 100,000
    steps)"""

    schedule: Schedule = "linear"
    """How the learning rate falls after the warm-up: linear, as a cosine, or stable, which stays until --decay-from and
    then falls to 0 linearly."""

    decay_power: float = 1.0
    """Power of a linear schedule's fall to 0: 1 is a straight line."""

    decay_from: int | None = None
    """Step from which a stable schedule falls; an earlier checkpoint can be resumed with another. (default: four fifths
    of the steps)"""

    weight_decay: float = 0.01
    """AdamW's decoupled weight decay, of all but biases and LayerNorm."""

    beta1: float = 0.9
    """AdamW's decay of the gradient's running mean."""

    momentum: float = 0.95
    """Muon's decay of the gradient's running mean."""

    beta2: float = 0.999
    """AdamW's decay of the squared gradient's running mean."""

    eps: float = 1e-6
    """Number AdamW adds to the denominator."""

    max_grad_norm: float = 1.0
    """Norm that larger gradients are scaled down to."""

    average_decay: float = 0.0
    """Decay of a running mean of the weights, such as 0.999, which is then evaluated and saved in the place of the last
    weights; 0 for none."""

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
        for name in ("learning_rate", "generator_learning_rate", "eps", "max_grad_norm"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name} is {value}; it must be positive")
        if not 0 <= self.generator_share < 1:
            raise ValueError(
                f"generator_share is {self.generator_share}; it must lie between 0 (both networks learn together) and "
                f"1, not including 1"
            )
        for name, value in (("copy_generator", self.copy_generator), ("updates", self.updates)):
            needs_share = name == "copy_generator"
            if value in (True, "decoupled") and (self.generator_share > 0) != needs_share:
                raise ValueError(
                    f"{name} is {value} and generator_share {self.generator_share}; it needs a generator that learns "
                    f"{'alone at first (a share above 0)' if needs_share else 'with the other (a share of 0)'}"
                )
        for name in ("weight_decay", "decay_power", "warmup_steps"):
            if (getattr(self, name) or 0) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must not be negative")
        for name in ("beta1", "beta2", "momentum", "average_decay"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must lie in [0, 1)")
        if self.decay_from is not None and self.schedule != "stable":
            raise ValueError(f"decay_from is {self.decay_from} and schedule {self.schedule}; only stable takes it")
        if self.decay_from is not None and not self.generator_steps <= self.decay_from < self.steps:
            raise ValueError(
                f"decay_from is {self.decay_from}; it must lie between {self.generator_steps} and steps - 1, "
                f"{self.steps - 1}"
            )
        if not -(2**63) <= self.seed < 2**63:
            raise ValueError(f"seed is {self.seed}; it must fit in 64 bits")

    def warmup(self, steps: int) -> int:
        """Over how many of `steps` steps the learning rate rises."""
        return min(10_000, steps // 10) if self.warmup_steps is None else self.warmup_steps

    @property
    def generator_steps(self) -> int:
        """The first steps, in which the generator learns alone."""
        return int(self.generator_share * self.steps)

    @property
    def frozen(self) -> bool:
        """Whether the generator stays as it is once it does not learn alone."""
        return self.generator_later == "frozen" or (self.generator_later is None and self.generator_steps > 0)

    def learning(self, step: int) -> Learning:
        """Which network learns in a step, counted from 0."""
        if self.generator_steps and step < self.generator_steps:
            return "generator"
        return "discriminator" if self.frozen else "both"

    @classmethod
    def recipe(
        cls,
        model: ModelName,
        name: RecipeName | None = None,
        objective: ObjectiveName = "electra",
        **changes: Any,
    ) -> PretrainConfig:
        """The optimiser's settings of a recipe, by default of the one for this model, with changes to them."""
        return cls(**(recipe_of(model, name, objective)["optimisation"] | changes))


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
    """Tokens of a sequence. (default: that of the prepared data, else of the recipe)"""

    packing: Packing | None = None
    """How text is cut into sequences: pairs is Google's pairs of segments, plain is one stream that drops nothing.
    (default: as prepared, else that of the recipe)"""


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

    stop_when_dead: bool = False
    """Save and stop where a network has collapsed: every token gets the same score, or every blank the same word."""


@dataclass(frozen=True, kw_only=True)
class RunConfig(DataOptions, ModelOptions, OutputOptions, DeviceOptions):
    """What a run reads, trains and writes, and on which device."""

    def __post_init__(self) -> None:
        check_fields(self)
        self.check_model()
        for name in ("save_every", "keep", "eval_every", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
