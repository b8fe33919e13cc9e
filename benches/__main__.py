"""python benches [BENCH ...]: race ours against its rivals. `python benches --help` says how."""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import ModuleType

import torch
from racing import clock, roofs
from racing.command import MODELS, shape
from racing.race import Options, Race, run
from racing.results import Writer, plot

HERE = Path(__file__).parent
COMMANDS = (
    "compile",
    "contention",
    "generation",
    "gpu",
    "launches",
    "learning",
    "loss_curves",
    "memory",
    "objectives",
    "picture",
    "soak",
    "transfer",
    "tune",
)  # modules in tools/ that race nothing, each with a main(arguments)


def names() -> list[str]:
    """The names of the benches: a bench is a file bench_<name>.py with a function races(options)."""
    return sorted(path.stem.removeprefix("bench_") for path in HERE.glob("bench_*.py"))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python benches", description="Race ours against its rivals.")
    parser.add_argument(
        "benches",
        nargs="*",
        metavar="BENCH",
        help=f"benches to run, of {', '.join(names())}, roofs (default: all); or one of the tools "
        f"{', '.join(COMMANDS)}, each of which has a --help of its own",
    )
    parser.add_argument(
        "--device",
        choices=["cpu", "cuda"],
        default="cuda" if torch.cuda.is_available() else "cpu",
        help="where to run (default: cuda where torch sees a GPU, else cpu)",
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="append one JSON line per result to FILE, and write a plot beside it"
    )
    parser.add_argument(
        "--profile", type=Path, metavar="TRACE", help="profile our step: print a table and write a Chrome trace"
    )
    parser.add_argument(
        "--models", nargs="+", default=[], choices=MODELS, metavar="MODEL", help=f"models, of {', '.join(MODELS)}"
    )
    parser.add_argument(
        "--shapes",
        nargs="+",
        default=[],
        type=shape,
        metavar="BxS",
        help="batch shapes, sequences x tokens, such as 16x128 or '16x128 text'",
    )
    parser.add_argument(
        "--providers",
        nargs="+",
        default=[],
        metavar="NAME",
        help="implementations to race, by name or pattern, such as 'hf-*' (default: all but slow ones)",
    )
    parser.add_argument(
        "--rounds", type=int, default=10, help="number of rounds; each implementation runs once a round (default: 10)"
    )
    parser.add_argument("--threads", type=int, help="number of CPU threads (default: PyTorch's)")
    parser.add_argument("--ragged", action="store_true", help="give the sequences of a batch different lengths")
    parser.add_argument(
        "--memory",
        action="store_true",
        help="measure peak memory on the CPU, each implementation in a process of its own",
    )
    parser.add_argument("--memory-of", nargs=3, help=argparse.SUPPRESS)  # model, shape and provider of one race
    parsed = parser.parse_args(arguments)
    if unknown := [name for name in parsed.benches if name not in (*names(), "roofs")]:
        parser.error(f"there is no bench {', '.join(unknown)}; there are {', '.join(names())} and roofs")
    if parsed.rounds < 1:
        parser.error(f"--rounds is {parsed.rounds}; at least 1 is needed")
    if parsed.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no CUDA device here; take --device cpu")
    return parsed


def selected(parsed: argparse.Namespace) -> Iterator[tuple[str, ModuleType | str]]:
    """Yields (name, module) of each bench that was named, or of all; (name, reason) for one that does not load."""
    for name in parsed.benches or names():
        if name != "roofs":
            try:
                yield name, importlib.import_module(f"bench_{name}")
            except Exception as error:
                yield name, f"{type(error).__name__}: {error}"


def memory_elsewhere(parsed: argparse.Namespace, bench: str, race: Race, provider: str) -> float | None:
    """Peak memory of one contestant on the CPU in MB, measured in a process that runs nothing else.

    None without --memory, on another device, or if that process failed.
    """
    if not parsed.memory or parsed.device != "cpu":
        return None
    command = [sys.executable, str(HERE), bench, "--device", "cpu", "--providers", provider]
    command += ["--memory-of", race.model, race.shape, provider]
    if race.model in MODELS:  # then the shape begins with sequences x tokens
        size, *words = race.shape.split()
        command += ["--models", race.model, "--shapes", f"{size} text" if "text" in words else size]
        command += ["--ragged"] if "ragged" in words else []
    command += ["--threads", str(torch.get_num_threads())]
    done = subprocess.run(command, capture_output=True, text=True)
    return float(done.stdout.split()[-1]) if done.returncode == 0 else None


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments and arguments[0] in COMMANDS:
        return importlib.import_module(f"tools.{arguments[0]}").main(arguments[1:])
    parsed = parse(arguments)
    if parsed.threads:
        torch.set_num_threads(parsed.threads)
    options = Options(
        device=parsed.device,
        models=tuple(parsed.models),
        shapes=tuple(parsed.shapes),
        providers=tuple(parsed.providers),
        rounds=parsed.rounds,
        profile=parsed.profile,
        ragged=parsed.ragged,
    )
    if parsed.memory_of:
        model, size, provider = parsed.memory_of
        races = importlib.import_module(f"bench_{parsed.benches[0]}").races(options)
        race = next(race for race in races if (race.model, race.shape) == (model, size))
        print(clock.peak_rss_mb(race.contestants[provider]))
        return 0
    writer = Writer(parsed.json)
    ceilings = roofs.measure(options, writer)
    failed = False
    for name, module in selected(parsed):
        if isinstance(module, str):
            print(f"\n{name}  skipped: {module}")
            failed = True
            continue
        for race in module.races(options):
            peak = partial(memory_elsewhere, parsed, name, race)
            run(race, options, writer, ceilings, peak)
    if parsed.json is not None:
        plot((row for row in writer.rows if row.bench != "roof"), parsed.json.with_suffix(".png"))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
