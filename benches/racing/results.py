"""A row of results: its fields, and how rows are written to a file, printed and plotted."""

from __future__ import annotations

import functools
import json
import os
import platform
import subprocess
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

import torch


@dataclass
class Row:
    """The figures of one contestant in one race, None where one does not apply. benches/README.md explains each."""

    bench: str
    model: str  # model or op
    provider: str  # "ours", or the rival's name; "X (again)" is X raced against itself: the noise bar
    shape: str
    dtype: str
    ms_p20: float | None
    ms: float | None
    ms_p80: float | None
    tokens_per_s: float | None
    tflops: float | None
    gbps: float | None
    percent_roof: float | None
    peak_mem_mb: float | None
    launches: int | None
    device: str
    torch: str
    triton: str | None
    commit: str | None
    date: str
    skipped: str = ""  # why there are no figures; only such rows have it in the file
    ratio_to_best: float | None = None  # median over rounds of its time by the best one's; printed, not written

    def to_json(self) -> str:
        fields = asdict(self)
        del fields["ratio_to_best"]
        if not self.skipped:
            del fields["skipped"]
        return json.dumps(fields)


@functools.cache
def machine(device: str) -> dict[str, Any]:
    """The fields that describe the machine and the software, the same in every row."""
    if device == "cuda":
        name = torch.cuda.get_device_name()
    else:
        name = f"{_cpu_name()}, {torch.get_num_threads()} threads"
    return dict(device=name, torch=torch.__version__, triton=_version("triton"), commit=_commit())


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The checkout's commit, with a "+" if files have changed; or $ELECTRA_FAST_COMMIT, for a copy without git."""
    if commit := os.environ.get("ELECTRA_FAST_COMMIT"):
        return commit
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def now() -> str:
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


class Writer:
    """Appends rows to a JSON-lines file as they come, so that a run that is stopped keeps its rows."""

    def __init__(self, path: Path | None) -> None:
        self.rows: list[Row] = []
        self.file: TextIO | None = None
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.file = path.open("a", encoding="utf-8")

    def write(self, row: Row) -> None:
        self.rows.append(row)
        if self.file is not None:
            self.file.write(row.to_json() + "\n")
            self.file.flush()


COLUMNS = "provider ms_p20 ms ms_p80 ratio_to_best tokens_per_s tflops gbps percent_roof peak_mem_mb launches".split()


def table(rows: Iterable[Row]) -> str:
    """The rows of one race as a text table, fastest first, and below it the skipped ones with their reasons."""
    rows = list(rows)
    timed = sorted((r for r in rows if r.ms is not None), key=lambda r: r.ms or 0.0)
    lines = [f"{rows[0].bench}  {rows[0].model}  {rows[0].shape}  {rows[0].dtype}  on {rows[0].device}"] if rows else []
    if timed:
        shown = [column for column in COLUMNS if any(getattr(r, column) is not None for r in timed)]
        cells = [shown] + [[_cell(getattr(r, column)) for column in shown] for r in timed]
        widths = [max(len(row[i]) for row in cells) for i in range(len(shown))]
        for first, *others in cells:
            columns = [first.ljust(widths[0]), *(c.rjust(w) for c, w in zip(others, widths[1:], strict=True))]
            lines.append("  " + "  ".join(columns))
    return "\n".join(lines + [f"  {r.provider}  skipped: {r.skipped}" for r in rows if r.skipped])


def _cell(value: float | int | str | None) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
    return "-" if value is None else str(value)


def plot(rows: Iterable[Row], path: Path) -> None:
    """Plot a panel for each race: a bar for each contestant's median, with whiskers from p20 to p80."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    races: dict[str, list[Row]] = {}
    for row in rows:
        if row.ms is not None:
            races.setdefault(f"{row.bench} {row.model} {row.shape}", []).append(row)
    if not races:
        return
    heights = [0.6 + 0.3 * len(race) for race in races.values()]
    figure, axes = pyplot.subplots(
        len(races), 1, figsize=(9, sum(heights) + 0.5), squeeze=False, gridspec_kw=dict(height_ratios=heights)
    )
    for axis, (title, race) in zip(axes[:, 0], races.items(), strict=True):
        race = sorted(race, key=lambda r: -(r.ms or 0.0))
        ms, low, high = ([getattr(r, field) or 0.0 for r in race] for field in ("ms", "ms_p20", "ms_p80"))
        whiskers = [[m - a for m, a in zip(ms, low, strict=True)], [b - m for m, b in zip(ms, high, strict=True)]]
        colours = ["tab:orange" if r.provider.startswith("ours") else "tab:blue" for r in race]
        axis.barh([f"{r.provider} [{r.dtype}]" for r in race], ms, xerr=whiskers, color=colours)
        axis.set_title(title, fontsize=9)
        axis.set_xlabel("ms")
        axis.tick_params(labelsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
