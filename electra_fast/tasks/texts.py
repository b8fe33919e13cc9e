"""Texts to classify, or to give a number: one or two of each row of a table."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from electra_fast.tasks.benchmarks import BENCHMARKS
from electra_fast.tasks.examples import Columns, Example, sorted_labels
from electra_fast.tasks.files import Malformed, ending, plural, type_name
from electra_fast.tasks.labelsets import separator_of, split_labels
from electra_fast.tasks.tables import Table, read_table


@dataclass(frozen=True)
class Layout:
    """Where the texts, the label and the id of a table's rows are.

    columns: their names. pair: whether each row has two texts. benchmarks: whose files have such a header, keys of
    BENCHMARKS. no_label: what stands in the place of a label in rows that are left out, or None.
    """

    columns: Columns
    pair: bool
    benchmarks: tuple[str, ...] = ()
    no_label: str | None = None


def read_texts(
    path: Path, kind: str, columns: Columns | None, benchmark: str | None, malformed: Malformed
) -> tuple[str | None, list[Example], list[str], list[str]]:
    """The labelled examples of a table.

    path, kind, columns, benchmark: as of `read_dataset`. malformed: takes the rows that are left out.

    Returns (the benchmark or None, the examples, the labels in order, notes for the user). For "classification" the
    labels are sets, as for "multilabel", if any example has a list. Raises ValueError.
    """
    table, layout = _opened(path, kind, columns, True, malformed)
    examples, without = [], 0
    for row in table.rows(_wanted(layout.columns)):
        try:
            example = Example(
                row_id(row.cells, layout.columns, row.where, row.number),
                row_texts(row.cells, layout.columns, row.where, layout.pair),
                _label(row.cells, layout, kind, row.where),
            )
        except ValueError as error:
            malformed.leave_out(row.line, error)
            continue
        if example.label is None:
            without += 1
        else:
            examples.append(example)
    if kind == "multilabel" or any(isinstance(example.label, tuple) for example in examples):
        kind, examples = "multilabel", _with_sets(examples, cells=ending(path) not in (".jsonl", ".parquet"))
    seen = {label for example in examples for label in _classes(example.label)}

    def fits(name: str) -> bool:
        if kind == "regression":
            numbers = [example.label for example in examples if isinstance(example.label, float)]
            return BENCHMARKS[name].kind == kind and all(0 <= number <= 5 for number in numbers)
        return BENCHMARKS[name].kind == kind and seen <= set(BENCHMARKS[name].labels)

    name = _chosen([name for name in layout.benchmarks if fits(name)], path, benchmark)
    notes = [f"{path}: left out {plural(without, 'example')} without a majority label ({layout.no_label})"]
    return name, examples, list(BENCHMARKS[name].labels) if name else sorted_labels(seen), notes if without else []


def _classes(label: str | float | tuple[str, ...] | None) -> tuple[str, ...]:
    return label if isinstance(label, tuple) else (label,) if isinstance(label, str) else ()


def _with_sets(examples: list[Example], cells: bool) -> list[Example]:
    """The examples with sets of labels. cells: a string is a cell that may hold several; else it is one label."""
    separator = separator_of(example.label for example in examples if isinstance(example.label, str))
    sets = [
        split_labels(example.label, separator) if cells and isinstance(example.label, str) else _classes(example.label)
        for example in examples
    ]
    return [dataclasses.replace(example, label=labels) for example, labels in zip(examples, sets, strict=True)]


def unlabelled_texts(
    path: Path, kind: str, columns: Columns | None, benchmark: str | None, malformed: Malformed
) -> tuple[str | None, Iterator[Example]]:
    """(the benchmark or None, the examples of a table without their labels, as they are read); see `read_texts`."""
    table, layout = _opened(path, kind, columns, False, malformed)

    def examples() -> Iterator[Example]:
        for row in table.rows(_wanted(layout.columns)):
            try:
                id = row_id(row.cells, layout.columns, row.where, row.number)
                texts = row_texts(row.cells, layout.columns, row.where, layout.pair)
            except ValueError as error:
                malformed.leave_out(row.line, error)
            else:
                yield Example(id, texts)

    names = [name for name in layout.benchmarks if BENCHMARKS[name].kind == kind]
    return _chosen(names, path, benchmark), examples()


def _opened(
    path: Path, kind: str, columns: Columns | None, labelled: bool, malformed: Malformed
) -> tuple[Table, Layout]:
    table = read_table(path, malformed, (lambda first: ()) if columns else _cola)
    names = () if columns else tuple(name for name, known in BENCHMARKS.items() if known.has(table.header))
    if names:
        known = BENCHMARKS[names[0]]
        if kind == "classification" and known.kind == "regression":
            raise ValueError(f"{path} is {known.title} by its columns, a task of regression; ask for that kind")
        second = known.texts[1] if len(known.texts) == 2 else None
        layout = Layout(Columns(known.texts[0], second, known.label, known.id), second is not None, names)
        layout = Layout(layout.columns, layout.pair, names, known.no_label)
    else:
        columns = columns or Columns()
        if columns.label == Columns.label and "label" not in table.header and "labels" in table.header:
            columns = dataclasses.replace(columns, label="labels")
        layout = Layout(columns, columns.text2 in table.header)
    _check_columns(path, table.header, layout, labelled)
    return table, layout


def _cola(first: list[str]) -> tuple[str, ...]:
    """CoLA's files begin with a row: source, 0 or 1, "*" or nothing as the source marks it, sentence."""
    return BENCHMARKS["cola"].headers[0] if len(first) == 4 and first[1] in ("0", "1") and first[2] in ("", "*") else ()


def _chosen(names: list[str], path: Path, benchmark: str | None) -> str | None:
    """Of the benchmarks that a file may be of, the one that is asked for, else the one of the folder's name."""
    if len(names) > 1:
        names = [name for name in names if name == benchmark or BENCHMARKS[name].title == path.parent.name]
    return (benchmark if benchmark in names else names[0]) if names else None


def _wanted(columns: Columns) -> list[str]:
    return [name for name in (columns.text, columns.text2, columns.label, columns.id) if name is not None]


def _check_columns(path: Path, header: tuple[str, ...], layout: Layout, labelled: bool) -> None:
    columns = layout.columns
    wanted = [columns.text]
    if columns.text2 not in (None, Columns.text2):
        wanted.append(str(columns.text2))
    if labelled:
        wanted.append(columns.label)
    if lacking := [name for name in wanted if name not in header]:
        has = f"{path} has the columns {', '.join(header)}"
        if layout.benchmarks and lacking == [columns.label]:
            raise ValueError(f"{has}: a test file, without labels; name the training or development file")
        second = f" ({columns.text2} for a second text)" if columns.text2 == Columns.text2 else ""
        raise ValueError(f"{has}; wanted are {', '.join(wanted)}{second}: rename them, or say which ones to read")


def row_texts(cells: Mapping[str, Any], columns: Columns, where: str, pair: bool) -> tuple[str, ...]:
    """The text of a row, or two; ValueError that begins with where if they are not there, or no strings."""
    names = [columns.text, columns.text2] if pair else [columns.text]
    if not pair and columns.text2 in cells:
        raise ValueError(f"{where} has a second text, {columns.text2!r}, and the first row has none; write one or two")
    return tuple(row_string(cells, name, where) for name in names if name is not None)


def row_string(cells: Mapping[str, Any], name: str, where: str) -> str:
    """The string in a column of a row; ValueError that begins with where if there is none."""
    if name not in cells:
        raise ValueError(f"{where} has the fields {', '.join(cells)}; {name!r} is wanted: add it, or say what to read")
    if not isinstance(cells[name], str):
        raise ValueError(f"{where} has {type_name(type(cells[name]))} in {name!r}; write a string there")
    return cells[name]


def row_id(cells: Mapping[str, Any], columns: Columns, where: str, number: int) -> str:
    """The id of a row, or its number if it has none; ValueError that begins with where on what is no id."""
    id = cells.get(columns.id, number)
    if isinstance(id, bool) or not isinstance(id, str | int) or not str(id).strip():
        raise ValueError(f"{where} has the {columns.id} {id!r}; an id is a string or a whole number: mend or drop it")
    return str(id)


def _label(cells: Mapping[str, Any], layout: Layout, kind: str, where: str) -> str | float | tuple[str, ...] | None:
    """The label of a row, several for a list, None where its annotators did not agree on one."""
    name = layout.columns.label
    value = cells.get(name)
    if isinstance(value, str):
        value = value.strip()
        if value and value == layout.no_label:
            return None
    if kind == "multilabel" and value == "":
        return ()
    if kind in ("classification", "multilabel"):
        if isinstance(value, list):
            return _label_list(value, name, where)
        if (label := _class(value)) is not None:
            return label
        what = "an empty string" if value == "" else "nothing" if value is None else type_name(type(value))
        raise ValueError(f"{where} has {what} in {name!r}; give each example its label, or drop the row")
    try:
        number = math.nan if value is None or isinstance(value, bool | list | dict) else float(value)
    except (ValueError, OverflowError, TypeError):
        number = math.nan
    if not math.isfinite(number):
        shown = repr(value)[:40] if isinstance(value, str | int | float) else type(value).__name__
        raise ValueError(
            f"{where} has the {name} {shown}; regression needs a finite number, or is this classification?"
        )
    return number


def _class(value: Any) -> str | None:
    """The name of a class, from a JSON value; None if it is none."""
    if isinstance(value, str) and value:
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) or (isinstance(value, float) and math.isfinite(value)):
        return str(value)
    return None


def _label_list(values: list[Any], name: str, where: str) -> tuple[str, ...]:
    labels = [_class(value.strip() if isinstance(value, str) else value) for value in values]
    if None in labels:
        shown = json.dumps(values[labels.index(None)], ensure_ascii=False)
        raise ValueError(f"{where} has {shown:.40} in {name!r}; write a list of labels there")
    if twice := next((label for i, label in enumerate(labels) if label in labels[:i]), None):
        raise ValueError(
            f"{where} has the label {twice!r} twice in {name!r}; write those that apply, each once, and not 0 or 1 for "
            "every label"
        )
    return tuple(label for label in labels if label is not None)
