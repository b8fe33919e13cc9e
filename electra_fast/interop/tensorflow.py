"""TensorFlow's checkpoint files, read without TensorFlow: PREFIX.index and PREFIX.data-00000-of-00001, ...

The index is a LevelDB table from names to protobuf messages that say where in the data a tensor lies. Both carry
CRC-32C sums, of each block of the index and of each tensor, and every one is checked. Sources: the format's comments in
tensorflow/core/util/tensor_bundle and protobuf/tensor_bundle.proto, leveldb/doc/table_format.md; RFC 3720 for the sum.
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

LARGEST_INDEX, MOST_TENSORS = 16 << 20, 100_000  # a real index needs about 100 bytes a tensor
DTYPES = {  # by TensorFlow's numbers
    1: torch.float32, 2: torch.float64, 3: torch.int32, 4: torch.uint8, 5: torch.int16, 6: torch.int8,
    9: torch.int64, 10: torch.bool, 14: torch.bfloat16, 19: torch.float16,
}  # fmt: skip
_MAGIC, _FOOTER = 0xDB4775248B80FB57, 48
_AGAIN = "the file is damaged or is no TensorFlow checkpoint: fetch it again, or name another"


class Entry(NamedTuple):
    """Where a tensor lies; dtype is None where DTYPES lacks it (texts, say)."""

    dtype: torch.dtype | None
    shape: tuple[int, ...]
    shard: int
    offset: int
    size: int
    crc: int


class Bundle:
    """A checkpoint: `entries` by name, and `tensor(name)`.

    prefix: the path without .index. Raises ValueError naming the file where the index is missing, damaged, compressed
    or cut into slices, where it points outside the data, and where a data file is missing.
    """

    def __init__(self, prefix: Path) -> None:
        path = prefix.with_name(f"{prefix.name}.index")
        if not path.is_file():
            raise ValueError(f"{path} is {'no regular file' if path.exists() else 'missing'}; put the index there")
        if (size := path.stat().st_size) > LARGEST_INDEX:
            raise ValueError(f"{path} has {size} bytes; at most {LARGEST_INDEX} are allowed; {_AGAIN}")
        try:
            shards, self.entries = _index(path.read_bytes())
        except ValueError as error:
            raise ValueError(f"{path}: {error}; {_AGAIN}") from None
        self.shards = [prefix.with_name(f"{prefix.name}.data-{i:05}-of-{shards:05}") for i in range(shards)]
        for shard in self.shards:
            if not shard.is_file():
                raise ValueError(f"{shard} is missing, and {path} needs it; put it beside the index")
        sizes = [shard.stat().st_size for shard in self.shards]
        ends = [0] * shards
        for name, entry in sorted(self.entries.items(), key=lambda item: item[1][2:5]):
            where = f"{path}: tensor {name!r:.100} lies at bytes {entry.offset} to {entry.offset + entry.size}"
            if entry.offset + entry.size > sizes[entry.shard]:
                raise ValueError(f"{where}, and {self.shards[entry.shard]} has {sizes[entry.shard]}; {_AGAIN}")
            if entry.offset < ends[entry.shard]:
                raise ValueError(f"{where}, over another; no overlap is allowed; {_AGAIN}")
            ends[entry.shard] = entry.offset + entry.size

    def tensor(self, name: str) -> Tensor:
        """Read from the disk and held against its sum. Raises ValueError where that differs or the dtype is unknown."""
        entry = self.entries[name]
        shard = self.shards[entry.shard]
        if entry.dtype is None:
            allowed = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES.values())
            raise ValueError(
                f"{shard}: tensor {name!r:.100} is of another dtype than {allowed}; save it in one of them"
            )
        found = np.fromfile(shard, np.uint8, entry.size, offset=entry.offset)
        if len(found) != entry.size or masked(crc32c(found)) != entry.crc:
            raise ValueError(f"{shard}: the bytes of tensor {name!r:.100} do not give the sum in the index; {_AGAIN}")
        if entry.dtype == torch.bool and found.max(initial=0) > 1:
            raise ValueError(f"{shard}: tensor {name!r:.100} is bool and holds {found.max()}; {_AGAIN}")
        if not len(found):  # torch makes no tensor from no bytes
            return torch.empty(entry.shape, dtype=entry.dtype)
        return torch.frombuffer(found, dtype=entry.dtype).reshape(entry.shape)


def _index(data: bytes) -> tuple[int, dict[str, Entry]]:
    """The number of shards and the entries that the bytes of an index hold."""
    if len(data) < _FOOTER or int.from_bytes(data[-8:], "little") != _MAGIC:
        raise ValueError(f"{len(data)} bytes that end in {data[-8:].hex() or 'nothing'} were found, no table")
    footer = data[-_FOOTER:-8]
    *handles, at = _varints(footer, 4)
    if any(footer[at:]):
        raise ValueError("its footer holds more than two places")
    blocks = [(handles[0], handles[1]), (handles[2], handles[3])]
    keys = list(_block(data, *blocks[1]))
    for _, value in keys:
        offset, size, end = _varints(value, 2)
        if end != len(value):
            raise ValueError("the place of a block has bytes too many")
        blocks.append((offset, size))
    end = 0
    for offset, size in sorted(blocks):
        if offset != end:
            raise ValueError(f"a block begins at byte {offset}, and the one before ends at {end}")
        end = offset + size + 5
    if end != len(data) - _FOOTER:
        raise ValueError(f"its blocks end at byte {end}, and its footer begins at {len(data) - _FOOTER}")
    list(_block(data, *blocks[0]))
    found: list[tuple[bytes, bytes]] = []
    for offset, size in blocks[2:]:
        found += _block(data, offset, size)
        if len(found) > MOST_TENSORS:
            raise ValueError(f"it has more than {MOST_TENSORS} tensors")
    names = [key for key, _ in found]
    if not names or names[0] or any(a >= b for a, b in itertools.pairwise(names)):
        raise ValueError("its names do not begin with the header's, in order, each once")
    header = dict(_fields(found[0][1]))
    shards, big = header.get(1, 0), header.get(2, 0)
    if not isinstance(shards, int) or not 1 <= shards <= 10_000 or big != 0:
        raise ValueError(f"it tells of {shards!r} data files, byte order {big!r}; 1 to 10,000, order 0 are read")
    return shards, {_text(key): _entry(_text(key), value, shards) for key, value in found[1:]}


def _text(key: bytes) -> str:
    try:
        return key.decode()
    except UnicodeDecodeError:
        raise ValueError(
            f"it names {key!r:.100}, no text: a slice of a partitioned variable, none of which is read"
        ) from None


def _entry(name: str, message: bytes, shards: int) -> Entry:
    fields = _fields(message)
    values = dict(fields)
    shape = values.get(2, b"")
    if 7 in values:
        raise ValueError(f"{name!r:.100} is cut into slices (a partitioned variable), none of which is read")
    if not isinstance(shape, bytes):
        raise ValueError(f"the shape of {name!r:.100} is no message")
    dims = []
    for number, dim in _fields(shape):
        if number == 2 and isinstance(dim, bytes):
            dims.append(dict(_fields(dim)).get(1, 0))
        elif number == 3 and dim:
            raise ValueError(f"{name!r:.100} has no known shape")
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
        raise ValueError(f"{name!r:.100} of shape {sizes}, {known}, takes {size} bytes by the index")
    return Entry(known, sizes, shard, offset, size, crc)


def _block(data: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """Key and value of each entry of a block, whose sum is checked first."""
    if offset + size + 5 > len(data) - _FOOTER or size < 4:
        raise ValueError(f"a block of {size} bytes at {offset} lies outside its {len(data)} bytes")
    content, kind = data[offset : offset + size], data[offset + size]
    if masked(crc32c(data[offset : offset + size + 1])) != int.from_bytes(data[offset + size + 1 :][:4], "little"):
        raise ValueError(f"the block at byte {offset} does not give its sum")
    if kind != 0:
        raise ValueError(f"the block at byte {offset} is compressed (kind {kind}), which TensorFlow does not write")
    end = size - 4 - 4 * int.from_bytes(content[-4:], "little")  # the restart points, for searches, and their number
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
    """The fields of a protobuf message: number, and value as an integer or as bytes."""
    at, found = 0, []
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
            raise ValueError(f"a message has a field of kind {tag & 7}")
        if at > len(message):
            raise ValueError("a message ends within a field")
        found.append((tag >> 3, value))
    return found


def _varints(data: bytes, count: int, at: int = 0) -> list[int]:
    """`count` variable-length integers (7 bits a byte, the lowest first), and where the next byte is."""
    found = []
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
        found.append(value)
    return [*found, at]
