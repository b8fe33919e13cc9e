"""Whether memory, speed and open files stay level when one process works for an hour.

    python benches soak --minutes 60 --json benches/results/soak.jsonl

A round pre-trains a tiny model with evaluations and checkpoints, fine-tunes its discriminator, loads what was saved and
predicts with it; all files of a round are removed at its end. After each round the process's resident memory, its open
file handles, its threads and the speed of the pre-training are sampled. The row that is appended to --json has the
slopes of these by a least-squares line through all samples after the warm-up, and a plot goes beside the file.

How much freed memory the C library keeps for later differs from round to round, by some 15 MB. So memory is sampled
twice: as it is (rss_mb), and after that has been given back to the system (held_mb), whose slope tells a leak.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from racing.results import machine, now

from electra_fast import PretrainConfig
from electra_fast.report.terminal import progress_bar
from electra_fast.tasks.datasets import read_dataset
from electra_fast.tasks.finetune import finetune
from electra_fast.tasks.model import TaskModel
from electra_fast.tasks.predict import predict
from electra_fast.tasks.settings import FinetuneConfig, FinetuneRun
from electra_fast.train.pretrain import pretrain
from electra_fast.train.settings import RunConfig
from electra_fast.train.start import open_corpus

WARM_UP = 1 / 6  # share of the time whose samples are left out of the slopes
KEPT = 120  # samples that a row keeps for the plot


@dataclass(frozen=True)
class Sample:
    """What was seen at the end of a round.

    minutes: since the start. rss_mb: resident memory in MB. held_mb: the same after `give_back`. handles: open file
    descriptors. threads: of the process. tokens_per_s, tokens_per_cpu_s: tokens of pre-training by the clock, and by
    the processor time of the process, which other programs on the machine disturb less.
    """

    minutes: float
    rss_mb: float
    held_mb: float
    handles: int
    threads: int
    tokens_per_s: float
    tokens_per_cpu_s: float


class Rounds:
    """Rounds of work in one folder; `work` does one, `sample` measures the process after it.

    steps: optimiser steps of pre-training in a round.
    """

    def __init__(self, folder: Path, steps: int) -> None:
        self.folder, self.steps = folder, steps
        self.config = PretrainConfig.recipe("tiny", steps=steps, batch_size=8)
        self.corpus = open_corpus(self._run(folder / "prepared")).path
        self.examples = folder / "examples.tsv"
        lines = [f"{word} {n} in the round\t{word}" for n in range(32) for word in ("odd", "even")]
        self.examples.write_text("\n".join(["sentence\tlabel", *lines]) + "\n", encoding="utf-8")
        self.start = time.monotonic()
        self.seconds = self.cpu_seconds = 0.0

    def _run(self, out: Path) -> RunConfig:
        out.mkdir()
        often = max(1, self.steps // 2)
        return RunConfig(out=out, device="cpu", threads=1, save_every=often, eval_every=often, log_every=often)

    def work(self) -> int | None:
        """Pre-train, fine-tune, load and predict, and remove the files; returns the signal that stopped it, if any."""
        out = self.folder / "round"
        run = self._run(out)
        clock, cpu = time.monotonic(), time.process_time()
        result = pretrain(RunConfig(**{**vars(run), "data": (self.corpus,)}), self.config)
        self.seconds, self.cpu_seconds = time.monotonic() - clock, time.process_time() - cpu
        if result.signal is not None:
            return result.signal
        model, task = out / "final" / "discriminator", out / "task"
        files = dict(train=self.examples, dev=self.examples, device="cpu", threads=1)
        finetune(FinetuneRun(task="classification", model=model, out=task, **files), FinetuneConfig(epochs=1))
        trained, tokenizer = TaskModel.load(task / "model")
        examples = read_dataset(self.examples, "classification").examples
        if len(predict(trained, tokenizer, examples).values) != len(examples):
            raise AssertionError("there is not one prediction for each example")
        shutil.rmtree(out)
        return None

    def sample(self) -> Sample:
        """What the process holds now, and how fast the last round was."""
        process = psutil.Process()
        length = RunConfig(out=self.folder).chosen("max_length")
        tokens = self.steps * self.config.batch_size * length
        rss = process.memory_info().rss
        give_back()
        return Sample(
            minutes=round((time.monotonic() - self.start) / 60, 3),
            rss_mb=round(rss / 2**20, 3),
            held_mb=round(process.memory_info().rss / 2**20, 3),
            handles=process.num_fds(),
            threads=process.num_threads(),
            tokens_per_s=round(tokens / self.seconds, 1),
            tokens_per_cpu_s=round(tokens / self.cpu_seconds, 1),
        )


def give_back() -> None:
    """Collect garbage, and let glibc, where it is the C library, give freed memory back to the system."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def slope(samples: list[Sample], name: str) -> float:
    """The slope of a figure by the hour: that of the least-squares line through its samples."""
    hours = np.array([sample.minutes / 60 for sample in samples])
    return float(np.polyfit(hours, np.array([getattr(sample, name) for sample in samples], dtype=float), 1)[0])


def summary(samples: list[Sample], warm_up: float = WARM_UP) -> dict[str, Any]:
    """The row of a soak.

    samples: one a round.
    warm_up: share of the time whose samples the slopes leave out.

    Raises ValueError if fewer than three samples are left, which give no line worth telling.
    """
    after = [sample for sample in samples if sample.minutes >= warm_up * samples[-1].minutes]
    if len(after) < 3:
        raise ValueError(f"{len(samples)} rounds are too few for a slope; give more --minutes")
    speed = sorted(sample.tokens_per_cpu_s for sample in after)[len(after) // 2]
    return {
        "minutes": round(samples[-1].minutes, 1),
        "rounds": len(samples),
        "warm_up_minutes": round(after[0].minutes, 1),
        "rss_mb_most": max(sample.rss_mb for sample in after),
        "held_mb_first": after[0].held_mb,
        "held_mb_last": after[-1].held_mb,
        "held_mb_per_hour": round(slope(after, "held_mb"), 3),
        "handles_first": after[0].handles,
        "handles_last": after[-1].handles,
        "threads_last": after[-1].threads,
        "tokens_per_s": sorted(sample.tokens_per_s for sample in after)[len(after) // 2],
        "tokens_per_cpu_s": speed,
        "tokens_per_cpu_s_percent_per_hour": round(100 * slope(after, "tokens_per_cpu_s") / speed, 2),
    }


def plot(samples: list[Sample], row: dict[str, Any], path: Path) -> None:
    """Draw resident memory, speed and open files by the minute; the warm-up is shaded."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 7), layout="constrained")
    names = (
        ("held_mb", "resident memory without what is free, MB"),
        ("tokens_per_cpu_s", "tokens a CPU second"),
        ("handles", "open files"),
    )
    minutes = [sample.minutes for sample in samples]
    for axes, (name, title) in zip(figure.subplots(len(names), 1, sharex=True), names, strict=True):
        values = [getattr(sample, name) for sample in samples]
        axes.plot(minutes, values, color="tab:orange", lw=1)
        axes.axvspan(0, row["warm_up_minutes"], color="gray", alpha=0.15)
        axes.set(title=title, ylim=(0, 1.15 * max(values)))
        axes.grid(alpha=0.3)
    axes.set_xlabel("minutes; the shaded ones are left out of the slopes")
    figure.savefig(path, dpi=100)


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Drop what Python prints on stdout and stderr."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        yield


def run(minutes: float, steps: int, folder: Path) -> list[Sample]:
    """Do rounds in a folder until the time is over or a signal comes; what they print is dropped."""
    samples: list[Sample] = []
    with progress_bar(total=round(minutes * 60), unit="s", file=sys.stderr, desc="soak") as bar, silence():
        rounds = Rounds(folder, steps)
        while not samples or samples[-1].minutes < minutes:
            if rounds.work() is not None:
                break
            samples.append(rounds.sample())
            bar.update(min(round(samples[-1].minutes * 60), bar.total) - bar.n)
            bar.set_postfix(held_mb=round(samples[-1].held_mb), handles=samples[-1].handles)
    return samples


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python benches soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60, help="how long to work (default: 60)")
    parser.add_argument("--steps", type=int, default=20, help="steps of pre-training in a round (default: 20)")
    parser.add_argument("--json", type=Path, help="file that the row is appended to; a plot goes beside it")
    options = parser.parse_args(arguments)
    if options.minutes <= 0 or options.steps < 2:
        parser.error(f"--minutes is {options.minutes} and --steps {options.steps}; above 0 and at least 2 are needed")
    torch.set_num_threads(1)
    about = machine("cpu") | {"date": now()}
    with tempfile.TemporaryDirectory() as scratch:
        samples = run(options.minutes, options.steps, Path(scratch))
    row = summary(samples) | about
    for name, value in row.items():
        print(f"{name:34s} {value}")
    if options.json is not None:
        thinned = samples[:: -(-len(samples) // KEPT)]
        with options.json.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row | {"samples": [asdict(sample) for sample in thinned]}) + "\n")
        plot(samples, row, options.json.with_suffix(".png"))
    return 0
