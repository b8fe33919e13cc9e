"""Answers to questions: predictions in SQuAD's format, and the exact match and F1 of its official scripts."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from electra_fast.tasks.examples import Question
from electra_fast.tasks.files import read_json, type_name

PUNCTUATION = frozenset(string.punctuation)
ARTICLES = re.compile(r"\b(a|an|the)\b")


def read_answers(path: str | Path) -> dict[str, str]:
    """The predictions in a file as SQuAD has them: a JSON object, id -> text. Raises ValueError on anything else."""
    answers = read_json(path)
    if not isinstance(answers, dict):
        raise ValueError(f'{path} is {type_name(type(answers))}; predictions are an object such as {{"id": "text"}}')
    if bad := next((id for id, text in answers.items() if not isinstance(text, str)), None):
        raise ValueError(f"{path} has {type_name(type(answers[bad]))} for {bad}; write a string, empty for no answer")
    return answers


def squad_scores(
    predicted: Mapping[str, str],
    questions: Sequence[Question],
    name: str = "squad1",
    null_odds: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Scores of answers, as SQuAD's official scripts count them.

    predicted: id -> text. questions: with their gold answers. name: "squad1", or "squad2", where an empty text is the
    right answer to an impossible question. null_odds: id -> how likely it is that there is no answer, in any unit, for
    each prediction (squad2).

    Returns exact and f1, means over the questions in 0..1, and missing, the number of questions that predicted lacks.
    Texts are compared in lower case, without punctuation and articles: exact is 1 where they are equal, f1 is that of
    their words as bags, and of several gold answers the best counts. A missing prediction counts 0 (as in
    evaluate-v1.1.py; evaluate-v2.0.py leaves its question out). For squad2 also has_answer_exact and has_answer_f1,
    over the questions with an answer, and no_answer_exact, over those without; and with null_odds best_exact, best_f1
    and their thresholds (best_exact_threshold, ...): the best score that is reached if odds above a threshold make a
    prediction empty, and that threshold.

    Raises ValueError without questions, or on odds that are missing. Source: Rajpurkar et al., "SQuAD" (2016) and "Know
    What You Don't Know" (2018).
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
    """(best mean score, its threshold): all predictions begin as empty and are taken in by rising odds, as the official
    search does it, ties included."""
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
    scores = list(values)
    return sum(scores) / len(scores)
