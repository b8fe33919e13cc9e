"""Predictions of a fine-tuned model, for a list of examples or for a stream."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from electra_fast.data.tokenizer import Tokenizer
from electra_fast.report.terminal import say
from electra_fast.tasks.answer_spans import best_answers
from electra_fast.tasks.batch import TaskBatch, bucketed, collate
from electra_fast.tasks.examples import Question, Refused
from electra_fast.tasks.features import Feature, Featurizer
from electra_fast.tasks.heads import Dropout, wide
from electra_fast.tasks.model import Task, TaskModel
from electra_fast.tasks.windows import closer_windows

Advance = Callable[[int], None]  # is called with the number of sequences that are done


@dataclass(frozen=True)
class Predictions:
    """What a model says of examples.

    Attributes:
        values: one for each example. str (classification), labels (multilabel), float (regression), a tag for each word
            (tagging), text of the answer or "" for none (qa).
        details: for each example a JSON object with the value and its probabilities or score, as `predict` prints it.
        answers: id -> the best answer, also where the value says that there is none. qa only.
        null_odds: id -> how likely there is no answer. SQuAD v2.0 only.
        closer: how many questions were read in windows that are closer than the stride.
    """

    values: list[Any]
    details: list[dict[str, Any]]
    answers: dict[str, str] = dataclasses.field(default_factory=dict)
    null_odds: dict[str, float] = dataclasses.field(default_factory=dict)
    closer: int = 0

    def tell(self, model: TaskModel) -> None:
        """Prints on stderr, in a line, that windows are closer than the model's stride, if some are."""
        if self.closer:
            say(closer_windows(self.closer, "", model.settings.stride, model.max_length), sys.stderr)


def predict(
    model: TaskModel, tokenizer: Tokenizer, examples: Sequence[Any], advance: Advance = lambda n: None
) -> Predictions:
    """Predicts examples, whose labels are not looked at.

    Sequences of like length go through the model together. Long sentences and contexts are read in windows.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        examples: Examples, Sentences or Questions.
        advance: called after each batch.

    Returns: a prediction for each example, in order.
    """
    task = model.task
    bare = [unlabelled(example) for example in examples]
    featurizer = Featurizer(tokenizer, task.kind, task.labels, model.settings, model.max_length)
    features = featurizer(bare)
    if task.kind == "qa":
        return dataclasses.replace(_answers(model, bare, features, advance), closer=featurizer.closer)
    parts: list[list[Tensor]] = [[] for _ in examples]
    by_feature = dict(_logits(model, features, advance))
    for i, feature in enumerate(features):
        parts[feature.example].append(by_feature[i])
    logits = [torch.cat(each) if each else torch.zeros(0, max(1, len(task.labels))) for each in parts]
    if task.kind == "regression":
        numbers = [float(each[0]) * task.scale for each in logits]
        return Predictions(numbers, [{"value": number} for number in numbers])
    if task.kind == "tagging":
        tags = [tuple(task.labels[i] for i in each.argmax(-1).tolist()) for each in logits]
        words = [sentence.words for sentence in bare]
        return Predictions(tags, [{"words": w, "tags": t} for w, t in zip(words, tags, strict=True)])
    return _classes(task, [each[0] for each in logits])


def unlabelled(example: Any) -> Any:
    """A copy of an example without its label, tags or answers."""
    if isinstance(example, Question):
        return dataclasses.replace(example, answers=(), impossible=False)
    return dataclasses.replace(example, **{"tags" if hasattr(example, "tags") else "label": None})


def predict_stream(
    model: TaskModel, tokenizer: Tokenizer, examples: Iterable[Any], at_once: int
) -> Iterator[dict[str, Any]]:
    """Predicts a stream, as soon as `at_once` examples are read or the stream ends. At its end, `Predictions.tell`.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        examples: Examples, Sentences or Questions, and Refused for each line that holds none.
        at_once: number of examples.

    Yields: for each example, in order, its id and the details of its prediction; for each Refused its id and error.
    """
    stream = iter(examples)
    closer = 0
    while group := list(islice(stream, at_once)):
        predictions = predict(model, tokenizer, [each for each in group if not isinstance(each, Refused)])
        details, closer = iter(predictions.details), closer + predictions.closer
        for each in group:
            yield {"id": each.id, **({"error": each.error} if isinstance(each, Refused) else next(details))}
    Predictions([], [], closer=closer).tell(model)


def _classes(task: Task, logits: Sequence[Tensor]) -> Predictions:
    """The class of the highest probability, by softmax; for multilabel every label whose sigmoid is above a half.

    logits: (C,) for each example.
    """
    several = task.kind == "multilabel"
    rows = [(each.sigmoid() if several else each.softmax(-1)).tolist() for each in logits]
    shown = [{label: round(p, 6) for label, p in zip(task.labels, row, strict=True)} for row in rows]
    if several:
        sets = [tuple(label for label, p in zip(task.labels, row, strict=True) if p > 0.5) for row in rows]
        return Predictions(sets, [{"labels": s, "probabilities": p} for s, p in zip(sets, shown, strict=True)])
    classes = [task.labels[int(each.argmax())] for each in logits]
    return Predictions(classes, [{"label": c, "probabilities": p} for c, p in zip(classes, shown, strict=True)])


def _answers(
    model: TaskModel, questions: Sequence[Question], features: Sequence[Feature], advance: Advance
) -> Predictions:
    """The best answers, or none for SQuAD v2.0 where its odds are above the model's threshold."""
    can_lack = model.task.benchmark == "squad2"
    values, details = [], []
    best = best_answers(model, questions, features, _batches(model, features, advance))
    for answer in best:
        value = "" if can_lack and answer.null_odds > model.task.null_threshold else answer.text
        detail: dict[str, Any] = {"answer": value}
        if value:
            detail |= {"start": answer.start, "score": answer.score}
        if can_lack:
            detail["null_odds"] = answer.null_odds
        values.append(value)
        details.append(detail)
    ids = [question.id for question in questions]
    texts = dict(zip(ids, (answer.text for answer in best), strict=True))
    odds = dict(zip(ids, (answer.null_odds for answer in best), strict=True))
    return Predictions(values, details, texts, odds if can_lack else {})


@torch.no_grad()
def _logits(model: TaskModel, features: Sequence[Feature], advance: Advance) -> Iterator[tuple[int, Tensor]]:
    """(index of the feature, its logits (positions, C) on the CPU) for every feature, in any order."""
    for indices, batch, hidden in _batches(model, features, advance):
        seeds = torch.zeros(2, dtype=torch.int64, device=hidden.device)  # of a dropout that drops nothing
        logits = wide(model.head(hidden, batch, Dropout(0.0, seeds))).cpu()
        yield from zip(indices, logits.split([len(features[i].positions) for i in indices]), strict=True)


@torch.no_grad()
def _batches(
    model: TaskModel, features: Sequence[Feature], advance: Advance
) -> Iterator[tuple[list[int], TaskBatch, Tensor]]:
    """(indices of N features, their batch on the device, its hidden rows (T, D)) until every feature is done."""
    model.eval()
    device = next(model.parameters()).device
    seed = torch.zeros(1, dtype=torch.int64, device=device)
    for indices in bucketed(features):
        batch = collate([features[i] for i in indices], indices, model.task.kind).to(device)
        yield indices, batch, model.hidden(batch, seed, seed)
        advance(len(indices))
