"""Multi-label classification: examples that have any number of labels, from none to all of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

BETWEEN = "|"  # labels in a cell of .csv or .tsv; a comma in files that have no such character


def separator_of(cells: Iterable[str]) -> str:
    """What separates the labels in the cells of a file: "|" if any cell has one, else a comma."""
    return BETWEEN if any(BETWEEN in cell for cell in cells) else ","


def split_labels(cell: str, separator: str) -> tuple[str, ...]:
    """The labels in a cell, each once, without white space around them; none for an empty cell."""
    return tuple(dict.fromkeys(label for part in cell.split(separator) if (label := part.strip())))


def indicators(sets: Sequence[Iterable[str]], labels: Sequence[str]) -> np.ndarray:
    """Sets of labels -> (sets, labels) bool, true where a set has a label. Raises ValueError for an unknown label."""
    number = {label: i for i, label in enumerate(labels)}
    table = np.zeros((len(sets), len(labels)), bool)
    for row, chosen in zip(table, sets, strict=True):
        for label in chosen:
            if label not in number:
                raise ValueError(f"the label {label!r} is not among {', '.join(labels)}")
            row[number[label]] = True
    return table


def multilabel_scores(
    predicted: Sequence[Iterable[str]], gold: Sequence[Iterable[str]], labels: Sequence[str]
) -> dict[str, float]:
    """f1_micro, f1_macro and accuracy, in 0..1, as scikit-learn's f1_score and accuracy_score give them.

    F1 = 2 TP / (2 TP + FP + FN), 0 if that is 0 / 0. micro: of the counts summed over the labels. macro: the mean of
    the F1 of each label in `labels`. accuracy: the share of examples whose set is exactly right.

    Args:
        predicted, gold: a set of labels for each example.
        labels: every label that the model knows.

    Raises:
        ValueError: no examples, unequal numbers of them, or a label that is not among labels.
    """
    if len(predicted) != len(gold) or not len(gold):
        raise ValueError(f"{len(predicted)} predictions and {len(gold)} sets of labels are given; one each, at least 1")
    ours, theirs = indicators(predicted, labels), indicators(gold, labels)
    hits, claimed, given = (ours & theirs).sum(0), ours.sum(0), theirs.sum(0)
    f1 = 2 * hits / np.maximum(1, claimed + given)
    return {
        "f1_micro": float(2 * hits.sum() / max(1, claimed.sum() + given.sum())),
        "f1_macro": float(f1.mean()),
        "accuracy": float((ours == theirs).all(1).mean()),
    }


def multilabel_table(
    predicted: Sequence[Iterable[str]], gold: Sequence[Iterable[str]], labels: Sequence[str]
) -> list[str]:
    """A line for each label: in how many examples it is given, predicted, and both."""
    ours, theirs = indicators(predicted, labels), indicators(gold, labels)
    width = max(len(label) for label in ("label", *labels))
    counts = zip(labels, theirs.sum(0), ours.sum(0), (ours & theirs).sum(0), strict=True)
    lines = [f"{label:{width}}  {a:>9}  {b:>9}  {c:>9}" for label, a, b, c in counts]
    return [f"{'label':{width}}  {'given':>9}  {'predicted':>9}  {'both':>9}", *lines]
