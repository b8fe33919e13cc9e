"""The threads or processes that build examples, and results in the order of the text."""

from __future__ import annotations

import os
import signal
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection, get_context, parent_process

from electra_fast.data.builder import Builder, Chunk, Part

WORTH_PROCESSES = 1 << 26  # bytes on disk below which starting processes costs more than it saves
FEW_CORES = 4  # that threads keep busy: what needs the lock of the interpreter is a fifth of the work


_builder: Builder | None = None  # of a worker process, which is sent it once


def _start_worker(builder: Builder) -> None:
    global _builder
    _builder = builder
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it too, and ends us
    parent = parent_process()
    if parent is not None:  # a worker outlives a parent that is killed, waiting for work for ever, unless it looks
        threading.Thread(target=lambda: (connection.wait([parent.sentinel]), os._exit(1)), daemon=True).start()


def _work(chunk: Chunk) -> dict[str, Part]:
    assert _builder is not None
    return _builder(chunk)


class Workers:
    """A context: submit(chunk) -> future, by `count` at once, in threads of this process or in others."""

    def __init__(self, builder: Builder, processes: int | None, size: int) -> None:
        cores = len(os.sched_getaffinity(0))
        if processes is None:
            processes = cores if cores > FEW_CORES and size >= WORTH_PROCESSES else 1
        self.count = max(3, processes)
        self.executor: Executor
        if processes > 1:
            context = get_context("spawn")
            self.executor = ProcessPoolExecutor(processes, context, _start_worker, (builder,))
        else:
            # The library's threads encode without the interpreter's lock; three of ours keep them fed meanwhile.
            self.executor = ThreadPoolExecutor(3)
        self._function = _work if processes > 1 else builder

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *_: object) -> None:
        self.executor.shutdown(cancel_futures=True)

    def submit(self, chunk: Chunk) -> Future[dict[str, Part]]:
        return self.executor.submit(self._function, chunk)


def in_order(workers: Workers, chunks: Iterator[Chunk]) -> Iterator[dict[str, Part]]:
    """Results in the order of the chunks; no more than two chunks a worker wait at once."""
    waiting: deque[Future[dict[str, Part]]] = deque()
    try:
        for chunk in chunks:
            waiting.append(workers.submit(chunk))
            if len(waiting) > 2 * workers.count:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise ChildProcessError(
            "a worker process of prepare died: the machine may be out of memory, or a script calls prepare() outside "
            'of `if __name__ == "__main__":`, which starting processes needs; mend that, or pass processes=1'
        ) from error
