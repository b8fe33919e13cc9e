"""The faults that a user meets, one case each: an id such as row42-flipped-byte is row 42 of faults.md.

A case breaks one thing in a copy of a small real text, corpus, pair of weights and run. What must be refused is refused
in a sentence that names the file or argument, what was found, what is allowed and what to do, and no file changes;
what must be survived leaves the result that it would have had. The depth is in the tests of each module.
"""

import dataclasses
import errno
import gzip
import hashlib
import importlib
import importlib.metadata
import json
import math
import os
import pickle
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import tqdm.std
from safetensors.torch import load_file, save_file

from electra_fast import (
    Batch,
    Discriminator,
    Electra,
    ElectraConfig,
    PretrainConfig,
    Pretrainer,
    checkpoint,
    ops,
    pretrain,
    shards,
    text,
)
from electra_fast.cli import main
from electra_fast.corpus import Corpus
from electra_fast.ops._core import core, why
from electra_fast.pretrain import RECIPES
from electra_fast.tokenizer import Tokenizer

RATE = RECIPES["tiny"]["learning_rate"]

head = importlib.import_module("electra_fast.ops.generator_head")  # the module; ops has the function
LINES = [f"the {a} of the {b} is {c} ." for a in "cat dog sun hat map".split() for b in "king queen boy".split()
         for c in "red big old new dry".split()]  # fmt: skip


def span(start: int, stop: int) -> dict[str, object]:
    return {"dtype": "U8", "shape": [stop - start], "data_offsets": [start, stop]}


class World(NamedTuple):
    """Paths of one copy; every command below reads or writes here alone."""

    root: Path

    text = property(lambda self: self.root / "text.txt")
    data = property(lambda self: self.root / "data")
    shard = property(lambda self: self.root / "data" / "train-00000.bin")
    pair = property(lambda self: self.root / "pair")
    generator = property(lambda self: self.root / "pair" / "generator" / "model.safetensors")
    run = property(lambda self: self.root / "run")
    newest = property(lambda self: self.root / "run" / "checkpoint-2")

    def prepare(self, *options: str, text: Path | None = None) -> list[str]:
        return ["prepare", str(text or self.text), "--out", str(self.root / "new"), "--max-length", "16",
                "--vocab-size", "80", "--heldout", "0.2", *options]  # fmt: skip

    def train(self, *options: str) -> list[str]:
        return ["pretrain", "--data", str(self.data), "--out", str(self.root / "new"), "--steps", "2",
                "--batch-size", "2", "--save-every", "1", "--log-every", "1", "--device", "cpu",
                "--init-generator", str(self.pair / "generator"),
                "--init-discriminator", str(self.pair / "discriminator"), *options]  # fmt: skip

    def resume(self, *options: str) -> list[str]:
        return self.train("--out", str(self.run), "--resume", *options)

    def digest(self) -> dict[str, str]:
        """Of every file but the lock's."""
        files = (path for path in sorted(self.root.rglob("*")) if path.is_file() and path.name != ".lock")
        return {str(path.relative_to(self.root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> World:
    world = World(tmp_path_factory.mktemp("faults"))
    world.text.write_text("\n\n".join(["\n".join(LINES)] * 3))
    assert main(world.prepare("--out", str(world.data))) == 0
    sizes = dict(embedding_size=16, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
    torch.manual_seed(1)
    config = ElectraConfig.small(
        vocab_size=Corpus(world.data).vocab_size, max_position_embeddings=32, generator_size=0.5, **sizes
    )
    Electra(config).save_pretrained(world.pair)
    assert main(world.train("--out", str(world.run))) == 0
    return world


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the picture and the measured peak, which would be most of the time here."""
    monkeypatch.setattr(pretrain, "plot_curves", lambda rows, path: None)
    monkeypatch.setattr(pretrain, "measured_peak", lambda device: 1e12)


@pytest.fixture
def world(original: World, tmp_path: Path) -> World:
    return World(Path(shutil.copytree(original.root, tmp_path / "world")))


def edit(path: Path, change: Callable[[dict], object]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def entry(world: World, **changes: object) -> None:
    """Change what corpus.json says of the shard."""
    edit(world.data / "corpus.json", lambda content: content["splits"]["train"][0].update(changes))


def patch(world: World, at: int, content: bytes, **changes: object) -> None:
    """Write over bytes of the shard, and make corpus.json agree."""
    whole = bytearray(world.shard.read_bytes())
    at %= len(whole)
    whole[at : at + len(content)] = content
    world.shard.write_bytes(whole)
    entry(world, size=len(whole), sha256=hashlib.sha256(whole).hexdigest(), **changes)


def patch_word(world: World, at: int, *values: int, **changes: object) -> None:
    patch(world, at, struct.pack(f"<{len(values)}Q", *values), **changes)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def prepare_long(world: World) -> None:
    assert main(world.prepare("--max-length", "64", "--out", str(world.root / "long"))) == 0


def tensors(world: World, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change the generator's tensors by name."""
    found = {name: tensor.clone() for name, tensor in load_file(world.generator).items()}
    change(found)
    save_file(found, world.generator, {"format": "pt"})


def bogus_keys(found: dict[str, torch.Tensor]) -> None:
    found["extra"] = torch.zeros(2)
    found["generator_predictions.dense.weight"] = torch.zeros(3, 3)
    del found["generator_lm_head.bias"]


def more_words(world: World) -> None:
    """A pair with 10 words more than the tokenizer of the corpus has."""
    torch.manual_seed(1)
    config = Electra.from_pretrained(world.pair).config
    Electra(dataclasses.replace(config, vocab_size=config.vocab_size + 10)).save_pretrained(world.pair)


def header(world: World, content: bytes | dict, length: int | None = None, data: bytes = b"") -> None:
    """Make the generator's weights a file of this header."""
    said = content if isinstance(content, bytes) else json.dumps(content).encode()
    world.generator.write_bytes(struct.pack("<Q", len(said) if length is None else length) + said + data)


def config(world: World, **changes: object) -> None:
    edit(world.pair / "discriminator" / "config.json", lambda content: content.update(changes))


def other_tokenizer(world: World) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *map(str, range(30))]
    (world.root / "vocab.txt").write_text("\n".join(words))
    Tokenizer.load(world.root / "vocab.txt").save(world.data / "tokenizer")


class Bomb:
    """Unpickled, it makes a directory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


def pickled_array(world: World, path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.array([Bomb(world.root / "exploded")], dtype=object), allow_pickle=True)
    if path == world.shard:
        patch(world, 0, b"\x93")  # as it is: corpus.json agrees


def pickled_weights(world: World) -> None:
    world.generator.unlink()
    (world.generator.parent / "pytorch_model.bin").write_bytes(pickle.dumps(Bomb(world.root / "exploded")))


def linked(world: World) -> None:
    world.shard.rename(world.root / "elsewhere.bin")
    world.shard.symlink_to(world.root / "elsewhere.bin")


def head_example(**changes: object) -> dict[str, object]:
    sizes = dict(hidden=(6, 8), weight=(70, 8), bias=(70,))
    given: dict[str, object] = {name: torch.randn(size) for name, size in sizes.items()}
    return given | dict(labels=torch.tensor([3, -100, 0, 69, 5, 7]), seed=1) | changes


def discriminate(world: World, **ids: torch.Tensor) -> None:
    Discriminator.from_pretrained(world.pair / "discriminator")(**ids)


OFFSETS = shards.HEADER.size
PREPARE_AGAIN = "prepare it anew: electra-fast prepare FILE ... --out DIR"
SAVE_AGAIN = "fetch it or save it again"
RESUME_OLDER = "delete {run}/checkpoint-2 to resume from checkpoint-1"

# What breaks, what is run on it (a command of World, or a call of the Python API), and what the user reads.
REFUSED: dict[str, tuple[Callable[[World], object], str | Callable[[World], object], list[str]]] = {
    "row15-id-in-a-shard": (
        lambda w: patch(w, -2 * Corpus(w.data).tokens, struct.pack("<H", 500) * Corpus(w.data).tokens),
        "train",
        ["shard {data}/train-00000.bin: token ", " is 500, outside the vocabulary of {vocab}", PREPARE_AGAIN],
    ),
    "row15-id-of-a-caller": (
        lambda w: None,
        lambda w: discriminate(w, input_ids=torch.tensor([[2, 5, 500, 3]])),
        ["embedding: input_ids[2] is 500, outside the table of {vocab} (0 to ", "encoded with another vocabulary"],
    ),
    "row15-negative-id": (
        lambda w: None,
        lambda w: discriminate(w, input_ids=torch.tensor([[2, -1, 3]])),
        ["embedding: input_ids[1] is -1, outside the table of {vocab} (0 to ", "encoded with another vocabulary"],
    ),
    "row16-label": (
        lambda w: None,
        lambda w: ops.generator_head(**head_example(labels=torch.tensor([3, -100, 0, 70, 5, 7]))),
        ["generator_head: labels[3] is 70; 0 to 69, or -100 for a row to leave out"],
    ),
    "row18-longer-than-the-positions": (
        prepare_long,
        lambda w: w.train("--data", str(w.root / "long")),
        ["the batch is 64 columns wide, max_position_embeddings is 32; cut the text into shorter sequences"],
    ),
    "row18-longer-than-the-positions-api": (
        lambda w: None,
        lambda w: discriminate(w, input_ids=torch.full((1, 600), 5)),
        ["the batch is 600 columns wide, max_position_embeddings is 32; cut the text into shorter sequences"],
    ),
    "row20-temperature-nan": (
        lambda w: edit(w.pair / "electra.json", lambda content: content.update(temperature=math.nan)),
        lambda w: Electra.from_pretrained(w.pair),
        ["{pair}: temperature is nan", "it must be a finite float", "correct electra.json there"],
    ),
    "row20-temperature-negative": (
        lambda w: None,
        lambda w: ops.generator_head(**head_example(temperature=-1.0)),
        ["generator_head: temperature is -1.0; 0 (the most likely word) or a finite number above it"],
    ),
    "row21-nan-logits": (
        lambda w: tensors(w, lambda found: found["generator_lm_head.bias"].fill_(math.nan)),
        "train",
        ["step 0: the loss is nan", "no parameter was changed", f"Lower learning_rate ({RATE})", "non_finite='skip'"],
    ),
    "row30-empty-text": (
        lambda w: w.text.write_text(""),
        "prepare",
        ["{text} is empty (0 bytes); leave it out, or write it anew"],
    ),
    "row30-blank-text": (
        lambda w: w.text.write_text("\n \n"),
        "prepare",
        ["{text} holds no text, blank lines at most; leave it out, or write it anew"],
    ),
    "row30-missing-text": (lambda w: w.text.unlink(), "prepare", ["there is no text file {text}; check the name"]),
    "row30-missing-shard": (
        lambda w: w.shard.unlink(),
        "train",
        ["shard {data}/train-00000.bin is missing; copy it again, or " + PREPARE_AGAIN],
    ),
    "row30-empty-shard": (
        lambda w: w.shard.write_bytes(b""),
        "train",
        ["shard {data}/train-00000.bin: bytes 0, expected {size}: it is truncated", PREPARE_AGAIN],
    ),
    "row30-empty-weights": (
        lambda w: w.generator.write_bytes(b""),
        "train",
        ["{generator} has 0 bytes", "within the file are allowed", SAVE_AGAIN],
    ),
    "row31-truncated-shard": (
        lambda w: os.truncate(w.shard, w.shard.stat().st_size - 1),
        "train",
        ["shard {data}/train-00000.bin: bytes {shorter}, expected {size}: it is truncated", PREPARE_AGAIN],
    ),
    "row31-truncated-weights": (
        lambda w: os.truncate(w.generator, w.generator.stat().st_size - 3),
        "train",
        ["{generator}: tensor 'after the last' starts at byte ", "and the one before ends at ", SAVE_AGAIN],
    ),
    "row31-truncated-archive": (
        lambda w: (w.root / "text.txt.gz").write_bytes(gzip.compress(w.text.read_bytes())[:-20]),
        lambda w: w.prepare(text=w.root / "text.txt.gz"),
        ["{text}.gz is a damaged .gz archive (Compressed file ended before", "fetch or pack it again"],
    ),
    "row32-2^40-examples": (
        lambda w: patch_word(w, 24, 1 << 40, 1 << 40, examples=1 << 40, tokens=1 << 40),
        "train",
        ["train-00000.bin: bytes by its header {size}, expected 15393162788936: its counts do not fit", PREPARE_AGAIN],
    ),
    "row32-2^40-bytes-of-header": (
        lambda w: header(w, b"{}", 1 << 40),
        "train",
        ["{generator} has 10 bytes and claims a header of 1099511627776; at most 16777216", SAVE_AGAIN],
    ),
    "row33-falling-offsets": (
        lambda w: patch_word(w, OFFSETS + 16, 1),
        "train",
        ["train-00000.bin: example 1 has offsets [16, 1]", "offsets must rise by 1 to 16", PREPARE_AGAIN],
    ),
    "row33-offsets-beyond-the-end": (
        lambda w: patch_word(w, OFFSETS + 16, 1 << 40),
        "train",
        ["example 1 has offsets [16, 1099511627776]", "offsets must rise by 1 to 16", PREPARE_AGAIN],
    ),
    "row33-overflowing-count": (
        lambda w: patch_word(w, 24, (1 << 62) - 1, examples=(1 << 62) - 1),
        "train",
        ["train-00000.bin: bytes by its header {size}, expected 55340232221128", PREPARE_AGAIN],
    ),
    "row33-overlapping-tensors": (
        lambda w: header(w, {"a": span(0, 3), "b": span(2, 4)}, data=b"1234"),
        "train",
        ["{generator}: tensor 'b' starts at byte 2", "ends at 3; no gap, overlap or rest is allowed", SAVE_AGAIN],
    ),
    "row34-magic": (
        lambda w: patch(w, 0, b"SOMEBODY"),
        "train",
        ["train-00000.bin: magic b'SOMEBODY', expected b'EFCORPUS': it is no shard", PREPARE_AGAIN],
    ),
    "row34-version": (
        lambda w: patch(w, 12, b"\2"),
        "train",
        ["train-00000.bin: version 2, expected 1: another version of electra_fast wrote it", PREPARE_AGAIN],
    ),
    "row34-byte-order": (
        lambda w: patch(w, 8, b"\1\2\3\4"),
        "train",
        ["byte-order mark 67305985, expected 16909060: it was written with the other byte order", PREPARE_AGAIN],
    ),
    "row34-dtype": (
        lambda w: patch(w, 16, b"\4"),
        "train",
        ["bytes a token 4, expected 2: the vocabulary has {vocab} entries", PREPARE_AGAIN],
    ),
    "row34-another-tokenizer": (
        other_tokenizer,
        "train",
        ["{data}/tokenizer has 35 entries", "one with {vocab} entries and sha256 ", "restore it, or " + PREPARE_AGAIN],
    ),
    "row34-another-vocabulary": (
        more_words,
        "train",
        ["the networks know {more} words, vocab_size is {vocab}; use the tokenizer they were trained with"],
    ),
    "row35-pickled-shard": (
        lambda w: pickled_array(w, w.shard),
        "train",
        ["train-00000.bin: magic b'\\x93NUMPY", "expected b'EFCORPUS': it is no shard", PREPARE_AGAIN],
    ),
    "row35-pickled-text": (
        lambda w: pickled_array(w, w.root / "text.npy"),
        lambda w: w.prepare(text=w.root / "text.npy"),
        ["text.npy ends in .npy; text is read from .txt, .jsonl, .parquet", "convert it"],
    ),
    "row36-truncated-between-runs": (
        lambda w: os.truncate(w.shard, 200),
        "resume",
        ["train-00000.bin: bytes 200, expected {size}: it is truncated", PREPARE_AGAIN],
    ),
    "row38-parent": (
        lambda w: entry(w, file="../data/train-00000.bin"),
        "train",
        ["corpus.json names a shard '../data/train-00000.bin'; a shard is a plain .bin name in {data}", PREPARE_AGAIN],
    ),
    "row38-absolute": (
        lambda w: entry(w, file=str(w.shard)),
        "train",
        ["corpus.json names a shard '{data}/train-00000.bin'; a shard is a plain .bin name in {data}", PREPARE_AGAIN],
    ),
    "row38-double-slash": (
        lambda w: entry(w, file="//train-00000.bin"),
        "train",
        ["corpus.json names a shard '//train-00000.bin'; a shard is a plain .bin name in {data}", PREPARE_AGAIN],
    ),
    "row38-symlink": (
        linked,
        "train",
        ["train-00000.bin cannot be opened (a symbolic link); it must be a plain file: copy it"],
    ),
    "row38-in-a-checkpoint": (
        lambda w: edit(w.newest / "manifest.json", lambda content: content["files"].update({"../../text.txt": {}})),
        "resume",
        ["{run}/checkpoint-2 is damaged: '../../text.txt' is missing", RESUME_OLDER],
    ),
    "row42-flipped-byte": (
        lambda w: flip(w.newest / "model.safetensors"),
        "resume",
        ["{run}/checkpoint-2 is damaged: 'model.safetensors' has SHA-256 ", "... was written", RESUME_OLDER],
    ),
    "row42-truncated": (
        lambda w: os.truncate(w.newest / "optimizer.safetensors", 100),
        "resume",
        ["'optimizer.safetensors' has 100 bytes, ", " were written", RESUME_OLDER],
    ),
    "row43-pickle": (
        pickled_weights,
        "train",
        ["{pair}/generator has no model.safetensors (['config.json', 'pytorch_model.bin']), the only weights read",
         "can run code and are never opened", "model.save_pretrained(DIR, safe_serialization=True"],
    ),
    "row43-pickle-in-a-checkpoint": (
        lambda w: (w.newest / "model.pt").write_bytes(pickle.dumps(Bomb(w.root / "exploded"))),
        "resume",
        ["'model.pt' is not in the manifest", RESUME_OLDER],
    ),
    "row44-100,001-tensors": (
        lambda w: header(w, {str(number): span(0, 0) for number in range(100_001)}),
        "train",
        ["{generator} claims 100001 tensors; at most 100000 are allowed", SAVE_AGAIN],
    ),
    "row44-header-of-16-MB": (
        lambda w: header(w, b"{}".ljust((16 << 20) + 1)),
        "train",
        ["{generator} has 16777225 bytes and claims a header of 16777217; at most 16777216", SAVE_AGAIN],
    ),
    "row44-duplicate-key": (
        lambda w: header(w, (json.dumps({"a": span(0, 0)})[:-1] + ", " + json.dumps({"a": span(0, 0)})[1:]).encode()),
        "train",
        ["{generator}: ", "key 'a' twice", "each key once, is allowed", SAVE_AGAIN],
    ),
    "row45-all-that-differs": (
        lambda w: tensors(w, bogus_keys),
        "train",
        ["{pair}/generator does not fit the model; take weights of this architecture and size",
         "missing: generator_lm_head.bias ({vocab},)", "unexpected: 'extra' (2,)",
         "wrong shape: generator_predictions.dense.weight is (3, 3), the model has (16, 16)"],
    ),
    "row45-vocabulary": (
        lambda w: edit(w.generator.parent / "config.json", lambda content: content.update(vocab_size=90)),
        "train",
        ["{pair}/generator does not fit", "vocabulary has {vocab} tokens, the model's 90: set vocab_size to {vocab}",
         "wrong shape: generator_lm_head.bias is ({vocab},), the model has (90,)"],
    ),
    "row46-unknown-key": (
        lambda w: config(w, rotary=1),
        "train",
        ["{pair}/discriminator/config.json: unknown keys 'rotary'", "are allowed; delete one that changes nothing"],
    ),
    "row46-heads": (
        lambda w: config(w, num_attention_heads=3),
        "train",
        ["config.json: hidden_size 32 is not a multiple of num_attention_heads 3", "1 here; correct it there"],
    ),
    "row46-negative": (
        lambda w: config(w, hidden_size=-32),
        "train",
        ["config.json: hidden_size is -32; it must lie between 1 and 65536; correct it there"],
    ),
    "row46-layers-in-words": (
        lambda w: config(w, num_hidden_layers="1e9"),
        "train",
        ["config.json: num_hidden_layers is '1e9', a str; it must be a finite int; correct it there"],
    ),
    "row46-10^9-layers": (
        lambda w: config(w, num_hidden_layers=10**9),
        "train",
        ["config.json: num_hidden_layers is 1000000000; it must lie between 1 and 1000; correct it there"],
    ),
    "row46-another-model": (
        lambda w: config(w, model_type="bert"),
        "train",
        ["config.json: model_type is 'bert'", "model_type = 'electra' only; take such a model, or run it in"],
    ),
    "row46-unknown-key-of-the-objective": (
        lambda w: edit(w.pair / "electra.json", lambda content: content.update(rotary=1)),
        lambda w: Electra.from_pretrained(w.pair),
        ["{pair}: ", "'rotary'", "correct electra.json there"],
    ),
    "row46-damaged-objective": (
        lambda w: (w.pair / "electra.json").write_text("{"),
        lambda w: Electra.from_pretrained(w.pair),
        ["{pair}/electra.json: JSONDecodeError", "one JSON object, each key once, is allowed", SAVE_AGAIN],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str, original: World, world: World, capsys: pytest.CaptureFixture) -> None:
    spoil, action, parts = REFUSED[case]
    vocabulary = Corpus(original.data).vocab_size
    spoil(world)
    before = world.digest()
    capsys.readouterr()
    if isinstance(action, str):
        command = getattr(world, action)()
    else:
        try:
            command = action(world)
        except (ValueError, IndexError) as error:
            command, said = None, str(error)
        else:
            assert isinstance(command, list), "nothing was raised"
    if command is not None:
        assert main(command) == 1
        said = capsys.readouterr().err.split("electra-fast: ", 1)[1]
    names = {name: getattr(world, name) for name in ("text", "data", "pair", "generator", "run")}
    size = original.shard.stat().st_size
    names |= dict(size=size, shorter=size - 1, vocab=vocabulary, more=vocabulary + 10)
    for part in parts:
        for name, value in names.items():
            part = part.replace(f"{{{name}}}", str(value))
        assert part in said, f"{part!r} is not in {said!r}"
    assert "Traceback" not in said and len(said) < 1000
    after = world.digest()
    after.pop("new/metrics.jsonl", None)  # of a run that was refused at its first step
    assert after == before
    assert not (world.root / "exploded").exists()


SURVIVED: dict[str, Callable[[World, pytest.MonkeyPatch, pytest.CaptureFixture], None]] = {}


def case(name: str, *arguments: object) -> Callable:
    """Enter a function of (world, monkeypatch, capsys, *arguments) in the table."""

    def register(function: Callable) -> Callable:
        SURVIVED[name] = lambda *given: function(*given, *arguments)
        return function

    return register


def same_weights(one: Path, other: Path) -> bool:
    return all((one / f"{name}.safetensors").read_bytes() == (other / f"{name}.safetensors").read_bytes()
               for name in ("model", "optimizer"))  # fmt: skip


def steps_logged(run: Path) -> list[int]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [row["step"] for row in rows if row["kind"] == "train"]


def leftovers(root: Path) -> list[Path]:
    return [path for path in root.rglob("*") if ".tmp-" in path.name]


def process(arguments: list[str], before: str = "", **options: object) -> subprocess.Popen:
    """The command line in a process of its own, after some Python."""
    program = f"import os, signal, sys, time\n{before}\nfrom electra_fast.cli import main\nsys.exit(main({arguments}))"
    options = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) | options
    return subprocess.Popen([sys.executable, "-c", program], **options)


@case("row17-all-labels-ignored")
def all_labels_ignored(world, monkeypatch, capsys) -> None:
    given = head_example(labels=torch.full((6,), -100))
    loss, _ = ops.generator_head(**given | dict(weight=given["weight"].requires_grad_()))
    loss.mean().backward()
    assert not loss.any() and not given["weight"].grad.any()
    assert F.cross_entropy(torch.randn(6, 70), given["labels"]).isnan(), "torch's own loss of no label"


@case("row17-no-masked-token", [[2, 3, 0]], [[1, 1, 0]])
@case("row17-all-padding", [[0, 0, 0]], [[0, 0, 0]])
def nothing_to_predict(world, monkeypatch, capsys, ids, mask) -> None:
    pair = Electra.from_pretrained(world.pair)
    trainer = Pretrainer(pair, PretrainConfig(steps=10))
    found = trainer.step(Batch.from_padded(torch.tensor(ids), torch.tensor(mask)))
    assert found.generator_loss == 0 and math.isfinite(found.loss) and math.isfinite(found.grad_norm)
    assert (trainer.steps_done, trainer.skipped) == (1, 0)
    if not any(mask[0]):
        assert found.loss == found.grad_norm == 0
    assert all(p.isfinite().all() for p in pair.parameters())
    assert pair.discriminator(torch.tensor(ids), torch.tensor(mask))[torch.tensor(mask) == 0].tolist() == [0] * (
        3 - sum(mask[0])
    )


@case("row20-u-of-0", 0)
@case("row20-u-of-1", 2**32 - 1)  # (2**32 - 1/2) / 2**32 is 1 in float32
def extreme_random_words(world, monkeypatch, capsys, word) -> None:
    """The sample is a word of positive probability, though the random number is at the edge of [0, 1]."""
    fixed = lambda seed, row, group, plane: [torch.full(row.shape, word)] * 4  # noqa: E731
    monkeypatch.setattr(head, "philox", fixed)
    given = head_example(bias=torch.cat([torch.full((65,), -1e4), torch.zeros(5)]))
    given |= dict(row_ids=torch.arange(6), seed=torch.tensor([1]), temperature=1.0, disallow_correct=False)
    loss, sampled = head.generator_head_reference(**given)
    assert loss.isfinite().all() and ((sampled >= 65) & (sampled < 70)).all()


@case("row20-temperature-0")
def temperature_of_0(world, monkeypatch, capsys) -> None:
    given = head_example()
    _, sampled = ops.generator_head(**given, temperature=0.0)
    assert torch.equal(sampled, (given["hidden"] @ given["weight"].T + given["bias"]).argmax(1))


@case("row21-parameters-unchanged", "stop")
@case("row21-skipped-and-counted", "skip")
def nan_logits(world, monkeypatch, capsys, non_finite) -> None:
    pair = Electra.from_pretrained(world.pair)
    with torch.no_grad():
        pair.generator.vocabulary_bias[7] = math.nan
    trainer = Pretrainer(pair, PretrainConfig(steps=10, non_finite=non_finite))
    state = trainer.state_dict()["model"] | trainer.state_dict()["optimizer"]
    before = {name: tensor.clone() for name, tensor in state.items()}
    batch = Batch.from_padded(torch.arange(5, 29).reshape(2, 12))
    if non_finite == "stop":
        with pytest.raises(FloatingPointError, match=r"step 0: the loss is nan.*no parameter was changed"):
            trainer.step(batch)
    else:
        assert math.isnan(trainer.step(batch).loss) and trainer.skipped == 1
    assert all(torch.equal(tensor.nan_to_num(5), before[name].nan_to_num(5)) for name, tensor in state.items())


@case("row36-documented")
def mapped_files_are_documented(world, monkeypatch, capsys) -> None:
    assert "A shard must not be truncated while it is open" in " ".join(shards.__doc__.split())


@case("row37-crlf", lambda text: text.replace(b"\n", b"\r\n"), 0)
@case("row37-blank-documents", lambda text: b"\n\n \n" + text.replace(b"\n\n", b"\n\n\n \t\n\n\n"), 0)
@case("row37-no-utf-8", lambda text: text.replace(b"cat", b"c\xfft", 7), 7)
@case("row37-nul", lambda text: text.replace(b"cat", b"c\0t", 7), 7)
def dirty_text(world, monkeypatch, capsys, spoil, replaced) -> None:
    world.text.write_bytes(spoil(world.text.read_bytes()))
    assert main(world.prepare()) == 0
    assert f"{replaced} characters that were no UTF-8" in " ".join(capsys.readouterr().err.split())
    clean, dirty = Corpus(world.data), Corpus(world.root / "new")
    assert dirty.splits.keys() == clean.splits.keys() and len(dirty) > 70
    assert (dirty.sha256 == clean.sha256) == (not replaced)


@case("row37-line-of-megabytes")
def long_line(world, monkeypatch, capsys) -> None:
    words = b"the cat of the king " * 75_000
    world.text.write_bytes(world.text.read_bytes() + b"\n\n" + words)
    assert main(world.prepare("--packing", "plain")) == 0
    assert "(over-long ones cut 1 times)" in capsys.readouterr().err
    assert sum(Corpus(world.root / "new", split).tokens for split in ("train", "heldout")) > 5 * 75_000
    found = [line for document in text.documents(world.text) for line in document]
    assert max(map(len, found)) <= 2 * text.BLOCK and sum(map(len, found)) > 0.99 * len(words)


@case("row40-kill-9-during-a-save")
def killed_while_saving(world, monkeypatch, capsys) -> None:
    kill = """
from electra_fast import checkpoint
write = checkpoint.write_tensors
def killed(path, tensors):
    digest = write(path, tensors)
    if "checkpoint-2" in str(path):
        os.kill(os.getpid(), signal.SIGKILL)
    return digest
checkpoint.write_tensors = killed"""
    child = process(world.train(), kill)
    child.communicate()
    new = world.root / "new"
    assert child.returncode == -signal.SIGKILL and [p.name for p in leftovers(new)] and not (new / "final").exists()
    assert [path.name for path in checkpoint.checkpoints(new)] == ["checkpoint-1"]
    assert main(world.train("--resume")) == 0
    assert f"resumed from {new}/checkpoint-1" in capsys.readouterr().out
    assert same_weights(new / "checkpoint-2", world.newest)
    assert leftovers(new) == [] and steps_logged(new) == [1, 2]


@case("row41-full-disk", "fsync", errno.ENOSPC)
@case("row41-broken-disk", "fsync", errno.EIO)
@case("row41-read-only-directory", "rename", errno.EROFS)
def disk_fails(world, monkeypatch, capsys, name, number) -> None:
    """Two saves of three fail; told once, the run goes on, and is as it would have been. The last one must not fail."""
    new, whole = world.root / "new", world.root / "whole"
    assert main(world.train("--steps", "3", "--out", str(whole))) == 0
    before = world.digest()
    call, broken = getattr(os, name), True

    def failing(*arguments: object) -> None:
        paths = str(arguments) if name == "rename" else os.readlink(f"/proc/self/fd/{arguments[0]}")
        if ".tmp-checkpoint-" in paths and (broken or "checkpoint-3" not in paths):
            raise OSError(number, os.strerror(number))
        return call(*arguments)

    monkeypatch.setattr(os, name, failing)
    capsys.readouterr()
    assert main(world.train("--steps", "3")) == 1
    said = capsys.readouterr()
    found, told = said.out + said.err, said.err.split("electra-fast: ")[1]
    assert found.count("training goes on") == 1 and os.strerror(number) in found and "Traceback" not in found
    for part in ("checkpoint-3 could not be saved", os.strerror(number), "older checkpoints are kept",
                 f"Free some space in {new}, or make it writable, and go on with --resume"):  # fmt: skip
        assert part in told, told
    if name == "fsync":
        assert str(new / ".tmp-checkpoint-3") in told, "it names the file"
    assert checkpoint.checkpoints(new) == [] and leftovers(new) == []

    broken = False
    assert main(world.train("--steps", "3")) == 0
    assert [path.name for path in checkpoint.checkpoints(new)] == ["checkpoint-3"] and leftovers(new) == []
    assert same_weights(new / "checkpoint-3", whole / "checkpoint-3")
    assert before.items() <= world.digest().items()


@case("row42-the-advice-works")
def older_checkpoint(world, monkeypatch, capsys) -> None:
    whole = shutil.copytree(world.newest, world.root / "whole")
    flip(world.newest / "model.safetensors")
    shutil.rmtree(world.newest)
    assert main(world.resume()) == 0
    assert "checkpoint-1" in capsys.readouterr().out and same_weights(world.newest, whole)


@case("row43-torch-of-2.10")
def requires_safe_torch(world, monkeypatch, capsys) -> None:
    assert "torch>=2.10" in importlib.metadata.requires("electra_fast")


@case("row48-two-runs")
def shared_directory(world, monkeypatch, capsys) -> None:
    before = world.digest()
    with checkpoint.Lock(world.run):
        assert main(world.resume()) == 1
    said = capsys.readouterr().err
    for part in (f"{world.run} is in use by another run (process {os.getpid()} on ", "one at a time is allowed",
                 "wait for it, stop it, or choose another directory"):  # fmt: skip
        assert part in said, said
    assert world.digest() == before and main(world.resume()) == 0


@case("row49-sigterm-and-resume")
def terminated(world, monkeypatch, capsys) -> None:
    """Of a process: it ends its step, saves and leaves; resumed, it is as if nothing had happened."""
    slow = """
from electra_fast.trainer import Pretrainer
step = Pretrainer.step
Pretrainer.step = lambda *arguments: (time.sleep(0.3), step(*arguments))[1]"""
    steps, new, whole = ["--steps", "8", "--save-every", "100"], world.root / "new", world.root / "whole"
    assert main(world.train(*steps, "--out", str(whole))) == 0
    child = process(world.train(*steps), slow)
    deadline = time.monotonic() + 60
    while not (new / "metrics.jsonl").exists() or not steps_logged(new):
        assert child.poll() is None and time.monotonic() < deadline, child.communicate()
        time.sleep(0.05)
    child.send_signal(signal.SIGTERM)
    said = child.communicate()[1]
    reached = checkpoint.load(checkpoint.latest(new))[0]
    assert child.returncode == 128 + signal.SIGTERM and 0 < reached < 8 and "Traceback" not in said
    assert f"stopped after step {reached}, which is saved; go on with --resume" in said
    assert main(world.train(*steps, "--resume")) == 0
    assert same_weights(new / "checkpoint-8", whole / "checkpoint-8")
    assert steps_logged(new) == list(range(1, 9)) and leftovers(new) == []


@case("row49-sigint-in-a-save", 1)
@case("row49-sigint-twice-in-a-save", 2)
def interrupted_while_saving(world, monkeypatch, capsys, times) -> None:
    """Once: the save is finished. Twice: the process leaves at once, and no torn checkpoint has a name."""
    write, new = checkpoint.write_tensors, world.root / "new"

    def interrupted(path: Path, group: object) -> str:
        if "checkpoint-1" in str(path) and "model" in path.name:
            for _ in range(times):
                os.kill(os.getpid(), signal.SIGINT)
        return write(path, group)

    monkeypatch.setattr(checkpoint, "write_tensors", interrupted)
    if times == 1:
        assert main(world.train()) == 128 + signal.SIGINT
        assert same_weights(new / "checkpoint-1", world.run / "checkpoint-1")
    else:
        with pytest.raises(SystemExit) as left:
            main(world.train())
        assert left.value.code == 128 + signal.SIGINT and checkpoint.latest(new) is None
    monkeypatch.undo()
    assert leftovers(new) == [] and main(world.train("--resume")) == 0
    assert same_weights(new / "checkpoint-2", world.newest)


@case("row53-clock-runs-backwards")
def backward_clock(world, monkeypatch, capsys) -> None:
    clock = iter(range(2_000_000_000, 0, -3600))
    for module in (time, tqdm.std):
        monkeypatch.setattr(module, "time", lambda: float(next(clock)))
    assert main(world.train()) == 0
    assert same_weights(world.root / "new" / "checkpoint-2", world.newest)
    rows = [json.loads(line) for line in (world.root / "new" / "metrics.jsonl").read_text().splitlines()]
    assert all(0 < row["tokens_per_s"] < 1e9 for row in rows if row["kind"] == "train")


@case("row53-newest-step-oldest-file")
def backward_mtimes(world, monkeypatch, capsys) -> None:
    for step in (1, 2):
        for path in [*(world.run / f"checkpoint-{step}").iterdir(), world.run / f"checkpoint-{step}"]:
            os.utime(path, (10**9 - step, 10**9 - step))
    options = ["--steps", "3", "--keep", "2", "--allow-change", "pretrain.steps", "pretrain.learning_rate"]
    assert main(world.resume(*options)) == 0
    assert f"resumed from {world.run}/checkpoint-2" in capsys.readouterr().out
    assert [path.name for path in checkpoint.checkpoints(world.run)] == ["checkpoint-2", "checkpoint-3"]


@case("row54-no-core-no-triton")
def without_core(world, monkeypatch, capsys) -> None:
    hide = """
sys.modules["electra_fast._C"] = sys.modules["triton"] = None
from electra_fast.cli import main
assert main(["info"]) == 0"""
    environment = {name: value for name, value in os.environ.items() if name != "ELECTRA_FAST_ISA"}
    child = process(world.train(), hide, env=environment)
    out, err = child.communicate()
    assert child.returncode == 0, err
    assert err.count("Warning: electra_fast runs its slower reference on the CPU; the C++ core is not built") == 1
    found = json.JSONDecoder().raw_decode(out)[0]
    assert found["core"].startswith("none: the C++ core is not built: install a C++17 compiler")
    assert all("the C++ core is not built" in found["ops"][name]["cpu"] for name in ("masking", "corrupt"))
    mine, theirs = (load_file(run / "checkpoint-2" / "model.safetensors") for run in (world.root / "new", world.run))
    assert all(torch.allclose(mine[name], theirs[name], rtol=1e-4, atol=1e-5) for name in theirs)


@case("row54-unknown-instruction-set")
def unknown_isa(world, monkeypatch, capsys) -> None:
    if core is None:
        pytest.skip(why)
    child = process(["info"], env=os.environ | {"ELECTRA_FAST_ISA": "nonsense"})
    out, err = child.communicate()
    assert child.returncode == 1 and not out and err.count("Traceback") == 1, err  # the import's, not a chain
    for part in ("ELECTRA_FAST_ISA is 'nonsense'; this build on this CPU has base", "set it to one of these, or unset"):
        assert part in err.splitlines()[-1], err


@pytest.mark.parametrize("name", SURVIVED)
def test_survived(name: str, world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    SURVIVED[name](world, monkeypatch, capsys)
