"""A small real text, corpus, pair of weights and run, of which tests/test_faults_*.py break a copy in one place each.

A case's id such as row42-flipped-byte is row 42 of the list of faults. What must be refused is refused in a sentence
that names the file or argument, what was found, what is allowed and what to do, and no file changes; what must be
survived leaves the result that it would have had. The depth is in the tests of each module.
"""

import hashlib
import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file

from electra_fast import Electra, ElectraConfig
from electra_fast.cli.main import main
from electra_fast.data.corpus import Corpus
from electra_fast.storage.digests import SUMS

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


def tensors(world: World, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change the generator's tensors by name."""
    found = {name: tensor.clone() for name, tensor in load_file(world.generator).items()}
    change(found)
    save_file(found, world.generator, {"format": "pt"})


def header(world: World, content: bytes | dict, length: int | None = None, data: bytes = b"") -> None:
    """Make the generator's weights a file of this header."""
    said = content if isinstance(content, bytes) else json.dumps(content).encode()
    world.generator.write_bytes(struct.pack("<Q", len(said) if length is None else length) + said + data)


def config(world: World, **changes: object) -> None:
    edit(world.pair / "discriminator" / "config.json", lambda content: content.update(changes))


class Bomb:
    """Unpickled, it makes a directory."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


PREPARE_AGAIN = "prepare it anew: electra-fast prepare FILE ... --out DIR"


SAVE_AGAIN = "fetch it or save it again"


RESUME_OLDER = "delete {run}/checkpoint-2 to resume from checkpoint-1"


def made(root: Path) -> World:
    """The whole ones."""
    world = World(root)
    world.text.write_text("\n\n".join(["\n".join(LINES)] * 3))
    assert main(world.prepare("--out", str(world.data))) == 0
    sizes = dict(embedding_size=16, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64)
    torch.manual_seed(1)
    config = ElectraConfig.small(
        vocab_size=Corpus(world.data).vocab_size, max_position_embeddings=32, generator_size=0.5, **sizes
    )
    Electra(config).save_pretrained(world.pair)
    for sums in world.pair.rglob(SUMS):  # as in published models: what a digest would catch is caught by other checks
        sums.unlink()
    assert main(world.train("--out", str(world.run))) == 0
    return world


class Cases(dict[str, Callable[..., None]]):
    """Functions of (world, monkeypatch, capsys, *arguments), each under the names of its cases."""

    def __call__(self, name: str, *arguments: object) -> Callable:
        def register(function: Callable) -> Callable:
            self[name] = lambda *given: function(*given, *arguments)
            return function

        return register


def refuse(
    spoil: Callable[[World], object],
    action: str | Callable[[World], object],
    parts: list[str],
    original: World,
    world: World,
    capsys: pytest.CaptureFixture,
) -> None:
    """Spoil the copy and act on it, by a command of World or a call of the Python API: the user reads all parts."""
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
    names |= dict(size=size, shorter=size - 1, vocab=vocabulary, less=vocabulary - 10)
    for part in parts:
        for name, value in names.items():
            part = part.replace(f"{{{name}}}", str(value))
        assert part in said, f"{part!r} is not in {said!r}"
    assert "Traceback" not in said and len(said) < 1000
    after = world.digest()
    after.pop("new/metrics.jsonl", None)  # of a run that was refused at its first step
    assert after == before
    assert not (world.root / "exploded").exists()
