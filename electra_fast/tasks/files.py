"""Files of examples as they lie on disk: their lines, one at a time, and the JSON in them."""

from __future__ import annotations

import json
import lzma
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from electra_fast.data.packed import PACKED

LONGEST_LINE = 1 << 26  # bytes
LARGEST_JSON = 1 << 30  # bytes of a .json file, unpacked: it is parsed whole
SURROGATES = re.compile("[\ud800-\udfff]")  # legal in JSON as "\ud800", but no character: no tokenizer takes it


def ending(path: str | Path) -> str:
    """The ending that says how a file is written, such as ".tsv", before that of its packing; "" without one."""
    suffixes = [suffix.lower() for suffix in Path(path).suffixes]
    if suffixes and suffixes[-1] in PACKED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'s' * (count != 1)}"


NAMES: dict[type, str] = {str: "a string", bool: "true or false", int: "a number", float: "a number", list: "a list"}
NAMES |= {dict: "an object", type(None): "nothing"}


def type_name(kind: type) -> str:
    """What JSON calls a type of Python, such as "a number" for int."""
    return NAMES.get(kind, f"a {kind.__name__}")


def check_file(path: str | Path) -> Path:
    """The path. Raises FileNotFoundError or ValueError, in a sentence, unless a regular file with content is there."""
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a directory, not a file of examples; name a file in it")
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}; check the name")
    if not path.is_file():  # opening a pipe waits for its writer, perhaps for ever
        raise ValueError(
            f"{path} is a pipe or a device, not a regular file; write the examples into a file and name it"
        )
    if not path.stat().st_size:
        raise ValueError(f"{path} is empty; name a file with examples in it")
    return path


@contextmanager
def opened(path: Path) -> Iterator[BinaryIO]:
    """The unpacked bytes of a file as a stream. Raises ValueError while it is read if the archive is damaged."""
    packed = path.suffix.lower()
    try:
        with path.open("rb") as raw, PACKED[packed](raw) if packed in PACKED else raw as stream:
            yield stream
    except (EOFError, lzma.LZMAError, zlib.error, OSError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # gzip.BadGzipFile is an OSError without a number
            raise
        raise ValueError(f"{path} is a damaged {packed} archive ({error}); fetch or pack it again") from error


def read_lines(path: str | Path) -> Iterator[bytes]:
    """The lines of a text file, packed with xz or gz or not, one at a time, without their ends ("\\n", "\\r\\n" or
    "\\r") and without the file's byte-order mark.

    Raises FileNotFoundError or ValueError, in a sentence: no such file, nothing but blank lines, a damaged archive,
    a line of more than 64 MB.
    """
    path, blank, number = check_file(path), True, 0
    with opened(path) as stream:
        while data := stream.readline(LONGEST_LINE + 1):
            if len(data) > LONGEST_LINE:
                raise ValueError(
                    f"{path}, line {number + 1} is longer than {LONGEST_LINE >> 20} MB; write an example per line"
                )
            if number == 0:
                data = data.removeprefix(b"\xef\xbb\xbf")
            for line in data.removesuffix(b"\n").removesuffix(b"\r").split(b"\r"):
                number += 1
                blank = blank and not line.strip()
                yield line
    if blank:
        raise ValueError(f"{path} is empty but for blank lines; name a file with examples in it")


def decode(line: bytes, where: str) -> str:
    """A line as text, without its end. Raises ValueError that begins with where on bytes that are no UTF-8, and NUL."""
    try:
        text = line.decode()
    except UnicodeDecodeError as error:
        if line[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise ValueError(
                f"{where} is UTF-16 (by its first two bytes); convert the file: iconv -f UTF-16 -t UTF-8"
            ) from error
        raise ValueError(
            f"{where} holds the byte 0x{line[error.start]:02x}, which is no UTF-8; convert the file, such as with "
            "iconv -f LATIN1 -t UTF-8"
        ) from error
    if "\0" in text:
        raise ValueError(f"{where} holds a NUL character, which is no text; write the file anew")
    return text.rstrip("\r\n")


def read_json(path: str | Path) -> Any:
    """What a .json file says, packed with xz or gz or not. Raises ValueError on more than 1 GB, and as `parse`."""
    path = check_file(path)
    data = bytearray()
    with opened(path) as stream:
        while len(data) <= LARGEST_JSON and (piece := stream.read(1 << 20)):  # read(n) would ask for n bytes at once
            data += piece
    if len(data) > LARGEST_JSON:
        raise ValueError(
            f"{path} is larger than {LARGEST_JSON >> 30} GB, unpacked, and would be read whole; split it, or write it "
            "as .jsonl, an example per line"
        )
    if not data.strip():
        raise ValueError(f"{path} is empty but for blank lines; name a file with examples in it")
    try:
        return parse(data.decode("utf-8-sig"), str(path))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not in UTF-8 ({error}); convert it, such as with iconv") from error


def parse_object(line: str, where: str) -> dict[str, Any]:
    """A JSON object with at least a field; ValueError that begins with where otherwise."""
    value = parse(line, where)
    if not isinstance(value, dict) or not value:
        what = "an object without fields" if value == {} else type_name(type(value))
        raise ValueError(f'{where} is {what}; each line is an object such as {{"text": "...", "label": "..."}}')
    return value


def parse(text: str, where: str) -> Any:
    """What a JSON text says, surrogates that are no character replaced one for one; ValueError otherwise."""
    try:
        return _characters(json.loads(text))
    except (ValueError, RecursionError) as error:  # RecursionError: brackets, a thousand deep
        raise ValueError(f"{where} is no JSON ({error}); write it anew") from error


def _characters(value: Any) -> Any:
    if isinstance(value, str):
        return SURROGATES.sub("\ufffd", value)
    if isinstance(value, list):
        return [_characters(item) for item in value]
    if isinstance(value, dict):
        return {_characters(name): _characters(item) for name, item in value.items()}
    return value


class Malformed:
    """What of a file could not be read and is left out: at most so much, each with its place, to be told in a line."""

    def __init__(self, path: str | Path, most: int, noun: str = "line") -> None:
        """most: how many may be left out. noun: what they are called, such as "line". Raises ValueError below 0."""
        if most < 0:
            raise ValueError(f"max_bad_lines is {most}; it must be at least 0, which refuses any malformed line")
        self.path, self.most, self.noun = path, most, noun
        self.count = 0
        self.first: ValueError | None = None
        self.places: list[str] = []

    def leave_out(self, place: object, error: ValueError, count: int = 1) -> None:
        """Count what is left out at a place; raises ValueError with the first error once it is more than `most`."""
        self.count += count
        self.first = self.first or error
        self.places.append(str(place))
        if self.most == 0:
            raise error
        if self.count > self.most:
            raise ValueError(
                f"{self.path} has more than {plural(self.most, f'malformed {self.noun}')}, the first of which: "
                f"{self.first}; mend them, or allow more with --max-bad-lines"
            )

    def notes(self) -> list[str]:
        """One line on what was left out; none if nothing was."""
        if self.first is None:
            return []
        places = "; ".join(self.places[:10]) + "; ..." * (len(self.places) > 10)
        left_out = plural(self.count, f"malformed {self.noun}")
        return [f"{self.path}: left out {left_out} ({places}), the first of which: {self.first}"]
