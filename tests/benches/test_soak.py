"""benches/tools/soak.py: slopes with known values, and one short round of real work."""

import ctypes
import dataclasses
from pathlib import Path

import psutil
import pytest
from tools import soak


def sample(minutes: float, held_mb: float) -> soak.Sample:
    return soak.Sample(
        minutes,
        held_mb + 7 + 8 * (minutes % 2),
        held_mb,
        handles=7,
        threads=2,
        tokens_per_s=50.0,
        tokens_per_cpu_s=100.0,
    )


def test_slope_is_of_the_samples_after_the_warm_up() -> None:
    # 30 MB an hour are 0.5 MB a minute; the first ten minutes of sixty rise much faster and do not count.
    samples = [sample(m, 400.0 + 20 * m) for m in range(10)] + [sample(m, 600.0 + 0.5 * m) for m in range(10, 61)]
    row = soak.summary(samples)
    assert row["held_mb_per_hour"] == pytest.approx(30)
    assert row["rss_mb_most"] == 600 + 0.5 * 59 + 15
    assert row["warm_up_minutes"] == 10 and row["rounds"] == 61 and row["minutes"] == 60
    assert row["handles_first"] == row["handles_last"] == 7
    assert row["tokens_per_cpu_s_percent_per_hour"] == pytest.approx(0, abs=1e-9)
    slower = [dataclasses.replace(s, tokens_per_cpu_s=100.0 - s.minutes / 6) for s in samples]  # 10 less after an hour
    assert soak.summary(slower)["tokens_per_cpu_s_percent_per_hour"] == pytest.approx(-10, rel=0.1)


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="the C library is not glibc")
def test_freed_memory_that_the_c_library_keeps_is_no_leak() -> None:
    def resident() -> float:
        return psutil.Process().memory_info().rss / 2**20

    soak.give_back()
    before = resident()
    blocks = [bytearray(1000) for _ in range(60_000)]
    assert resident() > before + 40
    last = blocks.pop()  # it lies behind the others, which therefore stay with the process when they are freed
    blocks.clear()
    soak.give_back()
    assert resident() < before + 10 and last is not None


def test_too_few_rounds_are_refused() -> None:
    with pytest.raises(ValueError, match="2 rounds are too few for a slope; give more --minutes"):
        soak.summary([sample(0.2, 1.0), sample(0.4, 1.0)])


@pytest.mark.slow
def test_a_round_works_and_leaves_nothing(tmp_path: Path, no_pictures: None, capfd: pytest.CaptureFixture) -> None:
    (only,) = soak.run(minutes=1e-6, steps=2, folder=tmp_path)
    assert 50 < only.held_mb <= only.rss_mb and only.handles > 3 and only.tokens_per_s > 0
    assert not (tmp_path / "round").exists()
    row = soak.summary([dataclasses.replace(only, minutes=float(m)) for m in range(4)])
    soak.plot([only], row, tmp_path / "soak.png")
    assert (tmp_path / "soak.png").stat().st_size > 5000
    captured = capfd.readouterr()
    assert "soak" in captured.err and captured.out == ""
