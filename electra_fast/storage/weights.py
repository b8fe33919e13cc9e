"""The files of one network in Hugging Face's form: config.json and model.safetensors, checked before a byte is trusted.

No pickle is ever opened: it can run code. What is written appears whole or not at all, whenever the process is killed.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
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
    """The tensors of a .safetensors file, on the CPU. Raises ValueError unless every byte is accounted for.

    They are private views of the mapped file, read when first touched: copy them before anything truncates it.
    """
    _scan(path)
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: {error}; {DAMAGED}") from None


def _scan(path: Path) -> None:
    """Hold the header's claims against the file: safetensors itself lets a name stand twice, and 100 MB of header."""
    size = file_size(path)
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(LARGEST_HEADER, size - 8):
            claims = f"{path} has {size} bytes and claims a header of {length}"
            raise ValueError(f"{claims}; at most {LARGEST_HEADER} within the file are allowed; {DAMAGED}")
        header = parse_json(file.read(length), path)
    header.pop("__metadata__", None)
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


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> str:
    """A .safetensors file, whole or not at all; returns its SHA-256.

    The same tensors give the same bytes, in whatever order, layout or device they come. Costs one pass over them and
    holds one contiguous CPU copy at a time. Raises ValueError on a dtype that the format lacks, OSError of the disk.
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
    data = (tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy() for _, tensor in ordered)
    return write_file(path, itertools.chain([len(text).to_bytes(8, "little"), text], data))
