"""What a run tells while it goes on: its progress bar, metrics.jsonl, and figures sent to other tools."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from electra_fast.report.terminal import progress_bar, say
from electra_fast.storage.atomic import write_file

Callback = Callable[[int, dict[str, float]], None]  # called with (step, figures by name)


def measured_peak(device: torch.device) -> float:
    """Floating-point operations a second of a float32 product of two (1024, 1024) matrices, the best of five.

    A run's share of the peak is stated of this, since it needs no table of devices.
    """
    a, b = torch.randn(2, 1024, 1024, device=device)
    best = float("inf")
    for _ in range(5):
        start = time.monotonic()
        (a @ b).sum().item()
        best = min(best, time.monotonic() - start)
    return 2 * 1024**3 / best


class Progress:
    """A bar with loss, AUC, tokens a second, share of the peak and time left.

    done: steps that were taken before. steps: those of the whole run. peak: from `measured_peak`.
    """

    def __init__(self, done: int, steps: int, peak: float) -> None:
        self.bar = progress_bar(total=steps, initial=done, unit="step", smoothing=0.05)
        self.peak, self.tokens, self.flops, self.since = peak, 0, 0, time.monotonic()

    def step(self, tokens: int, flops: int) -> None:
        """Count a step, its tokens and its floating-point operations."""
        self.tokens, self.flops = self.tokens + tokens, self.flops + flops
        self.bar.update()

    def speed(self) -> dict[str, float]:
        """The speed since the last call: tokens_per_s, and peak_share between 0 and 1."""
        now = time.monotonic()
        seconds = max(1e-9, now - self.since)
        figures = {"tokens_per_s": self.tokens / seconds, "peak_share": self.flops / seconds / self.peak}
        self.tokens, self.flops, self.since = 0, 0, now
        return figures

    def show(self, figures: dict[str, float], auc_pairs: float | None = None) -> None:
        """Write loss, AUC (if there is one) and speed beside the bar.

        figures: a row of training figures. auc_pairs: the AUC that counts of pairs reach on held-out text, if known.
        """
        auc = f", AUC {figures['auc']:.3f}" if "auc" in figures else ""
        if auc and auc_pairs is not None:
            auc += f" (counts of pairs {auc_pairs:.3f})"
        self.bar.set_postfix_str(
            f"loss {figures['loss']:.3f}{auc}, {figures['tokens_per_s']:,.0f} tokens/s, "
            f"{figures['peak_share']:.0%} of peak"
        )

    def close(self) -> None:
        """Leave the bar as it is, and print no more of it."""
        self.bar.close()


class Log:
    """metrics.jsonl: one row a measurement, as a JSON object with its kind, its step and its figures.

    A disk that is full costs rows of the log, never the run.

    path: the file. Rows of an earlier run are kept up to `steps_done`, later ones are cut off.
    steps_done: the step that the run goes on from; 0 for a run that begins, which keeps no row: it writes step 0 anew.
    callback: called with the same figures, if given.
    """

    def __init__(self, path: Path, steps_done: int, callback: Callback | None = None) -> None:
        self.path, self.callback, self.failed = path, callback, False
        earlier = read_log(path) if steps_done and path.exists() else []
        rows = [row for row in earlier if row["step"] <= steps_done]
        kept = "".join(json.dumps(row) + "\n" for row in rows).encode()
        try:
            if not path.exists() or path.read_bytes() != kept:
                write_file(path, [kept])
        except OSError as error:
            self._fail(error)

    def write(self, kind: str, step: int, figures: dict[str, float]) -> None:
        """Append a row, and hand its figures to the callback as KIND/NAME.

        kind: "train" or "heldout" in pre-training, "train" or "dev" in fine-tuning.
        """
        row = json.dumps({"kind": kind, "step": step, **figures}) + "\n"
        try:
            with self.path.open("a") as file:
                file.write("\n" + row if self.failed else row)  # half a row may be there: end it
        except OSError as error:
            self._fail(error)
        if self.callback is not None:
            self.callback(step, {f"{kind}/{name}": value for name, value in figures.items()})

    def _fail(self, error: OSError) -> None:
        if not self.failed:
            say(f"{self.path} could not be written ({error}); training goes on without it. Free some space")
        self.failed = True


def read_log(path: Path) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl, in order.

    Lines that are no rows are passed over: one that a killed run left unfinished, or what somebody else wrote there.
    """
    rows = []
    for line in path.read_bytes().decode(errors="replace").split("\n"):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):  # RecursionError: brackets, thousands deep
            continue
        if isinstance(row, dict) and isinstance(row.get("kind"), str) and _are_numbers(row):
            rows.append(row)
    return rows


def _are_numbers(row: dict[str, Any]) -> bool:
    figures = [value for name, value in row.items() if name != "kind"]
    return type(row.get("step")) is int and all(type(value) in (int, float) for value in figures)


def tensorboard(directory: Path) -> Callback:
    """A callback that writes figures to TensorBoard's event files in a directory. Needs the package tensorboard."""
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(directory))

    def write(step: int, figures: dict[str, float]) -> None:
        for name, value in figures.items():
            writer.add_scalar(name, value, step)
        writer.flush()

    return write


def wandb(directory: Path) -> Callback:
    """A callback that sends figures to Weights & Biases, whose files go to a directory. Needs the package wandb."""
    import wandb

    run = wandb.init(dir=str(directory), project="electra_fast")
    return lambda step, figures: run.log(figures, step=step)
