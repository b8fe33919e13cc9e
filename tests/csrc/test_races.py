"""`make tsan` sees a data race between threads of a parallel region, and reports none where there is none."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
#include "rows.h"

// Sums of three parts, each in an array of its own; with an argument, all in one.
int main(int count, char**) {
  float out[4096];
  ef::base::Sum sum(out, 4096, 3);
#pragma omp parallel for num_threads(3) schedule(static)
  for (int64_t part = 0; part < 3; ++part) {
    const int64_t own = count > 1 ? 0 : part;
    sum.start(own);
    for (int64_t i = 0; i < 4096; ++i) sum.of(own)[i] += 1;
  }
  sum.finish();
  return out[4095] == 3 ? 0 : 1;
}
"""


def has_thread_sanitizer() -> bool:
    if shutil.which("c++") is None:
        return False
    named = subprocess.run(["c++", "-print-file-name=libtsan.so"], capture_output=True, text=True, check=True).stdout
    return Path(named.strip()).is_absolute()


@pytest.mark.skipif(not has_thread_sanitizer(), reason="the compiler has no ThreadSanitizer")
def test_a_race_is_reported_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "sums.cpp").write_text(PROGRAM)
    flags = ["-std=c++17", "-O1", "-g", "-fopenmp", "-fsanitize=thread", "-DEF_NS=base", "-DEF_ISA=128"]
    sources = [str(tmp_path / "sums.cpp"), str(ROOT / "tests/csrc/openmp_by_threads.cpp")]
    command = ["c++", *flags, f"-I{ROOT / 'csrc'}", *sources, "-o", str(tmp_path / "sums")]
    subprocess.run(command, check=True, capture_output=True)
    environment = {name: value for name, value in os.environ.items() if name not in ("LD_PRELOAD", "TSAN_OPTIONS")}
    right, wrong = (
        subprocess.run([tmp_path / "sums", *planted], env=environment, capture_output=True, text=True, timeout=120)
        for planted in ([], ["planted"])
    )
    assert right.returncode == 0 and not right.stderr, right.stderr
    assert wrong.returncode == 66 and "ThreadSanitizer: data race" in wrong.stderr, wrong.stderr
