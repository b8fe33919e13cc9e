"""Threads: as many as --threads says, or as the process's affinity and control group allow."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from electra_fast import cores, device
from electra_fast.cli.main import main
from electra_fast.cores import cpu_quota, usable_cores
from electra_fast.data import workers
from electra_fast.device import set_threads


def group(root: Path, files: dict[str, str], membership: str) -> tuple[Path, Path]:
    for name, content in files.items():
        (root / "cgroup" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "cgroup" / name).write_text(content)
    (root / "self").write_text(membership)
    return root / "cgroup", root / "self"


@pytest.mark.parametrize(
    ("files", "membership", "quota"),
    [
        ({"cpu.max": "150000 100000\n"}, "0::/\n", 1.5),
        ({"cpu.max": "max 100000\n"}, "0::/\n", None),
        ({"a/b/cpu.max": "400000 100000", "a/cpu.max": "200000 100000"}, "0::/a/b\n", 2.0),  # a group above has less
        ({"a/b/cpu.max": "max 100000", "a/cpu.max": "50000 100000"}, "0::/a/b\n", 0.5),
        ({"cpu.max": "300000 100000"}, "0::/kubepods/pod1/abc\n", 3.0),  # of a container, mounted as its root
        ({"cpu,cpuacct/x/cpu.cfs_quota_us": "250000", "cpu,cpuacct/x/cpu.cfs_period_us": "100000"},
         "5:memory:/y\n4:cpu,cpuacct:/x\n", 2.5),  # version 1
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, "4:cpu:/docker/1\n0::/\n", None),
        ({"cpu.max": "nonsense"}, "0::/\n", None),
        ({"cpu.max": ""}, "garbage\n\n0::/\n", None),
        ({"cpu.max": "100000 0"}, "0::/\n", None),
        ({"cpuset/cpu.max": "100000 100000"}, "3:cpuset:/\n", None),
    ],
)  # fmt: skip
def test_quota_of_a_control_group(tmp_path: Path, files: dict[str, str], membership: str, quota: float | None) -> None:
    assert cpu_quota(*group(tmp_path, files, membership)) == quota


def test_no_control_groups(tmp_path: Path) -> None:
    assert cpu_quota(tmp_path, tmp_path / "none") is None


@pytest.mark.parametrize(("quota", "wanted"), [("50000", 1), ("100000", 1), ("150000", 2), ("900000", 4), ("max", 4)])
def test_usable_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, wanted: int) -> None:
    """Rounded up, since one and a half cores are more than one; never more than the affinity has."""
    groups, membership = group(tmp_path, {"cpu.max": f"{quota} 100000\n"}, "0::/\n")
    monkeypatch.setattr(cores, "GROUPS", groups)
    monkeypatch.setattr(cores, "MEMBERSHIP", membership)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2, 3})
    assert usable_cores() == wanted


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The numbers that torch.set_num_threads is called with; torch would choose 8, and the quota is 3 cores."""
    numbers: list[int] = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(torch, "set_num_threads", numbers.append)
    monkeypatch.setattr(device, "usable_cores", lambda: 3)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    return numbers


def test_the_default_is_the_quota_and_what_is_said_holds(counted: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    set_threads(None)
    set_threads(5)
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    set_threads(None)  # torch has read the variable
    set_threads(2)
    assert counted == [3, 5, 2]
    with pytest.raises(ValueError, match="threads is 0; it must be at least 1, or be left out"):
        set_threads(0)


def test_processes_of_prepare_obey_the_quota(monkeypatch: pytest.MonkeyPatch) -> None:
    for usable, wanted in ((16, 16), (4, 1)):
        monkeypatch.setattr(workers, "usable_cores", lambda usable=usable: usable)
        assert workers.number_of_processes(None, workers.WORTH_PROCESSES) == wanted


def test_every_command_sets_its_threads(counted: list[int], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """Before anything is read or written: each of these fails at once for want of its files."""
    none, out = str(tmp_path / "none"), str(tmp_path / "out")
    task = ["--task", "classification", "--train", none, "--dev", none, "--model", none, "--out", f"{out}2"]
    commands = (
        ["pretrain", "--data", none, "--out", out],
        ["finetune", *task],
        ["evaluate", "--model", none, "--data", none],
        ["predict", none, "--model", none],
    )
    for number, command in enumerate(commands, 4):
        assert main([*command, "--threads", str(number)]) == 1
    assert counted == [4, 5, 6, 7]
    assert main([*commands[0], "--threads", "0"]) == 1
    assert "threads is 0; it must be at least 1" in capsys.readouterr().err


def test_a_run_computes_with_the_threads_that_are_asked_for() -> None:
    """In a process of its own, whatever OMP_NUM_THREADS says: the C++ core asks torch."""
    code = "import torch, electra_fast.device as d; d.set_threads(3); print(torch.get_num_threads())"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.stdout == "3\n", done.stderr
