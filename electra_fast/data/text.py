"""Text files -> documents, as a stream in bounded memory.

A document is a list of non-empty lines; a line is what the example builder calls a sentence. Bytes that are no text are
replaced and counted, never fatal: a crawl of a million pages always holds a few.
"""

from __future__ import annotations

import ast
import gzip
import inspect
import json
import lzma
import pydoc_data.topics
import re
import sysconfig
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

KINDS = (".txt", ".tokens", ".jsonl", ".parquet")
PACKED: dict[str, Callable[[BinaryIO], Any]] = {".xz": lzma.open, ".gz": gzip.open}
BLOCK = 1 << 20  # bytes read at once; a line longer than this is split
TITLE = re.compile(r"\s*= (?!=).* =\s*")  # of an article of WikiText; a section's is `= = ... = =`
LONGEST_RECORD = 1 << 28  # bytes of one .jsonl line: it must be parsed whole, so it is refused beyond this
MOST_LINES, MOST_CHARACTERS = 1000, 1_000_000  # of one document; what is longer is handed out in pieces


@dataclass
class Counts:
    """What reading met so far."""

    read: int = 0  # bytes on disk, packed as they lie there: what a progress bar counts
    bytes: int = 0  # bytes of text
    documents: int = 0  # handed out, pieces included
    pieces: int = 0  # of those, the ones cut off because their document was too long to hand out whole
    lines: int = 0
    split_lines: int = 0  # cuts made in lines of more than a megabyte
    replaced: int = 0  # characters that were no valid UTF-8, or NUL


def documents(paths: str | Path | Iterable[str | Path], counts: Counts | None = None) -> Iterator[list[str]]:
    """The documents of the files, in order.

    `.txt`: a blank line ends a document. `.tokens`: WikiText, where a line ` = Title = ` begins one. `.jsonl`: the
    field "text" of each line is a document. `.parquet`: each row of the column "text". All but the last may be packed
    with xz or gz. `counts` is filled while reading.

    Raises FileNotFoundError or ValueError naming the file (and the line) for a missing or empty file, a directory, an
    unknown ending, a damaged archive, and a record without text. Files are checked before the first is read.
    """
    files = checked_files(paths)
    return _documents(files, Counts() if counts is None else counts)


def checked_files(paths: str | Path | Iterable[str | Path]) -> list[Path]:
    """The files as paths, each there, not empty, and of a kind that can be read. Raises as `documents` does."""
    files = [Path(paths)] if isinstance(paths, str | Path) else [Path(path) for path in paths]
    if not files:
        raise ValueError("no text file is given; name at least one")
    for path in files:
        if path.is_dir():
            raise ValueError(f"{path} is a directory, not a text file; name its files, such as {path}/*.txt")
        if not path.exists():
            raise FileNotFoundError(f"there is no text file {path}; check the name")
        kind, packed = _kind(path)
        if kind not in KINDS or (kind == ".parquet" and packed):
            raise ValueError(
                f"{path} ends in {''.join(path.suffixes[-2:]) or 'nothing'}; text is read from {', '.join(KINDS)}, "
                f"all but the last also packed as {' or '.join(PACKED)}: unpack, rename or convert it"
            )
        if path.is_file() and not path.stat().st_size:
            raise ValueError(f"{path} is empty (0 bytes); leave it out, or write it anew")
    return files


def _kind(path: Path) -> tuple[str, str]:
    suffixes = [suffix.lower() for suffix in path.suffixes]
    packed = suffixes.pop() if suffixes and suffixes[-1] in PACKED else ""
    return (suffixes[-1] if suffixes else ""), packed


def _documents(files: list[Path], counts: Counts) -> Iterator[list[str]]:
    for path in files:
        before, start = counts.documents, counts.read
        kind, packed = _kind(path)
        try:
            if kind == ".parquet":
                yield from _parquet(path, counts)
            else:
                with path.open("rb") as raw, PACKED[packed](raw) if packed else raw as stream:
                    read = {".txt": _plain, ".tokens": _wikitext, ".jsonl": _jsonl}[kind]
                    for document in read(path, stream, counts):
                        counts.read = start + raw.tell()
                        yield document
        except (EOFError, lzma.LZMAError, gzip.BadGzipFile, zlib.error) as error:
            raise ValueError(f"{path} is a damaged {packed} archive ({error}); fetch or pack it again") from error
        if counts.documents == before:
            raise ValueError(f"{path} holds no text, blank lines at most; leave it out, or write it anew")
        counts.read = start + path.stat().st_size


def _plain(path: Path, stream: BinaryIO, counts: Counts) -> Iterator[list[str]]:
    return _group(_lines(path, stream, counts), counts)


def _wikitext(path: Path, stream: BinaryIO, counts: Counts) -> Iterator[list[str]]:
    """Blank lines, which stand around every paragraph there, end nothing; a title does."""
    lines = (line for line in _lines(path, stream, counts) if line.strip())
    return _group((part for line in lines for part in (["", line] if TITLE.fullmatch(line) else [line])), counts)


def _lines(path: Path, stream: BinaryIO, counts: Counts) -> Iterator[str]:
    """Lines, blank ones too, from blocks: faster than the io module's lines, and no line can fill the memory."""
    rest, inside, first = b"", False, True  # inside: `rest` goes on with a line whose beginning was handed out
    while block := stream.read(BLOCK):
        if first and block[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise ValueError(f"{path} is UTF-16 (by its first two bytes); convert it: iconv -f UTF-16 -t UTF-8")
        rest = block.removeprefix(b"\xef\xbb\xbf") if first else rest + block
        first = False
        cut = rest.rfind(b"\n") + 1
        whole = cut > 0
        if not whole:
            if len(rest) < BLOCK:
                continue
            cut = rest.rfind(b"\r", 0, len(rest) - 1) + 1  # a line end of old Macs
            whole = cut > 0
            if not whole:
                cut = _place_to_split(rest)
                counts.split_lines += 1
        yield from _decoded(rest[:cut], counts, inside)
        rest, inside = rest[cut:], not whole
    if rest:
        yield from _decoded(rest, counts, inside)


def _place_to_split(line: bytes) -> int:
    """Where to cut an over-long line: behind a space if one is near the end, else between two characters."""
    space = line.rfind(b" ", len(line) // 2) + 1
    if space:
        return space
    for back in range(1, 5):
        if line[-back] >= 0xC0:  # the first byte of a character that may not be whole
            return len(line) - back
        if line[-back] < 0x80:
            break
    return len(line)


def _decoded(block: bytes, counts: Counts, inside: bool = False) -> list[str]:
    """The lines of a block; `inside` says that it begins within a line, so that an empty rest is no blank line."""
    counts.bytes += len(block)
    try:
        text = block.decode()
    except UnicodeDecodeError:
        text = block.decode(errors="replace")
        counts.replaced += text.count("\ufffd") - block.count("\ufffd".encode())
    if "\0" in text:
        counts.replaced += text.count("\0")
        text = text.replace("\0", "\ufffd")
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    lines = text.removesuffix("\n").split("\n")
    return lines[1:] if inside and not lines[0].strip() else lines


def _group(lines: Iterable[str], counts: Counts) -> Iterator[list[str]]:
    document: list[str] = []
    size = 0
    for line in lines:
        line = line.strip()
        if line:
            document.append(line)
            size += len(line)
            counts.lines += 1
        full = len(document) >= MOST_LINES or size >= MOST_CHARACTERS
        if document and (full or not line):
            counts.documents += 1
            counts.pieces += full
            yield document
            document, size = [], 0
    if document:
        counts.documents += 1
        yield document


def _jsonl(path: Path, stream: BinaryIO, counts: Counts) -> Iterator[list[str]]:
    number = 0
    while line := stream.readline(LONGEST_RECORD):
        number += 1
        where = f"{path}, line {number}"
        if len(line) == LONGEST_RECORD:
            raise ValueError(f"{where} is longer than {LONGEST_RECORD >> 20} MB; cut it into several records")
        size, found = counts.bytes, _decoded(line, counts)
        if not "".join(found).strip():
            continue
        try:
            record = json.loads("\n".join(found))
        except (ValueError, RecursionError) as error:
            raise ValueError(
                f'{where} is no JSON ({error}); each line is an object such as {{"text": "..."}}'
            ) from error
        if not isinstance(record, dict) or "text" not in record:
            what = f"an object with {sorted(record)}" if isinstance(record, dict) else f"a {type(record).__name__}"
            raise ValueError(f'{where} is {what}; each line is an object with a string "text": rename the field')
        if not isinstance(record["text"], str):
            raise ValueError(f'{where} has a {type(record["text"]).__name__} in "text"; write a string there')
        text = record["text"].encode(errors="surrogatepass")  # "\ud800" is legal JSON, but no character
        counts.bytes = size
        yield from _group(_decoded(text, counts), counts)


def _parquet(path: Path, counts: Counts) -> Iterator[list[str]]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(f"reading {path} needs pyarrow, which is not installed; run: pip install pyarrow") from error
    try:
        table = pyarrow.parquet.ParquetFile(path)
        names = table.schema_arrow.names
        if "text" not in names:
            raise ValueError(f'{path} has the columns {names}; one must be called "text": rename it')
        kind = table.schema_arrow.field("text").type
        if pyarrow.types.is_primitive(kind):
            raise ValueError(f'{path} has {kind} in the column "text"; strings are read: write it anew')
        start, rows = counts.read, 0
        for batch in table.iter_batches(batch_size=256, columns=["text"]):
            for text in batch.column(0).cast(pyarrow.string()).cast(pyarrow.binary()).to_pylist():
                yield from _group(_decoded(text or b"", counts), counts)
            rows += batch.num_rows
            counts.read = start + path.stat().st_size * rows // table.metadata.num_rows
    except pyarrow.ArrowException as error:
        raise ValueError(
            f'{path} is no readable parquet file with strings in "text" ({error}); write it anew'
        ) from error


def embedded_documents() -> list[list[str]]:
    """About 2 MB of English that every CPython carries: the topics of its help() and the standard library's docstrings.

    A document is a topic or the docstrings of a module, a line is a sentence. The modules are parsed, not imported;
    the order is fixed, the text depends on the Python version alone.
    """
    found = [_sentences(text) for _, text in sorted(pydoc_data.topics.topics.items())]
    root = Path(sysconfig.get_path("stdlib"))
    skipped = {"test", "tests", "idlelib", "lib2to3", "turtledemo", "ensurepip", "site-packages", "dist-packages"}
    for path in sorted(root.rglob("*.py")):
        if not skipped.intersection(path.relative_to(root).parts[:-1]):
            found.append([sentence for text in _docstrings(path) for sentence in _sentences(text)])
    return [document for document in found if document]


def _docstrings(path: Path) -> Iterator[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old modules hold escapes that newer parsers warn of
            nodes: list[Any] = [ast.parse(path.read_bytes())]
    except (SyntaxError, ValueError, OSError):
        return  # templates and deliberately broken modules lie among the others
    while nodes:
        node = nodes.pop()
        text = ast.get_docstring(node, clean=False)
        if text:
            yield text
        kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        nodes += [child for child in reversed(node.body) if isinstance(child, kinds)]


def _sentences(text: str) -> list[str]:
    """The sentences of the paragraphs of a docstring, without examples of code and rules of asterisks."""
    sentences: list[str] = []
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(text)):
        if paragraph.lstrip().startswith(">>>"):
            continue
        lines = (line.strip() for line in paragraph.splitlines())
        joined = " ".join(line for line in lines if any(character.isalnum() for character in line))
        sentences += re.split(r"(?<=[.!?]) +(?=[A-Z\"'(])", joined)
    return [sentence for sentence in sentences if sentence]
