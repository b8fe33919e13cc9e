"""The pool of threads: `make tsan` sees a data race between two tasks and reports none where there is none, and a
caller does not wait for a thread that does not come."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SUMS = """
#include "rows.h"

// Sums of three parts, each in an array of its own; with an argument, all in one.
int main(int count, char**) {
  float out[4096];
  ef::base::Sum sum(out, 4096, 3);
  ef::base::parallel(3, 3, [&](int64_t part) {
    const int64_t own = count > 1 ? 0 : part;
    sum.start(own);
    for (int64_t i = 0; i < 4096; ++i) sum.of(own)[i] += 1;
  });
  sum.finish();
  return out[4095] == 3 ? 0 : 1;
}
"""

LATE = """
#include <pthread.h>
#include <unistd.h>
#include <atomic>
#include "threads.h"

// Another thread than the caller's that takes a task keeps it until all other tasks are done.
int main() {
  constexpr int64_t tasks = 100;
  std::atomic<int64_t> done{0}, kept{0};
  const auto caller = pthread_self();
  for (int job = 0; job < 200; ++job) {
    done = kept = 0;
    ef::base::parallel(tasks, 2, [&](int64_t) {
      if (!pthread_equal(pthread_self(), caller)) {
        ++kept;
        while (done < tasks - 1) usleep(10);
      }
      ++done;
    });
    if (done != tasks || kept > 1) return 1;
  }
}
"""


def compiled(program: str, to: Path, *flags: str) -> None:
    """Compile a program together with the pool of threads."""
    source = to.with_suffix(".cpp")
    source.write_text(program)
    command = ["c++", "-std=c++17", "-O1", "-g", "-pthread", *flags, "-DEF_NS=base", "-DEF_ISA=128"]
    files = [f"-I{ROOT / 'csrc'}", str(source), str(ROOT / "csrc/threads.cpp"), "-o", str(to)]
    subprocess.run([*command, *files], check=True, capture_output=True)


@pytest.mark.skipif(shutil.which("c++") is None, reason="no compiler")
def test_the_caller_finishes_what_nobody_has_begun(tmp_path: Path) -> None:
    """Under a division of the tasks among the threads beforehand, it would wait for ever."""
    compiled(LATE, tmp_path / "late")
    assert subprocess.run([tmp_path / "late"], timeout=120).returncode == 0


def has_thread_sanitizer() -> bool:
    if shutil.which("c++") is None:
        return False
    named = subprocess.run(["c++", "-print-file-name=libtsan.so"], capture_output=True, text=True, check=True).stdout
    return Path(named.strip()).is_absolute()


@pytest.mark.skipif(not has_thread_sanitizer(), reason="the compiler has no ThreadSanitizer")
def test_a_race_is_reported_and_nothing_else(tmp_path: Path) -> None:
    compiled(SUMS, tmp_path / "sums", "-fsanitize=thread")
    environment = {name: value for name, value in os.environ.items() if name not in ("LD_PRELOAD", "TSAN_OPTIONS")}
    right, wrong = (
        subprocess.run([tmp_path / "sums", *planted], env=environment, capture_output=True, text=True, timeout=120)
        for planted in ([], ["planted"])
    )
    assert right.returncode == 0 and not right.stderr, right.stderr
    assert wrong.returncode == 66 and "ThreadSanitizer: data race" in wrong.stderr, wrong.stderr
