"""The official scores of a fine-tuned model on labelled examples."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from electra_fast.data.tokenizer import Tokenizer
from electra_fast.tasks.answers import squad_scores
from electra_fast.tasks.examples import Dataset, check_labels
from electra_fast.tasks.labelsets import multilabel_scores
from electra_fast.tasks.model import Task, TaskModel
from electra_fast.tasks.predict import Advance, Predictions, predict
from electra_fast.tasks.scores import classification_scores, regression_scores, tagging_scores


def evaluate(
    model: TaskModel, tokenizer: Tokenizer, dataset: Dataset, advance: Advance = lambda n: None
) -> tuple[dict[str, float], Predictions]:
    """Predicts labelled examples and scores the predictions.

    Args:
        model: the model.
        tokenizer: its tokenizer.
        dataset: labelled examples of the model's kind of task.
        advance: called with the number of sequences done, after each batch.

    Returns: (scores by name, predictions). For SQuAD v2.0 `exact` and `f1` are those at the model's threshold for no
    answer, `best_exact` and `best_f1` those at the threshold that is best for these very questions.
    """
    predictions = predict(model, tokenizer, dataset.examples, advance)
    values, labels = predictions.values, model.task.labels
    examples: list[Any] = list(dataset.examples)
    if dataset.kind == "qa":
        return _answer_scores(predictions, examples, dataset.name or "squad1"), predictions
    if dataset.kind == "tagging":
        return tagging_scores(values, [sentence.tags for sentence in examples], labels), predictions
    gold = [example.label for example in examples]
    if dataset.kind == "regression":
        return regression_scores(values, gold), predictions
    if dataset.kind == "multilabel":
        return multilabel_scores(values, gold, labels), predictions
    return classification_scores(values, gold, labels), predictions


def _answer_scores(predictions: Predictions, questions: list[Any], name: str) -> dict[str, float]:
    answers = dict(zip((question.id for question in questions), predictions.values, strict=True))
    scores = squad_scores(answers, questions, name)
    if name == "squad2":
        always = squad_scores(predictions.answers, questions, name, predictions.null_odds)
        scores |= {key: value for key, value in always.items() if key.startswith("best_")}
    return scores


def fitted(task: Task, dataset: Dataset, path: Path) -> Task:
    """Fills in from a dataset what a model of transformers does not say of its task.

    It does not say whether it answers SQuAD v1.1 or v2.0, and its classes are LABEL_0, LABEL_1, ... unless somebody
    named them. Those take their names from the dataset: labels that are whole numbers below the number of classes are
    these classes' numbers (some may be missing in the data); as many labels as classes are taken in order.

    Args:
        task: what the model says.
        dataset: labelled examples.
        path: the file they were read from, for messages.

    Returns: the task, complete.

    Raises:
        ValueError: the dataset is of another kind of task, or has a label that the model does not know.
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
