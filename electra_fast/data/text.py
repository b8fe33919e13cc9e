"""Text files -> documents, as a stream in bounded memory.

A document is a list of non-empty lines; a line is what the example builder calls a sentence. Bytes that are not valid
UTF-8 are replaced and counted, never fatal: a crawl of a million pages always holds a few.
"""

from __future__ import annotations

import gzip
import json
import lzma
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from electra_fast.data import parquet
from electra_fast.data.packed import PACKED

KINDS = (".txt", ".tokens", ".jsonl", ".parquet")
BLOCK = 1 << 16  # bytes read at once; a longer line is cut, after a space if there is one
TITLE = re.compile(r"\s*= (?!=).* =\s*")  # of an article of WikiText; a section's is `= = ... = =`
LONGEST_RECORD = 1 << 24  # bytes of one line of .jsonl; the line must be parsed whole, so a longer one is refused
MOST_LINES, MOST_CHARACTERS = 1000, 1 << 18  # of one document; a longer document is divided


@dataclass
class Counts:
    """What has been read so far; `documents` fills it while it reads."""

    read: int = 0  # bytes on disk, of an archive its packed bytes: what a progress bar shows
    bytes: int = 0  # bytes of text
    documents: int = 0  # handed out, pieces included
    pieces: int = 0  # of those, the ones that are not the end of their document, which was too long for one piece
    lines: int = 0
    split_lines: int = 0  # cuts made in lines of more than BLOCK bytes
    replaced: int = 0  # characters that were not valid UTF-8, or NUL


def documents(paths: str | Path | Iterable[str | Path], counts: Counts | None = None) -> Iterator[list[str]]:
    """The documents of the files, in order, each a list of lines.

    `.txt`: a blank line ends a document. `.tokens`: WikiText, where a line ` = Title = ` begins one. `.jsonl`: the
    field "text" of each line is a document. `.parquet`: each row of the column "text". All but the last may be packed
    with xz or gz. However long lines, documents and archives are, some megabytes of them are in memory at once.

    paths: one file or several; all are checked before the first is read.
    counts: filled while reading.

    Raises FileNotFoundError or ValueError naming the file (and the line) for a missing or empty file, one that is not
    a regular file, an unknown ending, a damaged archive, and a record without text.
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
        if not path.is_file():
            raise ValueError(f"{path} is not a regular file, and text is read more than once; save it to a file first")
        if not path.stat().st_size:
            raise ValueError(f"{path} is empty (0 bytes); leave it out, or write it anew")
    return files


def _kind(path: Path) -> tuple[str, str]:
    """The ending that says what a file holds, and the one that says how it is packed, "" if it is not."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    packed = suffixes.pop() if suffixes and suffixes[-1] in PACKED else ""
    return (suffixes[-1] if suffixes else ""), packed


def _documents(files: list[Path], counts: Counts) -> Iterator[list[str]]:
    for path in files:
        before, start, size = counts.documents, counts.read, path.stat().st_size
        kind, packed = _kind(path)
        try:
            if kind == ".parquet":
                for text, share in parquet.texts(path):
                    counts.read = start + int(size * share)
                    yield from _grouped(_lines(_cut(text), counts), counts)
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
        counts.read = start + size


def _plain(path: Path, stream: BinaryIO, counts: Counts) -> Iterator[list[str]]:
    return _grouped(_lines(_blocks(path, stream), counts), counts)


def _wikitext(path: Path, stream: BinaryIO, counts: Counts) -> Iterator[list[str]]:
    """Documents that end at the next title. Blank lines, which stand around every paragraph there, are skipped."""
    lines = (line for line in _lines(_blocks(path, stream), counts) if line.strip())
    return _grouped((part for line in lines for part in (["", line] if TITLE.fullmatch(line) else [line])), counts)


def _jsonl(path: Path, stream: BinaryIO, counts: Counts) -> Iterator[list[str]]:
    number = 0
    while line := stream.readline(LONGEST_RECORD):
        number += 1
        where = f"{path}, line {number}"
        if len(line) == LONGEST_RECORD:
            raise ValueError(f"{where} is longer than {LONGEST_RECORD >> 20} MB; cut it into several records")
        content = _decoded(line, counts)
        if not content.strip():
            continue
        try:
            record = json.loads(content)
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
        del line, content, record
        yield from _grouped(_lines(_cut(text), counts), counts)


def _blocks(path: Path, stream: BinaryIO) -> Iterator[bytes]:
    """The bytes of a file without its byte-order mark; raises ValueError for the mark of UTF-16."""
    block = stream.read(BLOCK)
    if block[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise ValueError(f"{path} is UTF-16 (by its first two bytes); convert it: iconv -f UTF-16 -t UTF-8")
    block = block.removeprefix(b"\xef\xbb\xbf")
    while block:
        yield block
        block = stream.read(BLOCK)


def _cut(text: bytes) -> Iterator[bytes]:
    return (text[start : start + BLOCK] for start in range(0, len(text), BLOCK))


def _lines(blocks: Iterable[bytes], counts: Counts) -> Iterator[str]:
    """Lines, blank ones too, of at most 2 BLOCK bytes: faster than the lines of the io module, and bounded."""
    rest = b""
    inside = False  # whether `rest` goes on with a line whose beginning was handed out
    for block in blocks:
        rest += block
        cut = rest.rfind(b"\n") + 1
        at_line_end = cut > 0
        if not at_line_end:
            if len(rest) < BLOCK:
                continue
            cut = rest.rfind(b"\r", 0, len(rest) - 1) + 1  # a line end of old Macs
            at_line_end = cut > 0
            if not at_line_end:
                cut = _place_to_split(rest)
                counts.split_lines += 1
        yield from _split(rest[:cut], counts, inside)
        rest, inside = rest[cut:], not at_line_end
    if rest:
        yield from _split(rest, counts, inside)


def _place_to_split(line: bytes) -> int:
    """Where to cut a line that is too long: after a space in its second half, else between two characters."""
    space = max(line.rfind(b" ", len(line) // 2), line.rfind(b"\t", len(line) // 2)) + 1
    if space:
        return space
    for back in range(1, 5):
        if line[-back] >= 0xC0:  # the first byte of a character that may not be whole
            return len(line) - back
        if line[-back] < 0x80:
            break
    return len(line)


def _split(block: bytes, counts: Counts, inside: bool) -> list[str]:
    """The lines of a block. `inside`: it begins within a line, so that an empty beginning is not a blank line."""
    counts.bytes += len(block)
    lines = _decoded(block, counts).removesuffix("\n").split("\n")
    return lines[1:] if inside and not lines[0].strip() else lines


def _decoded(block: bytes, counts: Counts) -> str:
    """UTF-8 as text with "\\n" for line ends of all kinds, and U+FFFD for NUL and for bytes that are not valid."""
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
    return text


def _grouped(lines: Iterable[str], counts: Counts) -> Iterator[list[str]]:
    """Documents: the lines between blank ones, divided where they are too many for one document."""
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
