"""The tasks a discriminator is fine-tuned for, and the reading of their files."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from electra_fast.tasks.benchmarks import BENCHMARKS
from electra_fast.tasks.examples import Columns, Dataset, Example, Question, Refused, Sentence, check_kind
from electra_fast.tasks.files import Malformed, check_file, decode, ending, parse_object, plural, read_lines
from electra_fast.tasks.sentences import read_sentences, sentence_of, untagged_sentences
from electra_fast.tasks.squad import read_questions, unanswered_questions
from electra_fast.tasks.texts import read_texts, row_id, row_string, row_texts, unlabelled_texts

STREAMED = {  # endings of files without labels that are read as stdin is
    "classification": (".txt",),
    "multilabel": (".txt",),
    "regression": (".txt",),
    "tagging": (),
    "qa": (".txt", ".tsv"),
}


def read_dataset(
    path: str | Path,
    kind: str,
    *,
    columns: Columns | None = None,
    labelled: bool = True,
    training: bool = False,
    benchmark: str | None = None,
    max_bad_lines: int = 10,
) -> Dataset:
    """The examples of a file, each checked.

    path: the file, also packed as .xz or .gz. "-" is stdin, without labels alone (`stream_examples`).
    kind: one of KINDS. classification, regression: a published file of GLUE, MultiNLI or SNLI, which is known by its
    header (CoLA's by its four columns), or .tsv, .csv, .jsonl, .parquet or .txt with tabs, with columns named text,
    text2 (if there), label or labels, and id (if there; else rows are counted from 0). multilabel: the same, with a
    list of labels in .jsonl and .parquet, and in other files | between labels, or commas if the file has no |; lists
    that are read for "classification" make the dataset's kind "multilabel". tagging: columns, or lists in .jsonl and
    .parquet (`read_sentences`). qa: SQuAD's formats (`read_questions`).
    columns: the names of the columns; they also stop the look-out for published files.
    labelled: False reads no labels, and plain .txt too (`stream_examples`).
    training: leave out what can't be learned from: questions whose answers stand nowhere in their contexts.
    benchmark: what to take a file for whose header fits several, as test files of RTE and WNLI do; unless given, its
    folder's name tells.
    max_bad_lines: how many malformed lines, or questions of a .json, may be left out.

    Raises ValueError, FileNotFoundError or ImportError, in one sentence: path and line, what was found, what is wanted.
    """
    check_kind(kind)
    if str(path) != "-":
        check_file(path)
    malformed = Malformed(path, max_bad_lines, "question" if ending(path) == ".json" else "line")
    name, labels, notes = benchmark, list[str](), list[str]()
    examples: list[Any]
    if not labelled:
        name, found = _unlabelled(path, kind, columns, benchmark, malformed)
        examples = list(found)
        labels = list(BENCHMARKS[name].labels) if name and kind == "classification" else []
    elif str(path) == "-":
        raise ValueError("labels are not read from stdin; give the name of a file")
    elif kind == "qa":
        name, examples, notes = read_questions(Path(path), training, malformed)
    elif kind == "tagging":
        name, examples, labels = read_sentences(Path(path), columns, benchmark, malformed)
    else:
        name, examples, labels, notes = read_texts(Path(path), kind, columns, benchmark, malformed)
        if any(isinstance(example.label, tuple) for example in examples):
            kind = "multilabel"
    if not examples:
        what = {"tagging": "sentences", "qa": "questions"}.get(kind, "examples")
        empty = f"{path} has no {what}; name a file with some in it"
        if str(path) == "-":
            empty = "stdin is empty; write an example a line into it"
        raise malformed.first or ValueError(empty)
    if twice := next((id for id, count in Counter(example.id for example in examples).items() if count > 1), None):
        raise ValueError(f"{path} has the id {twice} twice; an id names one example: rename or drop it")
    return Dataset(kind, name, examples, labels, (*notes, *malformed.notes()))


def unlabelled_examples(
    path: str | Path,
    kind: str,
    malformed: Malformed,
    *,
    columns: Columns | None = None,
    benchmark: str | None = None,
) -> Iterator[Example | Sentence | Question]:
    """The examples of a file without their labels, one by one as they are read, whatever the size of the file.

    malformed: takes what is left out. The other arguments, and what is raised: as of `read_dataset`.
    """
    check_kind(kind)
    check_file(path)
    return _unlabelled(path, kind, columns, benchmark, malformed)[1]


def _unlabelled(
    path: str | Path, kind: str, columns: Columns | None, benchmark: str | None, malformed: Malformed
) -> tuple[str | None, Iterator[Any]]:
    if str(path) == "-":
        return benchmark, _accepted(stream_examples(sys.stdin.buffer, kind, columns=columns), malformed)
    path = Path(path)
    if ending(path) in STREAMED[kind] and not _is_table(path, kind, columns or Columns()):
        return benchmark, _accepted(stream_examples(read_lines(path), kind, columns=columns, name=str(path)), malformed)
    if kind == "qa":
        return None, unanswered_questions(path, malformed)
    if kind == "tagging":
        return None, untagged_sentences(path, columns, malformed)
    return unlabelled_texts(path, kind, columns, benchmark, malformed)


def _is_table(path: Path, kind: str, columns: Columns) -> bool:
    """Whether the first line of a .txt file names columns with tabs between them."""
    if kind not in ("classification", "multilabel", "regression"):
        return False
    (line,) = islice(read_lines(path), 1)
    header = [name.strip() for name in line.decode(errors="replace").split("\t")]
    return len(header) > 1 and (columns.text in header or any(known.has(header) for known in BENCHMARKS.values()))


def _accepted(examples: Iterable[Any], malformed: Malformed) -> Iterator[Any]:
    for example in examples:
        if isinstance(example, Refused):
            malformed.leave_out(example.line, ValueError(example.error))
        else:
            yield example


def stream_examples(
    lines: Iterable[bytes], kind: str, *, columns: Columns | None = None, texts: int | None = None, name: str = "stdin"
) -> Iterator[Example | Sentence | Question | Refused]:
    """Unlabelled examples from lines, one by one as they come; Refused for a line that holds none.

    Plain text: one text a line, which may be empty, or two with a tab between them; for tagging words with white space
    between them; for qa a question, a tab, a context. Or .jsonl where the first line begins with "{": fields as
    `columns` names them; words (a list); question and context. The id is the field id, or counts from 0 the examples
    and the lines refused.

    texts: how many texts a line must have; as many as the first that is no error by default.
    """
    check_kind(kind)
    columns = columns or Columns()
    count = 0  # lines that hold an example or are refused
    jsonl: bool | None = None
    for number, data in enumerate(lines, 1):
        where, id = f"{name}, line {number}", str(count)
        example: Example | Sentence | Question | Refused
        try:
            line = decode(data, where).removeprefix("\ufeff")
            blank = not line.strip()
            if jsonl is None and not blank:
                jsonl = line.lstrip().startswith("{")
            if blank and (jsonl or kind in ("tagging", "qa")):
                continue
            if jsonl:
                row = parse_object(line, where)
                id = row_id(row, columns, where, count)
                example = _of_object(row, id, kind, columns, where)
            else:
                example = _of_line(line, id, kind, where)
            if isinstance(example, Example):
                texts = texts or len(example.texts)
                if len(example.texts) != texts:
                    found = plural(len(example.texts), "text")
                    raise ValueError(f"{where} has {found}; {texts}, as the model or the first line has, are wanted")
        except ValueError as error:
            example = Refused(id, str(error), number)
        yield example
        count += 1


def _of_object(row: dict[str, Any], id: str, kind: str, columns: Columns, where: str) -> Example | Sentence | Question:
    if kind == "tagging":
        return sentence_of(row, where, id, columns.word or "words")
    if kind == "qa":
        question, context = (row_string(row, name, where) for name in ("question", "context"))
        return _question(id, (question, context), where)
    return Example(id, row_texts(row, columns, where, columns.text2 in row))


def _of_line(line: str, id: str, kind: str, where: str) -> Example | Sentence | Question:
    if kind == "tagging":
        return Sentence(id, tuple(line.split()))
    texts = tuple(line.split("\t"))
    if kind == "qa":
        return _question(id, texts, where)
    if len(texts) > 2:
        found = plural(len(texts), "text")
        raise ValueError(f"{where} has {found}; one text, or two with a tab between them, are wanted")
    return Example(id, texts)


def _question(id: str, texts: tuple[str, ...], where: str) -> Question:
    if len(texts) != 2 or not texts[1].strip():
        raise ValueError(f"{where} has {plural(len(texts), 'part')}; a question, a tab and a context are wanted")
    return Question(id, *texts)
