"""metrics.jsonl: cut back on resume in one piece, odd rows passed over, and a full disk costs rows and not the run."""

import errno
import json
import os
from pathlib import Path

import pytest

from electra_fast.report.curves import plot_curves, plot_finetuning
from electra_fast.report.log import Log, read_log

ODD = [
    "[1]", "7", "null", '"train"', "{", "[" * 100_000, "{}", '{"kind": "train"}', '{"kind": 3, "step": 1}',
    '{"kind": "train", "step": "1"}', '{"kind": "train", "step": 1.5}', '{"kind": "train", "step": true}',
    '{"kind": "train", "step": 1, "loss": "low"}', '{"kind": "train", "step": 1, "loss": null}', "\x85",
]  # fmt: skip


def row(step: int, kind: str = "train", **figures: float) -> str:
    return json.dumps({"kind": kind, "step": step, **figures})


def test_a_full_disk_costs_rows_of_the_log_not_the_run(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = tmp_path / "metrics.jsonl"
    log = Log(path, 0)
    log.write("train", 1, {})
    log.path = Path("/dev/full")
    log.write("train", 2, {})
    log.write("train", 3, {})
    assert capsys.readouterr().out.count("/dev/full could not be written") == 1
    log.path = path
    with path.open("a") as file:
        file.write('{"kind": "tr')  # what went through
    log.write("train", 4, {})
    assert [row["step"] for row in read_log(path)] == [1, 4]


def test_odd_rows_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [row(1, loss=3.0), *ODD, row(2, loss=2.0)]
    path.write_bytes("\n".join(lines).encode() + b"\n\xff\xfe\n" + row(3, loss=1.0).encode() + b'\n{"kind": "tr')
    assert [(row["step"], row["loss"]) for row in read_log(path)] == [(1, 3.0), (2, 2.0), (3, 1.0)]
    Log(path, 2).write("train", 3, {"loss": 1.5})
    assert path.read_text().splitlines() == [row(1, loss=3.0), row(2, loss=2.0), row(3, loss=1.5)]


def test_rows_of_another_tool_are_not_drawn(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text("\n".join([row(1, loss=1.0), row(1, seed=0, loss=1.0), row(1, "dev", seed=0), row(1, "x")]))
    plot_curves(read_log(path), tmp_path / "curves.png")
    plot_finetuning(read_log(path), "accuracy", tmp_path / "finetuning.png")
    assert (tmp_path / "curves.png").exists() and (tmp_path / "finetuning.png").exists()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_cut_back_in_one_piece_or_not_at_all(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """A resume on a disk at its quota loses no row that was there, says so once, and goes on."""
    path = tmp_path / "metrics.jsonl"
    before = "\n".join(row(step) for step in range(10)) + "\n"
    path.write_text(before)
    path.chmod(0o600)

    def full(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", full)
    log = Log(path, 4)
    assert path.read_text() == before and [p.name for p in tmp_path.iterdir()] == [path.name]
    said = capsys.readouterr().out
    assert f"{path} could not be written" in said and os.strerror(number) in said
    log.write("train", 5, {})
    monkeypatch.undo()
    Log(path, 4)
    assert [row["step"] for row in read_log(path)] == [0, 1, 2, 3, 4] and path.stat().st_mode & 0o777 == 0o600


def test_a_log_with_nothing_to_cut_is_not_rewritten(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(row(1) + "\n" + row(2) + "\n")
    before = path.stat()
    Log(path, 2)
    assert path.stat() == before


def test_a_run_that_begins_again_keeps_no_row_of_what_was_killed_before_its_first_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    Log(path, 0).write("heldout", 0, {"auc": 0.5})
    Log(path, 0).write("heldout", 0, {"auc": 0.5})
    assert [row["step"] for row in read_log(path)] == [0]
