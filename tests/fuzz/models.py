"""Targets that read corpora, checkpoints and models."""

from __future__ import annotations

import hashlib
import json
import shutil
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from electra_fast.data.corpus import Corpus
from electra_fast.data.shards import HEADER, MAGIC
from electra_fast.data.tokenizer import Tokenizer
from electra_fast.interop.crc32c import crc32c, masked
from electra_fast.interop.google import read_google
from electra_fast.interop.tensorflow import Bundle
from electra_fast.model.networks import Discriminator
from electra_fast.report.log import read_log
from electra_fast.storage import checkpoint
from electra_fast.storage.network import read_config, read_network, write_config
from electra_fast.storage.weights import read_tensors
from electra_fast.tasks.model import TaskModel
from fuzz.judge import Target, expect
from fuzz.world import GOOGLE, task_model, world

TEXT = "The [MASK] of Zürich’s 中文 cats, covid19 é x" + "y" * 300


def flipped(content: bytes, edits: bytes) -> bytes:
    """A copy of a file with some bytes changed: each edit is four bytes of a place and one that is xored there."""
    changed = bytearray(content)
    for place, mask in struct.iter_unpack("<IB", edits[: len(edits) // 5 * 5]):
        changed[place % len(changed)] ^= mask
    return bytes(changed)


def edits(content: bytes) -> Iterator[bytes]:
    """Some inputs for `flipped`."""
    yield struct.pack("<IB", len(content) // 2, 1)
    yield struct.pack("<IBIB", 9, 128, len(content) - 1, 255)


def copy(source: Path, folder: Path) -> None:
    """Fill a folder with links to the files of another, which are left alone when one is written anew."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in source.rglob("*"):
        place = folder / path.relative_to(source)
        if path.is_dir():
            place.mkdir(parents=True, exist_ok=True)
        else:
            place.hardlink_to(path)


def put(path: Path, content: bytes) -> None:
    """Write a file in place of a link to another."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def _check_examples(corpus: Corpus) -> None:
    for index in range(len(corpus)):
        ids, start = corpus[index]
        expect(0 < len(ids) <= corpus.max_length and 0 < start <= len(ids), "an example outside its limits")
        expect(bool((ids >= 0).all() and (ids < corpus.vocab_size).all()), "an id outside the vocabulary")


def read_shard(data: bytes, folder: Path) -> None:
    """First byte 0: edits of the whole shard, which its digest must give away. Else the bytes of a shard, which the
    manifest agrees with."""
    copy(world().data, folder)
    original, whole = world().shard.read_bytes(), data[:1] == b"\0"
    content = flipped(original, data[1:]) if whole else data[1:]
    put(folder / world().shard.name, content)
    if not whole:
        manifest = json.loads((folder / "corpus.json").read_bytes())
        (entry,) = manifest["splits"]["train"]
        entry |= dict(size=len(content), sha256=hashlib.sha256(content).hexdigest())
        if len(content) >= HEADER.size:
            *_, examples, tokens = HEADER.unpack(content[: HEADER.size])
            entry |= dict(examples=min(examples, 1 << 62), tokens=min(tokens, 1 << 62))
        put(folder / "corpus.json", json.dumps(manifest).encode())
    corpus = Corpus(folder)
    corpus.check_digests()
    expect(not whole or content == original, "a shard with another digest passed")
    _check_examples(corpus)


def shard_seeds() -> Iterator[bytes]:
    original = world().shard.read_bytes()
    for each in edits(original):
        yield b"\0" + each
    ids = np.arange(7, dtype="<u2")
    yield b"\1" + HEADER.pack(MAGIC, 0x01020304, 1, 2, 0, 2, 7) + struct.pack("<3Q2I", 0, 4, 7, 2, 3) + ids.tobytes()


def read_manifest(data: bytes, folder: Path) -> None:
    copy(world().data, folder)
    put(folder / "corpus.json", data[1:])
    corpus = Corpus(folder)
    corpus.verify()
    _check_examples(corpus)


def manifest_seeds() -> Iterator[bytes]:
    yield b"\0" + (world().data / "corpus.json").read_bytes()


def read_safetensors(data: bytes, folder: Path) -> None:
    """First byte 0: edits of a model's weights, which SHA256SUMS must give away. Else the bytes of a file."""
    if data[:1] == b"\0":
        original = (task_model() / "model.safetensors").read_bytes()
        copy(task_model(), folder)
        content = flipped(original, data[1:])
        put(folder / "model.safetensors", content)
        read_network(folder)
        return expect(content == original, "weights with another digest passed")
    content = data[1:]
    (folder / "model.safetensors").write_bytes(content)
    tensors = read_tensors(folder / "model.safetensors")
    size = sum(t.numel() * t.element_size() for t in tensors.values())
    expect(8 + int.from_bytes(content[:8], "little") + size == len(content), "tensors do not fill the file")
    held = b"".join(sorted(t.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() for t in tensors.values()))
    expect(sorted(held) == sorted(content[len(content) - size :]), "tensors do not hold the file's bytes")


def safetensors_seeds() -> Iterator[bytes]:
    for each in edits((task_model() / "model.safetensors").read_bytes()):
        yield b"\0" + each
    header = {"__metadata__": {"format": "pt"}, "a": dict(dtype="F32", shape=[2, 1], data_offsets=[0, 8])}
    header["b"] = dict(dtype="BOOL", shape=[3], data_offsets=[8, 11])
    text = json.dumps(header).encode()
    yield b"\1" + len(text).to_bytes(8, "little") + text + bytes(11)


def read_configuration(data: bytes, folder: Path) -> None:
    (folder / "config.json").write_bytes(data[1:])
    config = read_config(folder)
    with torch.device("meta"):  # shapes without memory
        if config.num_hidden_layers <= 4:
            Discriminator(config)
    (folder / "again").mkdir()
    write_config(folder / "again", config, "ElectraForPreTraining")
    expect(read_config(folder / "again") == config, "config.json is another after writing and reading")


def config_seeds() -> Iterator[bytes]:
    for directory in (world().pair / "generator", task_model()):
        yield b"\0" + (directory / "config.json").read_bytes()


def _check_tokenizer(folder: Path) -> None:
    tokenizer = Tokenizer.load(folder)
    (ids,) = tokenizer.encode([TEXT])
    expect(all(0 <= id < tokenizer.vocab_size for id in ids), "an id outside the vocabulary")
    expect(len(tokenizer.decode(ids)) < 1 << 16, "a text that grew")
    offsets = tokenizer.encode_offsets(TEXT)[1]
    expect(all(0 <= start <= end <= len(TEXT) for start, end in offsets), "an offset outside the text")
    tokenizer.save(folder / "again")
    expect(Tokenizer.load(folder / "again").encode([TEXT]) == [ids], "ids are others after writing and reading")


def read_tokenizer(data: bytes, folder: Path) -> None:
    (folder / "tokenizer.json").write_bytes(data[1:])
    _check_tokenizer(folder)


def tokenizer_seeds() -> Iterator[bytes]:
    tokenizer = json.loads((task_model() / "tokenizer.json").read_bytes())
    yield b"\0" + json.dumps(tokenizer).encode()


VOCABULARY = ("vocab.txt", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


def read_vocabulary(data: bytes, folder: Path) -> None:
    """Up to four files, divided by the byte 0x1e; an empty one is not there."""
    for name, content in zip(VOCABULARY, data.split(b"\x1e"), strict=False):
        if content:
            (folder / name).write_bytes(content)
    _check_tokenizer(folder)


def vocabulary_seeds() -> Iterator[bytes]:
    words = b"[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nthe\nof\ncat\n##s\nx\n##y\n"
    yield words
    yield words + b'\x1e{"do_lower_case": false}\x1e{"bos_token": "[B]"}\x1e{"covid19": 11, "[E1]": 12}'
    decoder = b'{"added_tokens_decoder": {"11": {"content": "a b", "single_word": true, "special": true}}}'
    yield words + b"\x1e" + decoder


def _repaired(index: bytes) -> bytes:
    """An index in which every block has its checksum, as far as the places of blocks can be read."""
    fixed = bytearray(index)

    def number(at: int) -> tuple[int, int]:
        value = shift = 0
        while True:
            byte = fixed[at]
            value, shift, at = value | (byte & 127) << shift, shift + 7, at + 1
            if byte < 128 or shift > 63:
                return value, at

    def fix(offset: int, size: int) -> None:
        if offset >= 0 and size > 0 and offset + size + 5 <= len(fixed):
            sums = masked(crc32c(bytes(fixed[offset : offset + size + 1])))
            fixed[offset + size + 1 : offset + size + 5] = sums.to_bytes(4, "little")

    try:
        at, places = len(fixed) - 48, list[int]()
        for _ in range(4):
            place, at = number(at)
            places.append(place)
        keys, end = places[2], places[2] + places[3]
        fix(keys, places[3])
        fix(places[0], places[1])
        at = keys
        while at < end - 8:
            _, at = number(at)
            new, at = number(at)
            _, at = number(at)
            offset, at = number(at + new)
            size, at = number(at)
            fix(offset, size)
    except IndexError:
        pass
    return bytes(fixed)


def read_bundle(data: bytes, folder: Path) -> None:
    """First byte: 0 edits of a whole index, which its checksums must give away; 1 edits of a whole data file; else the
    bytes of an index, whose checksums are repaired."""
    index = (GOOGLE / "model.ckpt.index").read_bytes()
    content = (GOOGLE / "model.ckpt.data-00000-of-00001").read_bytes()
    kind = data[0] % 4 if data else 0
    changed = flipped(index, data[1:]) if kind == 0 else index if kind == 1 else _repaired(data[1:])
    changed_content = flipped(content, data[1:]) if kind == 1 else content
    (folder / "model.ckpt.index").write_bytes(changed)
    (folder / "model.ckpt.data-00000-of-00001").write_bytes(changed_content)
    if kind == 3:
        read_google(folder / "model.ckpt")
        return
    bundle = Bundle(folder / "model.ckpt")
    for name, entry in bundle.entries.items():
        if kind < 2 or entry.dtype is not None:
            tensor = bundle.tensor(name)
            expect(tuple(tensor.shape) == entry.shape, "a tensor of another shape than the index has")
    expect(kind > 1 or (changed, changed_content) == (index, content), "a file with another checksum passed")


def bundle_seeds() -> Iterator[bytes]:
    for name in ("model.ckpt.index", "model.ckpt.data-00000-of-00001"):
        for each in edits((GOOGLE / name).read_bytes()):
            yield bytes([name.endswith("1")]) + each
    index = (GOOGLE / "model.ckpt.index").read_bytes()
    yield b"\2" + index
    yield b"\3" + index


def read_task(data: bytes, folder: Path) -> None:
    """First byte even: a task.json; odd: a config.json of transformers, without one."""
    copy(task_model(), folder)
    (folder / "SHA256SUMS").unlink()
    if data[:1] and data[0] % 2:
        (folder / "task.json").unlink()
        put(folder / "config.json", data[1:])
    else:
        put(folder / "task.json", data[1:])
    model, _ = TaskModel.load(folder)
    expect(len(set(model.task.labels)) == len(model.task.labels), "a label stands twice")


def task_seeds() -> Iterator[bytes]:
    yield b"\0" + (task_model() / "task.json").read_bytes()
    yield b"\1" + (task_model() / "config.json").read_bytes()


def read_checkpoint(data: bytes, folder: Path) -> None:
    """First byte: 0 to 2 edits of a file, which the manifest must give away; 3 a manifest; 4 a state.json with a
    manifest that agrees."""
    kind = data[0] % 5 if data else 0
    source, place = world().newest, folder / world().newest.name
    copy(source, place)
    if kind < 3:
        path = sorted(place.glob("*.safetensors"))[kind] if kind < 2 else place / "state.json"
        original = path.read_bytes()
        content = flipped(original, data[1:])
        put(path, content)
        checkpoint.load(place)
        return expect(content == original, "a file with another digest passed")
    if kind == 4:
        manifest = json.loads((place / "manifest.json").read_bytes())
        manifest["files"]["state.json"] = dict(size=len(data) - 1, sha256=hashlib.sha256(data[1:]).hexdigest())
        put(place / "manifest.json", json.dumps(manifest).encode())
    put(place / ("state.json" if kind == 4 else "manifest.json"), data[1:])
    step, tensors, _ = checkpoint.load(place)
    expect(type(step) is int and len(tensors) == 2, "a checkpoint of another run")


def checkpoint_seeds() -> Iterator[bytes]:
    for kind in range(3):
        yield bytes([kind]) + struct.pack("<IB", 100 * kind + 50, 1)
    yield b"\3" + (world().newest / "manifest.json").read_bytes()
    yield b"\4" + (world().newest / "state.json").read_bytes()


def read_metrics(data: bytes, folder: Path) -> None:
    (folder / "metrics.jsonl").write_bytes(data[1:])
    for row in read_log(folder / "metrics.jsonl"):
        expect(type(row["step"]) is int and type(row["kind"]) is str, "a row without its step")


def metrics_seeds() -> Iterator[bytes]:
    yield b"\0" + b"\n".join((world().run / "metrics.jsonl").read_bytes().splitlines()[:3])


def fresh(read: Callable[[bytes, Path], None]) -> Callable[[bytes, Path], None]:
    """A reader whose folder is emptied after each input."""

    def run(data: bytes, folder: Path) -> None:
        inner = folder / "input"
        inner.mkdir()
        try:
            read(data, inner)
        finally:
            shutil.rmtree(inner)

    return run


TARGETS = [
    Target("shard", fresh(read_shard), shard_seeds),
    Target("manifest", fresh(read_manifest), manifest_seeds, json=True),
    Target("safetensors", fresh(read_safetensors), safetensors_seeds, json=True, head=9),
    Target("config", fresh(read_configuration), config_seeds, json=True),
    Target("tokenizer", fresh(read_tokenizer), tokenizer_seeds, json=True),
    Target("vocabulary", fresh(read_vocabulary), vocabulary_seeds),
    Target("bundle", fresh(read_bundle), bundle_seeds),
    Target("task", fresh(read_task), task_seeds, json=True),
    Target("checkpoint", fresh(read_checkpoint), checkpoint_seeds, json=True),
    Target("metrics", fresh(read_metrics), metrics_seeds, json=True),
]
