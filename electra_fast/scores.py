"""Official metrics of the fine-tuning tasks."""

from __future__ import annotations

from collections.abc import Sequence

PRIMARY = {
    "cola": "matthews", "sst2": "accuracy", "mrpc": "f1", "rte": "accuracy", "wnli": "accuracy", "qnli": "accuracy",
    "stsb": "spearman", "conll2000": "f1", "squad1": "f1", "squad2": "f1",
}  # fmt: skip


def primary(kind: str, name: str | None) -> str:
    """The figure a benchmark is ranked by; without a benchmark: accuracy, spearman, f1 (tagging, qa)."""
    default = {"classification": "accuracy", "regression": "spearman", "tagging": "f1", "qa": "f1"}
    return PRIMARY.get(name or "", default[kind])


def classification_scores(predicted: Sequence[str], gold: Sequence[str], labels: Sequence[str]) -> dict[str, float]:
    """accuracy, f1 (of the second class where there are two, else the mean over classes), matthews; all 0..1."""
    raise NotImplementedError


def regression_scores(predicted: Sequence[float], gold: Sequence[float]) -> dict[str, float]:
    """pearson, spearman, and their mean."""
    raise NotImplementedError


def tagging_scores(predicted: Sequence[Sequence[str]], gold: Sequence[Sequence[str]]) -> dict[str, float]:
    """precision, recall, f1 of whole spans as conlleval counts them, and accuracy of tags."""
    raise NotImplementedError
