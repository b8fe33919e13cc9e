"""Plants the breaks of tests/faults.py in a copy of the project, one at a time, and fails unless the tests go red.

    python tests/mutants.py [WORD ...]

A break is red if the tests that the table names for it fail, crash or hang; it survives if they pass. First all of
these tests run in the copy as it is, where they must pass. Words choose breaks: a number chooses those of that row of
the list of faults, any other word those whose path, test or name contains it.

Every test runs in a fork of this process, which has imported torch and what else takes long, but nothing of the
project. A break in csrc/ is compiled for the instruction set `base` alone, with few optimisations, in seconds.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import os
import runpy
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
HEAVY = (
    "torch",
    "torch._dynamo",
    "hypothesis",
    "matplotlib.figure",
    "safetensors.torch",
    "tokenizers",
    "triton",
    "tyro",
)
TIMEOUT = 300  # seconds that the tests of one break may take


class Copy:
    """A copy of the project in which files are changed, the core is compiled and tests run."""

    def __init__(self, root: Path) -> None:
        self.root, self.log = root, root.with_name("log")
        self._clock = itertools.count(time.time_ns(), 10**9)
        listed = subprocess.run(
            ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT,
            check=True,
            capture_output=True,
            text=True,
        )
        for name in filter(None, listed.stdout.split("\0")):
            if (ROOT / name).is_file():
                (root / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, root / name)
        if not (root / "electra_fast" / "kernels").exists():  # an editable install would find those of the original
            (root / "electra_fast" / "kernels").symlink_to("../kernels")
        for library in (ROOT / "electra_fast").glob("_C*.so"):
            shutil.copy2(library, root / "electra_fast")

    def write(self, path: str, text: str) -> None:
        """Write a file, with a new time of modification, so that no compiled Python of the former content is taken."""
        (self.root / path).write_text(text)
        now = next(self._clock)
        os.utime(self.root / path, ns=(now, now))

    def compile(self, path: str | None = None) -> None:
        """Compile the core's instruction set `base` again, or `path` if it is a file of its own; the others stay."""
        setup = runpy.run_path(str(ROOT / "setup.py"))
        (objects,) = ROOT.glob(f"build/temp.*{sys.implementation.cache_tag}/csrc")
        flags = [flag for flag in setup["FLAGS"] if flag != "-O3"] + ["-fPIC", "-O1"]
        flags += ["-DEF_X86"] if setup["X86"] else []
        include = [f"-I{setup['pybind11'].get_include()}", f"-I{sysconfig.get_path('include')}"]
        built = self.root.with_name("base.o")
        alone = {name: objects / f"{name}.o" for name in ("bindings", "threads")}
        own = Path(path or "").stem
        if own in alone:
            alone[own] = self.root.with_name(f"{own}.o")
            self._call("c++", "-c", *flags, *include, str(self.root / f"csrc/{own}.cpp"), "-o", str(alone[own]))
        if own not in alone or not built.exists():
            self._call(
                "c++", "-c", *flags, *setup["ISAS"]["base"], str(self.root / "csrc/isa/base.cpp"), "-o", str(built)
            )
        others = [str(objects / "isa" / f"{isa}.o") for isa in setup["ISAS"] if isa != "base"]
        (library,) = (self.root / "electra_fast").glob("_C*.so")
        linked = self.root.with_name("linked.so")
        self._call("c++", "-shared", "-pthread", *map(str, alone.values()), str(built), *others, "-o", str(linked))
        os.replace(linked, library)

    def _call(self, *command: str) -> None:
        done = subprocess.run(command, cwd=self.root, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{command[0]} failed:\n{done.stderr[-3000:]}")

    def test(self, tests: list[str], isa: str | None = None) -> str:
        """Run tests in a fork; returns "passed", "red", or what kept them from running."""
        child = os.fork()
        if child == 0:
            self._run_tests(tests, isa)
        deadline = time.monotonic() + TIMEOUT * (1 + len(tests) // 10)
        while True:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                break
            if time.monotonic() > deadline:
                os.killpg(child, signal.SIGKILL)
                os.waitpid(child, 0)
                return "red"
            time.sleep(0.02)
        if os.WIFSIGNALED(status):
            return "red"
        said = {0: "passed", 1: "red", 5: "no test was chosen"}
        return said.get(os.WEXITSTATUS(status), "the tests could not be collected")

    def _run_tests(self, tests: list[str], isa: str | None) -> None:
        os.setpgid(0, 0)
        os.chdir(self.root)
        log = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        if isa is not None:
            os.environ["ELECTRA_FAST_ISA"] = isa
        os.environ["PYTHONPATH"] = str(self.root)
        sys.path[:] = [str(self.root), *(path for path in sys.path if not path.startswith(str(ROOT / "tests")))]
        sys.modules.pop("faults", None)
        try:
            import pytest

            status = int(pytest.main(["-q", "-x", "-p", "no:cacheprovider", "-p", "no:xdist", *tests]))
        except BaseException as error:
            print(f"{type(error).__name__}: {error}")
            status = 3
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def plant(copy: Copy, broken: Break) -> str:
    """Plant a break, run its tests and mend it; returns what `Copy.test` does."""
    whole = (copy.root / broken.path).read_text()
    if whole.count(broken.old) != 1:
        return f"the old text occurs {whole.count(broken.old)} times"
    compiled = broken.path.startswith("csrc/")
    copy.write(broken.path, whole.replace(broken.old, broken.new))
    try:
        if compiled:
            copy.compile(broken.path)
        return copy.test(list(broken.tests), "base" if compiled else None)
    finally:
        copy.write(broken.path, whole)
        if broken.path == "csrc/bindings.cpp":
            copy.compile()


def chosen(words: list[str]) -> list[Break]:
    """The breaks that any of the words chooses; all of them for no words."""

    def fits(broken: Break, word: str) -> bool:
        if word.isdecimal():
            return broken.row == int(word)
        return any(word in text for text in (broken.path, broken.name, *broken.tests))

    return [broken for broken in BREAKS if not words or any(fits(broken, word) for word in words)]


def main() -> int:
    parser = argparse.ArgumentParser(description="Plants breaks in a copy of the project, and fails if one survives.")
    parser.add_argument("words", nargs="*", help="rows of the list of faults, or words in paths, tests and names")
    breaks = chosen(parser.parse_args().words)
    if not breaks:
        parser.error("no break fits these words")
    importlib.import_module("torch")
    if not importlib.import_module("torch").cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"  # tests/conftest.py wants it set before triton is imported
    for name in HEAVY:
        importlib.import_module(name)
    survivors: list[tuple[Break, str]] = []
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        copy = Copy(Path(folder) / "project")
        if any(broken.path.startswith("csrc/") for broken in breaks):
            copy.compile()
        tests = sorted({test for broken in breaks for test in broken.tests})
        print(f"{len(tests)} tests, with nothing broken: ", end="", flush=True)
        start = time.monotonic()
        before = copy.test(tests)
        print(f"{before} in {time.monotonic() - start:.0f} s", flush=True)
        if before != "passed":
            print(copy.log.read_text()[-3000:])
            return 1
        for number, broken in enumerate(breaks, 1):
            row = f"row {broken.row}" if broken.row else "no row"
            print(f"[{number}/{len(breaks)}] {row}, {broken.path}: {broken.name}: ", end="", flush=True)
            start = time.monotonic()
            try:
                result = plant(copy, broken)
            except RuntimeError as error:
                result = str(error)
            print(f"{result} in {time.monotonic() - start:.0f} s", flush=True)
            if result != "red":
                survivors.append((broken, result))
                print(copy.log.read_text()[-1500:], flush=True)
    places = Counter(broken.path.split("/")[0 if broken.path[0] in "ck" else 1] for broken in breaks)
    lost = Counter(broken.path.split("/")[0 if broken.path[0] in "ck" else 1] for broken, _ in survivors)
    print("\nplace               red of")
    for place, count in sorted(places.items()):
        print(f"{place:<18}{count - lost[place]:>5}{count:>3}")
    print(f"{'all':<18}{len(breaks) - len(survivors):>5}{len(breaks):>3}")
    for broken, result in survivors:
        print(f"NOT RED ({result}): {broken.path}: {broken.name}: {' '.join(broken.tests)}")
    return 1 if survivors else 0


sys.path.insert(0, str(ROOT / "tests"))
from faults import BREAKS, Break  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
