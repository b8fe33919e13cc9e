"""The files of one network in Hugging Face's form: config.json and model.safetensors, checked before a byte is trusted.

No pickle is ever opened: it can run code. What is written appears whole or not at all, whenever the process is killed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from electra_fast.config import NetworkConfig

LARGEST_HEADER, MOST_TENSORS = 16 << 20, 100_000  # a real header needs about 100 bytes a tensor
LARGEST_JSON = 1 << 20
DTYPES = {  # safetensors' names
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U64": torch.uint64, "U32": torch.uint32, "U16": torch.uint16, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_AGAIN = "the file is damaged or was made to mislead: fetch it or save it again"

ONLY = {  # keys of config.json that change the computation, and the values computed here
    "model_type": ("electra",), "hidden_act": ("gelu",), "position_embedding_type": ("absolute",),
    "is_decoder": (False,), "is_encoder_decoder": (False,), "add_cross_attention": (False,),
    "cross_attention_hidden_size": (None,), "tie_word_embeddings": (True,), "pruned_heads": ({}, None),
}  # fmt: skip
IGNORED = frozenset(  # keys that transformers 2 to 5 write and that change nothing here
    """_name_or_path architectures transformers_version dtype torch_dtype torchscript use_bfloat16 tf_legacy_loss
    _attn_implementation_autoset return_dict output_attentions output_hidden_states output_past use_cache xla_device
    chunk_size_feed_forward gradient_checkpointing tie_encoder_decoder generator_size tokenizer_class prefix
    finetuning_task task_specific_params problem_type num_labels id2label label2id classifier_dropout
    summary_type summary_use_proj summary_activation summary_first_dropout summary_last_dropout summary_proj_to_labels
    bos_token_id eos_token_id sep_token_id decoder_start_token_id max_length min_length do_sample early_stopping
    num_beams num_beam_groups diversity_penalty temperature top_k top_p typical_p repetition_penalty length_penalty
    no_repeat_ngram_size encoder_no_repeat_ngram_size bad_words_ids num_return_sequences output_scores
    return_dict_in_generate forced_bos_token_id forced_eos_token_id remove_invalid_values
    exponential_decay_length_penalty suppress_tokens begin_suppress_tokens""".split()
)


def read_network(directory: Path) -> tuple[NetworkConfig, dict[str, Tensor]]:
    """A Hugging Face directory: its config, and its tensors under the names in the file.

    Raises ValueError where config.json or model.safetensors is missing, damaged or not an ELECTRA's.
    """
    path = directory / "model.safetensors"
    if not path.exists():
        found = sorted(entry.name for entry in path.parent.iterdir()) if path.parent.is_dir() else "no such directory"
        raise ValueError(
            f"{directory} has no model.safetensors ({found}), the only weights read. Pickle files (.bin, .pt, .ckpt) "
            f"can run code and are never opened, nor are .h5 and weights in several files: if you trust them, load "
            f"them in transformers and model.save_pretrained(DIR, safe_serialization=True, max_shard_size='100GB')"
        )
    return read_config(directory), read_tensors(path)


def write_network(
    directory: Path,
    config: NetworkConfig,
    architecture: str,
    tensors: Mapping[str, Tensor],
    more: Mapping[str, Any] | None = None,
) -> None:
    """The reverse, for this package and for transformers, whose class of these tensors is `architecture`.

    more: further keys of config.json, such as id2label.
    """
    directory.mkdir(parents=True, exist_ok=True)
    write_tensors(directory / "model.safetensors", tensors)
    write_config(directory, config, architecture, more)


def read_config(directory: Path) -> NetworkConfig:
    """The network that a Hugging Face config.json describes; keys it lacks have transformers' defaults.

    Raises ValueError on another model type, on settings not computed here, and on keys of unknown meaning.
    """
    path = directory / "config.json"
    values = read_json(path)
    for key, allowed in ONLY.items():
        if (found := values.get(key, None if key == "model_type" else allowed[0])) not in allowed:
            how = f"electra_fast computes {key} = {allowed[0]!r} only; take such a model, or run it in transformers"
            raise ValueError(f"{path}: {key} is {_short(found)}; {how}")
    fields = {field.name for field in dataclasses.fields(NetworkConfig)}
    if unknown := sorted(values.keys() - fields - ONLY.keys() - IGNORED):
        how = "the keys transformers writes for ELECTRA are allowed; delete one that changes nothing in the computation"
        raise ValueError(f"{path}: unknown keys {', '.join(map(_short, unknown))}; {how}")
    try:
        return NetworkConfig(**{key: value for key, value in values.items() if key in fields})
    except ValueError as error:
        raise ValueError(f"{path}: {error}; correct it there, or save the model again") from None


def write_config(
    directory: Path, config: NetworkConfig, architecture: str, more: Mapping[str, Any] | None = None
) -> None:
    """config.json as transformers reads it."""
    values = dict(model_type="electra", architectures=[architecture], dtype="float32", hidden_act="gelu")
    values |= dict(tie_word_embeddings=True) | dataclasses.asdict(config) | dict(more or {})
    write_file(directory / "config.json", [json.dumps(values, indent=2, sort_keys=True).encode() + b"\n"])


def match(expected: Mapping[str, Iterable[int]], found: Mapping[str, Tensor], source: str) -> None:
    """Hold the tensors of `source` against the shapes a model expects; ValueError lists every difference."""
    shapes = {name: tuple(shape) for name, shape in expected.items()}
    lines = [f"missing: {name} {shape}" for name, shape in shapes.items() if name not in found]
    lines += [f"unexpected: {_short(name)} {tuple(found[name].shape)}" for name in found if name not in shapes]
    wrong = [name for name, shape in shapes.items() if name in found and tuple(found[name].shape) != shape]
    lines += [f"wrong shape: {name} is {tuple(found[name].shape)}, the model has {shapes[name]}" for name in wrong]
    hint = "take weights of this architecture and size, or build the model from their config.json"
    words = "electra.embeddings.word_embeddings.weight"
    if words in wrong and found[words].shape[1:] == shapes[words][1:]:
        theirs, ours = len(found[words]), shapes[words][0]
        hint = f"their vocabulary has {theirs} tokens, the model's {ours}: set vocab_size to {theirs}, or train anew"
    if lines:
        raise ValueError(f"{source} does not fit the model; {hint}\n  " + "\n  ".join(lines))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, on the CPU. Raises ValueError unless every byte is accounted for.

    They are private views of the mapped file, read when first touched: copy them before anything truncates it.
    """
    _scan(path)
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path}: {error}; {_AGAIN}") from None


def _scan(path: Path) -> None:
    """Hold the header's claims against the file: safetensors itself lets a name stand twice, and 100 MB of header."""
    size = _size(path)
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(LARGEST_HEADER, size - 8):
            claims = f"{path} has {size} bytes and claims a header of {length}"
            raise ValueError(f"{claims}; at most {LARGEST_HEADER} within the file are allowed; {_AGAIN}")
        header = _parse(file.read(length), path)
    header.pop("__metadata__", None)
    if len(header) > MOST_TENSORS:
        raise ValueError(f"{path} claims {len(header)} tensors; at most {MOST_TENSORS} are allowed; {_AGAIN}")
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
        raise ValueError(f"{path}: tensor {_short(name)} is {_short(entry)}; {allowed} are allowed; {_AGAIN}")
    end = 0
    for start, stop, name in [*sorted(spans), (size - 8 - length, 0, "after the last")]:
        if start != end:
            where = f"tensor {_short(name)} starts at byte {start} of the data and the one before ends at {end}"
            raise ValueError(f"{path}: {where}; no gap, overlap or rest is allowed; {_AGAIN}")
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


def write_file(path: Path, pieces: Iterable[Any]) -> str:
    """Bytes-like pieces to a file that is whole or not there, even after kill -9; returns its SHA-256."""
    digest = hashlib.sha256()
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            for piece in pieces:
                digest.update(piece)
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:  # a full disk says not of itself which file it is
            error.filename = str(path)
        raise
    sync_directory(path.parent)
    return digest.hexdigest()


def sync_directory(directory: Path) -> None:
    """Make the names in a directory as durable as the files."""
    handle = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_json(path: Path, largest: int = LARGEST_JSON) -> dict[str, Any]:
    """A JSON object, with no key twice in it or in those inside, from at most `largest` bytes; ValueError otherwise."""
    if (size := _size(path)) > largest:
        raise ValueError(f"{path} has {size} bytes; at most {largest} are allowed; {_AGAIN}")
    return _parse(path.read_bytes(), path)


def _size(path: Path) -> int:
    if not path.is_file():  # a pipe would hang, a device never end
        raise ValueError(f"{path} is {'not a regular file' if path.exists() else 'missing'}; put such a file there")
    return path.stat().st_size


def _parse(text: bytes, path: Path) -> dict[str, Any]:
    try:
        values = json.loads(text.decode("utf-8"), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:  # RecursionError: brackets, thousands deep
        values = error
    if isinstance(values, dict):
        return values
    raise ValueError(f"{path}: {_short(values)} was found; one JSON object, each key once, is allowed; {_AGAIN}")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise ValueError(f"key {key!r:.60} twice")
        values[key] = value
    return values


def _short(value: Any) -> str:
    return text if len(text := repr(value)) <= 100 else f"{text[:97]}..."
