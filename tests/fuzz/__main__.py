"""Fuzz the readers of files and the ops of the C++ core.

    python tests/fuzz --seconds 60                  # `make fuzz SECONDS=60`
    python tests/fuzz shard csv --seconds 600
    python tests/fuzz --replay build/fuzz/csv-1a2b3c4d.input

Each target is run in a process of its own, under a limit of its memory and of the time of an input. A reader passes if
it accepts an input with a sane result, or refuses it in a sentence that names the file. All else is a finding: its
input is written to --out, with the traceback and the command that reproduces it beside it, and the exit status is 1.
Inputs that reach new code are kept below --out, so a later run goes on from there.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS.parent), str(TESTS), *(str(TESTS / name) for name in ("ops", "model", "tasks"))]
os.environ.setdefault("OMP_NUM_THREADS", "1")
CORE = 5  # shares of the time that the ops get, of which there are many; a reader gets one
NO_ENGINE = "tests/fuzz needs atheris, which there is for CPython 3.11 to 3.13 on Linux and x86-64: pip install atheris"


def main() -> int:
    parser = argparse.ArgumentParser(
        "python tests/fuzz", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="targets to fuzz (default: all)")
    parser.add_argument("--seconds", type=float, default=60, help="time, shared by the targets (default: 60)")
    parser.add_argument("--out", type=Path, default=Path("build/fuzz"), help="folder of findings")
    parser.add_argument("--replay", type=Path, metavar="INPUT", help="read one input again and show what happens")
    parser.add_argument(
        "--sanitized", type=Path, metavar="LIB", help="package whose core has ASan, for the target core"
    )
    options = parser.parse_args()
    try:
        import atheris
    except ImportError:
        return print(NO_ENGINE, file=sys.stderr) or 1
    with atheris.instrument_imports(include=["electra_fast"], enable_loader_override=False):
        from fuzz import models, texts
    from fuzz import core, world
    from fuzz.judge import Finding, judged

    targets = {target.name: target for target in (*models.TARGETS, *texts.TARGETS)}
    if unknown := [name for name in options.targets if name not in (*targets, "core")]:
        parser.error(f"there is no target {', '.join(unknown)}; there are {', '.join(targets)} and core")
    if options.replay is not None:
        name = options.replay.name.split("-")[0]
        if name == "core":
            return core.replay(options.replay, options.sanitized)
        with tempfile.TemporaryDirectory(dir=world.MEMORY) as scratch:
            try:
                accepted = judged(targets[name], options.replay.read_bytes(), Path(scratch))
            except Finding as finding:
                return print(finding.text, file=sys.stderr) or 1
        return print(f"{options.replay} is {'accepted' if accepted else 'refused'}, as it may be") or 0
    return run(
        [name for name in (*targets, "core") if name in options.targets or not options.targets], targets, options
    )


def run(names: list[str], targets: dict, options: argparse.Namespace) -> int:
    """Fuzz the targets of these names, and print what came of each; returns 1 if something was found."""
    from electra_fast.report.terminal import progress_bar
    from fuzz import core, world
    from fuzz.engine import fuzz

    world.world(), world.task_model()  # made once, before the children are forked
    shares = [CORE if name == "core" else 1 for name in names]
    rows = []
    with progress_bar(total=round(options.seconds), unit="s") as bar:
        for number, name in enumerate(names):
            start, each = time.monotonic(), options.seconds * shares[number] / sum(shares)

            def report(
                inputs: int, findings: int, name: str = name, begun: float = bar.n, start: float = start
            ) -> None:
                bar.update(min(int(begun + time.monotonic() - start), bar.total) - bar.n)
                bar.set_postfix(target=name, inputs=inputs, findings=findings, refresh=False)

            if name == "core":
                tally = core.fuzz(each, options.out, options.sanitized, report)
            else:
                tally = fuzz(targets[name], each, options.out, TESTS / "fuzz" / "corpus" / name, report)
            rows.append((name, tally.inputs, tally.accepted, tally.refused, len(tally.findings)))
            bar.update(round(options.seconds * sum(shares[: number + 1]) / sum(shares)) - bar.n)
    rows.append(("all", *(sum(row[i] for row in rows) for i in range(1, 5))))
    print(f"{'target':12s}{'inputs':>12s}{'accepted':>12s}{'refused':>12s}{'findings':>10s}")
    for name, inputs, accepted, refused, findings in rows:
        print(f"{name:12s}{inputs:12,d}{accepted:12,d}{refused:12,d}{findings:10d}")
    for path in sorted(options.out.glob("*.input")):
        print(f"{path.with_suffix('.txt').read_text().splitlines()[0]}\n  python tests/fuzz --replay {path}")
    return 1 if rows[-1][-1] else 0


if __name__ == "__main__":
    sys.exit(main())
