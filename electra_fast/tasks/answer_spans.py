"""The answers to questions: the best spans of their contexts, over the windows in which these are read."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from electra_fast.tasks.batch import TaskBatch
from electra_fast.tasks.examples import Question
from electra_fast.tasks.features import Feature
from electra_fast.tasks.heads import NEVER
from electra_fast.tasks.model import TaskModel
from electra_fast.tasks.settings import FinetuneConfig


@dataclass(frozen=True)
class Answer:
    """The best answer to a question, and how sure the model is.

    Attributes:
        text: characters of the context; "" if no span is allowed.
        start: index of its first character.
        score: log-probability, or sum of logits (head "huggingface").
        null_odds: how likely the question has no answer; larger is likelier.
    """

    text: str
    start: int
    score: float
    null_odds: float


@torch.no_grad()
def best_answers(
    model: TaskModel,
    questions: Sequence[Question],
    features: Sequence[Feature],
    batches: Iterable[tuple[list[int], TaskBatch, Tensor]],
) -> list[Answer]:
    """The answer of the highest score among the windows of each question, and its lowest odds of no answer.

    Args:
        model: a model for qa.
        questions: Q questions.
        features: their windows, each of which names its question.
        batches: all windows: their indices (N,), the batch, its hidden rows (T, D).

    Returns: Q answers.
    """
    config = model.settings
    spans: list[tuple[float, int, int]] = [(-float("inf"), 0, 0)] * len(questions)
    odds = [float("inf")] * len(questions)
    for indices, batch, hidden in batches:
        parts = [t.cpu() for t in model.head.spans(hidden, batch, config.beam)]
        for row, index in enumerate(indices):
            feature = features[index]
            span = best_span(feature, [t[row] for t in parts[:4]], config)
            spans[feature.example] = max(spans[feature.example], span)
            null = float(parts[4][row])
            if config.head == "huggingface":  # the score of no answer, less that of the best one
                null = null - span[0] if span[0] > -float("inf") else -NEVER
            odds[feature.example] = min(odds[feature.example], null)
    answers = []
    for question, (score, start, end), null in zip(questions, spans, odds, strict=True):
        text = question.context[start : grapheme_end(question.context, end)] if start < end else ""
        answers.append(Answer(text, start, score, null))
    return answers


def best_span(feature: Feature, beam: Sequence[Tensor], config: FinetuneConfig) -> tuple[float, int, int]:
    """The best answer in a window.

    It lies in the context, ends where it begins or later, has at most config.answer_length tokens, and its first token
    is one that this window shows more around than the others do.

    Args:
        feature: the window.
        beam: k start scores (k,) and their places in the sequence (k,), then for each start k end scores (k, k) and
            places (k, k).
        config: settings of the model.

    Returns: (score, index of its first character, index behind its last); (-inf, 0, 0) if no answer is allowed.
    """
    start, starts, end, ends = beam
    first, behind = feature.context
    central = torch.zeros(behind + 2, dtype=torch.bool)
    central[first:behind] = torch.tensor(feature.central, dtype=torch.bool)
    columns = starts[:, None].expand_as(ends)
    allowed = central[columns.clamp(max=behind)] & (ends >= columns) & (ends < behind)
    allowed &= ends - columns < config.answer_length
    scores = torch.where(allowed, start[:, None] + end, -float("inf"))
    best = int(scores.argmax())
    if not allowed.flatten()[best]:
        return -float("inf"), 0, 0
    a, b = int(columns.flatten()[best]) - first, int(ends.flatten()[best]) - first
    return float(scores.flatten()[best]), feature.offsets[a][0], feature.offsets[b][1]


def grapheme_end(text: str, end: int) -> int:
    """The index behind the combining marks that begin at `end`.

    In decomposed text (NFD) "é" is "e" and a mark, and a tokenizer that strips accents counts the mark to no token.
    """
    while end < len(text) and unicodedata.category(text[end]).startswith("M"):
        end += 1
    return end
