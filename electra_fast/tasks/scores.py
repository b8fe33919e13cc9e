"""Official metrics of the fine-tuning tasks, and the errors that a person looks at."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from electra_fast.tasks.benchmarks import BENCHMARKS
from electra_fast.tasks.examples import Dataset, Question

SHOWN = 20  # errors that errors.txt holds
PUNCTUATION = frozenset(string.punctuation)
ARTICLES = re.compile(r"\b(a|an|the)\b")
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


def squad_scores(
    predicted: Mapping[str, str],
    questions: Sequence[Question],
    name: str = "squad1",
    null_odds: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """exact and f1, means over the questions in 0..1, and how many are missing from predicted (id -> text).

    Both compare texts in lower case without punctuation and articles: exact is 1 where they are equal, f1 that of their
    words as bags; of several answers the best counts. A missing prediction counts 0 (so does evaluate-v1.1.py;
    evaluate-v2.0.py leaves the question out). name "squad2": an empty text answers an impossible question, and the
    figures follow for those with an answer (has_answer_exact, has_answer_f1) and without (no_answer_exact). With
    null_odds (id -> how likely no answer is, in any unit; wanted for each prediction) come best_exact, best_f1 and
    their thresholds: what it would be if odds above the threshold made the prediction empty. Rajpurkar et al. 2016 and
    2018. Raises ValueError without questions, or on odds that are missing.
    """
    if not questions:
        raise ValueError("no questions are given; one at least is scored")
    pairs = {q.id: _score(predicted[q.id], q, name) if q.id in predicted else (0.0, 0.0) for q in questions}
    figures = {"exact": _mean(exact for exact, _ in pairs.values()), "f1": _mean(f1 for _, f1 in pairs.values())}
    figures["missing"] = sum(q.id not in predicted for q in questions)
    if name != "squad2":
        return figures
    answerable = [pairs[q.id] for q in questions if q.answers]
    if answerable:
        figures["has_answer_exact"] = _mean(exact for exact, _ in answerable)
        figures["has_answer_f1"] = _mean(f1 for _, f1 in answerable)
    if len(answerable) < len(questions):
        figures["no_answer_exact"] = _mean(pairs[q.id][0] for q in questions if not q.answers)
    if null_odds is not None:
        if lacking := next((q.id for q in questions if q.id in predicted and q.id not in null_odds), None):
            raise ValueError(f"null_odds lacks question {lacking}, which predicted has; give odds for each prediction")
        for i, score in enumerate(("exact", "f1")):
            best = _best_threshold({id: pair[i] for id, pair in pairs.items()}, predicted, questions, null_odds)
            figures[f"best_{score}"], figures[f"best_{score}_threshold"] = best
    return figures


def missing_line(predicted: Mapping[str, str], questions: Sequence[Question]) -> str:
    """One line on the questions that have no prediction; empty where each has one."""
    missing = [question.id for question in questions if question.id not in predicted]
    if not missing:
        return ""
    return f"{len(missing):,} of {len(questions):,} questions have no prediction and count as 0, such as {missing[0]}"


def _score(text: str, question: Question, name: str) -> tuple[float, float]:
    ours = _words(text)
    golds = [_words(answer) for _, answer in question.answers]
    if name == "squad2":
        golds = [gold for gold in golds if gold] or [[]]
    return max(float(ours == gold) for gold in golds), max(_f1(ours, gold, name) for gold in golds)


def _words(text: str) -> list[str]:
    kept = "".join(character for character in text.lower() if character not in PUNCTUATION)
    return ARTICLES.sub(" ", kept).split()


def _f1(ours: list[str], gold: list[str], name: str) -> float:
    if name == "squad2" and not (ours and gold):
        return float(ours == gold)  # v1.1 gives 0, even where both are nothing but articles and punctuation
    same = (Counter(ours) & Counter(gold)).total()
    return 2 * same / (len(ours) + len(gold)) if same else 0.0


def _best_threshold(
    scores: Mapping[str, float],
    predicted: Mapping[str, str],
    questions: Sequence[Question],
    null_odds: Mapping[str, float],
) -> tuple[float, float]:
    """Begin with every prediction empty, then let them in by rising odds: the official search, ties included."""
    has_answer = {q.id: bool(q.answers) for q in questions if q.id in predicted}
    total = best = float(sum(not has for has in has_answer.values()))
    threshold = 0.0
    for id in sorted(has_answer, key=lambda id: null_odds[id]):
        if has_answer[id]:
            total += scores[id]
        elif predicted[id]:
            total -= 1
        if total > best:
            best, threshold = total, null_odds[id]
    return best / len(questions), threshold


def _mean(values: Iterable[float]) -> float:
    found = list(values)
    return sum(found) / len(found)


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
