"""benches/tools/contention.py: the fair share, and a measurement of the tiny model."""

import json
from pathlib import Path

import pytest
from tools import contention


def test_what_is_fair() -> None:
    # Two threads beside two neighbours on two cores: half of the quiet speed is fair.
    assert contention.of_fair(5.0, quiet=10.0, threads=2, busy=2) == pytest.approx(1)
    assert contention.of_fair(2.0, quiet=10.0, threads=2, busy=4) == pytest.approx(0.6)


@pytest.mark.slow
def test_a_measurement(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    json_file = tmp_path / "rows.jsonl"
    options = ["--model", "tiny", "--shape", "2x32", "--neighbours", "1", "--seconds", "0.1", "--json", str(json_file)]
    assert contention.main(options) == 0
    rows = [json.loads(line) for line in json_file.read_text().splitlines()]
    assert [(row["neighbours"], row["provider"]) for row in rows] == [
        (0, "ours"), (0, "hf-tuned"), (1, "ours"), (1, "hf-tuned")
    ]  # fmt: skip
    assert all(row["tokens_per_s"] > 0 for row in rows) and rows[0]["of_fair"] == 1
    assert capsys.readouterr().out.count("\n") == 5
