"""SHA256SUMS: a flipped bit of a model directory is refused by name, and transformers and sha256sum read it too."""

import json
import os
import random
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
import torch

from electra_fast import Electra, ElectraConfig, Generator
from electra_fast.data.tokenizer import Tokenizer
from electra_fast.model.encoder import Encoder
from electra_fast.storage import digests, network
from electra_fast.storage.digests import SUMS, record, verify, write_files
from electra_fast.tasks.model import Task, TaskModel
from electra_fast.tasks.settings import FinetuneConfig

SIZES = dict(vocab_size=40, embedding_size=16, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
             intermediate_size=64, max_position_embeddings=32)  # fmt: skip


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pair, and a classifier with its tokenizer."""
    root = tmp_path_factory.mktemp("saved")
    config = ElectraConfig.small(**SIZES)
    Electra(config).save_pretrained(root / "pair")
    tokenizer = Tokenizer.train([["one two three"] * 9], 40)
    model = TaskModel(Encoder(config.discriminator), Task("classification", None, ("a", "b")), FinetuneConfig())
    model.save(root / "task", tokenizer)
    return root


def load(directory: Path) -> object:
    return TaskModel.load(directory) if directory.name == "task" else Electra.from_pretrained(directory)


def written(saved: Path) -> list[str]:
    return sorted(str(path.relative_to(saved)) for path in saved.rglob("*") if path.is_file())


def test_every_file_that_is_read_is_listed(saved: Path) -> None:
    names = {path for path in written(saved) if not path.endswith(SUMS)}
    listed = {
        str((sums.parent / line[66:]).relative_to(saved))
        for sums in saved.rglob(SUMS)
        for line in sums.read_text().splitlines()
    }
    assert listed == names and {"task/task.json", "task/tokenizer.json", "pair/electra.json"} < names


@pytest.mark.parametrize("name", [
    "pair/electra.json", "pair/generator/config.json", "pair/discriminator/model.safetensors", "task/config.json",
    "task/model.safetensors", "task/task.json", "task/tokenizer.json",
])  # fmt: skip
def test_flipped_bits_are_refused_by_name(name: str, saved: Path, tmp_path: Path) -> None:
    """Wherever a bit flips: in the header, in a weight, in a word of the vocabulary."""
    root = Path(shutil.copytree(saved, tmp_path / "copy"))
    path = root / name
    whole = path.read_bytes()
    for at in random.Random(0).sample(range(len(whole)), 25):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
        with pytest.raises(ValueError) as refused:
            load(root / name.split("/")[0])
        for part in (f"{path} has SHA-256 ", "was written, says", "was damaged or changed since", "save it again"):
            assert part in str(refused.value)
    path.write_bytes(whole)
    load(root / name.split("/")[0])


def test_a_meant_change_is_taken_as_the_message_says(saved: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(saved / "pair" / "generator", tmp_path / "copy"))
    config = root / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"hidden_dropout_prob": 0.0}))
    with pytest.raises(ValueError, match="If the change is meant, delete its line there"):
        Generator.from_pretrained(root)
    (root / SUMS).write_text("".join(line for line in (root / SUMS).open() if "config.json" not in line))
    assert Generator.from_pretrained(root).config.hidden_dropout_prob == 0.0
    (root / SUMS).unlink()
    Generator.from_pretrained(root)
    Generator.from_pretrained(root).save_pretrained(root)
    assert (root / SUMS).read_text().count("\n") == 2


def test_transformers_and_sha256sum_read_it(saved: Path) -> None:
    transformers = pytest.importorskip("transformers")
    for name, kind in (("pair/generator", "ElectraForMaskedLM"), ("pair/discriminator", "ElectraForPreTraining")):
        _, report = getattr(transformers, kind).from_pretrained(saved / name, output_loading_info=True)
        assert not any(report[problem] for problem in ("missing_keys", "unexpected_keys", "mismatched_keys")), report
    transformers.AutoTokenizer.from_pretrained(saved / "task")
    if shutil.which("sha256sum"):
        for sums in saved.rglob(SUMS):
            subprocess.run(["sha256sum", "--check", "--strict", "--quiet", SUMS], check=True, cwd=sums.parent)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b"<html>", "'<html>' is not a line"),
        (b"0" * 64 + b"  ../../etc/passwd\n", "is not a line"),
        (b"G" * 64 + b"  model.safetensors\n", "is not a line"),
        (b"\xff\x1b[2J\n", "is not a line"),
        (b" " * (1 << 20) + b"x", "has 1048577 bytes; at most 1048576 are allowed"),
    ],
)
def test_a_damaged_list(content: bytes, found: str, saved: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(saved / "pair" / "generator", tmp_path / "copy"))
    (root / SUMS).write_bytes(content)
    with pytest.raises(ValueError) as refused:
        Generator.from_pretrained(root)
    assert f"{root / SUMS}" in str(refused.value) and found in str(refused.value) and "\x1b" not in str(refused.value)
    (root / SUMS).unlink()
    os.mkfifo(root / SUMS)  # would hang
    with pytest.raises(ValueError, match="SHA256SUMS is not a regular file"):
        Generator.from_pretrained(root)


def test_lists_of_other_tools(tmp_path: Path) -> None:
    """What sha256sum writes of binary files, of files that are not there, and of files nobody asks for."""
    write_files(tmp_path, {"a": b"1", "b": b"2", "c": b"3"})
    (tmp_path / SUMS).write_text((tmp_path / SUMS).read_text().replace("  a", " *a"))
    (tmp_path / "b").unlink()
    (tmp_path / "c").write_bytes(b"changed")
    verify(tmp_path, "a", "b", "unlisted")
    with pytest.raises(ValueError, match="c has SHA-256"):
        verify(tmp_path, "c")
    record(tmp_path, {"c": digests.file_digest(tmp_path / "c")})
    verify(tmp_path, "a", "b", "c")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_killed_while_it_is_saved_again(saved: Path, tmp_path: Path) -> None:
    """Between the files and their digests: what is there loads, since no digest of the older file is left."""
    root = Path(shutil.copytree(saved / "pair" / "generator", tmp_path / "copy"))
    config, tensors = network.read_network(root)
    tensors = {name: t.clone() + 1 for name, t in tensors.items()}
    child = os.fork()
    if child == 0:
        digests.record = network.record = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
        try:
            network.write_network(root, config, "ElectraForMaskedLM", tensors)
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    found = network.read_network(root)[1]
    assert all(torch.equal(found[name], tensors[name]) for name in tensors)
