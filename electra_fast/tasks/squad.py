"""Extractive question answering in SQuAD's format."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from electra_fast.tasks.examples import Question
from electra_fast.tasks.files import ending, parse, read_text


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
