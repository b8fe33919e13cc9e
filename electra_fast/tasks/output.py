"""The directory that fine-tuning writes: complete at every moment, whatever ends the run.

    OUT/run.json        what was asked for, which a resumed run must repeat
    OUT/training-<n>/   checkpoints of a seed that is being trained, if its training saves any (seq2seq)
    OUT/seed-<n>/       the model of a seed that is trained and not yet measured
    OUT/results.json    the scores of every seed that is measured
    OUT/model/          the model of the best seed so far; dev/ and errors.txt are its predictions and errors
    OUT/metrics.jsonl, curves.png

A seed's model is saved as soon as its training ends. It is then measured, its scores are written, its predictions are
written if it is the best, and seed-<n>/ is last of all moved to model/ or removed. So a seed is done if results.json
has it and its directory is gone; a resumed run measures a seed again whose directory is there. Checkpoints of a seed go
when its model is saved.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

from electra_fast.report.log import read_log
from electra_fast.report.terminal import say
from electra_fast.storage.atomic import check_free, read_json, staged_rename, sync, write_file
from electra_fast.storage.checkpoint import checkpoints, clean, differences, step_of
from electra_fast.storage.lock import Lock

RUN, RESULTS, METRICS, MODEL = "run.json", "results.json", "metrics.jsonl", "model"
LOCK = ".lock"  # is there while a run writes
REPLACED = ".replaced-model"  # model/ while a better one takes its place
SEED, TRAINING = re.compile(r"seed-(-?[0-9]+)"), re.compile(r"training-(-?[0-9]+)")
LARGEST = 1 << 26  # bytes of run.json or results.json


class Output:
    """`with Output(path, request, resume) as output:` holds OUT for one run.

    Where the block raises, OUT is removed if no seed was trained and the run began here; else a line on stderr says
    what OUT holds.
    """

    def __init__(self, path: Path, request: dict[str, Any], resume: bool) -> None:
        """path: OUT. request: what was asked for, as JSON
        values; a resumed run must have the same. resume: as `check`."""
        self.path, self.request, self.resume = path, request, resume
        self.scores: dict[int, dict[str, float]] = {}  # of the seeds that are measured

    @staticmethod
    def check(path: Path, resume: bool) -> None:
        """Raises FileExistsError unless OUT is free, or holds a run that resume is to continue."""
        if not (path / RUN).exists():
            if not path.is_dir() or os.listdir(path) != [LOCK]:
                check_free(path)
        elif not resume:
            raise FileExistsError(
                f"{path} holds an earlier run of finetune; continue it with --resume, or name another --out"
            )

    def __enter__(self) -> Output:
        self.existed = self.path.exists()
        self.lock = Lock(self.path / LOCK, self.path)
        self.lock.__enter__()
        self.began = not (self.path / RUN).exists()
        try:
            self.check(self.path, self.resume)
            self._open()
        except BaseException:
            self._leave(empty=self.began)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if error is not None:
            self._clear()
        contents = self.contents()
        if error is not None and contents:
            say(f"{contents}; the same command with --resume continues from there", sys.stderr)
        self._leave(empty=error is not None and self.began and not contents)

    def _leave(self, empty: bool) -> None:
        """Unlocks OUT. empty: also removes what this run wrote, and OUT itself if this run made it."""
        if empty:
            (self.path / RUN).unlink(missing_ok=True)
            (self.path / METRICS).unlink(missing_ok=True)
        self.lock.__exit__()
        if empty and not self.existed:
            with contextlib.suppress(OSError):
                self.path.rmdir()  # fails unless it is empty

    def _open(self) -> None:
        self._clear()
        if not (self.path / RUN).exists():
            write_file(self.path / RUN, [_json(self.request)])
        elif lines := differences(read_json(self.path / RUN, LARGEST), self.request):
            raise ValueError(
                f"{self.path} was begun with other settings than these:\n  "
                + "\n  ".join(lines)
                + "\nrepeat the old ones to resume it, or name another --out"
            )
        if (self.path / RESULTS).exists():
            self.scores = _scores(self.path / RESULTS)
        rows = read_log(self.path / METRICS) if (self.path / METRICS).exists() else []
        known = [("dev", seed) for seed in self.scores if seed not in self.unmeasured()]
        known += [(kind, seed) for seed in (*self.scores, *self.unmeasured()) for kind in ("train", "validation")]
        saved = self.in_training()
        kept = "".join(
            json.dumps(row) + "\n"
            for row in rows
            if (row.get("kind"), row.get("seed")) in known or row["step"] <= saved.get(row.get("seed"), -1)
        )
        write_file(self.path / METRICS, [kept.encode()])

    def _clear(self) -> None:
        """Removes what a save or a move that was cut off left behind."""
        if (self.path / REPLACED).exists() and not (self.path / MODEL).exists():
            os.rename(self.path / REPLACED, self.path / MODEL)
        for seed in self._training():
            if self.seed_path(seed).exists():
                os.rename(self.training_path(seed), self.path / f".tmp-{secrets.token_hex(8)}")
            else:
                clean(self.training_path(seed))
        for path in (self.path / REPLACED, *self.path.glob(".tmp-*")):
            shutil.rmtree(path, ignore_errors=True)

    def _training(self) -> list[int]:
        names = (TRAINING.fullmatch(path.name) for path in self.path.glob("training-*"))
        return sorted(int(name[1]) for name in names if name)

    def in_training(self) -> dict[Any, int]:
        """Seed -> the step of its last checkpoint, of the seeds whose training has saved one and is not done."""
        saved = {seed: checkpoints(self.training_path(seed)) for seed in self._training()}
        return {seed: step_of(paths[-1]) for seed, paths in saved.items() if paths}

    def training_path(self, seed: int) -> Path:
        return self.path / f"training-{seed}"

    def unmeasured(self) -> list[int]:
        """The seeds that are trained and whose measurement is not complete."""
        names = (SEED.fullmatch(path.name) for path in self.path.glob("seed-*"))
        return sorted(int(name[1]) for name in names if name)

    def seed_path(self, seed: int) -> Path:
        return self.path / f"seed-{seed}"

    def contents(self) -> str:
        """What OUT holds, as a sentence without its full stop; "" if no seed has been trained."""
        left, parts = self.unmeasured(), []
        measured = [seed for seed in self.scores if seed not in left]
        if measured:
            parts.append(f"the results of seed {', '.join(map(str, measured))} (model/, {RESULTS})")
        parts += [f"the model of seed {seed}, trained but not measured ({self.seed_path(seed).name}/)" for seed in left]
        parts += [f"seed {seed}, trained to step {step}" for seed, step in self.in_training().items()]
        return f"{self.path} holds {' and '.join(parts)}" if parts else ""

    def save(self, seed: int, write: Callable[[Path], object]) -> None:
        """Writes seed-<seed>/, whole or not at all, and removes the checkpoints of the seed. write: fills a directory
        with the model."""
        with staged_rename(self.seed_path(seed)) as staging:
            write(staging)
        self._clear()

    def write_results(self, results: dict[str, Any]) -> None:
        write_file(self.path / RESULTS, [_json(results)])

    def finish(self, seed: int, best: bool) -> None:
        """Moves seed-<seed>/ to model/ if it is the best so far, else removes it."""
        if not best:
            os.rename(self.seed_path(seed), self.path / f".tmp-{secrets.token_hex(8)}")
        else:
            if (self.path / MODEL).exists():
                os.rename(self.path / MODEL, self.path / REPLACED)
            os.rename(self.seed_path(seed), self.path / MODEL)
        sync(self.path)
        self._clear()


def _scores(path: Path) -> dict[int, dict[str, float]]:
    seeds = read_json(path, LARGEST).get("seeds")
    if not isinstance(seeds, dict) or not all(isinstance(scores, dict) for scores in seeds.values()):
        raise ValueError(f"{path} has no scores by seed, as finetune writes them; restore it, or name another --out")
    return {int(seed): scores for seed, scores in seeds.items()}


def _json(values: dict[str, Any]) -> bytes:
    return json.dumps(values, indent=2).encode() + b"\n"
