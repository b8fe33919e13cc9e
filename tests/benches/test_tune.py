"""`python benches tune` without a GPU: all but the clock, interpreted here and compiled in a subprocess."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from racing import arguments
from tools import compile, tables, tune

from electra_fast.config import ElectraConfig
from electra_fast.kernels import attention

BENCHES = Path(tune.__file__).parents[1]
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")


@pytest.mark.slow
def test_a_dry_run_interpreted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every neighbour of the entries that tiny reaches runs, is right and remains, and the tables come out as they
    are."""
    rows = tmp_path / "rows.jsonl"
    asked = "dropout_add_layer_norm corrupt --dry-run --models tiny --json".split()
    assert tune.main([*asked, str(rows)]) == 0
    said = capsys.readouterr().out
    assert "dropout_add_layer_norm.TILES[256]  BLOCK_M=8, num_warps=4  serves 4 shapes" in said
    assert said.count("remains") == 8 and "TILES[64]  " not in said
    assert "\n    64: dict(BLOCK_M=32, num_warps=4),\n" in said and "CORRUPT = dict(BLOCK=1024, num_warps=4)" in said
    written = [json.loads(line) for line in rows.read_text().splitlines()]
    assert len(written) == 8 and not any(row["left_out"] for row in written)
    assert written[0]["tile"] == dict(BLOCK_M=4, num_warps=4)


@pytest.mark.slow
def test_a_dry_run_compiled(tmp_path: Path) -> None:
    environment = {n: v for n, v in os.environ.items() if n != "TRITON_INTERPRET"}
    environment |= dict(TRITON_CACHE_DIR=str(tmp_path))
    command = [sys.executable, str(BENCHES), "tune", "corrupt", "--dry-run", "--models", "tiny", "--target", "sm_90"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("remains") == 4 and "# kernels/masking.py\nCORRUPT = dict(" in done.stdout


@pytest.mark.parametrize("op", ["linear", "generator_head", "masking"])
def test_what_is_wrong_is_left_out(op: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fewer = ElectraConfig.tiny(vocab_size=500)  # words, of which the interpreter takes 128 at a time
    monkeypatch.setattr(ElectraConfig, "tiny", lambda: fewer)
    case = next(tune.cases([op], ["tiny"], ["1x16"], "cpu", torch.float16))
    found = case.call("cpu")
    assert not case.wrong(found, found)
    for i, result in enumerate(found):
        spoilt = result * 1.05 if result.is_floating_point() else result + 1
        assert f"result {i} of {op} 0 tiny generator 1x16 fp16 is off by" in case.wrong(
            [*found[:i], spoilt, *found[i + 1 :]], found
        )
    entry = next(e for e in tables.entries() if e.file == op)
    tuner = tune.Tuner(1, 90, clocked=False, interpreted=True, file=None)
    assert not tuner.reason(entry, entry.tile, [case])
    monkeypatch.setattr(case, "gold", [torch.zeros_like(t) - 1 for t in case.gold])
    assert "is off by" in tuner.reason(entry, entry.tile, [case])


@pytest.mark.parametrize(
    ("capability", "warps", "registers", "shared", "tensor_memory", "programs"),
    [
        (90, 8, 255, 32768, 0, 1),  # registers
        (90, 8, 128, 49152, 0, 2),
        (90, 4, 168, 73728, 0, 3),
        (90, 4, 48, 1024, 0, 10),
        (90, 2, 64, 512, 0, 16),
        (90, 4, 16, 0, 0, 16),  # warps
        (90, 1, 16, 0, 0, 32),  # programs
        (90, 4, 32, 76800, 0, 3),  # shared memory, 1 KB more each
        (80, 4, 32, 76800, 0, 2),
        (80, 8, 255, 172032, 0, 0),
        (100, 4, 64, 1024, 256, 2),  # tensor memory
        (100, 8, 4, 49312, 608, 0),
    ],
)
def test_programs_of_a_multiprocessor(capability, warps, registers, shared, tensor_memory, programs) -> None:
    assert compile.programs_per_sm(capability, warps, registers, shared, tensor_memory) == programs


def test_what_does_not_fit_is_left_out() -> None:
    good = dict(spill_bytes=0, programs_per_sm=1, shared_bytes=9)
    assert not tune.unfit([good], [good])
    assert tune.unfit([good, good | dict(spill_bytes=8)], [good]) == "spills 8 bytes"
    assert not tune.unfit([good | dict(spill_bytes=8)], [good | dict(spill_bytes=8)])
    full = good | dict(programs_per_sm=0, shared_bytes=300000)
    assert tune.unfit([good, full], [good]) == "does not fit: 300000 bytes of shared memory"


def test_neighbours_keep_what_a_key_means() -> None:
    found = {str(entry): entry for entry in tables.entries()}
    entry = found["linear.FWD[(2, 64)]"]
    steps = list(entry.neighbours(entry.tile))
    assert {step["BLOCK_N"] for step in steps} == {32, 64} and {step["BLOCK_M"] for step in steps} == {64, 128, 256}
    assert all(sum(step[name] != value for name, value in entry.tile.items()) == 1 for step in steps)
    for name, block in (("generator_head.FWD[(2, 128)]", "BLOCK_N"), ("attention_block.FWD[(2, 64)]", "BLOCK_S")):
        entry = found[name]
        assert {step[block] for step in entry.neighbours(entry.tile)} == {128}


def test_tables_are_printed_as_they_stand() -> None:
    """What is printed, run as Python, is the tables; an empty entry stays."""
    assert {} in attention.FWD.values()
    found = tables.entries()
    for file in ("attention", "linear", "masking", "adamw"):
        own: dict = {}
        exec(tables.python([entry for entry in found if entry.file == file]), own)
        module = sys.modules[f"electra_fast.kernels.{file}"]
        assert len(own) > 1 and all(value == getattr(module, name) for name, value in own.items() if name[0] != "_")


def test_a_climb_ends_where_no_neighbour_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that likes 8 rows best: two steps down from 32, and one more round that finds nothing."""
    entry = next(e for e in tables.entries() if str(e) == "dropout_add_layer_norm.TILES[64]")
    asked = []

    def timed(entry: tables.Entry, tiles: list, case: object, rounds: int) -> list[list[float]]:
        asked.append(tiles[0]["BLOCK_M"])
        return [[1 + abs(tile["BLOCK_M"] - 8)] * rounds for tile in [*tiles, tiles[0]]]

    monkeypatch.setattr(tune, "timed", timed)
    monkeypatch.setattr(tune.Tuner, "reason", lambda *_: "")
    tuner = tune.Tuner(1, 90, clocked=True, interpreted=False, file=None)
    assert tuner.climb(entry, ["a shape"])["BLOCK_M"] == 8 and asked == [32, 16, 8]
    assert entry.tile["BLOCK_M"] == 32


def test_what_is_timed_are_the_launches_that_the_entry_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each tile's own, GRAPH times a step, and the first tile's once more; nothing of the op's other launches."""
    found = tables.entries()
    there = list(tune.cases(["linear"], ["tiny"], ["1x16"], "cpu", torch.float16))[:1]
    tune.assign(found, there, 90)
    entry = next(e for e in found if str(e) == "linear.BWD_INPUT[(2, 64)]")
    kind, ran = type(compile.masking.masking_fwd_kernel), []
    monkeypatch.setattr(kind, "run", lambda self, *_, **options: ran.append((self.__name__, options["BLOCK_M"])))
    monkeypatch.setattr(tune.clock, "captured", lambda step: step)
    monkeypatch.setattr(tune.clock, "warm_up", lambda *_: 1)
    monkeypatch.setattr(tune.clock, "sample", lambda step, *_: ran.clear() or step() or len(ran))
    tiles = [entry.tile, entry.tile | dict(BLOCK_M=32)]
    assert tune.timed(entry, tiles, there[0], 2) == [[1, 1]] * 3 and ran == [("linear_bwd_input_kernel", 128)] * 20
    assert entry.tile == tiles[0]


def test_every_kind_of_product_finds_the_launches_it_decides() -> None:
    found = tables.entries()
    there = list(tune.cases(list(arguments.OPS), ["small"], [], "cpu", torch.bfloat16))
    tune.assign(found, there, 90)
    served = {name for case in there for name in case.launches}
    assert served >= {"attention_block.FWD[(2, 256)]", "ffn_block.BWD[(2, 64)]", "linear_weight.BWD_WEIGHT[(2, 256)]"}
    assert served >= {"attention.FWD[(2, 64, 'few')]", "adamw.", "parts.partials.SUM", "generator_head.FWD[(2, 128)]"}
    assert all(entry.tile[entry.warps] <= 16 for entry in found if entry.names)


def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        tune.parse(["linear"])
    assert "torch sees no CUDA device here, and only a clock can choose" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        tune.parse(["lineal", "--dry-run"])
    assert "there is no op lineal; there are attention, " in capsys.readouterr().err
