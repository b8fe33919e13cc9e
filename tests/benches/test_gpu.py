"""The phases of `python benches gpu`, run with parts that only pretend; and the mark by which its tests are chosen."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tools import gpu

BENCHES = Path(gpu.__file__).parents[1]


def part(name: str, code: str, limit: int = 60) -> gpu.Part:
    return gpu.Part(name, limit, ("-c", "raise SystemExit('on a GPU')"), ("-c", code))


def rows_of(folder: Path) -> dict[str, Any]:
    lines = (folder / "rows.jsonl").read_text().splitlines()
    return {row["model"]: row for row in map(json.loads, lines)}


def test_every_bench_is_in_a_phase_and_every_part_is_a_command_there_is(tmp_path: Path) -> None:
    phases = {phase: make(tmp_path / "rows.jsonl") for phase, make in gpu.PHASES.items()}
    parts = [p for phase in phases.values() for p in phase]
    assert len({p.name for p in parts}) == len(parts)
    assert all(gpu.LEAST_SECONDS <= p.limit < gpu.PHASE_SECONDS <= 600 for p in parts)
    asked = {p.command[1] for p in parts if p.command[0] == str(BENCHES)}
    there = {path.stem.removeprefix("bench_") for path in BENCHES.glob("bench_*.py")}
    assert there - asked == {"prepare", "accelerate", "writing"}  # the host's alone; promised for the CPU
    assert [p.name for p in phases["a"]][:4] == ["build", "info", "roofs", "step-small-128x128-eager"]
    assert sum(p.limit for p in phases["a"][:4]) < gpu.PHASE_SECONDS, "the most telling part is always begun"
    races = [p for p in parts if "--json" in p.command and p.name != "tune"]
    assert all("cuda" in p.command and "cuda" not in p.dry and "tiny" in p.dry for p in races)


def test_a_part_that_fails_or_hangs_costs_itself_alone(tmp_path: Path) -> None:
    child = (
        f"import subprocess, sys; p = subprocess.Popen(['sleep', '60']); open('{tmp_path}/pid', 'w').write(str(p.pid))"
    )
    parts = [
        part("fails", "print('before'); raise MemoryError('too much')"),
        part("hangs", f"{child}; p.wait()", limit=4),
        part("interprets", "import os, sys; sys.exit(os.environ['TRITON_INTERPRET'] != '1')"),
    ]
    assert gpu.run(parts, "a", tmp_path, True, set(), 60) == []
    found = rows_of(tmp_path)
    assert found["fails"]["skipped"] == "ended with 1: MemoryError: too much" and found["fails"]["bench"] == "gpu"
    assert found["hangs"]["skipped"] == "cut off after 4 s" and found["hangs"]["ms"] >= 4000
    assert "skipped" not in found["interprets"] and found["interprets"]["shape"] == "phase a"
    assert (tmp_path / "fails.log").read_text().startswith("before")
    state = Path(f"/proc/{(tmp_path / 'pid').read_text()}/stat")
    assert not state.exists() or state.read_text().split()[2] == "Z", "what a part started outlives it"


@pytest.mark.slow
def test_a_phase_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ended parts, well or not, are left out; not so on another commit or device. The phase's end leaves no row."""
    monkeypatch.setattr(gpu, "LEAST_SECONDS", 2)
    good, bad = part("good", "pass"), part("bad", "raise ValueError('no')")
    slow = part("slow", "import time; time.sleep(60)")
    assert gpu.run([good, bad, slow, part("later", "pass")], "a", tmp_path, True, set(), 12) == ["slow", "later"]
    ended = gpu.done(tmp_path / "rows.jsonl", "cpu")
    assert ended == {"good", "bad"}
    assert gpu.run([good, bad, part("later", "pass")], "a", tmp_path, True, ended, 60) == []
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 3, "an ended part ran again"
    honest = gpu.machine
    for changed in (dict(commit="another"), dict(device="another")):
        monkeypatch.setattr(gpu, "machine", lambda device, changed=changed: honest(device) | changed)
        assert gpu.done(tmp_path / "rows.jsonl", "cpu") == set()
    assert gpu.done(tmp_path / "none.jsonl", "cpu") == set()


def python(*arguments: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, **environment})


def test_a_dry_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The plan with its limits, then a part of it on the CPU; called again, that has ended."""
    call = ["--phase", "a", "--dry-run", "--parts", "info", "--out", str(tmp_path)]
    assert gpu.main(call) == 0
    first = capsys.readouterr().out
    assert "info" in first and " 60 s  -c import electra_fast" in first
    assert "done" in first and '"ops"' in (tmp_path / "info.log").read_text()
    assert gpu.main(call) == 0
    assert "ended before" in capsys.readouterr().out and len((tmp_path / "rows.jsonl").read_text().splitlines()) == 1


@pytest.mark.slow
def test_the_mark_cuda_picks_the_cases_on_cuda_alone(tmp_path: Path) -> None:
    """Those whose `device` is cuda, and those marked by hand."""
    (tmp_path / "test_cases.py").write_text(
        "import pytest\n"
        "@pytest.mark.parametrize('device', ['cpu', 'cuda'])\n"
        "def test_device(device): pass\n"
        "@pytest.mark.cuda\n"
        "def test_marked(): pass\n"
        "@pytest.mark.parametrize('name', ['cuda'])\n"
        "def test_named(name): pass\n"
        "def test_plain(): pass\n"
    )
    tests = Path(__file__).parents[1]
    options = ("-m", "cuda", "--collect-only", "-q", "-p", "conftest", "-p", "no:cacheprovider", "--rootdir", tmp_path)
    path = os.pathsep.join([str(tests), os.environ.get("PYTHONPATH", "")])
    done = python("-m", "pytest", *options, "-c", tests.parent / "pyproject.toml", tmp_path, PYTHONPATH=path)
    found = {line.split("::")[1] for line in done.stdout.splitlines() if "::" in line}
    assert found == {"test_device[cuda]", "test_marked"}, done.stdout + done.stderr
