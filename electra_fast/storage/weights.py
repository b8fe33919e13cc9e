"""Tensors in .safetensors files: every claim of a file is checked before it is trusted, and no pickle is ever opened.

Source of the format: https://huggingface.co/docs/safetensors. A file is 8 bytes of header length, a JSON header, data.
The safetensors library is not used: it accepts a name that stands twice and a header of 100 MB, and its version 0.8.0
leaks two objects for each tensor that it reads from a file.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from electra_fast.storage.atomic import DAMAGED, file_size, parse_json, shortened, write_file

LARGEST_HEADER, MOST_TENSORS = 16 << 20, 100_000  # a real header needs about 100 bytes a tensor
DTYPES = {  # safetensors' names
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a .safetensors file, name -> tensor on the CPU.

    They are private views of the mapped file and are read from the disk when they are first used. Copy them before the
    file is truncated, which would end the process.

    Raises ValueError, naming the file, unless it is well-formed and its header accounts for every byte.
    """
    size = file_size(path)
    header, data = _scan(path, size)
    content = torch.from_file(str(path), shared=False, size=size, dtype=torch.uint8)
    tensors = {}
    for name, entry in header.items():
        start, stop = (data + offset for offset in entry["data_offsets"])
        dtype, part = DTYPES[entry["dtype"]], content[start:stop]
        tensors[name] = (part.clone() if start % dtype.itemsize else part).view(dtype).view(entry["shape"])
    return tensors


def _scan(path: Path, size: int) -> tuple[dict[str, Any], int]:
    """The entries of a file's header, checked against its size, and where the data begin; raises ValueError."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(LARGEST_HEADER, size - 8):
            claims = f"{path} has {size} bytes and claims a header of {length}"
            raise ValueError(f"{claims}; at most {LARGEST_HEADER} within the file are allowed; {DAMAGED}")
        header = parse_json(file.read(length), path)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError(f"{path}: __metadata__ is {shortened(metadata)}; strings by name are allowed; {DAMAGED}")
    if len(header) > MOST_TENSORS:
        raise ValueError(f"{path} claims {len(header)} tensors; at most {MOST_TENSORS} are allowed; {DAMAGED}")
    spans = []
    for name, entry in header.items():
        entry = entry if isinstance(entry, dict) else {}
        dtype, *lists = (entry.get(key) for key in ("dtype", "shape", "data_offsets"))
        shape, span = (value if isinstance(value, list) else [-1] for value in lists)
        if not isinstance(dtype, str) or dtype not in DTYPES:
            allowed = f"dtypes {', '.join(DTYPES)}"
        elif len(shape) > 16 or len(span) != 2 or not all(type(v) is int and 0 <= v < 2**63 for v in shape + span):
            allowed = "a shape of at most 16 integers and two data_offsets, all of 0 to 2^63 - 1,"
        elif span[1] - span[0] != (needed := math.prod(shape) * DTYPES[dtype].itemsize):
            allowed = f"data_offsets {needed} bytes apart"
        else:
            spans.append((*span, name))
            continue
        raise ValueError(f"{path}: tensor {shortened(name)} is {shortened(entry)}; {allowed} are allowed; {DAMAGED}")
    end = 0
    for start, stop, name in [*sorted(spans), (size - 8 - length, 0, "after the last")]:
        if start != end:
            where = f"tensor {shortened(name)} starts at byte {start} of the data and the one before ends at {end}"
            raise ValueError(f"{path}: {where}; no gap, overlap or rest is allowed; {DAMAGED}")
        end = stop
    return header, 8 + length


def write_tensors(path: Path, tensors: Mapping[str, Tensor], progress: Callable[[int], object] = lambda _: None) -> str:
    """Write a .safetensors file that is complete or absent, and return its SHA-256 in hexadecimal.

    The same tensors give the same bytes, in whatever order, memory layout or device they come. Costs one pass over them
    and holds one contiguous copy on the CPU at a time.

    path: the file to write.
    tensors: name -> tensor of any shape and any of DTYPES.
    progress: called with the number of bytes of each tensor as it is written.

    Raises ValueError for a dtype that the format lacks, OSError if the disk is full or the directory not writable.
    """
    # wide types first, which aligns every tensor for its own; then by name
    ordered = sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0]))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in ordered:
        if tensor.dtype not in _NAMES:
            raise ValueError(f"tensor {name!r} is {tensor.dtype}; {', '.join(DTYPES)} can be written: convert it first")
        start, end = end, end + tensor.numel() * tensor.element_size()
        header[name] = dict(dtype=_NAMES[tensor.dtype], shape=list(tensor.shape), data_offsets=[start, end])
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)

    def pieces() -> Iterator[Any]:
        yield len(text).to_bytes(8, "little") + text
        for _, tensor in ordered:
            yield tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
            progress(tensor.numel() * tensor.element_size())

    return write_file(path, pieces())
