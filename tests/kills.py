"""Kill tiny runs of pretrain, prepare and finetune at every system call that changes a file, and at random moments.

    python tests/kills.py                           # `make kills`: every call, before and after it, and 200 moments
    python tests/kills.py pretrain --minutes 15     # as many as the time allows, spread over all

Each killed run is started again as a user would (with --resume), runs to its end, and must then have, bit for bit, the
files of a run that was left alone, and no temporary file. In the same way every such call, and all that follow it, is
refused with ENOSPC (the disk is full), EDQUOT (the quota is), EROFS (it is read-only) or EIO: the command must end with
status 0, or 1 and one sentence, and go on later to the same files. Last come a store whose every sync takes a while,
and a clock that jumps. What went wrong is kept below --out, and the exit status is 1.

Runs on Linux with x86-64, without privileges (see tests/tracer.py). Runs of several ranks do not exist yet.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import itertools
import json
import os
import random
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

os.environ.update(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1")  # a process with threads cannot be forked safely
TESTS = Path(__file__).resolve().parent
sys.path[:0] = [str(TESTS.parent), str(TESTS), str(TESTS / "tasks")]
REFUSALS = ("ENOSPC", "EDQUOT", "EROFS", "EIO")
LOG = "metrics.jsonl"
OF_TIME = ("tokens_per_s", "peak_share")  # figures of LOG that no two runs share
WAYS = ("kills at calls", "kills at moments", "refused calls", "slow store", "clock")


class Job(NamedTuple):
    """A command. start, again: its arguments at first, and after a kill, for an OUT. results: what a finished run
    leaves, as name -> digest."""

    name: str
    start: Callable[[Path], list[str]]
    again: Callable[[Path], list[str] | None]
    results: Callable[[Path], dict[str, str]]


class Trial(NamedTuple):
    """One run with a fault, of one of WAYS."""

    job: Job
    way: str
    fault: Any


def digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def jobs(root: Path) -> list[Job]:
    """The commands, with the files that they read below `root`."""
    from finetuning import made as made_task
    from world import LINES

    from electra_fast import Electra, ElectraConfig
    from electra_fast.cli.main import main
    from electra_fast.data.corpus import Corpus

    text, corpus, pair, task = (root / name for name in ("text.txt", "corpus", "pair", "task"))
    text.write_text("\n\n".join(["\n".join(LINES)] * 3))

    def prepare(out: Path) -> list[str]:
        return f"prepare {text} --out {out} --max-length 16 --vocab-size 80 --heldout 0.2 --processes 1".split()

    def make() -> int:
        if main(prepare(corpus)):
            return 1
        sizes = dict(embedding_size=16, hidden_size=32, num_hidden_layers=2, num_attention_heads=2)
        more = dict(intermediate_size=64, max_position_embeddings=32, generator_size=0.5)
        Electra(ElectraConfig.small(vocab_size=Corpus(corpus).vocab_size, **sizes, **more)).save_pretrained(pair)
        task.mkdir()
        made_task(task)
        return 0

    if forked(make):
        raise RuntimeError(f"the files that the runs read could not be made in {root}")

    def pretrain(out: Path) -> list[str]:
        line = f"pretrain --data {corpus} --out {out} --init-generator {pair}/generator --threads 1 --device cpu"
        line += f" --init-discriminator {pair}/discriminator --steps 3 --batch-size 2 --dropout 0.1"
        return f"{line} --save-every 1 --keep 2 --log-every 1 --eval-every 2".split()

    def pretrained(out: Path) -> dict[str, str]:
        files = [*out.glob("final/*/*.safetensors"), *out.glob("checkpoint-3/*.safetensors")]
        rows = [json.loads(line) for line in (out / LOG).read_text().splitlines()]
        kept = [{name: value for name, value in row.items() if name not in OF_TIME} for row in rows]
        return {str(path.relative_to(out)): digest(path) for path in files} | {LOG: json.dumps(kept)}

    def finetune(out: Path) -> list[str]:
        line = f"finetune --task classification --model {task}/model --train {task}/train.tsv --dev {task}/train.tsv"
        return f"{line} --out {out} --seeds 2 --epochs 1 --batch-size 8 --device cpu --threads 1".split()

    def finetuned(out: Path) -> dict[str, str]:
        scores = json.loads((out / "results.json").read_text())["seeds"]
        return {"model": digest(out / "model" / "model.safetensors"), "seeds": json.dumps(scores, sort_keys=True)}

    def prepared(out: Path) -> dict[str, str]:
        return {str(path.relative_to(out)): digest(path) for path in out.rglob("*") if path.is_file()}

    return [
        Job("pretrain", pretrain, lambda out: [*pretrain(out), "--resume"], pretrained),
        Job("prepare", prepare, lambda out: None if out.exists() else prepare(out), prepared),
        Job("finetune", finetune, lambda out: [*finetune(out), *["--resume"] * out.exists()], finetuned),
    ]


def forked(work: Callable[[], int]) -> int:
    """Run a function in a child, in silence, and return its exit code."""
    child = os.fork()
    if child == 0:
        code = 70
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                code = work()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def jumping() -> None:
    """Let this process's wall clock jump by up to a month, backwards too, whenever it is read."""
    true, chance = time.time, random.Random(0)
    time.time = lambda: true() + chance.uniform(-30, 30) * 86400
    time.time_ns = lambda: int(time.time() * 1e9)


def attempt(trial: Trial, folder: Path, expected: dict[str, str]) -> str | None:
    """Run a job with a fault, and again without; returns what was wrong, or None."""
    import tracer

    from electra_fast.cli.main import main

    out, job = folder / "out", trial.job

    def first() -> int:
        if trial.way == "clock":
            jumping()
        return main(job.start(out))

    ended = tracer.run(first, trial.fault, folder / "stderr")
    told = ended.stderr.strip().splitlines()
    if ended.hung:
        return f"it had not ended after {tracer.LONGEST} s: {ended.stderr[-3000:]}"
    if trial.way in ("refused calls", "slow store", "clock"):
        if "Traceback" in ended.stderr or ended.code not in (0, 1):
            return f"status {ended.code} and a traceback: {ended.stderr[-3000:]}"
        if ended.code == 1 and (trial.way != "refused calls" or not any("electra-fast: " in line for line in told)):
            return f"status 1, and told was: {ended.stderr[-3000:]}"
    elif ended.code not in (0, -9):
        return f"status {ended.code}: {ended.stderr[-3000:]}"
    if ended.code != 0 or trial.way != "slow store":
        arguments = job.again(out)
        if arguments is not None:
            again = tracer.run(lambda: main(arguments), tracer.Fault("count"), folder / "stderr-again")
            if again.hung or again.code != 0:
                return f"the second start ended with status {again.code}: {again.stderr[-3000:]}"
    if rest := [path.name for path in folder.rglob("*") if ".tmp-" in path.name]:
        return f"left behind: {', '.join(rest)}"
    results = job.results(out)
    if trial.way == "refused calls":  # a full disk may cost rows of metrics.jsonl
        expected, results = ({k: v for k, v in each.items() if k != LOG} for each in (expected, results))
    if wrong := [name for name in expected | results if expected.get(name) != results.get(name)]:
        return f"not as in a run that was left alone: {', '.join(sorted(wrong))}"
    return None


def trials(job: Job, calls: int, seconds: float, moments: int) -> Iterator[list[Trial]]:
    """The trials of a job, a list for each of WAYS, in an order that spreads them over the run.

    calls, seconds: of a run that is left alone.
    """
    from tracer import Fault

    chance = random.Random(job.name)
    kills = [Fault(kind, at) for at in range(calls) for kind in ("before", "after")]
    refused = [Fault(kind, at) for at in range(calls) for kind in REFUSALS]
    chance.shuffle(kills)
    chance.shuffle(refused)
    at_moments = [Fault("moment", chance.randrange(1, max(2, round(1000 * seconds)))) for _ in range(moments)]
    for way, faults in zip(WAYS, (kills, at_moments, refused, [Fault("slow", 20)], [Fault("count")]), strict=True):
        yield [Trial(job, way, fault) for fault in faults]


def taking_turns(lists: list[list[Trial]]) -> Iterator[Trial]:
    """Trials of all lists by turns, so that each gets its share of a limited time."""
    for group in itertools.zip_longest(*lists):
        yield from (trial for trial in group if trial is not None)


def main() -> int:
    parser = argparse.ArgumentParser(
        "python tests/kills.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("jobs", nargs="*", metavar="JOB", help="of pretrain, prepare, finetune (default: all)")
    parser.add_argument("--moments", type=int, default=200, help="random moments for each job (default: 200)")
    parser.add_argument("--minutes", type=float, default=None, help="stop after so long (default: when all is done)")
    parser.add_argument("--out", type=Path, default=Path("build/kills"), help="folder of failures")
    options = parser.parse_args()
    import torch
    import torch._dynamo
    import tracer
    from tqdm import tqdm

    import electra_fast.cli.tasks  # noqa: F401
    from electra_fast.report.terminal import progress_bar
    from electra_fast.tasks import finetune
    from electra_fast.train import finish, pretrain

    if not tracer.able():
        return print(f"kills: left out, as {tracer.UNABLE}") or 0
    torch.set_num_threads(1)
    # tqdm's own lock is a semaphore that forked processes share: a child that is killed while it holds it would stop
    # all others. Its monitor is a thread, which may hold the lock when a child is forked.
    tqdm.monitor_interval = 0
    tqdm.set_lock(threading.RLock())
    # Drawing the curves takes as long as all else in such a run, and measuring the peak a tenth of that.
    finish.plot_curves = lambda rows, path: path.touch()
    finetune.plot_finetuning = lambda rows, metric, path: path.touch()
    pretrain.measured_peak = lambda device: 1e12
    shutil.rmtree(options.out, ignore_errors=True)
    memory = "/dev/shm" if Path("/dev/shm").is_dir() else None
    with tempfile.TemporaryDirectory(prefix="kills-", dir=memory) as scratch:
        root = Path(scratch)
        chosen = [job for job in jobs(root) if job.name in options.jobs or not options.jobs]
        if not chosen:
            parser.error(f"there is no job {', '.join(options.jobs)}; there are pretrain, prepare and finetune")
        expected, lists = {}, []
        for job in chosen:
            folder = root / f"alone-{job.name}"
            folder.mkdir()
            start = time.monotonic()
            alone = tracer.run(
                lambda job=job, out=folder / "out": _main(job.start(out)), tracer.Fault("count"), folder / "stderr"
            )
            if alone.code:
                raise RuntimeError(f"{job.name} fails when it is left alone: {alone.stderr[-3000:]}")
            expected[job.name] = job.results(folder / "out")
            lists += trials(job, len(alone.calls), time.monotonic() - start, options.moments)
        done: dict[tuple[str, str], list[int]] = {}
        start = time.monotonic()
        with progress_bar(total=sum(map(len, lists)), unit="run") as bar:
            for number, trial in enumerate(taking_turns(lists)):
                if options.minutes is not None and time.monotonic() - start > 60 * options.minutes:
                    break
                folder = root / str(number)
                folder.mkdir()
                wrong = attempt(trial, folder, expected[trial.job.name])
                counts = done.setdefault((trial.job.name, trial.way), [0, 0])
                counts[0] += 1
                counts[1] += wrong is not None
                if wrong is not None:
                    kept = options.out / f"{trial.job.name}-{trial.fault.kind}-{trial.fault.at}"
                    shutil.copytree(folder, kept, symlinks=True, dirs_exist_ok=True)
                    (kept / "what").write_text(f"{trial.way}, {trial.fault}: {wrong}\n")
                shutil.rmtree(folder)
                bar.update()
                bar.set_postfix(job=trial.job.name, failures=sum(failed for _, failed in done.values()), refresh=False)
    planned = {(list_[0].job.name, list_[0].way): len(list_) for list_ in lists if list_}
    print(f"{'job':10s}{'way':18s}{'done':>8s}{'of':>8s}{'failures':>10s}")
    for (name, way), total in planned.items():
        tried, failed = done.get((name, way), (0, 0))
        print(f"{name:10s}{way:18s}{tried:8d}{total:8d}{failed:10d}")
    failures = sum(failed for _, failed in done.values())
    for path in sorted(options.out.glob("*/what")):
        print(f"{path}: {path.read_text().splitlines()[0]}")
    return 1 if failures else 0


def _main(arguments: list[str]) -> int:
    from electra_fast.cli.main import main

    return main(arguments)


if __name__ == "__main__":
    sys.exit(main())
