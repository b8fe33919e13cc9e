"""python benches tune [OP ...]: measure candidates for the kernels' tables of tiles, and print the tables to commit.

The search climbs from each entry of a table. Its neighbours differ from it by one step: a block or the warps doubled or
halved, a stage more or less. They are compiled ahead of time; one that does not compile, spills more than the entry
does or does not fit on a multiprocessor is left out. The others must give the right results, by the reference in
float64, at every shape that the entry serves. Then the launches that the entry decides are timed in a CUDA graph; the
tiles take turns. The tile with the least geometric mean of the ratios to the entry's time is where the next step
starts, until no tile is ahead by more than two timings of the entry itself differ.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import os
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from racing import arguments, clock
from racing.command import plain_shape
from racing.race import quantiles
from racing.results import machine, now
from torch import Tensor

from tools import compile, tables
from tools.tables import Entry, Tile, text

MODELS = dict(tiny="128x128", small="128x128", base="32x512", large="32x512")  # batches that a GPU takes at a time
INTERPRETED = "2x16"  # the interpreter is slow
GRAPH = 20  # calls in one CUDA graph, so that the host's time for a launch is not what is measured
BOUND = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 2e-2}  # relative error, by the 2-norm
SAMPLES = 0.05  # share of generator_head's samples that may differ: rounding moves a bound between two words


@dataclass
class Case:
    """An op at the shapes of a model."""

    op: str
    number: int  # which of the argument sets that `arguments` yields for the op
    inputs: arguments.Inputs
    launches: dict[str, list[int]] = field(
        default_factory=dict
    )  # entry -> indices of the op's launches whose tile it is

    def __str__(self) -> str:
        inputs = self.inputs
        return f"{self.op} {self.number} {inputs.model} {inputs.part} {inputs.shape} {compile.TYPES[inputs.dtype]}"

    def arguments(self, device: str) -> Any:
        inputs = replace(self.inputs, device=device, source=torch.Generator().manual_seed(self.number))
        return list(arguments.OPS[self.op](inputs))[self.number]

    @property
    def file(self) -> str:
        return "masking" if self.op == "corrupt" else self.op

    @property
    def declared(self) -> tuple[Any, Any]:
        """The op as declared, and its reference."""
        module = importlib.import_module(f"electra_fast.ops.{self.op}")
        return getattr(module, f"_{self.op}"), getattr(module, f"{self.op}_reference")

    @property
    def on_triton(self) -> bool:
        """Whether the kernels take such shapes."""
        op, _ = self.declared
        return not hasattr(op, "cuda") or op.cuda.takes(self.arguments("meta"))

    def call(self, device: str, reference: bool = False) -> list[Tensor]:
        """The op's outputs and gradients, by the launchers or by the reference in float64."""
        op, plain = self.declared
        values = self.arguments(device)
        values = values._make(_doubled(value) for value in values) if reference else values
        if not hasattr(op, "cuda"):  # it has no gradients
            launch = getattr(importlib.import_module(f"electra_fast.kernels.{self.file}"), f"{self.op}_fwd")
            outputs = plain(values) if reference else launch(values)
            updated = values.params if self.op == "adamw" else []
            return [*(outputs if isinstance(outputs, tuple) else [outputs]), *updated]
        backend = op.through_autograd(plain) if reference else op.cuda
        *outputs, saved = backend.fwd(values)
        upstream = [_upstream(output) for output in outputs if output.is_floating_point()]
        return [*outputs, *backend.bwd(upstream, values, [*outputs, *saved])]

    def trace(self, capability: int) -> list[tuple]:
        """The op's launches on a device of this compute capability; none of them runs."""
        launches: list[tuple] = []
        with compile.recording(launches, capability):
            self.call("meta")
        return launches

    @cached_property
    def gold(self) -> list[Tensor]:
        return self.call(self.inputs.device, reference=True)

    def wrong(self, results: list[Tensor], own: list[Tensor]) -> str:
        """What is wrong with a tile's results, "" if nothing. own: the results with the table's tile."""
        for i, (ours, gold, before) in enumerate(zip(results, self.gold, own, strict=True)):
            if ours.is_floating_point():
                error, bound = float((ours.double() - gold).norm() / gold.norm()), BOUND[self.inputs.dtype]
            elif self.op == "generator_head":
                error, bound = float((ours != before).double().mean()), SAMPLES
            else:
                error, bound = float((ours != gold).double().mean()), 0.0
            if not error <= bound:
                return f"result {i} of {self} is off by {error:.2g}, {bound:.2g} is allowed"
        return ""


def _doubled(value: Any) -> Any:
    if isinstance(value, list):
        return [_doubled(v) for v in value]
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def _upstream(output: Tensor) -> Tensor:
    if output.device.type == "meta":
        return torch.empty_like(output)
    return torch.randn(output.shape, generator=torch.Generator().manual_seed(1)).to(output.device, output.dtype)


def cases(ops: list[str], models: list[str], shapes: list[str], device: str, half: torch.dtype) -> Iterator[Case]:
    for op in ops:
        for model in models:
            for shape in shapes or [MODELS[model]]:
                for part in ("generator", "discriminator"):
                    for dtype in (half, torch.float32):
                        inputs = arguments.Inputs(model, part, shape, dtype, "meta")
                        count = len(list(arguments.OPS[op](inputs)))
                        possible = (Case(op, i, replace(inputs, device=device)) for i in range(count))
                        yield from (case for case in possible if case.on_triton)


def assign(entries: list[Entry], served: list[Case], capability: int) -> None:
    """Fill `launches` of each case: which of its launches take their tile from which entry.

    To find out, each entry is given a number of warps that no other entry has, and the cases are traced.
    """
    before = [entry.tile for entry in entries]
    for i, entry in enumerate(entries):
        if entry.names:
            entry.where[entry.warps] = 1000 + i
    traces = [case.trace(capability) for case in served]
    for entry, tile in zip(entries, before, strict=True):
        entry.where.update(tile)
    for case, launches in zip(served, traces, strict=True):
        for i, (_, _, options) in enumerate(launches):
            if options["num_warps"] >= 1000:
                case.launches.setdefault(str(entries[options["num_warps"] - 1000]), []).append(i)


def unfit(rows: list[dict[str, Any]], own: list[dict[str, Any]]) -> str:
    """Why a tile is left out, "" if it is not. rows: of its compiled kernels; own: of the table's tile."""
    spilled, allowed = (max(row["spill_bytes"] for row in some) for some in (rows, own))
    if spilled > allowed:
        return f"spills {spilled} bytes"
    if min(row["programs_per_sm"] for row in rows) == 0:
        return f"does not fit: {max(row['shared_bytes'] for row in rows)} bytes of shared memory"
    return ""


def launched(entry: Entry, tile: Tile, case: Case) -> clock.Step:
    """A CUDA graph of the launches that the entry decides, GRAPH times in a row."""
    kept: list[tuple] = []
    kind: Any = type(compile.masking.masking_fwd_kernel)  # interpreted or not
    run = kind.run

    def record(self: Any, *args: Any, grid: Any, warmup: bool, **options: Any) -> Any:
        kept.append((self, args, grid, options))
        return run(self, *args, grid=grid, warmup=warmup, **options)

    kind.run = record
    try:
        with entry.being(tile):
            case.call(case.inputs.device)
    finally:
        kind.run = run

    def step() -> None:
        for _ in range(GRAPH):
            for i in case.launches[str(entry)]:
                kernel, args, grid, options = kept[i]
                run(kernel, *args, grid=grid, warmup=False, **options)

    return clock.captured(step)


def timed(entry: Entry, tiles: list[Tile], case: Case, rounds: int) -> list[list[float]]:
    """Seconds of one call, by tile and round. The tiles take turns, and the first tile takes part twice."""
    steps = [launched(entry, tile, case) for tile in [*tiles, tiles[0]]]
    calls = [clock.warm_up(step, "cuda", False) for step in steps]
    seconds: list[list[float]] = [[] for _ in steps]
    for _ in range(rounds):
        for step, count, times in zip(steps, calls, seconds, strict=True):
            times.append(clock.sample(step, count, "cuda", False) / GRAPH)
    return seconds


@dataclass
class Tuner:
    rounds: int
    capability: int
    clocked: bool
    interpreted: bool
    file: Path | None
    compiled: dict[str, dict[str, Any]] = field(default_factory=dict)

    def write(self, entry: Entry, tile: Tile, **figures: Any) -> None:
        if self.file is not None:
            row = dict(entry=str(entry), tile=tile, **figures, **machine("cuda" if self.clocked else "cpu"), date=now())
            with self.file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")

    def rows(self, entry: Entry, tile: Tile, served: list[Case]) -> list[dict[str, Any]]:
        """Rows as `python benches compile` has them, of all kernels that the entry launches with this tile."""
        keys = []
        for case in served:
            with entry.being(tile):
                launches = case.trace(self.capability)
            for i in case.launches[str(entry)]:
                kernel, args, options = launches[i]
                keys.append(compile.source(kernel, args, options)[0].hash() + str(options))
                if keys[-1] not in self.compiled:
                    self.compiled[keys[-1]] = compile.compiled(kernel, args, options, str(case), self.capability)
        return [self.compiled[key] for key in keys]

    def reason(self, entry: Entry, tile: Tile, served: list[Case]) -> str:
        """Why a tile is left out before it is timed, "" if it is not."""
        if not self.interpreted:
            try:
                rows = self.rows(entry, tile, served)
            except Exception as error:
                lines = str(error).strip().splitlines() or ["no message"]
                return f"does not compile: {type(error).__name__}: {lines[0][:100]}"
            if misfit := unfit(rows, self.rows(entry, entry.tile, served)):
                return misfit
        for case in served if self.interpreted or self.clocked else []:
            before = case.call(case.inputs.device)
            with entry.being(tile):
                results = case.call(case.inputs.device)
            if error := case.wrong(results, before):
                return error
        return ""

    def climb(self, entry: Entry, served: list[Case]) -> Tile:
        """The best tile that the search reaches from the entry's own; a dry run ends after one step, at its own."""
        best, seen = entry.tile, [entry.tile]
        print(f"\n{entry}  {text(best)}  serves {len(served)} shapes", flush=True)
        while True:
            tiles = [tile for tile in entry.neighbours(best) if tile not in seen]
            seen += tiles
            left = [best]
            for tile in tiles:
                reason = self.reason(entry, tile, served)
                print(f"    {text(tile)}  {reason or 'remains'}", flush=True)
                if reason or not self.clocked:
                    self.write(entry, tile, left_out=reason)
                if not reason:
                    left.append(tile)
            step = self.fastest(entry, left, served) if self.clocked else best
            if step == best:
                return best
            best = step

    def fastest(self, entry: Entry, tiles: list[Tile], served: list[Case]) -> Tile:
        """The fastest tile; the first one, unless another is ahead by more than two timings of the first differ."""
        logs = [0.0] * (len(tiles) + 1)
        for case in served:
            seconds = timed(entry, tiles, case, self.rounds)
            for i, times in enumerate(seconds):
                logs[i] += math.log(statistics.median(times) / statistics.median(seconds[0])) / len(served)
                low, median, high = (1e6 * s for s in quantiles(times))
                tile, again = tiles[i % len(tiles)], i == len(tiles)
                print(f"    {median:9.2f} us  {text(tile)}{' (again)' * again}  {case}", flush=True)
                self.write(entry, tile, case=str(case), again=again, us_p20=low, us=median, us_p80=high)
        *logs, noise = logs
        ahead = min(range(len(tiles)), key=logs.__getitem__)
        return tiles[ahead] if logs[ahead] < -abs(noise) else tiles[0]


def parse(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python benches tune", description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "ops", nargs="*", metavar="OP", help=f"ops to tune, of {', '.join(arguments.OPS)} (default: all)"
    )
    parser.add_argument(
        "--models",
        nargs="+",
        default=list(MODELS),
        choices=MODELS,
        metavar="MODEL",
        help=f"models whose shapes are served, of {', '.join(MODELS)} (default: all)",
    )
    parser.add_argument(
        "--shapes", nargs="+", default=[], type=plain_shape, metavar="BxS", help="batch shapes, such as 128x128"
    )
    parser.add_argument("--rounds", type=int, default=10, help="timings of each tile and shape (default: 10)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="append one JSON line per candidate tile and shape")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="time nothing: compile each candidate, or run it under TRITON_INTERPRET=1",
    )
    parser.add_argument(
        "--target",
        default="sm_90",
        choices=[f"sm_{t}" for t in compile.TARGETS],
        help="GPU generation that a dry run compiles for (default: sm_90)",
    )
    options = parser.parse_args(words)
    if unknown := [op for op in options.ops if op not in arguments.OPS]:
        parser.error(f"there is no op {', '.join(unknown)}; there are {', '.join(arguments.OPS)}")
    if not options.dry_run and not torch.cuda.is_available():
        parser.error("torch sees no CUDA device here, and only a clock can choose; --dry-run does all else")
    return options


def main(words: list[str]) -> int:
    options = parse(words)
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    capability = int(options.target[3:]) if options.dry_run else compile.device.generation(torch.device("cuda", 0))
    half = torch.float16 if interpreted else torch.bfloat16  # the interpreter's products of bfloat16 are wrong
    shapes = options.shapes or ([INTERPRETED] if interpreted else [])
    tuner = Tuner(options.rounds, capability, not options.dry_run, interpreted, options.json)
    entries = tables.entries()
    all_cases = list(
        cases(options.ops or list(arguments.OPS), options.models, shapes, "cuda" if tuner.clocked else "cpu", half)
    )
    assign(entries, all_cases, capability)
    files = {"masking" if op == "corrupt" else op for op in options.ops}
    changed = set()
    for entry in entries:
        served = [case for case in all_cases if str(entry) in case.launches]
        if served and (not files or any(entry.file.startswith(file) for file in files)):
            entry.where.update(tuner.climb(entry, served))
            changed.add((entry.file, entry.table))
    print(tables.python([entry for entry in entries if (entry.file, entry.table) in changed]))
    return 0
