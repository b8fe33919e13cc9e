"""Workers: the same corpus for any number of them, and no end of a run leaves one behind or waits for one."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from electra_fast.data import prepare as module
from electra_fast.data.builder import Builder
from electra_fast.data.prepare import prepare
from electra_fast.data.workers import Processes

ENDLESS = """
import signal, sys, time
from electra_fast.data import prepare, text
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background ignores it
def endless(paths, counts=None):
    while True:
        yield ["word " * 200] * 10
        time.sleep(0.002)
text.documents, prepare.CHUNK = endless, 20_000
prepare.CorpusWriter.__init__.__kwdefaults__["shard_tokens"] = 10_000
prepare.prepare({book!r}, {out!r}, tokenizer={tokenizer!r}, processes=2, progress=False)
"""


def environment(light: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(light), *sys.path])}


def running(pid: str) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def wait_for(condition, what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.005)


@pytest.mark.parametrize("packing", ["pairs", "plain"])
def test_number_of_processes_does_not_matter(book, tokenizer, light, tmp_path, monkeypatch, packing):
    """Shards and digest; in chunks small enough that several are under way."""
    monkeypatch.setattr(module, "CHUNK", 20_000)
    monkeypatch.syspath_prepend(light)
    found = set()
    for processes in (1, 2) if packing == "pairs" else (1, 1):
        out = tmp_path / f"{packing}{len(list(tmp_path.iterdir()))}"
        corpus = prepare(
            book, out, tokenizer=tokenizer, packing=packing, max_length=32, processes=processes, progress=False
        )
        found.add((corpus.sha256, (out / "corpus.json").read_bytes()))
    assert len(found) == 1


def test_script(book, saved, light, tmp_path):
    """A user's script that forgets the guard that new processes need is told so."""
    script = tmp_path / "script.py"
    call = f"prepare({str(book)!r}, {str(tmp_path / 'c')!r}, tokenizer={str(saved)!r}, processes=2, progress=False)"
    script.write_text(f"from electra_fast.data.prepare import prepare\n{call}\n")
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120, env=environment(light))
    assert run.returncode == 1 and "pass processes=1" in run.stderr.splitlines()[-1]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["script.py"]


class Failing(Builder):
    """Raises for a chunk that says "raise", ends its process for one that says "die"."""

    def __call__(self, chunk):
        word = chunk[0][2][0]
        if word == "raise":
            raise ValueError("chunk 3")
        if word == "die":
            os._exit(9)
        return super().__call__(chunk)


@pytest.mark.parametrize(("word", "error"), [("raise", "chunk 3"), ("die", "a worker process of prepare died")])
def test_what_a_worker_meets_is_raised(tokenizer, light, monkeypatch, word, error):
    monkeypatch.syspath_prepend(light)
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    chunks = [[("train", number, ["some words" if number != 3 else word])] for number in range(9)]
    results = []
    with (
        pytest.raises((ValueError, ChildProcessError), match=error),
        Processes(Failing(tokenizer, 16, "pairs", 0), 2) as workers,
    ):
        for part in workers.build(iter(chunks)):
            results.append(part["train"].documents)
    assert results == [1, 1, 1][: len(results)]
    assert word == "die" or len(results) == 3  # those before it; a dead worker is noticed when it is sent more
    assert not any(process.is_alive() for process in workers._processes)


def test_a_worker_leaves_ctrl_c_to_its_parent(tokenizer, light, monkeypatch):
    """Whenever it comes, be it before the worker's first line of Python."""
    monkeypatch.syspath_prepend(light)
    chunks = [[("train", number, ["some words"])] for number in range(6)]
    with Processes(Builder(tokenizer, 16, "pairs", 0), 1) as workers:
        os.kill(workers._processes[0].pid, signal.SIGINT)
        parts = list(workers.build(iter(chunks)))
    assert [part["train"].documents for part in parts] == [1] * 6


@pytest.mark.parametrize(
    ("moment", "signals", "gap"),
    [
        ("building", [signal.SIGKILL], 0),
        ("building", [signal.SIGINT], 0),
        ("building", [signal.SIGINT] * 2, 0.002),
        ("building", [signal.SIGINT] * 2, 0.1),
        ("starting", [signal.SIGINT] * 2, 0.002),
        ("starting", [signal.SIGINT] * 3, 0.02),
    ],
)
def test_killed_in_the_middle(book, saved, light, tmp_path, moment, signals, gap):
    """The run ends, its workers too, and no corpus is there; the next run removes what is left and succeeds."""
    (tmp_path / "out").mkdir()
    code = ENDLESS.format(book=str(book), out=str(tmp_path / "out/c"), tokenizer=str(saved))
    run = subprocess.Popen([sys.executable, "-c", code], cwd=light, stderr=subprocess.DEVNULL, env=environment(light))
    try:
        wait_for(lambda: len(children(run.pid)) == 3, "two workers and multiprocessing's tracker start")
        if moment == "building":
            wait_for(lambda: list((tmp_path / "out").glob(".tmp-*/train-00001.bin")), "a shard is written")
        workers = children(run.pid)
        for number in signals:
            run.send_signal(number)
            time.sleep(gap)
        assert run.wait(60) != 0
    finally:
        run.kill()
    assert not (tmp_path / "out/c").exists()
    left = list((tmp_path / "out").glob(".tmp-*"))
    if len(signals) == 1:  # a second one may end the removal as well
        assert len(left) == (signals[0] == signal.SIGKILL)
    wait_for(lambda: not any(map(running, workers)), "a worker outlived its parent")
    prepare(book, tmp_path / "out/c", tokenizer=saved, processes=1, progress=False).verify()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["c"]
