"""What training and prediction need of a model that writes, whether it writes words or chooses sentences."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from electra_fast.config import check_fields
from electra_fast.decoding.settings import WritingConfig
from electra_fast.seq2seq.pairs import WRITINGS, Pair
from electra_fast.seq2seq.settings import SequenceConfig
from electra_fast.storage.atomic import read_json
from electra_fast.storage.digests import verify, write_files

if TYPE_CHECKING:
    from typing_extensions import Self

TASK = "task.json"
AT_ONCE = 4096  # tokens of a batch without gradients
Advance = Callable[[int], object]  # called with the number of examples that are done


@dataclass(frozen=True)
class WritingTask:
    """What a model was trained to write, and how it writes unless it is told otherwise.

    Attributes:
        task: summarization, translation, answering or extractive.
        writing: how it writes.
        settings: of the training.
        sentences: of an extractive summary.
    """

    task: str
    writing: WritingConfig = field(default_factory=WritingConfig)
    settings: SequenceConfig = field(default_factory=SequenceConfig)
    sentences: int = 1

    def __post_init__(self) -> None:
        check_fields(self)
        if self.task not in WRITINGS:
            raise ValueError(f"task is {self.task!r}; allowed: {', '.join(WRITINGS)}")

    def save(self, path: Path) -> None:
        """Write task.json to a directory."""
        write_files(path, {TASK: json.dumps(asdict(self), indent=2).encode() + b"\n"})

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read task.json from a directory; raises ValueError if it is not what `save` writes."""
        verify(path, TASK)
        values = read_json(path / TASK)
        try:
            writing, settings = WritingConfig(**values.pop("writing")), SequenceConfig(**values.pop("settings"))
            return cls(writing=writing, settings=settings, **values)
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path / TASK}: {error}; finetune did not write it so: restore it, or train again"
            ) from None


@dataclass(frozen=True)
class Feature:
    """An example as token ids.

    Attributes:
        ids: the source's, with [CLS] and [SEP].
        second: the place where its second segment begins.
        target: the target's, from its start token to its end token; empty if it is to be written.
        positions: the places of the sentences' [CLS] (extractive).
        labels: for each whether it is in the oracle's summary (extractive).
    """

    ids: list[int]
    second: int
    target: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    labels: list[float] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Tokens of source and target."""
        return len(self.ids) + len(self.target)


class Learner(nn.Module):
    """A model of a task that writes, with its tokenizers."""

    task: WritingTask

    def features(self, pairs: Sequence[Pair], training: bool) -> tuple[list[Feature], list[str]]:
        """Make features of examples, and notes on what was cut.

        training: make one of each reference, where several count; else of the first alone.
        """
        raise NotImplementedError

    def losses(
        self, features: Sequence[Feature], names: Sequence[int], seed: Tensor, step: Tensor, smoothing: float
    ) -> Tensor:
        """The loss in nats of each token that is learned, or of each sentence -> (M,).

        names: numbers of the examples, by which dropout is keyed. seed, step: (1,) int64. smoothing: of the labels.
        """
        raise NotImplementedError

    def write(
        self,
        pairs: Sequence[Pair],
        writing: WritingConfig | None = None,
        seed: int = 0,
        names: Sequence[int] | None = None,
        advance: Advance = lambda n: None,
    ) -> list[str]:
        """Write the texts of examples, whose references are not looked at.

        writing: how; the task's own by default. seed, names: key the random numbers of samples; the names of the
        examples are 0, 1, ... by default.
        """
        raise NotImplementedError

    def save(self, path: Path) -> None:
        """Write the model, its tokenizers and its task to a directory that exists."""
        raise NotImplementedError

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device
