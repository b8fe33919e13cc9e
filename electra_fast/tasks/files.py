"""Files of examples as they lie on disk: text, whole and checked, and its rows with their columns."""

from __future__ import annotations

import csv
import io
import json
import lzma
import re
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from electra_fast.data.text import PACKED


def ending(path: str | Path) -> str:
    """The ending that says how a file is written, such as ".tsv", that of its packing left out; "" without one."""
    suffixes = [suffix.lower() for suffix in Path(path).suffixes]
    if suffixes and suffixes[-1] in PACKED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def read_text(path: str | Path) -> str:
    """The text of a UTF-8 file, packed with xz or gz or not, without its byte-order mark, its line ends "\\n".

    Unlike text.py, which reads a crawl, this refuses what is not text: a label rests on every line. Raises
    FileNotFoundError or ValueError with one sentence: no such file, a directory, an empty file, a damaged archive,
    UTF-16, bytes that are no UTF-8 (with their line), NUL.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a directory, not a file of examples; name a file in it")
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}; check the name")
    packed = path.suffix.lower()
    try:
        with path.open("rb") as raw, PACKED[packed](raw) if packed in PACKED else raw as stream:
            data = stream.read()
    except (EOFError, lzma.LZMAError, zlib.error, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # gzip.BadGzipFile is an OSError without a number
            raise
        raise ValueError(f"{path} is a damaged {packed} archive ({error}); fetch or pack it again") from error
    text = decode(data, str(path)).removeprefix("\ufeff")
    if not text.strip():
        raise ValueError(f"{path} is empty; name a file with examples in it")
    return text


def decode(data: bytes, where: str, first: int = 1) -> str:
    """Bytes of UTF-8 as text; ValueError naming the line of what is none, `first` being the number of its first."""
    if data[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise ValueError(f"{where} is UTF-16 (by its first two bytes); convert it: iconv -f UTF-16 -t UTF-8")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = first + data.count(b"\n", 0, error.start)
        raise ValueError(
            f"{where}, line {line} holds the byte 0x{data[error.start]:02x}, which is no UTF-8; convert the file, "
            "such as with iconv -f LATIN1 -t UTF-8"
        ) from error
    if (nul := text.find("\0")) >= 0:
        line = first + text.count("\n", 0, nul)
        raise ValueError(f"{where}, line {line} holds a NUL character, which is no text; write the file anew")
    return text.replace("\r\n", "\n").replace("\r", "\n")


Row = tuple[str, dict[str, Any]]  # where it lies, for errors; its columns


def read_rows(
    path: str | Path, unnamed: Callable[[list[str]], tuple[str, ...]] = lambda first: ()
) -> tuple[tuple[str, ...], list[Row]]:
    """Names of the columns and the rows of a .tsv, .csv or .jsonl file; values are str, of .jsonl what JSON has.

    .tsv: a tab between two columns, quotes being characters like others, as GLUE's files are written. .csv: RFC 4180,
    quoted fields may hold commas and line ends. The first line names the columns unless unnamed(its columns) gives
    their names. Columns of .jsonl are the fields of its first object; blank lines are skipped. Raises ValueError on no
    rows, a row of another length than the header, a column named twice, bad quoting and bad JSON, with the line.
    """
    text, kind = read_text(path), ending(path)
    if kind == ".jsonl":
        lines = ((f"{path}, line {i}", line) for i, line in enumerate(text.split("\n"), 1) if line.strip())
        rows = [(where, parse_object(line, where)) for where, line in lines]
        return tuple(rows[0][1]), rows
    if kind not in (".tsv", ".csv"):
        raise ValueError(
            f"{path} ends in {kind or 'nothing'}; examples are read from .tsv, .csv and .jsonl, each also packed as "
            f"{' or '.join(PACKED)}: rename or convert it"
        )
    cells = list(_tab_separated(text) if kind == ".tsv" else _comma_separated(text, path))
    header = unnamed(cells[0][1])
    if not header:
        header = tuple(name.strip() for name in cells.pop(0)[1])
        if twice := next((name for i, name in enumerate(header) if name in header[:i]), None):
            raise ValueError(f"{path} has two columns named {twice!r}; rename one of them")
    rows = []
    for number, row in cells:
        where = f"{path}, line {number}"
        if len(row) != len(header):
            hint = "; a text with a tab or a line end in it must go into .csv or .jsonl" if kind == ".tsv" else ""
            raise ValueError(
                f"{where} has {plural(len(row), 'column')}; {len(header)} are wanted ({', '.join(header)}){hint}"
            )
        rows.append((where, dict(zip(header, row, strict=True))))
    if not rows:
        raise ValueError(f"{path} has a header ({', '.join(header)}) and no rows; name a file with examples in it")
    return header, rows


def plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'s' * (count != 1)}"


def _tab_separated(text: str) -> Iterator[tuple[int, list[str]]]:
    for number, line in enumerate(text.rstrip("\n").split("\n"), 1):
        yield number, line.split("\t")


def _comma_separated(text: str, path: str | Path) -> Iterator[tuple[int, list[str]]]:
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))  # 131,072 unless raised: a text may be longer
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    line = 1
    try:
        for row in reader:
            if row:
                yield line, row
            line = reader.line_num + 1
    except csv.Error as error:
        raise ValueError(
            f"{path}, the row from line {line} on is no CSV ({error}); quote a text with commas, quotes or line ends "
            'as "...", with "" for each quote in it'
        ) from error


def parse_object(line: str, where: str) -> dict[str, Any]:
    """A JSON object with at least a field; ValueError beginning with where otherwise."""
    found = parse(line, where)
    if not isinstance(found, dict) or not found:
        what = "an object without fields" if found == {} else f"a {type(found).__name__}"
        raise ValueError(f'{where} is {what}; each line is an object such as {{"text": "...", "label": "..."}}')
    return found


def parse(text: str, where: str) -> Any:
    """What a JSON text says, surrogates that are no character replaced one for one; ValueError otherwise."""
    try:
        return _characters(json.loads(text))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is no JSON ({error}); write it anew") from error


SURROGATES = re.compile("[\ud800-\udfff]")  # legal in JSON as "\ud800", but no character: no tokenizer takes it


def _characters(value: Any) -> Any:
    if isinstance(value, str):
        return SURROGATES.sub("\ufffd", value)
    if isinstance(value, list):
        return [_characters(item) for item in value]
    if isinstance(value, dict):
        return {_characters(name): _characters(item) for name, item in value.items()}
    return value
