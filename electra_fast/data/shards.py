"""The files of a corpus: what lies in a shard and in corpus.json, and what is refused.

A shard, little-endian throughout:

    header   64 bytes   magic, byte-order mark, version, bytes a token, 4 unused, examples n, tokens m, zeros
    offsets  8 (n + 1)  uint64: example i is tokens[offsets[i]:offsets[i + 1]]
    starts   4 n        uint32: where segment B begins in example i; its length if there is no B
    tokens   2 m or 4 m uint16 where the vocabulary fits, else uint32

A file is held against its header before anything is mapped, and the offsets are held against the file in blocks, so no
content of a shard makes us allocate or read out of bounds. A shard must not be truncated while it is open: the
operating system kills a process that reads a mapped page that is gone.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np

from electra_fast.data.examples import SHORTEST

FORMAT = 1
MANIFEST = "corpus.json"
MAGIC = b"EFCORPUS"
BYTE_ORDER_MARK = 0x01020304
HEADER = struct.Struct("<8sIIIIQQ24x")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\.bin")
LARGEST_MANIFEST = 1 << 26  # bytes: some 300,000 shards
LONGEST = 1 << 20  # tokens of an example
CHECKED_AT_ONCE = 1 << 20  # offsets, ids or bytes
REBUILD = "prepare it anew: electra-fast prepare FILE ... --out DIR"


class Shard:
    """A mapped shard whose header, size and offsets have been found right."""

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
        with os.fdopen(file, "rb") as stream:
            size = os.fstat(file).st_size
            self._expect("bytes", entry["size"], size, "it is truncated, or not the file corpus.json speaks of")
            header = stream.read(HEADER.size)
            if len(header) < HEADER.size:
                raise ValueError(f"shard {self.path} has {size} bytes, its header alone {HEADER.size}; {REBUILD}")
            magic, mark, version, width, _, self.examples, tokens = HEADER.unpack(header)
            self._expect("magic", MAGIC, magic, "it is no shard")
            self._expect("byte-order mark", BYTE_ORDER_MARK, mark, "it was written with the other byte order")
            self._expect("version", FORMAT, version, "another version of electra_fast wrote it")
            self._expect("bytes a token", self._type.itemsize, width, f"the vocabulary has {vocab_size} entries")
            self._expect("examples", entry["examples"], self.examples, "corpus.json and shard disagree")
            self._expect("tokens", entry["tokens"], tokens, "corpus.json and shard disagree")
            # Python's integers do not overflow, whatever the counts say.
            starts = HEADER.size + 8 * (self.examples + 1)
            ids = starts + 4 * self.examples
            self._expect("bytes by its header", ids + width * tokens, size, "its counts do not fit its size")
            self._map = mmap.mmap(file, size, access=mmap.ACCESS_READ)
        self._offsets = np.frombuffer(self._map, "<u8", self.examples + 1, HEADER.size)
        self._starts = np.frombuffer(self._map, "<u4", self.examples, starts)
        self._ids = np.frombuffer(self._map, self._type, tokens, ids)
        self._check_offsets(tokens, max_length)

    def _expect(self, what: str, wanted: Any, found: Any, meaning: str) -> None:
        if found != wanted:
            raise ValueError(f"shard {self.path}: {what} {found!r}, expected {wanted!r}: {meaning}; {REBUILD}")

    def _check_offsets(self, tokens: int, max_length: int) -> None:
        first, last = int(self._offsets[0]), int(self._offsets[-1])
        self._expect("offsets from and to", (0, tokens), (first, last), "they must span the tokens")
        for begin in range(0, self.examples, CHECKED_AT_ONCE):
            end = min(begin + CHECKED_AT_ONCE, self.examples)
            # Of uint64: where offsets fall, the difference wraps round to a huge length and is caught as one.
            lengths = np.diff(self._offsets[begin : end + 1])
            starts = self._starts[begin:end]
            wrong = (lengths < 1) | (lengths > max_length) | (starts < 1) | (starts > lengths)
            if wrong.any():
                at = begin + int(wrong.argmax())
                offsets = self._offsets[at : at + 2].tolist()
                raise ValueError(
                    f"shard {self.path}: example {at} has offsets {offsets} and segment B at {self._starts[at]}; "
                    f"offsets must rise by 1 to {max_length}, and B begin within the example; {REBUILD}"
                )

    def example(self, index: int) -> tuple[np.ndarray, int]:
        begin, end = self._offsets[index : index + 2].tolist()
        return self._checked_ids(begin, end).astype(np.int64), int(self._starts[index])

    def _checked_ids(self, begin: int, end: int) -> np.ndarray:
        """Tokens begin to end, held against the vocabulary here on the host: no kernel looks again."""
        ids = self._ids[begin:end]
        if ids.max(initial=0) >= self._vocab_size:
            at = int((ids >= self._vocab_size).argmax())
            raise ValueError(
                f"shard {self.path}: token {begin + at} is {ids[at]}, outside the vocabulary of {self._vocab_size}; "
                f"{REBUILD}"
            )
        return ids

    def verify(self, sha256: str) -> None:
        digest = hashlib.sha256()
        for begin in range(0, len(self._map), CHECKED_AT_ONCE):
            digest.update(self._map[begin : begin + CHECKED_AT_ONCE])
        self._expect("sha256", sha256, digest.hexdigest(), "its content has changed since it was written")
        for begin in range(0, len(self._ids), CHECKED_AT_ONCE):
            self._checked_ids(begin, begin + CHECKED_AT_ONCE)


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
    for name in ("pad", "unk", "cls", "sep", "mask"):
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
