"""python benches contention: measure what busy neighbours on the same cores cost a step of pre-training, on the CPU.

A neighbour is a process that loops without end. Beside k of them, n threads on n cores have a fair share of n / (n + k)
of the quiet speed. Ours and transformers' tuned step (bench_pretrain_step.py) take turns beside each number of
neighbours. "of fair" is the speed beside them, divided by the quiet speed and by the fair share: 1 is fair. It can be
more: a step that waits for memory loses less than its share, as the neighbours use none. With --json, a row for each
measurement is appended to the file.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from bench_pretrain_step import Case, contestants
from racing.clock import Step
from racing.command import MODELS, plain_shape
from racing.race import Options
from racing.results import machine, now

PROVIDERS = ("ours", "hf-tuned")


@contextlib.contextmanager
def neighbours(count: int) -> Iterator[None]:
    """So many busy processes, until the block ends."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def speed(step: Step, seconds: float) -> float:
    """Steps a second, over whole steps of at least so many seconds."""
    step()
    start, steps = time.monotonic(), 0
    while (passed := time.monotonic() - start) < seconds:
        step()
        steps += 1
    return steps / passed


def of_fair(speed: float, quiet: float, threads: int, busy: int) -> float:
    """The speed beside busy neighbours as a part of what is fair."""
    return speed / quiet * (threads + busy) / threads


def measure(model: str, shape: str, counts: list[int], seconds: float) -> list[dict[str, Any]]:
    """A row for each provider and number of neighbours; the first number must be 0, the quiet speed."""
    case, threads = Case.make(model, shape, "cpu"), torch.get_num_threads()
    tokens, every = sum(case.lengths), contestants(case, Options())
    steps = {provider: every[provider]() for provider in PROVIDERS}
    rows: list[dict[str, Any]] = []
    quiet: dict[str, float] = {}
    for count in counts:
        with neighbours(count):
            for provider, step in steps.items():
                found = speed(step, seconds)
                quiet.setdefault(provider, found)
                fair = of_fair(found, quiet[provider], threads, count)
                row = dict(bench="contention", model=model, provider=provider, shape=shape, neighbours=count)
                row |= dict(tokens_per_s=round(found * tokens, 1), of_fair=round(fair, 3))
                rows.append(row | machine("cpu") | dict(date=now()))
                print(f"{count:10}  {provider:10}{found * tokens:14,.0f}{fair:10.2f}", flush=True)
    return rows


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        "python benches contention", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=["cpu"], default="cpu", help="neighbours of a GPU are not measured")
    parser.add_argument("--model", choices=MODELS, default="small", help="default: small")
    parser.add_argument("--shape", type=plain_shape, default="8x128", help="sequences x tokens (default: 8x128)")
    parser.add_argument(
        "--neighbours", type=int, nargs="+", default=[1, 2, 4], help="numbers of busy processes (default: 1 2 4)"
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="for each measurement (default: 10)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="append a row per measurement to this file")
    options = parser.parse_args(arguments)
    torch.set_num_threads(min(torch.get_num_threads(), len(os.sched_getaffinity(0))))
    print(f"neighbours  {'provider':10}{'tokens/s':>14}{'of fair':>10}")
    rows = measure(options.model, options.shape, [0, *options.neighbours], options.seconds)
    if options.json is not None:
        with options.json.open("a") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)
    return 0
