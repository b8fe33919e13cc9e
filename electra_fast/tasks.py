"""The tasks a discriminator is fine-tuned for, and the reading of their files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from electra_fast.squad import Question

KINDS = ("classification", "regression", "tagging", "qa")


@dataclass(frozen=True)
class Example:
    """One text or two, and a class (str), a number (float, regression) or None where it is to be predicted."""

    id: str
    texts: tuple[str, ...]
    label: str | float | None = None


@dataclass(frozen=True)
class Sentence:
    """Words, and a tag for each; None where they are to be predicted."""

    id: str
    words: tuple[str, ...]
    tags: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Columns:
    """Names of the columns (fields of .jsonl) that hold the first text, the second (if there), the label and the id."""

    text: str = "text"
    text2: str = "text2"
    label: str = "label"
    id: str = "id"


@dataclass(frozen=True)
class Dataset:
    """kind: one of KINDS. name: of a benchmark that was recognised ("cola", "sst2", "mrpc", "rte", "wnli", "qnli",
    "stsb", "conll2000", "squad1", "squad2"), or None. examples: Example, Sentence (tagging) or Question (qa). labels:
    classes or tags, in the benchmark's order, else sorted; empty for regression, qa and files without labels."""

    kind: str
    name: str | None
    examples: list[Example] | list[Sentence] | list[Question]
    labels: list[str]


def read_dataset(path: str | Path, kind: str, *, columns: Columns | None = None, labelled: bool = True) -> Dataset:
    """The examples of a file, each checked."""
    raise NotImplementedError


def stream_examples(
    lines: Iterable[bytes], kind: str, *, columns: Columns | None = None, name: str = "stdin"
) -> Iterator[Example | Sentence | Question]:
    """Unlabelled examples from lines, one by one: plain text (a tab between two texts; words with spaces between them
    for tagging; qa: question, tab, context) or .jsonl objects."""
    raise NotImplementedError


def check_labels(train: Dataset, dev: Dataset, path: str | Path) -> None:
    """Raises ValueError naming the label, the file (path, of dev) and the labels known where training lacks one."""
    raise NotImplementedError
