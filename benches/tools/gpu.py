"""python benches gpu --phase a|b|c: all measurements that need a GPU, in three phases of at most ten minutes each.

    a    the build, the roofs, ELECTRA-Small's step and its rivals, the tests of every op on CUDA
    b    races of ops, small before base, then `tune`, whose rows go to OUT/tune.jsonl
    c    the step of Base and Large, of 128 and 512 columns, and their rivals

A phase is a list of parts, the most important first. Each part is a process with a time limit of its own, so one that
hangs or runs out of memory does no harm to the others. Rows go to OUT/rows.jsonl as they come, and each part's output
to OUT/PART.log. When a part has ended, a row with bench "gpu" says how; such a part is not run again on the same commit
and device. A part that the phase's time limit cut off gets no such row, so the same command continues with it. No
network is needed. --dry-run runs each part on the CPU, with tiny models and Triton's interpreter.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from racing.results import Row, Writer, machine, now

BENCHES = Path(__file__).resolve().parent.parent
PHASE_SECONDS = 570  # every part ends by then, which leaves half a minute of ten minutes to start and to copy files
LEAST_SECONDS = 20  # with less time left, no part is started
TINY = ("--device", "cpu", "--models", "tiny", "--shapes", "2x32", "--rounds", "1")
EAGER = ("ours", "hf-eager", "hf-as-written", "hf-tuned", "hf-sdpa-*")
GRAPHS = ("ours", "hf-graph", "hf-compiled")
HEADS = ("ours", "hf-liger", "hf-cce")
OPS = (  # by their share of a step's time
    "generator_head encoder attention dropout_add_layer_norm adamw ffn_block attention_block linear embedding "
    "discriminator_head masking mask_units inference decode_attention top_k_words"
).split()


@dataclass(frozen=True)
class Part:
    name: str
    limit: int  # seconds
    command: tuple[str, ...]  # the arguments of python
    dry: tuple[str, ...]  # the same on the CPU, with tiny sizes


def race(name: str, limit: int, rows: Path, bench: str, *options: str, providers: tuple[str, ...] = ()) -> Part:
    command = (str(BENCHES), bench, "--json", str(rows), *options)
    chosen = ("--providers", *providers) if providers else ()
    dry = (*command, *TINY, "--providers", "ours", "reference")
    return Part(name, limit, (*command, "--device", "cuda", *chosen), dry)


def steps(rows: Path, model: str, shape: str, limit: int) -> Iterator[Part]:
    """Parts that race the step against a few rivals each, since all of them do not fit into one process."""
    groups = dict(eager=EAGER, graphs=GRAPHS, autotuned=("ours", "hf-compiled-graph"), heads=HEADS)
    for group, providers in groups.items():
        options = ("--models", model, "--shapes", shape)
        name = f"step-{model}-{shape}-{group}".replace(" ", "-")
        yield race(name, limit, rows, "pretrain_step", *options, providers=providers)


def phase_a(rows: Path) -> list[Part]:
    build = ("setup.py", "--quiet", "build_ext", "--inplace")
    info = ("-c", "import electra_fast, json; print(json.dumps(electra_fast.info(), indent=1))")
    tests = ("-m", "pytest", "-q", "-p", "no:cacheprovider")
    on_cuda = (*tests, "-m", "cuda", *(("-n", "4") if importlib.util.find_spec("xdist") else ()))
    eager, *others = steps(rows, "small", "128x128", 240)
    text, *_ = steps(rows, "small", "128x128 text", 150)
    return [
        Part("build", 120, build, build),
        Part("info", 60, info, info),
        Part(
            "roofs",
            60,
            (str(BENCHES), "roofs", "--device", "cuda", "--json", str(rows)),
            (str(BENCHES), "roofs", *TINY),
        ),
        eager,
        Part("tests", 300, on_cuda, (*tests, "tests/kernels/test_dropout_add_layer_norm_kernel.py")),
        *others,
        text,
    ]


def phase_b(rows: Path) -> list[Part]:
    small, base = (
        [race(f"{bench}-{model}", 90, rows, bench, "--models", model) for bench in OPS] for model in ("small", "base")
    )
    tune = (str(BENCHES), "tune", "--json", str(rows.with_name("tune.jsonl")))
    return [*small, Part("tune", 240, tune, (*tune, "linear", "--dry-run", "--target", "sm_90")), *base]


def phase_c(rows: Path) -> list[Part]:
    shapes = [("base", "256x512"), ("large", "32x512"), ("base", "256x128"), ("small", "32x512"), ("large", "128x128")]
    groups = zip(*(steps(rows, model, shape, 180) for model, shape in shapes), strict=True)
    return [part for group in groups for part in group]


PHASES = dict(a=phase_a, b=phase_b, c=phase_c)


def done(rows: Path, device: str) -> set[str]:
    """The names of the parts that have ended on this commit and device, whether they succeeded or failed."""
    here = machine(device)
    lines = rows.read_text().splitlines() if rows.exists() else []
    alike = [row for row in map(json.loads, lines) if all(row[key] == here[key] for key in ("device", "commit"))]
    return {row["model"] for row in alike if row["bench"] == "gpu"}


def went_wrong(command: tuple[str, ...], log: Path, seconds: float, environment: dict[str, str]) -> str:
    """Run python in a process of its own, whose children end with it; returns what went wrong, "" if nothing."""
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, *command],
            stdout=file,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            cwd=BENCHES.parent,
            env={**os.environ, **environment},
            start_new_session=True,
        )
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            return f"cut off after {seconds:.0f} s"
        finally:
            with contextlib.suppress(ProcessLookupError):  # no process of the group is left
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    last = (log.read_text(errors="replace").strip().splitlines() or ["no output"])[-1]
    return "" if code == 0 else f"ended with {code}: {last[:200]}"


def run(parts: list[Part], phase: str, folder: Path, dry: bool, ended: set[str], seconds: float) -> list[str]:
    """Run the parts that have not ended before; returns the names of those for which no time was left."""
    writer, device, start, left = Writer(folder / "rows.jsonl"), "cpu" if dry else "cuda", time.perf_counter(), []
    environment = dict(TRITON_INTERPRET="1") if dry else {}
    for part in parts:
        if part.name in ended:
            continue
        begin = time.perf_counter()
        limit = min(part.limit, seconds - (begin - start))
        if limit < min(part.limit, LEAST_SECONDS):
            left.append(part.name)
            continue
        wrong = went_wrong(part.dry if dry else part.command, folder / f"{part.name}.log", limit, environment)
        took = time.perf_counter() - begin
        print(f"{part.name:40} {took:6.1f} s  {wrong or 'done'}", flush=True)
        if wrong.startswith("cut off") and limit < part.limit:
            left.append(part.name)
        else:
            writer.write(ended_row(part, phase, took, wrong, device))
    return left


def ended_row(part: Part, phase: str, took: float, wrong: str, device: str) -> Row:
    absent = dict.fromkeys(("ms_p20", "ms_p80", "tokens_per_s", "tflops", "gbps", "percent_roof", "peak_mem_mb"))
    return Row(
        bench="gpu",
        model=part.name,
        provider="part",
        shape=f"phase {phase}",
        dtype="",
        ms=took * 1e3,
        launches=None,
        date=now(),
        skipped=wrong,
        **absent,
        **machine(device),
    )


def main(arguments: list[str] | None = None) -> int:
    lines = (__doc__ or "").splitlines()
    parser = argparse.ArgumentParser(
        prog="python benches gpu", description="\n".join(lines), formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--phase", choices=PHASES, required=True, help="which phase of the plan to run")
    parser.add_argument(
        "--out",
        type=Path,
        default=BENCHES / "results" / "gpu",
        metavar="FOLDER",
        help="folder for the results (default: %(default)s)",
    )
    parser.add_argument(
        "--parts",
        nargs="+",
        default=["*"],
        metavar="NAME",
        help="parts to run, by name or pattern, such as 'step-*' (default: all)",
    )
    parser.add_argument("--again", action="store_true", help="run the parts again that have already finished")
    parser.add_argument("--dry-run", action="store_true", help="print the plan, then run it on the CPU with tiny sizes")
    options = parser.parse_args(arguments)
    if not options.dry_run and not torch.cuda.is_available():
        parser.error("torch sees no CUDA device here; --dry-run prints the plan and runs it on the CPU")
    folder = options.out.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    rows = folder / "rows.jsonl"
    parts = [p for p in PHASES[options.phase](rows) if any(fnmatchcase(p.name, pattern) for pattern in options.parts)]
    ended = set() if options.again else done(rows, "cpu" if options.dry_run else "cuda")
    print(f"phase {options.phase}: {PHASE_SECONDS} s at most; rows in {rows}")
    for part in parts:
        print(f"  {part.name:40} {part.limit:4} s  {'ended before' if part.name in ended else ' '.join(part.command)}")
    left = run(parts, options.phase, folder, options.dry_run, ended, PHASE_SECONDS)
    if left:
        print(f"no time was left for {', '.join(left)}; the same command continues with them")
    return 0


if __name__ == "__main__":
    sys.exit(main())
