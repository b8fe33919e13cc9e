"""The files of a corpus: what lies in a shard and in corpus.json, and what is refused.

A shard, little-endian throughout:

    header   64 bytes   magic, byte-order mark, version, bytes a token, 4 unused, examples n, tokens m, zeros
    offsets  8 (n + 1)  uint64: example i is tokens[offsets[i]:offsets[i + 1]]
    starts   4 n        uint32: where segment B begins in example i; its length if there is no B
    tokens   2 m or 4 m uint16 where the vocabulary fits, else uint32

A file is held against its header when it is opened, and the offsets are held against the file in blocks, so no content
of a shard makes us allocate or read out of bounds. Everything is read by pread and nothing is mapped: the operating
system kills a process that touches a mapped page of a file that was truncated meanwhile, where a read comes up short
and can be told.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import struct
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from electra_fast.data.examples import SHORTEST
from electra_fast.special_ids import SpecialIds

FORMAT = 1
MANIFEST = "corpus.json"
MAGIC = b"EFCORPUS"
BYTE_ORDER_MARK = 0x01020304
HEADER = struct.Struct("<8sIIIIQQ24x")
OFFSET, START = 8, 4  # bytes
SPAN, PLACE = struct.Struct("<QQ"), struct.Struct("<I")  # the offsets around an example, its start of segment B
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\.bin")
LARGEST_MANIFEST = 1 << 26  # bytes: some 300,000 shards
LONGEST = 1 << 20  # tokens of an example
CHECKED_AT_ONCE = 1 << 20  # offsets, ids or bytes
REBUILD = "prepare it anew: electra-fast prepare FILE ... --out DIR"


class Shard:
    """An open shard whose header, size and offsets have been found right."""

    def __init__(self, root: Path, entry: dict[str, Any], vocab_size: int, max_length: int) -> None:
        self.path = root / entry["file"]
        self._vocab_size, self._type = vocab_size, token_type(vocab_size)
        try:
            # No symbolic link is followed out of the directory; a named pipe must not make us wait.
            file = os.open(self.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"shard {self.path} is missing; copy it again, or {REBUILD}") from error
        except OSError as error:
            why = "a symbolic link" if self.path.is_symlink() else str(error)
            raise ValueError(f"shard {self.path} cannot be opened ({why}); it must be a plain file: copy it") from error
        weakref.finalize(self, os.close, file)
        self._file, self._size, self._max_length = file, os.fstat(file).st_size, max_length
        self._expect("bytes", entry["size"], self._size, "it is truncated, or not the file corpus.json speaks of")
        if self._size < HEADER.size:
            raise ValueError(f"shard {self.path} has {self._size} bytes, its header alone {HEADER.size}; {REBUILD}")
        magic, mark, version, width, _, self.examples, self.tokens = HEADER.unpack(self._read(0, HEADER.size))
        self._expect("magic", MAGIC, magic, "it is no shard")
        self._expect("byte-order mark", BYTE_ORDER_MARK, mark, "it was written with the other byte order")
        self._expect("version", FORMAT, version, "another version of electra_fast wrote it")
        self._expect("bytes a token", self._type.itemsize, width, f"the vocabulary has {vocab_size} entries")
        self._expect("examples", entry["examples"], self.examples, "corpus.json and shard disagree")
        self._expect("tokens", entry["tokens"], self.tokens, "corpus.json and shard disagree")
        # Python's integers do not overflow, whatever the counts say.
        self._starts = HEADER.size + OFFSET * (self.examples + 1)  # the place of the first start, in bytes
        self._ids = self._starts + START * self.examples  # the place of the first token, in bytes
        expected = self._ids + width * self.tokens
        self._expect("bytes by its header", expected, self._size, "its counts do not fit its size")
        self._check_offsets()

    def _read(self, at: int, size: int) -> bytes:
        """`size` bytes from byte `at` on. Raises ValueError if the file has become shorter, OSError if it cannot be
        read; both name the file."""
        try:
            content = os.pread(self._file, size, at)
            while len(content) < size:
                more = os.pread(self._file, size - len(content), at + len(content))
                if not more:
                    raise ValueError(
                        f"shard {self.path} has {os.fstat(self._file).st_size} bytes, and had {self._size} when it was "
                        f"opened: it was cut short or overwritten since; copy it again, or {REBUILD}"
                    )
                content += more
        except OSError as error:
            error.filename = str(self.path)
            raise
        return content

    def _expect(self, what: str, wanted: Any, found: Any, meaning: str) -> None:
        if found != wanted:
            raise ValueError(f"shard {self.path}: {what} {found!r}, expected {wanted!r}: {meaning}; {REBUILD}")

    def _check_offsets(self) -> None:
        ends = (self._read(HEADER.size + OFFSET * index, OFFSET) for index in (0, self.examples))
        first, last = (int.from_bytes(end, "little") for end in ends)
        self._expect("offsets from and to", (0, self.tokens), (first, last), "they must span the tokens")
        for begin in range(0, self.examples, CHECKED_AT_ONCE):
            count = min(CHECKED_AT_ONCE, self.examples - begin)
            offsets = np.frombuffer(self._read(HEADER.size + OFFSET * begin, OFFSET * (count + 1)), "<u8")
            starts = np.frombuffer(self._read(self._starts + START * begin, START * count), "<u4")
            # Of uint64: where offsets fall, the difference wraps round to a huge length and is caught as one.
            lengths = np.diff(offsets)
            wrong = (lengths < 1) | (lengths > self._max_length) | (starts < 1) | (starts > lengths)
            if wrong.any():
                at = int(wrong.argmax())
                self._refuse(begin + at, offsets[at : at + 2].tolist(), int(starts[at]))

    def _refuse(self, index: int, offsets: list[int], start: int) -> NoReturn:
        raise ValueError(
            f"shard {self.path}: example {index} has offsets {offsets} and segment B at {start}; "
            f"offsets must rise by 1 to {self._max_length}, and B begin within the example; {REBUILD}"
        )

    def example(self, index: int) -> tuple[np.ndarray, int]:
        """The ids (length,) int64 of an example, and where segment B begins.

        Costs three reads. Raises ValueError if the file is no longer what it was when it was opened.
        """
        begin, end = SPAN.unpack(self._read(HEADER.size + OFFSET * index, SPAN.size))
        (start,) = PLACE.unpack(self._read(self._starts + START * index, PLACE.size))
        if not (0 < start <= end - begin <= self._max_length and end <= self.tokens):
            self._refuse(index, [begin, end], start)
        return self._checked_ids(begin, end).astype(np.int64), start

    def _checked_ids(self, begin: int, end: int) -> np.ndarray:
        """Tokens begin to end, held against the vocabulary here on the host: no kernel looks again."""
        width = self._type.itemsize
        ids = np.frombuffer(self._read(self._ids + width * begin, width * (end - begin)), self._type)
        if np.maximum.reduce(ids, initial=0) >= self._vocab_size:
            at = int((ids >= self._vocab_size).argmax())
            raise ValueError(
                f"shard {self.path}: token {begin + at} is {ids[at]}, outside the vocabulary of {self._vocab_size}; "
                f"{REBUILD}"
            )
        return ids

    def check_digest(self, sha256: str, cancelled: Callable[[], bool] = lambda: False) -> None:
        """Read the whole file, and raise ValueError unless its SHA-256 is `sha256`, which corpus.json has of it.

        cancelled: is asked before every megabyte; True ends the reading without a verdict.
        """
        digest = hashlib.sha256()
        for begin in range(0, self._size, CHECKED_AT_ONCE):
            if cancelled():
                return
            digest.update(self._read(begin, min(CHECKED_AT_ONCE, self._size - begin)))
        self._expect("sha256", sha256, digest.hexdigest(), "its content has changed since it was written")

    def check_ids(self) -> None:
        """Hold every id against the vocabulary; raises ValueError."""
        for begin in range(0, self.tokens, CHECKED_AT_ONCE):
            self._checked_ids(begin, min(begin + CHECKED_AT_ONCE, self.tokens))


def write_shard(path: Path, tokens: np.ndarray, lengths: np.ndarray, starts: np.ndarray) -> dict[str, Any]:
    """Write examples to a new file; tokens in the type of `token_type`. Returns the shard's entry in corpus.json."""
    offsets = np.zeros(len(lengths) + 1, "<u8")
    np.cumsum(lengths, out=offsets[1:])
    header = HEADER.pack(MAGIC, BYTE_ORDER_MARK, FORMAT, tokens.itemsize, 0, len(lengths), len(tokens))
    digest, size = hashlib.sha256(), 0
    with path.open("xb") as file:
        for part in (header, offsets.data, starts.astype("<u4").data, tokens.data):
            size += file.write(part)
            digest.update(part)
    return dict(file=path.name, size=size, sha256=digest.hexdigest(), examples=len(lengths), tokens=len(tokens))


def token_type(vocab_size: int) -> np.dtype:
    """Of the ids in a shard: uint16 where the vocabulary fits, else uint32, little-endian."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


def read_manifest(root: Path) -> dict[str, Any]:
    path = root / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(f"{root} is no corpus: it has no {MANIFEST}; {REBUILD}")
    if path.stat().st_size > LARGEST_MANIFEST:
        raise ValueError(f"{path} has {path.stat().st_size} bytes; at most {LARGEST_MANIFEST} are read; {REBUILD}")
    try:
        manifest = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON ({error}); {REBUILD}") from error

    def take(owner: Any, name: str, kind: type, where: str, least: int = 0, most: int = 1 << 62) -> Any:
        value = owner.get(name) if isinstance(owner, dict) else None
        if type(value) is not kind or (isinstance(value, int) and not least <= value <= most):
            allowed = f"a whole number from {least} to {most}" if kind is int else f"a {kind.__name__}"
            raise ValueError(f"{path}: {name!r} of {where} is {value!r:.80}; it must be {allowed}; {REBUILD}")
        return value

    if take(manifest, "format", int, "the corpus") != FORMAT:
        raise ValueError(f"{path} has format {manifest['format']}, this version reads {FORMAT}; {REBUILD}")
    take(manifest, "max_length", int, "the corpus", SHORTEST, LONGEST)
    take(manifest, "vocab_size", int, "the corpus", 1)
    take(manifest, "tokenizer_sha256", str, "the corpus")
    special = take(manifest, "special_ids", dict, "the corpus")
    for name in SpecialIds._fields:
        if take(special, name, int, "special_ids") >= manifest["vocab_size"]:
            raise ValueError(f"{path}: special id {name} is {special[name]}, outside the vocabulary; {REBUILD}")
    for split in take(manifest, "splits", dict, "the corpus"):
        for shard in take(manifest["splits"], split, list, "splits"):
            name = take(shard, "file", str, f"a shard of {split!r}")
            if not NAME.fullmatch(name):
                raise ValueError(f"{path} names a shard {name!r}; a shard is a plain .bin name in {root}; {REBUILD}")
            for number in ("size", "examples", "tokens"):
                take(shard, number, int, f"shard {name}")
            take(shard, "sha256", str, f"shard {name}")
    return manifest
