"""The settings of training a model that writes; each field's docstring is the help of its option."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from electra_fast.config import DeviceOptions, PrecisionOptions, check_fields
from electra_fast.seq2seq.pairs import Writing
from electra_fast.tasks.examples import Columns
from electra_fast.tasks.settings import OutputOptions, ReadOptions
from electra_fast.train.settings import PretrainConfig


@dataclass(frozen=True)
class SequenceConfig(PrecisionOptions):
    """Optimisation: how to train.

    Raises ValueError if a field is out of its range.
    """

    learning_rate: float = 5e-4
    """Learning rate at its highest."""

    weight_decay: float = 0.01
    """AdamW's decoupled weight decay, of all but biases and LayerNorm."""

    batch_tokens: int = 4096
    """Tokens of one optimiser step, of sources and targets together; batches hold examples of like length."""

    epochs: float = 10.0
    """Passes over the training examples."""

    warmup_prob: float = 0.1
    """Share of the steps over which the learning rate rises from 0."""

    label_smoothing: float = 0.1
    """Share of each target's probability that is spread over all words of the vocabulary; below 1."""

    dropout: float | None = None
    """Dropout of both networks. (default: that of their config.json)"""

    beta1: float = 0.9
    """AdamW's decay of the gradient's running mean."""

    beta2: float = 0.98
    """AdamW's decay of the squared gradient's running mean."""

    eps: float = 1e-8
    """Number AdamW adds to the denominator."""

    max_grad_norm: float = 1.0
    """Norm that larger gradients are scaled down to."""

    max_source_length: int | None = None
    """Tokens of a source at most; longer ones are cut. (default: the positions of the encoder, 512 at most)"""

    sentences: int | None = None
    """Sentences of a summary. (extractive) (default: as many as the oracle takes on average)"""

    def __post_init__(self) -> None:
        check_fields(self)
        for name in ("learning_rate", "epochs", "eps", "max_grad_norm"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be positive")
        for name, least in dict(weight_decay=0, batch_tokens=1, max_source_length=8, sentences=1).items():
            if getattr(self, name) is not None and getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing is {self.label_smoothing}; it must be at least 0 and below 1")
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; it must be at least 0 and below 1")
        _ = self.optimisation(1, 0)

    def optimisation(self, steps: int, seed: int) -> PretrainConfig:
        """The optimiser's settings over so many steps."""
        names = "learning_rate weight_decay beta1 beta2 eps max_grad_norm precision".split()
        warmup = int(steps * self.warmup_prob)
        return PretrainConfig(steps=steps, warmup_steps=warmup, seed=seed, **{n: getattr(self, n) for n in names})


@dataclass(frozen=True, kw_only=True)
class WritingOptions:
    """Task: what is learned, from which examples, by which networks."""

    task: Writing
    """What is written: a summary, a translation, or an answer in words; extractive chooses sentences as a summary."""

    model: Path
    """Pre-trained network that reads the source: a Hugging Face directory with its tokenizer."""

    decoder: Path | None = None
    """Pre-trained generator or discriminator that the decoder is made of. (default: that of --model)"""

    train: Path | None = None
    """File of sources with their references to learn from. (default: --source and --target)"""

    dev: Path | None = None
    """File of sources with their references to measure on. (default: --dev-source and --dev-target)"""

    source: Path | None = None
    """File to learn from with a source a line, beside --target."""

    target: Path | None = None
    """File whose line n is the target of line n of --source."""

    dev_source: Path | None = None
    """File to measure on with a source a line, beside --dev-target."""

    dev_target: Path | None = None
    """File whose line n is the target of line n of --dev-source."""

    separate_embeddings: bool = False
    """Give the decoder embeddings of its own, also where those of both networks are equal."""

    random_init: bool = False
    """Take the networks' sizes and tokenizers alone, and draw their weights anew."""

    seeds: tuple[int, ...] = (0,)
    """Random seeds: one model is trained per seed. A single number N means seeds 0 to N-1."""


@dataclass(frozen=True, kw_only=True)
class ValidationOptions:
    """Output: what is written, and how often."""

    eval_every: int | None = None
    """Steps from one validation to the next, after which the state is saved too. (default: an epoch)"""

    dev_examples: int = 500
    """Examples of the development set that each validation writes; the best model is measured on all of them."""


@dataclass(frozen=True, kw_only=True)
class SequenceRun(WritingOptions, ReadOptions, OutputOptions, ValidationOptions, DeviceOptions):
    """What a training run reads and writes, and on which device.

    Raises ValueError if files are missing or named twice, or a seed is.
    """

    columns: Columns | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        for whole, parts in (("train", ("source", "target")), ("dev", ("dev_source", "dev_target"))):
            named = [part for part in parts if getattr(self, part) is not None]
            options = [f"--{part.replace('_', '-')}" for part in (whole, *parts)]
            if (getattr(self, whole) is None) != bool(named) or len(named) == 1:
                raise ValueError(f"give either {options[0]}, or both {options[1]} and {options[2]}")
        for name, least in dict(eval_every=1, dev_examples=1).items():
            if getattr(self, name) is not None and getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if self.task == "extractive" and (self.decoder is not None or self.separate_embeddings):
            raise ValueError("extractive chooses sentences and has no decoder; leave --decoder away")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds are {self.seeds}; one or more are needed, each once")
