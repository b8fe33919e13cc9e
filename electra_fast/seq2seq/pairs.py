"""Sources and their references, from tables, parallel files and SQuAD's files."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from electra_fast.seq2seq.sentences import split_sentences
from electra_fast.tasks.examples import Columns, Refused
from electra_fast.tasks.files import Malformed, check_file, decode, ending, parse_object, plural, read_lines, type_name
from electra_fast.tasks.squad import read_questions, unanswered_questions
from electra_fast.tasks.tables import read_table
from electra_fast.tasks.texts import row_id

Writing = Literal["summarization", "translation", "answering", "extractive"]
WRITINGS: tuple[str, ...] = get_args(Writing)
SOURCES = ("source", "text", "document", "article")  # usual names of the columns, the first that is there is read
TARGETS = ("target", "summary", "translation", "highlights", "answer")
IDS = ("id", "paper_id")


@dataclass(frozen=True)
class Pair:
    """A source and what is to be written of it.

    Attributes:
        id: of the example.
        texts: the source; for answering the question and its context.
        references: the texts that are right, of which any one counts; none where they are to be predicted.
        sentences: the source's sentences (extractive).
    """

    id: str
    texts: tuple[str, ...]
    references: tuple[str, ...] = ()
    sentences: tuple[str, ...] = ()


def read_pairs(
    path: Path, task: str, columns: Columns | None = None, labelled: bool = True, max_bad_lines: int = 10
) -> tuple[list[Pair], list[str]]:
    """The examples of a file.

    path: .csv, .tsv, .jsonl or .parquet with a column of sources and one of targets; for answering SQuAD's .json, or
    one of its flat forms. A field of .jsonl and .parquet may hold a list: of the sentences of a source, or of several
    references, as SciTLDR has both. .txt without labels has a source a line.
    columns: names of the columns (text, label, id); the usual ones by default (SOURCES, TARGETS, IDS).
    labelled: whether references are read.
    max_bad_lines: malformed lines that may be left out.

    Returns (the pairs, notes for the user). Raises ValueError, FileNotFoundError or ImportError, in one sentence.
    """
    malformed = Malformed(check_file(path), max_bad_lines, "question" if ending(path) == ".json" else "line")
    notes: list[str] = []
    if task == "answering" and labelled:
        _, questions, notes = read_questions(path, False, malformed)
        pairs = [
            Pair(q.id, (q.question, q.context), tuple(dict.fromkeys(text for _, text in q.answers)) or ("",))
            for q in questions
        ]
    else:
        pairs = list(stream_pairs(path, task, malformed, columns, labelled))
    if not pairs:
        raise malformed.first or ValueError(f"{path} has no examples; name a file with some in it")
    return pairs, [*notes, *malformed.notes()]


def stream_pairs(
    path: Path, task: str, malformed: Malformed, columns: Columns | None = None, labelled: bool = False
) -> Iterator[Pair]:
    """The examples of a file one by one, as `read_pairs` reads them; answering without answers alone."""
    if task == "answering" and ending(path) not in (".txt", ".tsv"):
        for question in unanswered_questions(path, malformed):
            yield Pair(question.id, (question.question, question.context))
        return
    if ending(path) == ".txt" or task == "answering":
        for pair in pairs_of_lines(read_lines(path), task, columns, str(path)):
            if isinstance(pair, Refused):
                malformed.leave_out(pair.line, ValueError(pair.error))
            else:
                yield pair
        return
    table = read_table(path, malformed)
    names = _named(table.header, columns, str(path), labelled)
    for row in table.rows([name for name in names if name]):
        try:
            yield _pair(row.cells, names, task, row.where, row.number)
        except ValueError as error:
            malformed.leave_out(row.line, error)


def read_parallel(source: Path, target: Path) -> list[Pair]:
    """The pairs of two files of which line n of one is the translation of line n of the other, packed or not.

    Raises ValueError, naming the line, if a line is empty or the files do not have equally many.
    """
    sides: list[list[str]] = []
    for path in (source, target):
        sides.append([decode(line, f"{path}, line {n}").strip() for n, line in enumerate(read_lines(path), 1)])
    sources, targets = sides
    if len(sources) != len(targets):
        shorter, longer = (source, target) if len(sources) < len(targets) else (target, source)
        fewer, more = sorted((len(sources), len(targets)))
        raise ValueError(
            f"{shorter} has {plural(fewer, 'line')} and {longer} {more}: line {fewer + 1} of {longer} has no "
            f"counterpart; line n of one file must be the translation of line n of the other"
        )
    for path, lines in ((source, sources), (target, targets)):
        if empty := next((n for n, line in enumerate(lines, 1) if not line), None):
            raise ValueError(f"{path}, line {empty} is empty; fill it, or drop it from both files")
    return [Pair(str(n), (a,), (b,)) for n, (a, b) in enumerate(zip(sources, targets, strict=True))]


def pairs_of_lines(
    lines: Iterable[bytes], task: str, columns: Columns | None = None, name: str = "stdin"
) -> Iterator[Pair | Refused]:
    """Sources from lines, one by one as they come; Refused for a line that holds none.

    A line is a source, for answering a question, a tab and its context; or, where the first line begins with "{", a
    JSON object with the fields that `read_pairs` describes, for answering question and context.
    """
    count = 0
    json: bool | None = None
    for number, data in enumerate(lines, 1):
        where = f"{name}, line {number}"
        pair: Pair | Refused
        try:
            line = decode(data, where).removeprefix("\ufeff")
            if not line.strip():
                continue
            json = line.lstrip().startswith("{") if json is None else json
            if json:
                row = parse_object(line, where)
                names: tuple[str, str | None, str | None] = ("", None, "id" if "id" in row else None)
                if task != "answering":
                    names = _named(tuple(row), columns, where, False)
                pair = _pair(row, names, task, where, count)
            elif task == "answering":
                question, tab, context = line.partition("\t")
                if not tab or not context.strip():
                    raise ValueError(f"{where} has no tab; a question, a tab and a context are wanted")
                pair = Pair(str(count), (question, context))
            else:
                sentences = split_sentences(line) if task == "extractive" else ()
                pair = Pair(str(count), (line.strip(),), (), tuple(sentences))
        except ValueError as error:
            pair = Refused(str(count), str(error), number)
        yield pair
        count += 1


def stdin_pairs(task: str, columns: Columns | None) -> Iterator[Pair | Refused]:
    """The sources that stdin has, one a line, as they come."""
    return pairs_of_lines(sys.stdin.buffer, task, columns)


def _named(
    header: tuple[str, ...], columns: Columns | None, where: str, labelled: bool
) -> tuple[str, str | None, str | None]:
    """The columns of the sources, of the references (None if they are not read), and of the ids (None without)."""
    wanted = {"source": SOURCES, "target": TARGETS}
    if columns is not None:
        wanted = {
            "source": SOURCES if columns.text == Columns.text else (columns.text,),
            "target": TARGETS if columns.label == Columns.label else (columns.label,),
        }
    found = {side: next((name for name in names if name in header), None) for side, names in wanted.items()}
    for side, option in (("source", "--text-column"), ("target", "--label-column")):
        if found[side] is None and (labelled or side == "source"):
            raise ValueError(
                f"{where} has the columns {', '.join(header)}; a {side} is read from {' or '.join(wanted[side])}: "
                f"rename the column, or name it with {option}"
            )
    ids = IDS if columns is None or columns.id == Columns.id else (columns.id,)
    return str(found["source"]), found["target"] if labelled else None, next((n for n in ids if n in header), None)


def _pair(
    cells: Mapping[str, Any], names: tuple[str, str | None, str | None], task: str, where: str, number: int
) -> Pair:
    source, target, id = names
    name = row_id(cells, Columns(id=id or ""), where, number)
    if task == "answering":
        texts = tuple(_strings(cells, field, where)[0] for field in ("question", "context"))
        return Pair(name, texts)
    sentences = _strings(cells, source, where)
    references = () if target is None else _strings(cells, target, where)
    if task == "extractive":
        whole = sentences if isinstance(cells[source], list) else split_sentences(sentences[0])
        return Pair(name, (" ".join(sentences),), references, tuple(whole))
    return Pair(name, (" ".join(sentences),), references)


def _strings(cells: Mapping[str, Any], name: str, where: str) -> tuple[str, ...]:
    """The text in a field, or several of a list, none of them empty. Raises ValueError that begins with where."""
    value = cells.get(name)
    values = value if isinstance(value, list) else [value]
    if bad := next((each for each in values if not isinstance(each, str)), None) if values else value:
        raise ValueError(f"{where} has {type_name(type(bad))} in {name!r}; write a text there, or a list of texts")
    texts = tuple(text.strip() for text in values if isinstance(text, str) and text.strip())
    if not texts:
        raise ValueError(f"{where} has nothing in {name!r}; write a text there, or drop the line")
    return texts
