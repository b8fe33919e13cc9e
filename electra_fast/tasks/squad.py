"""Questions on contexts: SQuAD's format, and the flat one that Hugging Face's datasets have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from electra_fast.tasks.examples import Question
from electra_fast.tasks.files import Malformed, ending, plural, read_json, type_name
from electra_fast.tasks.tables import read_table

FIELDS = ("id", "question", "context", "answers", "is_impossible", "qas", "paragraphs")
Placed = tuple[Mapping[str, Any], str, str]  # a question's fields, its context, its place with which an error begins


def read_questions(path: Path, training: bool, malformed: Malformed) -> tuple[str, list[Question], list[str]]:
    """The questions of a file with their answers.

    path: .json of SQuAD v1.1 or v2.0, or a list of its articles, of its paragraphs, or of questions with a context
    each; .jsonl or .parquet with one of these per row. Answers are a list of {"text", "answer_start"}, or
    {"text": [...], "answer_start": [...]}. An id may be a number; a question without one is counted from 0. An answer
    that is not where answer_start says is looked for: the nearest place with the same text is taken. training: leave
    out questions whose answers stand nowhere in their contexts; otherwise they are kept with a start of -1, as scores
    need no starts. malformed: takes the questions that cannot be read.

    Returns ("squad2" if the file's version is 2 or a question may be impossible, else "squad1"; the questions in
    order; notes for the user). Raises ValueError.
    """
    version, placed = _opened(path, malformed)
    squad2, questions = version.startswith("2"), list[Question]()
    moved, lost = 0, list[str]()
    for index, (qa, context, where) in enumerate(placed):
        squad2 = squad2 or qa.get("is_impossible") is not None
        try:
            question, elsewhere = _answered(qa, context, where, index, version)
        except ValueError as error:
            malformed.leave_out(where.removeprefix(f"{path}, "), error)
            continue
        squad2, moved = squad2 or question.impossible, moved + elsewhere
        if training and question.answers and all(start < 0 for start, _ in question.answers):
            lost.append(question.id)
        else:
            questions.append(question)
    notes = []
    if training and moved:
        notes.append(f"{path}: took {plural(moved, 'answer')} from the nearest place with its text, not answer_start")
    if lost:
        which = plural(len(lost), "question")
        notes.append(f"{path}: left out {which} whose answers stand nowhere in the context, such as {lost[0]}")
    if training:  # learning needs places
        questions = [_with_places(question) for question in questions]
    return ("squad2" if squad2 else "squad1"), questions, notes


def unanswered_questions(path: Path, malformed: Malformed) -> Iterator[Question]:
    """The questions of a file without their answers, as they are read; see `read_questions`."""
    for index, (qa, context, where) in enumerate(_opened(path, malformed)[1]):
        try:
            yield Question(_id(qa, where, index), _field(qa, "question", str, where), context)
        except ValueError as error:
            malformed.leave_out(where.removeprefix(f"{path}, "), error)


def _opened(path: Path, malformed: Malformed) -> tuple[str, Iterator[Placed]]:
    """("1.1", "2.0" or the like, "" where the file does not say it; the questions)."""
    if ending(path) in (".jsonl", ".parquet"):
        table = read_table(path, malformed)
        rows = ((row.cells, row.where) for row in table.rows(FIELDS))
        return "", (placed for item, where in rows for placed in _flat(item, where, malformed))
    if ending(path) in (".csv", ".tsv", ".txt"):
        raise ValueError(
            f"{path} ends in {ending(path)}; questions with answers are read from SQuAD's .json, .jsonl and .parquet: "
            "convert it"
        )
    whole, version, name = read_json(path), "", ""
    if isinstance(whole, dict) and not {"paragraphs", "qas", "question"} & whole.keys():
        version, name, whole = str(whole.get("version", "")).lstrip("v"), "data", _field(whole, "data", list, str(path))
    items = whole if isinstance(whole, list) else [whole]
    if not items:
        raise ValueError(f"{path} has no questions; name a file with some in it")
    places = ((item, f"{path}, {name}[{i}]") for i, item in enumerate(items))
    return version, (placed for item, where in places for placed in _flat(item, where, malformed))


def _flat(item: Any, where: str, malformed: Malformed, context: str | None = None) -> Iterator[Placed]:
    """The questions of an article, of a paragraph, or the one that the item is. context: of the paragraph around it."""
    try:
        if not isinstance(item, dict):
            raise ValueError(f"{where} is {type_name(type(item))}; SQuAD has an object there")
        inner = next((name for name in ("paragraphs", "qas") if item.get(name) is not None), None)
        if inner != "paragraphs" and context is None:
            context = _field(item, "context", str, where)
            if not context.strip():
                raise ValueError(f"{where} has an empty context; fill or drop it")
        items = [] if inner is None else _field(item, inner, list, where)
    except ValueError as error:
        malformed.leave_out(where.removeprefix(f"{malformed.path}, "), error)
        return
    if inner is None:
        yield item, str(context), where
    for i, each in enumerate(items):
        yield from _flat(each, f"{where}, {inner}[{i}]", malformed, context if inner == "qas" else None)


def _answered(qa: Mapping[str, Any], context: str, where: str, index: int, version: str) -> tuple[Question, int]:
    """(the question, how many of its answers are not where answer_start says)."""
    id, question = _id(qa, where, index), _field(qa, "question", str, where)
    where = f"{where}, question {id}"
    impossible = None if qa.get("is_impossible") is None else _field(qa, "is_impossible", bool, where)
    answers = [(start, text) for start, text in _answers(qa, where, bool(impossible)) if text.strip()]
    if impossible and answers:
        raise ValueError(f"{where} is impossible and has the answer {_short(answers[0][1])}; drop one or the other")
    if impossible is False and not answers:
        raise ValueError(f"{where} has is_impossible false and no answers; give one, or set it true")
    if not answers and version.startswith("1"):
        raise ValueError(f"{where} has no answer; give one, or set is_impossible as SQuAD v2.0 does")
    placed = [_placed(context, start, text) for start, text in answers]
    moved = sum(old != new and new >= 0 for (old, _), (new, _) in zip(answers, placed, strict=True))
    return Question(id, question, context, tuple(placed), not answers), moved


def _answers(qa: Mapping[str, Any], where: str, optional: bool) -> list[tuple[int, str]]:
    """(answer_start, -1 if there is none; text) of each answer."""
    value = qa.get("answers")
    if value is None and (optional or "answers" in qa):
        return []
    if isinstance(value, dict):  # the columns of a table, as Hugging Face's datasets have them
        texts, starts = _field(value, "text", list, f"{where}, answers"), value.get("answer_start")
        starts = starts if isinstance(starts, list) and len(starts) == len(texts) else [None] * len(texts)
        value = [{"text": text, "answer_start": start} for text, start in zip(texts, starts, strict=True)]
    found = []
    for i, answer in enumerate(_field({"answers": value} if value is not None else qa, "answers", list, where)):
        at = f"{where}, answers[{i}]"
        if not isinstance(answer, dict):
            raise ValueError(f"{at} is {type_name(type(answer))}; SQuAD has an object there")
        found.append((_start(answer.get("answer_start"), at), _field(answer, "text", str, at)))
    return found


def _start(value: Any, where: str) -> int:
    if value is None:
        return -1
    try:
        if isinstance(value, int | float | str) and not isinstance(value, bool):
            return int(value)
    except (ValueError, OverflowError):
        pass
    raise ValueError(f"{where} has {_short(str(value))} as 'answer_start'; SQuAD has a whole number there")


def _placed(context: str, start: int, text: str) -> tuple[int, str]:
    """The answer at the place nearest to start that has its text, (-1, text) if there is none."""
    if start >= 0 and context.startswith(text, start):
        return start, text
    for wanted in (text, text.strip()):
        before = context.rfind(wanted, 0, max(start, 0) + len(wanted))  # of the places up to start, the last
        places = [place for place in (before, context.find(wanted, max(start, 0))) if place >= 0]
        if places:
            return min(places, key=lambda place: abs(place - start)), wanted
    return -1, text


def _with_places(question: Question) -> Question:
    answers = tuple((start, text) for start, text in question.answers if start >= 0)
    return Question(question.id, question.question, question.context, answers, question.impossible)


def _id(qa: Mapping[str, Any], where: str, index: int) -> str:
    id = qa.get("id", index)
    if isinstance(id, bool) or not isinstance(id, str | int):
        raise ValueError(f"{where} has {type_name(type(id))} in 'id'; SQuAD has a string there")
    return str(id)


def _field(holder: Any, name: str, kind: type, where: str) -> Any:
    if not isinstance(holder, dict) or name not in holder:
        has = sorted(holder) if isinstance(holder, dict) else type_name(type(holder))
        raise ValueError(f"{where} has no {name!r} (found: {has}); SQuAD's files are data, paragraphs, qas, answers")
    if not isinstance(holder[name], kind):
        found = type_name(type(holder[name]))
        raise ValueError(f"{where} has {found} in {name!r}; SQuAD has {type_name(kind)} there")
    return holder[name]


def _short(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")
