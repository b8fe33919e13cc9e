"""What a person sees of a run: progress, metrics.jsonl, curves, and the closing report."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

Callback = Callable[[int, dict[str, float]], None]  # (step, figures); for TensorBoard, W&B or a logger of one's own


def measured_peak(device: torch.device) -> float:
    """Flops a second of a float32 product of 1024^3, the best of five: the peak that shares are stated of."""
    a, b = torch.randn(2, 1024, 1024, device=device)
    best = float("inf")
    for _ in range(5):
        start = time.monotonic()
        (a @ b).sum().item()
        best = min(best, time.monotonic() - start)
    return 2 * 1024**3 / best


class Progress:
    """A bar with loss, AUC, tokens/s, share of the peak and time left; and the speed since it was last asked."""

    def __init__(self, done: int, steps: int, peak: float, quiet: bool = False) -> None:
        self.bar = tqdm(total=steps, initial=done, unit="step", dynamic_ncols=True, disable=quiet, smoothing=0.05)
        self.peak, self.tokens, self.flops, self.since = peak, 0, 0, time.monotonic()

    def step(self, tokens: int, flops: int) -> None:
        self.tokens, self.flops = self.tokens + tokens, self.flops + flops
        self.bar.update()

    def speed(self) -> dict[str, float]:
        """tokens_per_s, and peak_share of the measured peak, since the last call."""
        now = time.monotonic()
        seconds = max(1e-9, now - self.since)
        found = {"tokens_per_s": self.tokens / seconds, "peak_share": self.flops / seconds / self.peak}
        self.tokens, self.flops, self.since = 0, 0, now
        return found

    def show(self, figures: dict[str, float]) -> None:
        auc = f", AUC {figures['auc']:.3f}" if "auc" in figures else ""
        self.bar.set_postfix_str(
            f"loss {figures['loss']:.3f}{auc}, {figures['tokens_per_s']:,.0f} tokens/s, "
            f"{figures['peak_share']:.0%} of peak"
        )

    def say(self, line: str) -> None:
        self.bar.write(line)

    def close(self) -> None:
        self.bar.close()


class Log:
    """metrics.jsonl: a row a measurement, kept across a resume up to the step that is resumed from."""

    def __init__(self, path: Path, steps_done: int, callback: Callback | None = None) -> None:
        self.path, self.callback, self.failed = path, callback, False
        rows = [row for row in read_log(path) if row["step"] <= steps_done] if path.exists() else []
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def write(self, kind: str, step: int, figures: dict[str, float]) -> None:
        row = json.dumps({"kind": kind, "step": step, **figures}) + "\n"
        try:
            with self.path.open("a") as file:
                file.write("\n" + row if self.failed else row)  # half a row may be there: end it
        except OSError as error:  # a disk that is full costs figures, not the run
            if not self.failed:
                tqdm.write(f"{self.path} could not be written ({error}); training goes on without it. Free some space")
            self.failed = True
        if self.callback is not None:
            self.callback(step, {f"{kind}/{name}": value for name, value in figures.items()})


def read_log(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl; a last line that a killed run left unfinished is passed over."""
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def tensorboard(directory: Path) -> Callback:
    """Figures to TensorBoard's event files in the directory. Needs the package tensorboard."""
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(directory))

    def write(step: int, figures: dict[str, float]) -> None:
        for name, value in figures.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return write


def wandb(directory: Path) -> Callback:
    """Figures to Weights & Biases, its files in the directory. Needs the package wandb."""
    import wandb

    run = wandb.init(dir=str(directory), project="electra_fast")
    return lambda step, figures: run.log(figures, step=step)
