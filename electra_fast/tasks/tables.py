"""Tables of examples: .tsv, .csv, .jsonl and .parquet files, as rows with named columns, one at a time."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from electra_fast.data.packed import PACKED
from electra_fast.data.parquet import batch_size
from electra_fast.tasks.files import (
    LONGEST_LINE,
    Malformed,
    check_file,
    decode,
    ending,
    parse_object,
    plural,
    read_lines,
)

TABLES = (".tsv", ".csv", ".jsonl", ".parquet", ".txt")
Cells = tuple[int, int, list[str] | ValueError]  # a row's first line from 1, how many it has, its columns or its fault


class Row(NamedTuple):
    """number: of the row in its file, from 0, malformed rows counted too. line: of the file, from 1. where: path and
    line, with which an error begins. cells: column -> value, a str, or what .jsonl and .parquet have there."""

    number: int
    line: int
    where: str
    cells: dict[str, Any]


class Table(NamedTuple):
    """header: names of the columns. rows: gives the rows, once; of .parquet only the columns that are named to it."""

    header: tuple[str, ...]
    rows: Callable[[Sequence[str]], Iterator[Row]]


def read_table(
    path: str | Path, malformed: Malformed, unnamed: Callable[[list[str]], tuple[str, ...]] = lambda first: ()
) -> Table:
    """The table in a file; its rows are read as they are asked for, and those that are malformed left out.

    .tsv, and .txt with tabs: a tab between two columns, quotes being characters like others, as GLUE's files are
    written. .csv: RFC 4180, quoted fields may hold commas and line ends. The first line names the columns unless
    unnamed(its columns) gives their names. Columns of .jsonl are the fields of its first object; blank lines are
    skipped. .parquet needs pyarrow. All but .parquet may be packed with xz or gz.

    Raises ValueError on a file that is none of these, a column named twice, a quote that nothing ends, no rows;
    FileNotFoundError; ImportError where pyarrow is missing; and what `malformed` raises.
    """
    path, kind = Path(path), ending(path)
    if kind == ".parquet":
        return _parquet(check_file(path))
    if kind == ".jsonl":
        return _jsonl(path, malformed)
    if kind not in TABLES:
        raise ValueError(
            f"{path} ends in {kind or 'nothing'}; examples are read from .tsv, .csv, .jsonl and .parquet, all but the "
            f"last also packed as {' or '.join(PACKED)}: rename or convert it"
        )
    cells = _comma_separated(path) if kind == ".csv" else _tab_separated(path)
    first = next(cells)  # there is one, or reading has raised
    if isinstance(first[2], ValueError):
        raise first[2]
    header = unnamed(first[2])
    if header:
        cells = chain([first], cells)
    else:
        header = tuple(name.strip() for name in first[2])
        if kind == ".txt" and len(header) < 2:
            raise ValueError(
                f"{path} ends in .txt and has no tab in its first line; labelled texts are read from .txt with a tab "
                "between columns and their names in the first line, .tsv, .csv, .jsonl and .parquet: convert it"
            )
        if not any(header):
            raise ValueError(f"{path} is empty, or its first line is, which names the columns; mend it")
        if twice := next((name for i, name in enumerate(header) if name in header[:i]), None):
            raise ValueError(f"{path} has two columns named {twice!r}; rename one of them")
    return Table(header, lambda names: _rows(path, header, cells, malformed))


def _rows(path: Path, header: tuple[str, ...], cells: Iterator[Cells], malformed: Malformed) -> Iterator[Row]:
    number, hint = -1, ""
    if ending(path) != ".csv":
        hint = "; a text with a tab or a line end in it must go into .csv or .jsonl"
    for number, (line, lines, row) in enumerate(cells):
        where = f"{path}, line {line}"
        if isinstance(row, ValueError):
            malformed.leave_out(line, row, lines)
        elif len(row) == len(header):
            yield Row(number, line, where, dict(zip(header, row, strict=True)))
        else:
            shown = ", ".join(header[:20]) + ", ..." * (len(header) > 20)
            error = f"{where} has {plural(len(row), 'column')}; {len(header)} are wanted ({shown}){hint}"
            malformed.leave_out(line, ValueError(error), lines)
    if number < 0:
        raise ValueError(f"{path} has a header ({', '.join(header)}) and no rows; name a file with examples in it")


def _decoded(path: Path) -> Iterator[tuple[int, str, ValueError | None]]:
    """(number from 1, text, what is wrong with it) of each line; what is no text is replaced in it."""
    for line, data in enumerate(read_lines(path), 1):
        try:
            yield line, decode(data, f"{path}, line {line}"), None
        except ValueError as error:
            if line == 1:  # what follows would be taken for the header
                raise
            yield line, data.decode(errors="replace").replace("\0", "\ufffd"), error


def _tab_separated(path: Path) -> Iterator[Cells]:
    blank = 0  # lines, which count only if a row follows them
    for line, text, error in _decoded(path):
        if not text:
            blank += 1
            continue
        yield from ((line - i, 1, [""]) for i in range(blank, 0, -1))
        blank = 0
        yield line, 1, error or text.split("\t")


def _comma_separated(path: Path) -> Iterator[Cells]:
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST_LINE))  # 131,072 unless raised: a text may be longer
    first = last = 0  # lines of the row
    wrong: ValueError | None = None  # in one of them

    def lines() -> Iterator[str]:
        nonlocal first, last, wrong
        for last, text, error in _decoded(path):
            first, wrong = first or last, wrong or error
            yield text + "\n"

    reader = csv.reader(lines(), strict=True)
    while True:
        first, wrong = 0, None
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            wrong = ValueError(
                f"{path}, the row from line {first} on is no CSV ({error}); quote a text with commas, quotes or line "
                'ends as "...", with "" for each quote in it'
            )
            if "end of data" in str(error) or "field larger" in str(error):  # the rest of the file is in this row
                raise wrong from error
            row = [""]
        if row:
            yield first, last - first + 1, wrong or row


def _jsonl(path: Path, malformed: Malformed) -> Table:
    def objects() -> Iterator[Row]:
        number = 0
        for line, text, error in _decoded(path):
            if not text.strip():
                continue
            where = f"{path}, line {line}"
            try:
                if error is not None:
                    raise error
                cells = parse_object(text, where)
            except ValueError as wrong:
                malformed.leave_out(line, wrong)
            else:
                yield Row(number, line, where, cells)
            number += 1

    rows = objects()
    first = next(rows, None)
    if first is None:
        raise malformed.first or ValueError(f"{path} is empty; name a file with examples in it")
    return Table(tuple(first.cells), lambda names: chain([first], rows))


def _parquet(path: Path) -> Table:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(
            f"reading {path} needs pyarrow, which is not installed; run: pip install 'electra_fast[parquet]'"
        ) from error
    errors = (pyarrow.ArrowException, OSError, ValueError, KeyError, OverflowError)

    def damaged(error: BaseException) -> ValueError:
        said = (str(error) or type(error).__name__).splitlines()[0]
        return ValueError(f"{path} is no readable parquet file ({said}); fetch or write it anew")

    try:
        file = pyarrow.parquet.ParquetFile(path)
        header, count = tuple(file.schema_arrow.names), file.metadata.num_rows
    except errors as error:
        raise damaged(error) from error
    if not count:
        raise ValueError(f"{path} has the columns {', '.join(header)} and no rows; name a file with examples in it")

    def following(batches: Iterator[Any]) -> list[dict[str, Any]] | None:
        try:
            batch = next(batches, None)
            return None if batch is None else batch.to_pylist()
        except MemoryError:
            raise
        except errors as error:
            raise damaged(error) from error

    def rows(names: Sequence[str]) -> Iterator[Row]:
        index, columns = 0, [name for name in header if name in names]
        with path.open("rb") as raw:
            for number in range(file.num_row_groups):
                size = batch_size(path, raw, file.metadata.row_group(number), columns, LONGEST_LINE)
                batches = file.iter_batches(size, row_groups=[number], columns=columns)
                while (values := following(batches)) is not None:
                    values.reverse()
                    while values:  # those that were handed out are not held while the next ones are read
                        yield Row(index, index + 1, f"{path}, row {index + 1}", values.pop())
                        index += 1

    return Table(header, rows)
