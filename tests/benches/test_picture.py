"""benches/tools/picture.py: which rows the README's picture shows, and that both pictures are drawn."""

from pathlib import Path
from typing import Any

import pytest
from tools import picture

ROOT = Path(__file__).resolve().parents[2]


def row(provider: str, commit: str, ms: float | None = 1.0, shape: str = "16x128") -> dict[str, Any]:
    fields = dict(bench="pretrain_step", model="small", shape=shape, device="a CPU, 2 threads", date="2026-01-01T00:00")
    return fields | dict(provider=provider, commit=commit, ms=ms, tokens_per_s=7.0)


def test_newest_whole_race_is_shown() -> None:
    rows = [row(provider, commit) for commit in ("old", "new") for provider in picture.PROVIDERS]
    rows += [row("ours", "newest"), row("hf-tuned", "newest", ms=None), row("ours", "new", shape="16x128 text")]
    shown = picture.newest_race(rows, "small", "16x128")
    assert [(found["provider"], found["commit"]) for found in shown] == [(name, "new") for name in picture.PROVIDERS]
    with pytest.raises(ValueError, match="no race of pretrain_step, base, 16x128 has ours, hf-compiled"):
        picture.newest_race(rows, "base", "16x128")


def test_both_themes_are_drawn_from_the_results(tmp_path: Path) -> None:
    assert picture.main(["--out", str(tmp_path)]) == 0
    drawn = sorted(path.name for path in tmp_path.iterdir())
    assert drawn == ["speed-and-learning-dark.png", "speed-and-learning-light.png"]
    for name in drawn:
        assert 20_000 < (tmp_path / name).stat().st_size < 150_000
        assert (ROOT / "docs" / "pictures" / name).exists()
