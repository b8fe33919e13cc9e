"""Official metrics of the fine-tuning tasks; those of question answering are in squad.py."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from electra_fast.benchmarks import BENCHMARKS

DEFAULTS = {"classification": "accuracy", "regression": "spearman", "tagging": "f1", "qa": "f1"}
PLACES = ("B", "I", "E", "S")  # of a word in a span: beginning, inside, end, single


def primary(kind: str, name: str | None = None, labels: Iterable[str] = ()) -> str:
    """The score that ranks a benchmark; without one the usual score of the kind: f1 of spans where the tags (labels)
    mark spans, their accuracy where they do not, as parts of speech."""
    if name is not None:
        return BENCHMARKS[name].primary
    return "accuracy" if kind == "tagging" and not marks_spans(labels) else DEFAULTS[kind]


def classification_scores(predicted: Sequence[str], gold: Sequence[str], labels: Sequence[str]) -> dict[str, float]:
    """accuracy, f1 and matthews, in 0..1 (matthews in -1..1).

    f1 is that of the second class, labels[1], where there are two classes (paraphrase, in MRPC), else the mean over the
    classes that occur in gold or predicted. A class never predicted has F1 0. Matthews, with C the confusion, s its
    sum, c its trace, t and p its sums by row and column: (c s - t p) / sqrt((s^2 - t t) (s^2 - p p)), 0 where that is
    0 / 0 (Gorodkin 2004; for two classes the correlation of GLUE's CoLA).

    Raises ValueError on unequal or no numbers of them, or a label that is not among labels.
    """
    counts = confusion(predicted, gold, labels)
    hits, rows, columns = (x.astype(float) for x in (np.diag(counts), counts.sum(1), counts.sum(0)))
    total, occurs = counts.sum(), rows + columns > 0
    f1 = 2 * hits / np.where(occurs, rows + columns, 1)
    covariance = hits.sum() * total - rows @ columns
    scale = np.sqrt((total**2 - rows @ rows) * (total**2 - columns @ columns))
    return {
        "accuracy": float(hits.sum() / total),
        "f1": float(f1[1] if len(labels) == 2 else f1[occurs].mean()),
        "matthews": float(covariance / scale) if scale else 0.0,
    }


def confusion(predicted: Sequence[str], gold: Sequence[str], labels: Sequence[str]) -> np.ndarray:
    """How often (labels, labels) int64: class of the row given, class of the column predicted."""
    _check_lengths(predicted, gold)
    number = {label: i for i, label in enumerate(labels)}
    for what, given in (("predicted", predicted), ("gold", gold)):
        if unknown := next((label for label in given if label not in number), None):
            raise ValueError(f"{what} holds {unknown!r}; the labels are {', '.join(labels)}")
    counts = np.zeros((len(labels), len(labels)), np.int64)
    np.add.at(counts, ([number[label] for label in gold], [number[label] for label in predicted]), 1)
    return counts


def confusion_table(counts: np.ndarray, labels: Sequence[str]) -> str:
    """The confusion as lines a person reads: a row for each class given, a column for each predicted."""
    widths = [max(len(label), len(str(column.max()))) for label, column in zip(labels, counts.T, strict=True)]
    left = max(len(label) for label in ("given\\predicted", *labels))

    def line(head: str, cells: Iterable[Any]) -> str:
        return "  ".join([head.ljust(left), *(str(cell).rjust(w) for cell, w in zip(cells, widths, strict=True))])

    return "\n".join([line("given\\predicted", labels), *map(line, labels, counts)])


def regression_scores(predicted: Sequence[float], gold: Sequence[float]) -> dict[str, float]:
    """pearson, spearman (Pearson's of the ranks, equal values having their mean rank) and mean, of these two.

    In -1..1; 0 where predicted or gold is constant, which correlates with nothing. Raises ValueError on unequal or no
    numbers of them, and on one that is not finite.
    """
    _check_lengths(predicted, gold)
    x, y = np.asarray(predicted, float), np.asarray(gold, float)
    for what, values in (("predicted", x), ("gold", y)):
        if not np.isfinite(values).all():
            where = int(np.flatnonzero(~np.isfinite(values))[0])
            raise ValueError(f"{what}[{where}] is {values[where]}; scores need finite numbers: did training diverge?")
    pearson, spearman = _correlation(x, y), _correlation(_ranks(x), _ranks(y))
    return {"pearson": pearson, "spearman": spearman, "mean": (pearson + spearman) / 2}


def _correlation(x: np.ndarray, y: np.ndarray) -> float:
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return 0.0
    x, y = (centred / np.abs(centred).max() for centred in (x - x.mean(), y - y.mean()))  # squares in range
    return float(np.clip(x @ y / np.sqrt((x @ x) * (y @ y)), -1, 1))


def _ranks(values: np.ndarray) -> np.ndarray:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    return (counts.cumsum() - (counts - 1) / 2)[inverse]


def tagging_scores(predicted: Sequence[Sequence[str]], gold: Sequence[Sequence[str]]) -> dict[str, float]:
    """accuracy of the tags and, where they mark spans, precision, recall and f1 of whole spans (`spans`).

    As conlleval counts: over all sentences, a span is right if its type and both ends are; 0 where there is none.
    Raises ValueError on unequal or no numbers of sentences, or of tags in one.
    """
    _check_lengths(predicted, gold)
    right = given = found = same = words = 0
    for i, (ours, theirs) in enumerate(zip(predicted, gold, strict=True)):
        if len(ours) != len(theirs):
            raise ValueError(f"sentence {i} has {len(ours)} predicted tags and {len(theirs)} given ones")
        same += sum(a == b for a, b in zip(ours, theirs, strict=True))
        words += len(theirs)
        a, b = set(spans(ours)), set(spans(theirs))
        right, found, given = right + len(a & b), found + len(a), given + len(b)
    scores = {"accuracy": same / max(1, words)}
    if marks_spans(tag for sentence in gold for tag in sentence):
        scores["precision"], scores["recall"] = right / max(1, found), right / max(1, given)
        scores["f1"] = 2 * right / max(1, found + given)
    return scores


def spans(tags: Sequence[str]) -> list[tuple[str, int, int]]:
    """(type, first, behind the last) of each span that the tags mark: B-, I-, E-, S- and a type, or O.

    By conlleval's rules, which read IOB1, IOB2 and BIOES alike: a span begins at B and S, and at I and E where nothing
    of its type is open; it ends at E and S, and before O, a beginning or another type. Other tags mark nothing.
    """
    found: list[tuple[str, int, int]] = []
    open_type, start = None, 0
    for i, tag in enumerate([*tags, "O"]):
        place, _, kind = tag.partition("-")
        inside = place in PLACES
        if open_type is not None and (not inside or place in ("B", "S") or kind != open_type):
            found.append((open_type, start, i))
            open_type = None
        if inside and open_type is None:
            open_type, start = kind, i
        if place in ("E", "S") and open_type is not None:
            found.append((open_type, start, i + 1))
            open_type = None
    return found


def marks_spans(tags: Iterable[str]) -> bool:
    """Whether every tag is O or begins with a place: B, I, E or S, alone or before a hyphen and a type."""
    return all(tag == "O" or tag.partition("-")[0] in PLACES for tag in tags)


def _check_lengths(predicted: Sequence[Any], gold: Sequence[Any]) -> None:
    if len(predicted) != len(gold) or not len(gold):
        raise ValueError(f"{len(predicted)} predictions and {len(gold)} labels are given; one each, of at least one")
