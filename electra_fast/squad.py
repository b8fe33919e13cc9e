"""Extractive question answering in SQuAD's format: reading, and the official exact match and F1."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from electra_fast.rows import ending, parse, read_text


@dataclass(frozen=True)
class Question:
    """A question on a context. answers: (start, text), each text == context[start : start + len(text)].

    There are none where the question is impossible to answer from the context, and where they are to be predicted.
    """

    id: str
    question: str
    context: str
    answers: tuple[tuple[int, str], ...] = ()
    impossible: bool = False


def read_squad(path: str | Path, labelled: bool = True) -> tuple[str, list[Question]]:
    """("squad1" or "squad2", the questions) of a .json file of SQuAD v1.1 or v2.0, in its order.

    It is v2.0 where its version says so or a question has the field is_impossible. labelled: False reads no answers.
    Raises ValueError on what is not of that form, naming the place; a span that is not in its context, an impossible
    question with answers, one of v1.1 without, naming the id; an id that occurs twice.
    """
    if ending(path) in (".jsonl", ".csv", ".tsv", ".txt"):
        raise ValueError(
            f"{path} ends in {ending(path)}; questions with answers are read from SQuAD's .json: convert it"
        )
    whole = parse(read_text(path), str(path))
    version = whole.get("version") if isinstance(whole, dict) else None
    squad2 = isinstance(version, str) and version.lstrip("v").startswith("2")
    questions: list[Question] = []
    for article, at_article in _items(whole, "data", str(path)):
        for paragraph, at_paragraph in _items(article, "paragraphs", at_article):
            context = _field(paragraph, "context", str, at_paragraph)
            if not context.strip():
                raise ValueError(f"{at_paragraph} has an empty context; fill or drop it")
            for qa, where in _items(paragraph, "qas", at_paragraph):
                squad2 = squad2 or "is_impossible" in qa
                questions.append(_question(qa, context, where, labelled))
    if not questions:
        raise ValueError(f"{path} has no questions; name a file with some in it")
    if labelled and not squad2 and (bad := next((q for q in questions if not q.answers), None)):
        raise ValueError(f"{path}, question {bad.id} has no answer; give one, or set is_impossible as SQuAD v2.0 does")
    if twice := next((id for id, n in Counter(q.id for q in questions).items() if n > 1), None):
        raise ValueError(f"{path} has the id {twice} twice; an id names one question: rename or drop it")
    return ("squad2" if squad2 else "squad1"), questions


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


PUNCTUATION = frozenset(string.punctuation)
ARTICLES = re.compile(r"\b(a|an|the)\b")


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


def read_answers(path: str | Path) -> dict[str, str]:
    """Predictions as SQuAD has them: a JSON object, id -> text. Raises ValueError where it is none."""
    found = parse(read_text(path), str(path))
    if not isinstance(found, dict):
        raise ValueError(f'{path} is a {type(found).__name__}; predictions are an object such as {{"id": "text"}}')
    if bad := next((id for id, text in found.items() if not isinstance(text, str)), None):
        raise ValueError(f"{path} has a {type(found[bad]).__name__} for {bad}; write a string, empty for no answer")
    return found


def _question(qa: Mapping[str, Any], context: str, where: str, labelled: bool) -> Question:
    id, question = _field(qa, "id", str, where), _field(qa, "question", str, where)
    if not labelled:
        return Question(id, question, context)
    where = f"{where}, question {id}"
    answers = tuple(_answer(found, context, at, where) for found, at in _items(qa, "answers", where))
    impossible = _field(qa, "is_impossible", bool, where) if "is_impossible" in qa else not answers
    if impossible == bool(answers):
        raise ValueError(
            f"{where} is impossible and has the answer {_short(answers[0][1])}; drop one or the other"
            if answers
            else f"{where} has is_impossible false and no answers; give one, or set it true"
        )
    return Question(id, question, context, answers, impossible)


def _answer(answer: dict[str, Any], context: str, at: str, where: str) -> tuple[int, str]:
    start, text = _field(answer, "answer_start", int, at), _field(answer, "text", str, at)
    there = context[start : start + len(text)] if start >= 0 else ""
    if not text or there != text:
        raise ValueError(
            f"{where} has the answer {_short(text)} at {start}, where its context has {_short(there)}; "
            "answer_start counts characters from 0: mend it"
        )
    return start, text


def _items(holder: Any, name: str, where: str) -> Iterator[tuple[dict[str, Any], str]]:
    for i, item in enumerate(_field(holder, name, list, where)):
        at = f"{where}, {name}[{i}]"
        if not isinstance(item, dict):
            raise ValueError(f"{at} is a {type(item).__name__}; SQuAD has an object there")
        yield item, at


def _field(holder: Any, name: str, kind: type, where: str) -> Any:
    found = sorted(holder) if isinstance(holder, dict) else type(holder).__name__
    if not isinstance(holder, dict) or name not in holder:
        raise ValueError(f"{where} has no {name!r} (found: {found}); SQuAD's files are data, paragraphs, qas, answers")
    value = holder[name]
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise ValueError(f"{where} has a {type(value).__name__} in {name!r}; SQuAD has a {kind.__name__} there")
    return value


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")
