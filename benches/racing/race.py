"""Race contestants on the same inputs in one process: they take turns, and ratios are taken round by round."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch

from racing import clock
from racing.clock import Step
from racing.results import Row, Writer, machine, now, table

AGAIN = " (again)"  # marks a contestant that runs a second time, to show the noise


@dataclass
class Race:
    """One task that every contestant does.

    contestants: name -> a function that builds its step. If that raises, the row gives the error as the reason.
    check: takes a step, may call it, and returns what is wrong with it, "" if nothing. Only right steps are timed.
    dtypes: name -> type, of contestants that do not compute in `dtype`.
    tokens, flops, bytes: of one call.
    cold: whether the second-level cache is flushed before every call (CUDA).
    """

    bench: str
    model: str
    shape: str
    contestants: dict[str, Callable[[], Step]]
    check: Callable[[Step], str] = lambda step: ""
    dtype: str = "float32"
    dtypes: dict[str, str] = field(default_factory=dict)
    tokens: int | None = None
    flops: float | None = None
    bytes: float | None = None
    cold: bool = False


@dataclass
class Options:
    """The options of the command line that a bench reads."""

    device: str = "cpu"
    models: tuple[str, ...] = ()  # none: the bench chooses, here and below
    shapes: tuple[str, ...] = ()
    providers: tuple[str, ...] = ()  # names, or patterns like those of files
    rounds: int = 10
    profile: Path | None = None
    ragged: bool = False  # sequences of different lengths

    def wants(self, provider: str, by_default: bool = True) -> bool:
        """Whether --providers names this one; without --providers, `by_default`."""
        return any(fnmatchcase(provider, p) for p in self.providers) if self.providers else by_default


@dataclass
class Roofs:
    """The measured limits of the machine: memory bandwidth and arithmetic."""

    gbps: float | None = None
    tflops: dict[str, float] = field(default_factory=dict)  # keys: float32, bfloat16

    def percent(self, dtype: str, seconds: float, flops: float | None, moved: float | None) -> float | None:
        """The time that a call's arithmetic or traffic needs at the roof, the longer one, in percent of `seconds`."""
        peak = self.tflops.get("bfloat16" if dtype.startswith("bf") else "float32")
        least = [flops / (peak * 1e12)] if flops and peak else []
        least += [moved / (self.gbps * 1e9)] if moved and self.gbps else []
        return 100 * max(least) / seconds if least else None


@dataclass
class Lane:
    """A contestant's step and its timings. The first contestant has two lanes, whose difference is the noise bar."""

    provider: str
    step: Step
    memory_mb: float | None = None
    launches: int | None = None
    calls: int = 1  # calls in one timed sample
    seconds: list[float] = field(default_factory=list)  # seconds of one call, by round


def run(
    race: Race,
    options: Options,
    writer: Writer,
    roofs: Roofs | None = None,
    peak_memory: Callable[[str], float | None] = lambda provider: None,
) -> list[Row]:
    """Build, check, warm up and time the contestants; write and print the rows, and return them.

    A contestant that raises, at any point, gets a row that says why, and the others go on. peak_memory(provider)
    measures a contestant's memory on the CPU in MB, or returns None.
    """
    rows: list[Row] = []

    def keep(row: Row) -> None:
        rows.append(row)
        writer.write(row)

    def skip(provider: str, reason: str) -> None:
        keep(_row(race, provider, options.device, skipped=reason))

    lanes: list[Lane] = []
    for name in filter(options.wants, race.contestants):
        lane, reason = _ready(race, name, options.device)
        if lane is None:
            skip(name, reason)
            clock.free(options.device)
        else:
            lanes.append(lane)
    if lanes:
        first = lanes[0]
        lanes.append(Lane(first.provider + AGAIN, first.step, first.memory_mb, first.launches, first.calls))

    for _ in range(options.rounds):
        for lane in list(lanes):
            try:
                lane.seconds.append(clock.sample(lane.step, lane.calls, options.device, race.cold))
            except Exception as error:
                skip(lane.provider, _reason(error))
                lanes.remove(lane)

    rivals = [lane for lane in lanes if not lane.provider.endswith(AGAIN)] or lanes
    best = min(rivals, key=lambda lane: statistics.median(lane.seconds)) if rivals else None
    for lane in lanes:
        if lane.memory_mb is None and lane in rivals:
            lane.memory_mb = peak_memory(lane.provider)
        row = _row(race, lane.provider, options.device, lane, roofs)
        row.ratio_to_best = statistics.median(ratios(lane.seconds, best.seconds)) if best else None
        keep(row)
    print("\n" + table(rows))
    by_name = {lane.provider: lane for lane in lanes}
    for name, lane in by_name.items():
        if again := by_name.get(name + AGAIN):
            low, middle, high = quantiles(ratios(again.seconds, lane.seconds))
            print(f"  noise bar: {name} against itself, round by round: {middle:.3f}x (p20 {low:.3f}, p80 {high:.3f})")
    if options.profile is not None and lanes:
        clock.profile(by_name.get("ours", lanes[0]).step, options.device, options.profile)
    lanes.clear()
    by_name.clear()
    clock.free(options.device)
    return rows


def ratios(mine: list[float], theirs: list[float]) -> list[float]:
    """mine / theirs, round by round, so that what slows a whole round cancels out."""
    return [a / b for a, b in zip(mine, theirs, strict=True)]


def quantiles(values: list[float]) -> tuple[float, float, float]:
    """The 20th percentile, the median and the 80th percentile."""
    if len(values) < 2:
        return values[0], values[0], values[0]
    fifths = statistics.quantiles(values, n=5, method="inclusive")
    return fifths[0], statistics.median(values), fifths[3]


def _ready(race: Race, name: str, device: str) -> tuple[Lane | None, str]:
    """Build, check and warm up a contestant; returns (lane, "") or (None, the reason why it does not run)."""
    on_cuda = device == "cuda"
    try:
        torch.manual_seed(0)
        if on_cuda:
            torch.cuda.empty_cache()
            allocated, reserved = torch.cuda.memory_allocated(), torch.cuda.memory_reserved()
        step = race.contestants[name]()
        if wrong := race.check(step):
            return None, f"wrong: {wrong}"
        lane = Lane(name, step)
        if on_cuda:
            lane.memory_mb = clock.peak_cuda_mb(step, allocated, reserved)
            lane.launches = clock.launches(step)
        lane.calls = clock.warm_up(step, device, race.cold)
        return lane, ""
    except Exception as error:
        return None, _reason(error)


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:200] if lines else 'no message'}"


def _row(
    race: Race,
    provider: str,
    device: str,
    lane: Lane | None = None,
    roofs: Roofs | None = None,
    skipped: str = "",
) -> Row:
    dtype = race.dtypes.get(provider.removesuffix(AGAIN), race.dtype)
    figures: dict[str, Any] = dict.fromkeys(
        ("ms_p20", "ms", "ms_p80", "tokens_per_s", "tflops", "gbps", "percent_roof", "peak_mem_mb")
    )
    if lane is not None:
        low, median, high = quantiles(lane.seconds)
        figures = dict(
            ms_p20=low * 1e3,
            ms=median * 1e3,
            ms_p80=high * 1e3,
            tokens_per_s=race.tokens / median if race.tokens else None,
            tflops=race.flops / median / 1e12 if race.flops else None,
            gbps=race.bytes / median / 1e9 if race.bytes else None,
            percent_roof=(roofs or Roofs()).percent(dtype, median, race.flops, race.bytes),
            peak_mem_mb=lane.memory_mb,
        )
    return Row(
        bench=race.bench,
        model=race.model,
        provider=provider,
        shape=race.shape,
        dtype=dtype,
        launches=lane.launches if lane else None,
        date=now(),
        skipped=skipped,
        **figures,
        **machine(device),
    )
