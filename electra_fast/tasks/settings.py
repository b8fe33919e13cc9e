"""The settings of a fine-tuning run; each field's docstring is the help of its option on the command line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from electra_fast.config import DeviceOptions, PrecisionOptions, check_fields
from electra_fast.tasks.examples import Columns, Kind
from electra_fast.train.settings import PretrainConfig


@dataclass(frozen=True)
class FinetuneConfig(PrecisionOptions):
    """Optimisation: how to fine-tune; by default as Google's code does (configure_finetuning.py)."""

    learning_rate: float = 1e-4
    """Learning rate of the head at its highest. Large takes 5e-5."""

    layerwise_decay: float = 0.8
    """Factor of the learning rate from each layer to the one below; 1 turns it off. Large takes 0.9."""

    weight_decay: float = 0.01
    """AdamW's decoupled weight decay, of all but biases and LayerNorm."""

    batch_size: int = 32
    """Sequences of one optimiser step."""

    epochs: float | None = None
    """Passes over the training examples. (default: 3; 10 for RTE and STS-B, 2 for qa)"""

    warmup_prob: float = 0.1
    """Share of the steps over which the learning rate rises from 0."""

    beta1: float = 0.9
    """AdamW's decay of the gradient's running mean."""

    beta2: float = 0.999
    """AdamW's decay of the squared gradient's running mean."""

    eps: float = 1e-6
    """Number AdamW adds to the denominator."""

    max_grad_norm: float = 1.0
    """Norm that larger gradients are scaled down to."""

    max_length: int | None = None
    """Tokens of a sequence. (default: 128, or 512 for qa, and never more than the model has positions)"""

    head: Literal["google", "huggingface"] = "google"
    """Layers on top of the encoder: Google's, or those that transformers' classes load."""

    double_unordered: bool | None = None
    """Train on (b, a) as well as (a, b). (default: for MRPC and STS-B)"""

    query_length: int = 64
    """Tokens of a question, at most. (qa)"""

    stride: int = 128
    """Tokens from one window on a long text to the next. (qa, tagging)"""

    answer_length: int = 30
    """Tokens of an answer, at most. (qa)"""

    beam: int = 20
    """Starts, and ends for each, among which an answer is looked for. (qa)"""

    answerable_weight: float = 0.5
    """Weight of the loss that tells questions without an answer. (qa)"""

    faithful: bool = False
    """Reproduce Google's code where it is odd: the loss is summed over the batch and so nearly always clipped, the last
    layer's rate is decayed twice, the first step has rate 0, every token of a sentence to tag has type 1, and a window
    without the answer counts as answerable where its question is."""

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
        _ = self.optimisation(1, 0)

    def optimisation(self, steps: int, seed: int) -> PretrainConfig:
        """The optimiser's settings over so many steps."""
        names = "batch_size learning_rate weight_decay beta1 beta2 eps max_grad_norm precision".split()
        warmup = int(steps * self.warmup_prob)
        return PretrainConfig(steps=steps, warmup_steps=warmup, seed=seed, **{n: getattr(self, n) for n in names})


@dataclass(frozen=True, kw_only=True)
class TaskOptions:
    """Task: what is learned, from which examples, by which model."""

    task: Kind
    """Kind of task. (summarization, translation, answering and extractive are allowed too; `electra-fast finetune
    --task summarization --help` lists the options of these)"""

    model: Path
    """Pre-trained model: a Hugging Face directory with its tokenizer, such as OUT/final/discriminator of pretrain."""

    train: Path
    """File of labelled examples to learn from."""

    dev: Path
    """File of labelled examples to measure on."""

    random_init: bool = False
    """Take the model's sizes and tokenizer alone, and draw its weights anew."""

    seeds: tuple[int, ...] = (0,)
    """Random seeds: one model is trained per seed. A single number N means seeds 0 to N-1."""


@dataclass(frozen=True, kw_only=True)
class ReadOptions:
    """Data: how files of examples are read."""

    max_bad_lines: int = 10
    """Malformed lines of a file that are left out and told; with more the file is refused."""


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """Output: what is written, and how often."""

    out: Path
    """Directory to write; it must not exist, or be empty, or hold a run to resume."""

    resume: bool = False
    """Continue the run in --out with the seeds that are not done."""

    log_every: int = 10
    """Steps from one row of metrics to the next."""


@dataclass(frozen=True, kw_only=True)
class FinetuneRun(TaskOptions, ReadOptions, OutputOptions, DeviceOptions):
    """What a fine-tuning run reads and writes, and on which device.

    `seeds` are the seeds themselves; the command line alone takes a single number for a count (--seeds 3 is 0, 1, 2).
    """

    columns: Columns | None = None

    def __post_init__(self) -> None:
        check_fields(self)
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds are {self.seeds}; one or more are needed, each once")
