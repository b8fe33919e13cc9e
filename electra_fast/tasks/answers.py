"""Answers to questions: predictions in SQuAD's format, and the exact match and F1 of its official scripts."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from electra_fast.tasks.examples import Question
from electra_fast.tasks.files import read_json

PUNCTUATION = frozenset(string.punctuation)
ARTICLES = re.compile(r"\b(a|an|the)\b")


def read_answers(path: str | Path) -> dict[str, str]:
    """Predictions as SQuAD has them: a JSON object, id -> text. Raises ValueError where it is none."""
    found = read_json(path)
    if not isinstance(found, dict):
        raise ValueError(f'{path} is a {type(found).__name__}; predictions are an object such as {{"id": "text"}}')
    if bad := next((id for id, text in found.items() if not isinstance(text, str)), None):
        raise ValueError(f"{path} has a {type(found[bad]).__name__} for {bad}; write a string, empty for no answer")
    return found


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
