"""The examples of tasks: a text or two, a sentence of tagged words, a question on a context."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args


@dataclass(frozen=True)
class Sentence:
    """Words, and a tag for each; None where they are to be predicted."""

    id: str
    words: tuple[str, ...]
    tags: tuple[str, ...] | None = None


Kind = Literal["classification", "multilabel", "regression", "tagging", "qa"]
KINDS: tuple[str, ...] = get_args(Kind)


@dataclass(frozen=True)
class Example:
    """One text or two, and a class (str), labels (tuple, multilabel) or a number (float, regression).

    The label is None where it is to be predicted.
    """

    id: str
    texts: tuple[str, ...]
    label: str | float | tuple[str, ...] | None = None


@dataclass(frozen=True)
class Columns:
    """Names of the columns (fields of .jsonl) that are read.

    text, text2: the first text and the second, if there is one. label, id: the label and the id. word, tag: of tagging,
    also numbers of columns, counted from 1 (as strings); None leaves them to be found, the word first and its tag last.
    """

    text: str = "text"
    text2: str | None = "text2"
    label: str = "label"
    id: str = "id"
    word: str | None = None
    tag: str | None = None


@dataclass(frozen=True)
class Dataset:
    """kind: one of KINDS. name: of the benchmark that was recognised, a key of BENCHMARKS, or None. examples: Example,
    Sentence (tagging) or Question (qa). labels: classes or tags, in the benchmark's order, else sorted; empty for
    regression, qa and files of no benchmark that are read without labels. notes: what the user should know of the
    reading, such as how many lines were left out, a line each."""

    kind: str
    name: str | None
    examples: list[Any]
    labels: list[str]
    notes: tuple[str, ...] = ()


def check_kind(kind: str) -> None:
    if kind not in KINDS:
        raise ValueError(f"the kind of task is {kind!r}; it must be one of {', '.join(KINDS)}")


def sorted_labels(labels: Iterable[str]) -> list[str]:
    """The labels, each once, in the order in which they number a model's classes.

    By their value where all are whole numbers or all LABEL_ and a number, so that 2 comes before 10, as transformers
    numbers them; else by their characters.
    """
    names = sorted(set(labels))
    for prefix in ("", "LABEL_"):
        if all(re.fullmatch(rf"{prefix}-?\d{{1,18}}", name) for name in names):
            return sorted(names, key=lambda name: int(name.removeprefix(prefix)))
    return names


def check_labels(train: Dataset, dev: Dataset, path: str | Path) -> None:
    """Raises ValueError where training has fewer than two classes, or dev (read from path) a label that it lacks."""
    if train.kind == "classification" and len(train.labels) < 2:
        raise ValueError(f"all examples of training have the label {train.labels[0]!r}; two classes or more are wanted")
    if train.kind == "multilabel" and not train.labels:
        raise ValueError("no example of training has a label; one label or more is wanted")
    known = set(train.labels)
    for example in dev.examples if train.kind in ("classification", "multilabel", "tagging") else ():
        found = example.tags or () if isinstance(example, Sentence) else example.label
        found = found if isinstance(found, tuple) else (found,)
        if unseen := next((label for label in found if label is not None and label not in known), None):
            shown = ", ".join(train.labels[:20]) + ", ..." * (len(train.labels) > 20)
            what = "sentence" if isinstance(example, Sentence) else "example"
            raise ValueError(
                f"{path} has the label {unseen!r} ({what} {example.id}), which training lacks; it knows {shown}: "
                "mend the label, or add such examples to the training file"
            )


@dataclass(frozen=True)
class Refused:
    """A line of a stream that holds no example. id: its number among the examples. error: why, in one sentence."""

    id: str
    error: str
    line: int = 0  # of the stream, from 1


@dataclass(frozen=True)
class Question:
    """A question on a context.

    answers: (start, text) each, where text == context[start : start + len(text)], or start is -1 as the context does
    not have the text. There are none where the question is impossible to answer from the context, and where they are to
    be predicted.
    """

    id: str
    question: str
    context: str
    answers: tuple[tuple[int, str], ...] = ()
    impossible: bool = False
