"""TensorFlow's checkpoint files, read without TensorFlow: PREFIX.index and PREFIX.data-00000-of-00001, ...

The index is a LevelDB table from names to protobuf messages, which say where in the data files each tensor lies. Every
block of the index and every tensor has a CRC-32C checksum, and each is checked. Sources: the comments on the format in
tensorflow/core/util/tensor_bundle and protobuf/tensor_bundle.proto; leveldb/doc/table_format.md.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from electra_fast.interop.crc32c import crc32c, masked

LARGEST_INDEX, MOST_TENSORS = 16 << 20, 100_000  # bytes and tensors; a real index has about 100 bytes for each tensor
DTYPES = {  # by the numbers that TensorFlow gives them
    1: torch.float32, 2: torch.float64, 3: torch.int32, 4: torch.uint8, 5: torch.int16, 6: torch.int8,
    9: torch.int64, 10: torch.bool, 14: torch.bfloat16, 19: torch.float16,
}  # fmt: skip
_MAGIC, _FOOTER = 0xDB4775248B80FB57, 48
_AGAIN = "the file is damaged, or is no TensorFlow checkpoint: fetch it again, or name another"


class Entry(NamedTuple):
    """Where a tensor lies in the data files; dtype is None if DTYPES does not have it, such as that of strings."""

    dtype: torch.dtype | None
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    crc: int


class Bundle:
    """An open checkpoint: `entries` has the place of each tensor by its name, and `tensor(name)` reads one.

    prefix: the path of the checkpoint without .index.

    Raises ValueError, naming the file, if a file is missing, or the index is damaged, compressed, cut into slices, or
    points outside the data files.
    """

    def __init__(self, prefix: Path) -> None:
        path = prefix.with_name(f"{prefix.name}.index")
        if not path.is_file():
            raise ValueError(f"{path} is {'not a regular file' if path.exists() else 'missing'}; put the index there")
        if (size := path.stat().st_size) > LARGEST_INDEX:
            raise ValueError(f"{path} has {size} bytes; at most {LARGEST_INDEX} are allowed; {_AGAIN}")
        try:
            shards, self.entries = _index(path.read_bytes())
        except ValueError as error:
            raise ValueError(f"{path}: {error}; {_AGAIN}") from None
        self.shards = [prefix.with_name(f"{prefix.name}.data-{i:05}-of-{shards:05}") for i in range(shards)]
        for shard in self.shards:
            if not shard.is_file():
                raise ValueError(f"{shard} is missing, and {path} refers to it; put it beside the index")
        sizes = [shard.stat().st_size for shard in self.shards]
        ends = [0] * shards
        for name, entry in sorted(self.entries.items(), key=lambda item: item[1][2:5]):
            where = f"{path}: tensor {name!r:.100} lies at bytes {entry.offset} to {entry.offset + entry.size}"
            if entry.offset + entry.size > sizes[entry.shard]:
                raise ValueError(f"{where}, and {self.shards[entry.shard]} has {sizes[entry.shard]}; {_AGAIN}")
            if entry.offset < ends[entry.shard]:
                raise ValueError(f"{where}, over another tensor; no overlap is allowed; {_AGAIN}")
            ends[entry.shard] = entry.offset + entry.size

    def tensor(self, name: str) -> Tensor:
        """Read a tensor and check its checksum. Raises ValueError if that differs, or the dtype is not in DTYPES."""
        entry = self.entries[name]
        shard = self.shards[entry.shard]
        if entry.dtype is None:
            allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES.values())
            raise ValueError(f"{shard}: tensor {name!r:.100} has none of the dtypes {allowed}; save it in one of them")
        content = np.fromfile(shard, np.uint8, entry.size, offset=entry.offset)
        if len(content) != entry.size or masked(crc32c(content)) != entry.crc:
            raise ValueError(
                f"{shard}: the bytes of tensor {name!r:.100} do not have the checksum that the index names; {_AGAIN}"
            )
        if entry.dtype == torch.bool and content.max(initial=0) > 1:
            raise ValueError(f"{shard}: tensor {name!r:.100} is bool and holds a byte {content.max()}; {_AGAIN}")
        if not len(content):  # torch.frombuffer takes no empty buffer
            return torch.empty(entry.shape, dtype=entry.dtype)
        return torch.frombuffer(content, dtype=entry.dtype).reshape(entry.shape)


def _index(data: bytes) -> tuple[int, dict[str, Entry]]:
    """The number of data files, and the entries by name, in the bytes of an index.

    Raises ValueError, without the file's name, if the bytes are no index of a checkpoint.
    """
    if len(data) < _FOOTER or int.from_bytes(data[-8:], "little") != _MAGIC:
        raise ValueError(f"it is no table: its {len(data)} bytes end in {data[-8:].hex() or 'nothing'}")
    footer = data[-_FOOTER:-8]
    *handles, at = _varints(footer, 4)
    if any(footer[at:]):
        raise ValueError("its footer holds more than the places of two blocks")
    blocks = [(handles[0], handles[1]), (handles[2], handles[3])]
    keys = list(_block(data, *blocks[1]))
    for _, value in keys:
        offset, size, end = _varints(value, 2)
        if end != len(value):
            raise ValueError("an entry of its index block is longer than the place of a block")
        blocks.append((offset, size))
    end = 0
    for offset, size in sorted(blocks):
        if offset != end:
            raise ValueError(f"a block begins at byte {offset}, and the one before ends at {end}")
        end = offset + size + 5
    if end != len(data) - _FOOTER:
        raise ValueError(f"its blocks end at byte {end}, and its footer begins at {len(data) - _FOOTER}")
    list(_block(data, *blocks[0]))
    items: list[tuple[bytes, bytes]] = []
    for offset, size in blocks[2:]:
        items += _block(data, offset, size)
        if len(items) > MOST_TENSORS:
            raise ValueError(f"it has more than {MOST_TENSORS} tensors")
    names = [key for key, _ in items]
    if not names or names[0] or any(a >= b for a, b in itertools.pairwise(names)):
        raise ValueError("its names must begin with the empty one of the header, and be sorted, each once")
    header = dict(_fields(items[0][1]))
    shards, big = header.get(1, 0), header.get(2, 0)
    if not isinstance(shards, int) or not 1 <= shards <= 10_000 or big != 0:
        raise ValueError(f"it has {shards!r} data files in byte order {big!r}; 1 to 10,000 in byte order 0 are allowed")
    return shards, {_text(key): _entry(_text(key), value, shards) for key, value in items[1:]}


def _text(key: bytes) -> str:
    """The name that a key of the index holds."""
    try:
        return key.decode()
    except UnicodeDecodeError:
        raise ValueError(
            f"it names {key!r:.100}, which is no text: slices of partitioned variables are not read"
        ) from None


def _entry(name: str, message: bytes, shards: int) -> Entry:
    """The entry of a tensor in a protobuf message; `shards` is the number of data files."""
    fields = _fields(message)
    values = dict(fields)
    shape = values.get(2, b"")
    if 7 in values:
        raise ValueError(f"{name!r:.100} is a partitioned variable, cut into slices, which are not read")
    if not isinstance(shape, bytes):
        raise ValueError(f"the shape of {name!r:.100} is not a protobuf message")
    dims = []
    for number, dim in _fields(shape):
        if number == 2 and isinstance(dim, bytes):
            dims.append(dict(_fields(dim)).get(1, 0))
        elif number == 3 and dim:
            raise ValueError(f"{name!r:.100} has an unknown shape")
    numbers = [values.get(1, 0), *dims, *(values.get(field, 0) for field in (3, 4, 5, 6))]
    integers = [number for number in numbers if isinstance(number, int) and number < 2**63]
    if len(integers) != len(numbers) or len(dims) > 16:
        raise ValueError(
            f"{name!r:.100} is described by {numbers!r:.100}; at most 16 sizes of 0 to 2^63 - 1 are allowed"
        )
    dtype, *_, shard, offset, size, crc = integers
    sizes = tuple(integers[1 : 1 + len(dims)])
    known = DTYPES.get(dtype)
    if shard >= shards:
        raise ValueError(f"{name!r:.100} lies in data file {shard} of {shards}, counted from 0")
    if known is not None and size != math.prod(sizes) * known.itemsize:
        raise ValueError(f"{name!r:.100} of shape {sizes} and {known} takes {size} bytes by the index, which is wrong")
    return Entry(known, sizes, shard, offset, size, crc)


def _block(data: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield the key and value of each entry of a block, after checking its checksum."""
    if offset + size + 5 > len(data) - _FOOTER or size < 4:
        raise ValueError(f"a block of {size} bytes at {offset} lies outside its {len(data)} bytes")
    content, kind = data[offset : offset + size], data[offset + size]
    if masked(crc32c(data[offset : offset + size + 1])) != int.from_bytes(data[offset + size + 1 :][:4], "little"):
        raise ValueError(f"the block at byte {offset} does not have its checksum")
    if kind != 0:
        raise ValueError(f"the block at byte {offset} is compressed (kind {kind}), which TensorFlow does not write")
    end = size - 4 - 4 * int.from_bytes(content[-4:], "little")  # restart points, which serve searches
    at, key = 0, b""
    if end < 0:
        raise ValueError(f"the block at byte {offset} has more restart points than bytes")
    while at < end:
        shared, new, length, at = _varints(content[:end], 3, at)
        if shared > len(key) or at + new + length > end:
            raise ValueError(f"an entry of the block at byte {offset} ends outside it")
        key = key[:shared] + content[at : at + new]
        yield key, content[at + new : at + new + length]
        at += new + length


def _fields(message: bytes) -> list[tuple[int, int | bytes]]:
    """The fields of a protobuf message: the number of each, and its value as an integer or as bytes."""
    at, fields = 0, []
    while at < len(message):
        tag, at = _varints(message, 1, at)
        value: int | bytes
        if tag & 7 == 0:
            value, at = _varints(message, 1, at)
        elif tag & 7 in (1, 2, 5):
            length, at = _varints(message, 1, at) if tag & 7 == 2 else ({1: 8, 5: 4}[tag & 7], at)
            raw, at = message[at : at + length], at + length
            value = raw if tag & 7 == 2 else int.from_bytes(raw, "little")
        else:
            raise ValueError(f"a protobuf message has a field of kind {tag & 7}, which is unknown")
        if at > len(message):
            raise ValueError("a protobuf message ends within a field")
        fields.append((tag >> 3, value))
    return fields


def _varints(data: bytes, count: int, at: int = 0) -> list[int]:
    """Read `count` variable-length integers from byte `at` on: each byte has 7 bits, the lowest first.

    Returns the integers, and then the place of the byte after them.
    """
    integers = []
    for _ in range(count):
        value = 0
        for shift in range(0, 70, 7):
            if at >= len(data):
                raise ValueError("it ends within a number")
            byte, at = data[at], at + 1
            value |= (byte & 127) << shift
            if byte < 128:
                break
        else:
            raise ValueError("a number has more than ten bytes")
        integers.append(value)
    return [*integers, at]
