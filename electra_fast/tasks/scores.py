"""Official scores of classification, regression and tagging, and the report of a model's errors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from electra_fast.tasks.benchmarks import BENCHMARKS
from electra_fast.tasks.examples import Dataset
from electra_fast.tasks.labelsets import multilabel_table
from electra_fast.tasks.tag_spans import scheme_of, spans

SHOWN = 20  # errors that errors.txt holds
DEFAULTS = {
    "classification": "accuracy",
    "multilabel": "f1_micro",
    "regression": "spearman",
    "tagging": "f1",
    "qa": "f1",
}


def primary(kind: str, name: str | None = None, labels: Iterable[str] = ()) -> str:
    """The name of the score that ranks models.

    kind: of task. name: the benchmark, a key of BENCHMARKS; its own score is taken. labels: the tags, without a
    benchmark: the score is the f1 of spans if they mark spans, and the accuracy if not, as with parts of speech.
    """
    if name is not None:
        return BENCHMARKS[name].primary
    return "accuracy" if kind == "tagging" and scheme_of(labels) is None else DEFAULTS[kind]


def classification_scores(predicted: Sequence[str], gold: Sequence[str], labels: Sequence[str]) -> dict[str, float]:
    """Scores of predicted classes.

    predicted, gold: the class of each example, in one order. labels: all classes, in order.

    Returns accuracy in 0..1, f1 in 0..1 and matthews in -1..1. f1 is that of the second class, labels[1], where there
    are two classes (paraphrase, in MRPC), else the mean over the classes that occur in gold or predicted; a class that
    is never predicted has f1 0. With the confusion matrix C, its sum s, its trace c and its sums by row t and by column
    p, matthews = (c s - t p) / sqrt((s^2 - t t) (s^2 - p p)), and 0 where that is 0 / 0.

    Raises ValueError where predicted and gold are empty or of different lengths, or hold a class that labels lacks.
    Source: Gorodkin, "Comparing two K-category assignments by a K-category correlation coefficient" (2004).
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
    """The confusion matrix, (labels, labels) int64: how many examples of the row's class got the column's class.

    predicted, gold, labels, and what is raised: as of `classification_scores`.
    """
    _check_lengths(predicted, gold)
    number = {label: i for i, label in enumerate(labels)}
    for what, classes in (("predicted", predicted), ("gold", gold)):
        if unknown := next((label for label in classes if label not in number), None):
            raise ValueError(f"{what} holds {unknown!r}; the labels are {', '.join(labels)}")
    counts = np.zeros((len(labels), len(labels)), np.int64)
    np.add.at(counts, ([number[label] for label in gold], [number[label] for label in predicted]), 1)
    return counts


def confusion_table(counts: np.ndarray, labels: Sequence[str]) -> str:
    """A confusion matrix as text: a row for each gold class, a column for each predicted class."""
    widths = [max(len(label), len(str(column.max()))) for label, column in zip(labels, counts.T, strict=True)]
    left = max(len(label) for label in ("given\\predicted", *labels))

    def line(head: str, cells: Iterable[Any]) -> str:
        return "  ".join([head.ljust(left), *(str(cell).rjust(w) for cell, w in zip(cells, widths, strict=True))])

    return "\n".join([line("given\\predicted", labels), *map(line, labels, counts)])


def regression_scores(predicted: Sequence[float], gold: Sequence[float]) -> dict[str, float]:
    """Correlations of predicted numbers with gold ones.

    predicted, gold: the number of each example, in one order.

    Returns pearson, spearman (Pearson's correlation of the ranks, where equal values have their mean rank) and mean,
    that of these two; all in -1..1, and 0 where predicted or gold is constant. Raises ValueError where they are empty
    or of different lengths, or hold a number that is not finite.
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


def tagging_scores(
    predicted: Sequence[Sequence[str]], gold: Sequence[Sequence[str]], labels: Iterable[str] = ()
) -> dict[str, float]:
    """accuracy of the tags and, where the labels and the gold tags mark spans, precision, recall and f1 of whole spans.

    Counted over all sentences: a predicted span is right if its type and both its ends are (`schemes.spans`). All are
    in 0..1, and 0 where there is no span. predicted, gold: a list of tags for each sentence. labels: all tags that the
    model knows, which tell the scheme even where the gold tags are few. Raises ValueError on no sentences, and on
    unequal numbers of sentences, or of tags in one.
    """
    _check_lengths(predicted, gold)
    gold_tags = {tag for sentence in gold for tag in sentence}
    scheme = scheme_of({*labels, *gold_tags}) or scheme_of(gold_tags)
    right = marked = claimed = same = words = 0
    for i, (ours, theirs) in enumerate(zip(predicted, gold, strict=True)):
        if len(ours) != len(theirs):
            raise ValueError(f"sentence {i} has {len(ours)} predicted tags and {len(theirs)} given ones")
        same += sum(a == b for a, b in zip(ours, theirs, strict=True))
        words += len(theirs)
        if scheme is not None:
            a, b = set(spans(ours, scheme)), set(spans(theirs, scheme))
            right, claimed, marked = right + len(a & b), claimed + len(a), marked + len(b)
    scores = {"accuracy": same / max(1, words)}
    if scheme is not None:
        scores["precision"], scores["recall"] = right / max(1, claimed), right / max(1, marked)
        scores["f1"] = 2 * right / max(1, claimed + marked)
    return scores


def _check_lengths(predicted: Sequence[Any], gold: Sequence[Any]) -> None:
    if len(predicted) != len(gold) or not len(gold):
        raise ValueError(f"{len(predicted)} predictions and {len(gold)} labels are given; one each, of at least one")


def errors(dataset: Dataset, predicted: Sequence[Any]) -> str:
    """A confusion table of classes, and the first examples that are wrong (by most, of numbers)."""
    lines: list[str] = []
    examples: list[Any] = list(dataset.examples)
    pairs = list(zip(examples, predicted, strict=True))
    if dataset.kind == "classification":
        counts = confusion(predicted, [e.label for e in examples], dataset.labels)
        lines += [confusion_table(counts, dataset.labels), ""]
        wrong = [(e, p) for e, p in pairs if e.label != p]
        shown = [f"{e.id}: {e.label}, predicted {p}: {' | '.join(e.texts)}" for e, p in wrong]
    elif dataset.kind == "multilabel":
        lines += [*multilabel_table(predicted, [e.label for e in examples], dataset.labels), ""]
        wrong = [(e, p) for e, p in pairs if set(e.label) != set(p)]
        shown = [f"{e.id}: {', '.join(e.label)}, predicted {', '.join(p)}: {' | '.join(e.texts)}" for e, p in wrong]
    elif dataset.kind == "regression":
        wrong = sorted(pairs, key=lambda pair: -abs(pair[0].label - pair[1]))
        shown = [f"{e.id}: {e.label:.2f}, predicted {p:.2f}: {' | '.join(e.texts)}" for e, p in wrong]
    elif dataset.kind == "tagging":
        wrong = [(e, p) for e, p in pairs if e.tags != p]
        shown = [
            f"{e.id}: "
            + " ".join(
                w if gold == tag else f"{w}/{gold}>{tag}" for w, gold, tag in zip(e.words, e.tags, p, strict=True)
            )
            for e, p in wrong
        ]
    else:
        wrong = [(e, p) for e, p in pairs if p not in ([text for _, text in e.answers] or [""])]
        shown = [f"{e.id}: {e.question} | {[t for _, t in e.answers[:1]]}, predicted {p!r}" for e, p in wrong]
    return "\n".join([*lines, *shown[:SHOWN], ""])
