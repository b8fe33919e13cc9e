"""What a fine-tuned model says: of examples, with scores where labels are there, and of streams."""

from __future__ import annotations

import dataclasses
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from electra_fast.data.tokenizer import Tokenizer
from electra_fast.tasks.answers import squad_scores
from electra_fast.tasks.examples import Dataset, Question, check_labels
from electra_fast.tasks.features import Feature, Featurizer, bucketed, collate
from electra_fast.tasks.heads import NEVER, Dropout, TaskBatch, wide
from electra_fast.tasks.labelsets import multilabel_scores
from electra_fast.tasks.model import Task, TaskModel
from electra_fast.tasks.scores import classification_scores, regression_scores, tagging_scores
from electra_fast.tasks.settings import FinetuneConfig

Advance = Callable[[int], None]  # told of features that are done


@dataclass(frozen=True)
class Predictions:
    """values: one an example, a class, a tuple of labels, a number, a tuple of tags or an answer, "" for none.

    details: what is known beside it, as `predict` prints it. answers: of qa, with an answer everywhere; null_odds: how
    likely it is that there is none.
    """

    values: list[Any]
    details: list[dict[str, Any]]
    answers: dict[str, str] = dataclasses.field(default_factory=dict)
    null_odds: dict[str, float] = dataclasses.field(default_factory=dict)


def predict(
    model: TaskModel, tokenizer: Tokenizer, examples: Sequence[Any], advance: Advance = lambda n: None
) -> Predictions:
    """Predictions for Examples, Sentences or Questions; their labels are not looked at.

    Sequences go through the model in batches of like length; long sentences and contexts as overlapping windows.
    """
    task = model.task
    bare = [unlabelled(example) for example in examples]
    featurizer = Featurizer(tokenizer, task.kind, task.labels, model.settings, model.max_length)
    features = featurizer(bare)
    if task.kind == "qa":
        return _answers(model, bare, features, advance)
    rows: list[list[Tensor]] = [[] for _ in examples]
    found = dict(_rows(model, features, advance))
    for i, feature in enumerate(features):
        rows[feature.example].append(found[i])
    logits = [torch.cat(parts) if parts else torch.zeros(0, max(1, len(task.labels))) for parts in rows]
    if task.kind == "regression":
        numbers = [float(each[0]) * task.scale for each in logits]
        return Predictions(numbers, [{"value": number} for number in numbers])
    if task.kind == "multilabel":
        return _label_sets(task.labels, logits)
    chances = [each.softmax(-1) for each in logits]
    if task.kind == "tagging":
        tags = [tuple(task.labels[i] for i in each.argmax(-1).tolist()) for each in chances]
        words = [sentence.words for sentence in bare]
        return Predictions(tags, [{"words": w, "tags": t} for w, t in zip(words, tags, strict=True)])
    classes = [task.labels[int(each[0].argmax())] for each in chances]
    shown = [dict(zip(task.labels, (round(p, 6) for p in each[0].tolist()), strict=True)) for each in chances]
    return Predictions(classes, [{"label": c, "probabilities": p} for c, p in zip(classes, shown, strict=True)])


def _label_sets(labels: Sequence[str], logits: Sequence[Tensor]) -> Predictions:
    """The labels whose probability, the sigmoid of their logit, is above a half: any number of them."""
    rows = [each[0].sigmoid().tolist() for each in logits]
    sets = [tuple(label for label, p in zip(labels, row, strict=True) if p > 0.5) for row in rows]
    shown = [dict(zip(labels, (round(p, 6) for p in row), strict=True)) for row in rows]
    return Predictions(sets, [{"labels": s, "probabilities": p} for s, p in zip(sets, shown, strict=True)])


def unlabelled(example: Any) -> Any:
    """The example as it is where nothing is known of its label."""
    if isinstance(example, Question):
        return dataclasses.replace(example, answers=(), impossible=False)
    return dataclasses.replace(example, **{"tags" if hasattr(example, "tags") else "label": None})


def evaluate(
    model: TaskModel, tokenizer: Tokenizer, dataset: Dataset, advance: Advance = lambda n: None
) -> tuple[dict[str, float], Predictions]:
    """The official scores on labelled examples, and the predictions.

    Of qa with impossible questions `exact` and `f1` are those at the model's threshold, and the `best_` ones those at
    the best threshold for these very questions.
    """
    found = predict(model, tokenizer, dataset.examples, advance)
    examples: list[Any] = list(dataset.examples)
    if dataset.kind == "qa":
        name = dataset.name or "squad1"
        final = dict(zip((q.id for q in examples), found.values, strict=True))
        scores = squad_scores(final, examples, name)
        if name == "squad2":
            always = squad_scores(found.answers, examples, name, found.null_odds)
            scores |= {key: value for key, value in always.items() if key.startswith("best_")}
        return scores, found
    if dataset.kind == "tagging":
        return tagging_scores(found.values, [s.tags for s in examples], model.task.labels), found
    gold = [example.label for example in examples]
    if dataset.kind == "regression":
        return regression_scores(found.values, gold), found
    if dataset.kind == "multilabel":
        return multilabel_scores(found.values, gold, model.task.labels), found
    return classification_scores(found.values, gold, model.task.labels), found


def fitted(task: Task, dataset: Dataset, path: Path) -> Task:
    """The task with what a model of transformers leaves open filled in from the dataset, which was read from path.

    Such a model does not say whether it answers SQuAD v1.1 or v2.0, and its classes are LABEL_0, LABEL_1, ... unless
    somebody named them. Those take their names from the dataset: labels that are whole numbers below the number of
    classes are these classes' numbers (some may be missing in the data); as many labels as classes are taken in order.
    Raises ValueError where the dataset has a label that the model does not know.
    """
    if dataset.kind != task.kind:
        raise ValueError(
            f"{path} holds data for {dataset.kind}, and the model was trained for {task.kind}; name another file"
        )
    if dataset.name == "squad2":
        task = dataclasses.replace(task, benchmark="squad2")
    unnamed = tuple(f"LABEL_{i}" for i in range(len(task.labels)))
    if unnamed and task.labels == unnamed and not set(dataset.labels) <= set(unnamed):
        task = dataclasses.replace(task, labels=_names(len(unnamed), dataset.labels, path))
    check_labels(Dataset(task.kind, task.benchmark, [], list(task.labels)), dataset, path)
    return task


def _names(classes: int, labels: list[str], path: Path) -> tuple[str, ...]:
    """The names of classes that have none, from the labels of the file at path."""
    numbers = tuple(map(str, range(classes)))
    if set(labels) <= set(numbers):
        return numbers
    if len(labels) == classes:
        return tuple(labels)
    raise ValueError(
        f"{path} has the labels {', '.join(labels[:20])}, and the model's {classes} classes have no names (LABEL_0, "
        "LABEL_1, ...); write their names in order into id2label and label2id of its config.json"
    )


def predict_stream(
    model: TaskModel, tokenizer: Tokenizer, examples: Iterable[Any], at_once: int
) -> Iterator[dict[str, Any]]:
    """A row for each example of a stream, in order, as soon as a group of `at_once` (or the end) is read."""
    left = iter(examples)
    while group := list(islice(left, at_once)):
        found = predict(model, tokenizer, group)
        for example, detail in zip(group, found.details, strict=True):
            yield {"id": example.id, **detail}


@torch.no_grad()
def _batches(
    model: TaskModel, features: Sequence[Feature], advance: Advance
) -> Iterator[tuple[list[int], TaskBatch, Tensor]]:
    """Feature numbers, the batch on the device, its hidden rows."""
    model.eval()
    device = next(model.parameters()).device
    key = torch.zeros(1, dtype=torch.int64, device=device)
    for names in bucketed(features):
        asked = collate([features[i] for i in names], names, model.task.kind).to(device)
        yield names, asked, model.hidden(asked, key, key)
        advance(len(names))


@torch.no_grad()
def _rows(model: TaskModel, features: Sequence[Feature], advance: Advance) -> Iterator[tuple[int, Tensor]]:
    """Feature number, logits (positions, C) on the host."""
    for names, asked, hidden in _batches(model, features, advance):
        key = torch.zeros(2, dtype=torch.int64, device=hidden.device)
        logits = wide(model.head(hidden, asked, Dropout(0.0, key))).cpu()
        yield from zip(names, logits.split([len(features[i].positions) for i in names]), strict=True)


@torch.no_grad()
def _answers(
    model: TaskModel, questions: Sequence[Question], features: Sequence[Feature], advance: Advance
) -> Predictions:
    """The best span over the windows of each question, and the least odds of no answer."""
    config, task = model.settings, model.task
    best: list[tuple[float, int, int]] = [(-float("inf"), 0, 0)] * len(questions)
    odds = [float("inf")] * len(questions)
    for names, asked, hidden in _batches(model, features, advance):
        parts = [t.cpu() for t in model.head.spans(hidden, asked, config.beam)]
        for row, name in enumerate(names):
            feature = features[name]
            span = best_span(feature, [t[row] for t in parts[:4]], config)
            best[feature.example] = max(best[feature.example], span)
            null = float(parts[4][row])
            if config.head == "huggingface":  # no answer against the best one
                null = null - span[0] if span[0] > -float("inf") else -NEVER
            odds[feature.example] = min(odds[feature.example], null)
    can_lack = task.benchmark == "squad2"
    values, details, answers, null_odds = [], [], {}, {}
    for question, (score, start, end), null in zip(questions, best, odds, strict=True):
        text = question.context[start : grapheme_end(question.context, end)] if start < end else ""
        answers[question.id], null_odds[question.id] = text, null
        value = "" if can_lack and null > task.null_threshold else text
        detail: dict[str, Any] = {"answer": value}
        if value:
            detail |= {"start": start, "score": score}
        values.append(value)
        details.append(detail | ({"null_odds": null} if can_lack else {}))
    return Predictions(values, details, answers, null_odds if can_lack else {})


def grapheme_end(text: str, end: int) -> int:
    """`end`, moved behind the combining marks that follow: a tokenizer that strips accents counts none of them to a
    token, and the "é" of decomposed text (NFD) is "e" and a mark."""
    while end < len(text) and unicodedata.category(text[end]).startswith("M"):
        end += 1
    return end


def best_span(feature: Feature, beam: Sequence[Tensor], config: FinetuneConfig) -> tuple[float, int, int]:
    """(score, first character, behind the last) of the best answer that may be: in the context, in order, not too
    long, its start where this window shows the most around it."""
    start, starts, end, ends = beam
    first, behind = feature.context
    central = torch.zeros(behind + 2, dtype=torch.bool)
    central[first:behind] = torch.tensor(feature.central, dtype=torch.bool)
    columns = starts[:, None].expand_as(ends)
    may = central[columns.clamp(max=behind)] & (ends >= columns) & (ends < behind)
    may &= ends - columns < config.answer_length
    scores = torch.where(may, start[:, None] + end, -float("inf"))
    number = int(scores.argmax())
    if not may.flatten()[number]:
        return -float("inf"), 0, 0
    a, b = int(columns.flatten()[number]) - first, int(ends.flatten()[number]) - first
    return float(scores.flatten()[number]), feature.offsets[a][0], feature.offsets[b][1]
