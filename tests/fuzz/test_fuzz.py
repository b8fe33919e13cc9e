"""tests/fuzz: no seed and no kept input is a finding, planted faults are found, and a finding can be read again."""

import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from fuzz import judge, models, texts
from fuzz.judge import Finding, Target, judged
from fuzz.models import flipped
from fuzz.mutate import changed, changed_json
from fuzz.world import MEMORY

HERE = Path(__file__).parent
TARGETS = {target.name: target for target in (*models.TARGETS, *texts.TARGETS)}
KEPT = sorted(path for path in (HERE / "corpus").glob("*/*"))


@pytest.fixture
def folder() -> Iterator[Path]:
    """An empty folder on the file system of the whole files, which are linked into it."""
    with tempfile.TemporaryDirectory(dir=MEMORY) as path:
        yield Path(path)


@pytest.mark.parametrize("name", TARGETS)
def test_seeds_pass_and_one_is_accepted(name: str, folder: Path) -> None:
    if name == "parquet":
        pytest.importorskip("pyarrow")
    verdicts = [judged(TARGETS[name], seed, folder) for seed in TARGETS[name].seeds()]
    assert any(verdicts)
    assert not list(folder.iterdir())


@pytest.mark.parametrize("path", KEPT, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_kept_inputs_pass(path: Path, folder: Path) -> None:
    """What was found once and mended."""
    judged(TARGETS[path.parent.name], path.read_bytes(), folder)


def test_kept_inputs_are_small_and_of_targets() -> None:
    assert KEPT and {path.parent.name for path in KEPT} <= TARGETS.keys()
    assert sum(path.stat().st_size for path in KEPT) < 64_000


@pytest.mark.parametrize("name", ["shard", "safetensors", "bundle", "checkpoint"])
def test_every_single_bit_flip_that_is_tried_is_refused(name: str, folder: Path) -> None:
    chance = random.Random(0)
    for _ in range(20):
        edit = chance.randrange(1 << 32).to_bytes(4, "little") + bytes([1 << chance.randrange(8)])
        assert not judged(TARGETS[name], b"\0" + edit, folder)
    assert flipped(b"abc", (4).to_bytes(4, "little") + b"\x01") == b"acc"


def reader(error: BaseException | None) -> Target:
    def read(data: bytes, place: Path) -> None:
        if error is not None:
            raise error

    return Target("planted", read, lambda: iter(()))


@pytest.mark.parametrize(
    ("error", "key"),
    [
        (KeyError("x"), "KeyError is no refusal at test_fuzz.py"),
        (MemoryError(), "MemoryError is no refusal"),
        (ValueError("damaged"), "ValueError names no file"),
        (judge.Insane("an id outside"), "Insane is no refusal .an id outside."),
    ],
)
def test_planted_faults_are_findings(error: BaseException, key: str, folder: Path) -> None:
    with pytest.raises(Finding, match=key):
        judged(reader(error), b"", folder)


def test_a_refusal_that_names_the_file_is_none(folder: Path) -> None:
    assert not judged(reader(ValueError(f"{folder}/a is damaged")), b"", folder)
    assert judged(reader(None), b"", folder)


def test_json_stays_json_and_changes() -> None:
    value = {"a": [1, {"b": "text"}], "c": None}
    made = [changed(value, random.Random(seed)) for seed in range(200)]
    assert sum(each != value for each in made) > 150 and value == {"a": [1, {"b": "text"}], "c": None}
    header = b"\x01" + (2).to_bytes(8, "little") + b"{}" + b"rest"
    new = changed_json(header, 9, random.Random(1))
    assert new is not None and new.endswith(b"rest")
    assert int.from_bytes(new[1:9], "little") == len(new) - 9 - 4
    assert changed_json(b"\0no JSON", 1, random.Random(0)) is None


@pytest.mark.slow
def test_the_engine_finds_what_is_planted_and_replays_it(tmp_path: Path) -> None:
    """A reader that fails on inputs of some length, in a process of its own, as `make fuzz` runs readers."""
    pytest.importorskip("atheris")
    program = f"""
import sys
sys.path[:0] = {[str(HERE.parent), str(HERE.parent / "tasks"), str(HERE.parents[1])]}
from pathlib import Path
import atheris
from fuzz.engine import fuzz
from fuzz.judge import Target

@atheris.instrument_func
def read(data, folder):
    if data[:1] == b"b":
        return
    if len(data) > 3:
        raise KeyError("planted")

tally = fuzz(Target("planted", read, lambda: iter([b"a"])), 3, Path("out"), Path("none"), lambda *_: None)
print(tally.accepted > 0, [path.read_bytes()[:0] for path in tally.findings])
kept = [path.read_bytes() for path in Path("out/corpus/planted").iterdir()]
print(b"a" in kept, any(data[:1] == b"b" for data in kept))
"""
    run = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=250)
    assert run.stdout == "True [b'']\nTrue True\n", run.stderr[-2000:]  # the seed is kept, and what reached new code
