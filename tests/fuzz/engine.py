"""Fuzzing of one target in a forked child, by atheris, under limits of memory and of time an input.

The child counts in memory that it shares with the parent, writes what it finds into a folder, and goes on. Where it
dies (a crash, a hang, memory), libFuzzer leaves the input, which the parent takes for a finding, and starts another
child for the time that is left.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import random
import resource
import signal
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import atheris

from fuzz.judge import Finding, Target, judged
from fuzz.mutate import changed_json
from fuzz.world import MEMORY

SECONDS_AN_INPUT = 10
ROOM = 1 << 30  # bytes of address space, beyond what the process has when it starts to fuzz
LONGEST = 1 << 14  # bytes of an input
MOST = 1000  # inputs of earlier runs that a run begins with, the shortest: reading them takes of its time
COUNTS = struct.Struct("<QQ")  # accepted, refused

Report = Callable[[int, int], None]  # is called with inputs and findings so far


class Tally:
    """What a target has come to. findings: the files of the inputs, each with a .txt beside it."""

    def __init__(self, name: str, out: Path) -> None:
        self.name, self.out = name, out
        self.shared = mmap.mmap(-1, COUNTS.size)
        out.mkdir(parents=True, exist_ok=True)

    @property
    def accepted(self) -> int:
        return COUNTS.unpack(self.shared[:])[0]

    @property
    def refused(self) -> int:
        return COUNTS.unpack(self.shared[:])[1]

    @property
    def inputs(self) -> int:
        return self.accepted + self.refused + len(self.findings)

    @property
    def findings(self) -> list[Path]:
        return sorted(self.out.glob(f"{self.name}-*.input"))

    def count(self, accepted: bool) -> None:
        """Count an input that was accepted or refused."""
        counts = list(COUNTS.unpack(self.shared[:]))
        counts[not accepted] += 1
        self.shared[:] = COUNTS.pack(*counts)

    def judge(self, target: Target, data: bytes, folder: Path) -> None:
        """Read an input, and count it or write what was found."""
        try:
            self.count(judged(target, data, folder))
        except Finding as finding:
            self.find(data, finding.key, finding.text)

    def find(self, data: bytes, key: str, text: str) -> None:
        """Write a finding, unless a shorter input of the same key is there."""
        path = self.out / f"{self.name}-{hashlib.sha256(key.encode()).hexdigest()[:8]}.input"
        if not path.exists() or len(data) < path.stat().st_size:
            path.write_bytes(data)
            path.with_suffix(".txt").write_text(f"{key}\n\n{text}\n\nAgain: python tests/fuzz --replay {path}\n")


def limit() -> None:
    """Limit this process's address space to what it has and ROOM."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + ROOM,) * 2)


def fuzz(target: Target, seconds: float, out: Path, kept: Path, report: Report) -> Tally:
    """Fuzz a target for some seconds.

    out: folder of findings; also of the inputs that reached new code, which a later run begins with.
    kept: folder of inputs that the repository keeps.
    """
    tally = Tally(target.name, out)
    corpus = out / "corpus" / target.name
    corpus.mkdir(parents=True, exist_ok=True)
    for path in sorted(corpus.iterdir(), key=lambda path: path.stat().st_size)[MOST:]:
        path.unlink()
    with tempfile.TemporaryDirectory(prefix="fuzz-", dir=MEMORY) as scratch:
        for seed in target.seeds():  # read here first, which imports what a reader needs before there are limits
            (corpus / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)
            tally.judge(target, seed, Path(scratch))
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        with tempfile.TemporaryDirectory(prefix="fuzz-", dir=MEMORY) as scratch:
            child = os.fork()
            if child == 0:
                _child(target, tally, left, [corpus, *([kept] if kept.is_dir() else [])], Path(scratch))
            while os.waitpid(child, os.WNOHANG) == (0, 0):
                time.sleep(0.1)
                report(tally.inputs, len(tally.findings))
                if time.monotonic() > end + 3 * SECONDS_AN_INPUT:  # libFuzzer looks at the time between inputs
                    os.kill(child, signal.SIGKILL)
            for path in Path(scratch).glob("artifact-*"):
                kind = path.name.split("-")[1]
                tally.find(path.read_bytes(), f"{kind} ({path.name[-8:]})", (out / f"{target.name}.log").read_text())
    return tally


def _child(target: Target, tally: Tally, seconds: float, corpora: list[Path], scratch: Path) -> None:
    """Fuzz in this process, which ends here."""
    log = os.open(tally.out / f"{target.name}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    os.dup2(log, 1)
    os.dup2(log, 2)
    limit()
    folder = scratch / "files"
    folder.mkdir()

    def one(data: bytes) -> None:
        tally.judge(target, data, folder)

    def mutator(data: bytes, longest: int, seed: int) -> bytes:
        chance = random.Random(seed)
        new = changed_json(data, target.head, chance) if chance.random() < 0.7 else None
        return new if new is not None and len(new) <= longest else atheris.Mutate(data, longest)

    options = [
        f"-max_total_time={max(1, round(seconds))}",
        f"-timeout={SECONDS_AN_INPUT}",
        f"-artifact_prefix={scratch}/artifact-",
        f"-max_len={LONGEST}",
        "-rss_limit_mb=0",
        "-verbosity=0",
        "-detect_leaks=0",
    ]
    try:
        more = {"custom_mutator": mutator} if target.json else {}
        atheris.Setup([sys.argv[0], *options, *map(str, corpora)], one, **more)
        atheris.Fuzz()
    finally:
        os._exit(0)
