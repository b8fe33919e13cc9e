"""The tasks a discriminator is fine-tuned for, and the reading of their files."""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from electra_fast.tasks.benchmarks import BENCHMARKS
from electra_fast.tasks.conll import read_sentences, sentence_of
from electra_fast.tasks.examples import Columns, Dataset, Example, Question, Sentence, check_kind, sorted_labels
from electra_fast.tasks.files import decode, ending, parse_object, plural, read_rows, read_text
from electra_fast.tasks.squad import read_squad

STREAMED = {  # endings of files without labels that are read line by line, as stdin is
    "classification": (".txt",),
    "regression": (".txt",),
    "tagging": (),
    "qa": (".txt", ".tsv", ".jsonl"),
}


def read_dataset(
    path: str | Path,
    kind: str,
    *,
    columns: Columns | None = None,
    labelled: bool = True,
    benchmark: str | None = None,
) -> Dataset:
    """The examples of a file, each checked.

    classification, regression: .tsv of GLUE as published (known by its header; CoLA's by its four columns), or .tsv,
    .csv or .jsonl with columns named text, text2 (if there), label and id (if there; else rows are counted from 0), or
    as `columns` says, which also stops the look-out for GLUE. tagging: CoNLL columns, or .jsonl with lists words and
    tags. qa: SQuAD's .json. All also packed as .xz or .gz. labelled: False reads no labels; then "-", which is stdin,
    and .txt are read too, and .jsonl for qa, as `stream_examples` does. benchmark: what to take a file for whose header
    fits several, as test files of RTE and WNLI do; unless given, its folder's name tells.

    Raises ValueError or FileNotFoundError, in one sentence: path and line, what was found, what is wanted.
    """
    check_kind(kind)
    name, labels = benchmark, list[str]()
    examples: list[Any]
    if str(path) == "-":
        if labelled:
            raise ValueError("labels are not read from stdin; give the name of a file")
        examples = list(stream_examples(sys.stdin.buffer, kind, columns=columns))
        if not examples:
            raise ValueError("stdin is empty; write an example a line into it")
    elif not labelled and ending(path) in STREAMED[kind]:
        examples = list(_stream(read_text(path).rstrip("\n").split("\n"), kind, columns or Columns(), str(path)))
    elif kind == "qa":
        name, examples = read_squad(path, labelled)
    elif kind == "tagging":
        name, examples, labels = read_sentences(path, labelled, benchmark)
    else:
        name, examples, labels = _read_texts(Path(path), kind, columns, labelled, benchmark)
    if twice := next((id for id, count in Counter(example.id for example in examples).items() if count > 1), None):
        raise ValueError(f"{path} has the id {twice} twice; an id names one example: rename or drop it")
    return Dataset(kind, name, examples, labels)


def _read_texts(
    path: Path, kind: str, columns: Columns | None, labelled: bool, benchmark: str | None
) -> tuple[str | None, list[Example], list[str]]:
    header, rows = read_rows(path, (lambda first: ()) if columns else _cola)
    names = [] if columns else [n for n, b in BENCHMARKS.items() if b.header and header in (b.header, b.test_header)]
    if names:
        layout = BENCHMARKS[names[0]]
        if kind == "classification" and layout.kind == "regression":
            raise ValueError(f"{path} is {layout.title} by its columns, a task of regression; ask for that kind")
        second = layout.texts[1] if len(layout.texts) == 2 else None
        columns = Columns(layout.texts[0], second, layout.label, "index")
    columns = columns or Columns()
    _check_columns(path, header, columns, labelled, bool(names))
    examples = []
    for number, (where, row) in enumerate(rows):
        texts = _texts(row, columns, where, pair=columns.text2 in header)
        if labelled and not all(text.strip() for text in texts):
            raise ValueError(f"{where} has an empty text; fill or drop the row")
        id = _id(row, columns, where, number)
        examples.append(Example(id, texts, _label(row, columns.label, kind, where) if labelled else None))
    seen = {str(example.label) for example in examples if labelled and kind == "classification"}

    def fits(name: str) -> bool:
        if kind == "regression" and labelled:
            return BENCHMARKS[name].kind == kind and all(0 <= float(e.label or 0) <= 5 for e in examples)
        return BENCHMARKS[name].kind == kind and seen <= set(BENCHMARKS[name].labels)

    names = [name for name in names if fits(name)]
    if len(names) > 1:
        names = [name for name in names if name == benchmark or (BENCHMARKS[name].title == path.parent.name)]
    name = (benchmark if benchmark in names else names[0]) if names else None
    return name, examples, list(BENCHMARKS[name].labels) if name else sorted_labels(seen)


def _cola(first: list[str]) -> tuple[str, ...]:
    """CoLA's files begin with a row: source, 0 or 1, "*" or nothing as the source marks it, sentence."""
    return BENCHMARKS["cola"].header if len(first) == 4 and first[1] in ("0", "1") and first[2] in ("", "*") else ()


def _check_columns(path: Path, header: tuple[str, ...], columns: Columns, labelled: bool, known: bool) -> None:
    wanted = [columns.text]
    if columns.text2 not in (None, Columns.text2):
        wanted.append(str(columns.text2))
    if labelled:
        wanted.append(columns.label)
    if lacking := [name for name in wanted if name not in header]:
        found = f"{path} has the columns {', '.join(header)}"
        if known and lacking == [columns.label]:
            raise ValueError(f"{found}: a test file, without labels; name the training or development file")
        second = f" ({columns.text2} for a second text)" if columns.text2 == Columns.text2 else ""
        raise ValueError(f"{found}; wanted are {', '.join(wanted)}{second}: rename them, or say which ones to read")


def _texts(row: dict[str, Any], columns: Columns, where: str, pair: bool) -> tuple[str, ...]:
    names = [columns.text, columns.text2] if pair else [columns.text]
    if not pair and columns.text2 in row:
        raise ValueError(f"{where} has a second text, {columns.text2!r}, and the first row has none; write one or two")
    return tuple(_string(row, name, where) for name in names if name is not None)


def _string(row: dict[str, Any], name: str, where: str) -> str:
    if name not in row:
        raise ValueError(f"{where} has the fields {', '.join(row)}; {name!r} is wanted: add it, or say what to read")
    if not isinstance(row[name], str):
        raise ValueError(f"{where} has a {type(row[name]).__name__} in {name!r}; write a string there")
    return row[name]


def _id(row: dict[str, Any], columns: Columns, where: str, number: int) -> str:
    id = row.get(columns.id, number)
    if isinstance(id, bool) or not isinstance(id, str | int) or not str(id).strip():
        raise ValueError(f"{where} has the {columns.id} {id!r}; an id is a string or a whole number: mend or drop it")
    return str(id)


def _label(row: dict[str, Any], name: str, kind: str, where: str) -> str | float:
    value = row.get(name)
    if value is None or isinstance(value, list | dict) or (isinstance(value, str) and not value.strip()):
        raise ValueError(
            f"{where} has no {name!r} but {json.dumps(value)}; give each example its label, or drop the row"
        )
    if kind == "classification":
        return value.strip() if isinstance(value, str) else json.dumps(value)
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(
            f"{where} has the {name} {value!r}; regression needs a finite number, or is this classification?"
        )
    return number


def stream_examples(
    lines: Iterable[bytes], kind: str, *, columns: Columns | None = None, name: str = "stdin"
) -> Iterator[Example | Sentence | Question]:
    """Unlabelled examples from lines, one by one as they come.

    Plain text: one text a line, which may be empty, or two with a tab between them; for tagging words with white space
    between them; for qa a question, a tab, a context. Or .jsonl where the first line begins with "{": fields as
    `columns` names them; words (a list); question and context. The id is the field id, or counts examples from 0.
    Raises ValueError with the line of what is neither.
    """
    check_kind(kind)
    decoded = (decode(line, name, number) for number, line in enumerate(lines, 1))
    return _stream(decoded, kind, columns or Columns(), name)


def _stream(lines: Iterable[str], kind: str, columns: Columns, name: str) -> Iterator[Example | Sentence | Question]:
    count, parts = 0, 0  # examples so far, texts of each
    jsonl: bool | None = None
    for number, line in enumerate(lines, 1):
        where, line = f"{name}, line {number}", line.removeprefix("\ufeff").rstrip("\n")
        blank = not line.strip()
        if jsonl is None and not blank:
            jsonl = line.lstrip().startswith("{")
        if blank and (jsonl or kind in ("tagging", "qa")):
            continue
        row = parse_object(line, where) if jsonl else {}
        id = _id(row, columns, where, count)
        if kind == "tagging":
            yield sentence_of(row, where, id, labelled=False) if jsonl else Sentence(id, tuple(line.split()))
        elif kind == "qa":
            names = ("question", "context")
            texts = tuple(_string(row, name, where) for name in names) if jsonl else tuple(line.split("\t"))
            if len(texts) != 2 or not texts[1].strip():
                raise ValueError(
                    f"{where} has {plural(len(texts), 'part')}; a question, a tab and a context are wanted"
                )
            yield Question(id, *texts)
        else:
            texts = _texts(row, columns, where, columns.text2 in row) if jsonl else tuple(line.split("\t"))
            parts = parts or len(texts)
            if len(texts) > 2 or len(texts) != parts:
                wanted = "one text, or two with a tab between them," if len(texts) > 2 else f"{parts}, as before,"
                raise ValueError(f"{where} has {plural(len(texts), 'text')}; {wanted} are wanted")
            yield Example(id, texts)
        count += 1
