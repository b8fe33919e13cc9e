"""The threads or processes that build examples, and their results in the order of the text."""

from __future__ import annotations

import os
import queue
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from multiprocessing import get_context, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

from electra_fast.cores import usable_cores
from electra_fast.data.builder import Builder, Chunk, Part

WORTH_PROCESSES = 1 << 26  # bytes on disk below which starting processes costs more than it saves
FEW_CORES = 4  # cores that threads keep busy: a fifth of the work needs the interpreter's lock
THREADS = 3  # tokenizers encodes in threads of its own, without the lock; three of ours keep those supplied
CHUNKS_PER_WORKER = 2  # one that the worker builds and one that waits, so that the worker never does

DIED = (
    "a worker process of prepare died: the machine may be out of memory, or a script calls prepare() outside of "
    '`if __name__ == "__main__":`, which starting processes needs; mend that, or pass processes=1'
)


def number_of_processes(processes: int | None, size: int) -> int:
    """`processes`, or where that is None the number that suits text of `size` bytes; 1 stands for threads."""
    if processes is not None:
        return processes
    cores = usable_cores()
    return cores if cores > FEW_CORES and size >= WORTH_PROCESSES else 1


class Threads:
    """A context in which `build` runs the builder in threads of this process."""

    def __init__(self, builder: Builder) -> None:
        self._builder, self._executor = builder, ThreadPoolExecutor(THREADS)

    def __enter__(self) -> Threads:
        return self

    def __exit__(self, *_: object) -> None:
        self._executor.shutdown(cancel_futures=True)

    def build(self, chunks: Iterable[Chunk]) -> Iterator[dict[str, Part]]:
        """The examples of each chunk, in the order of the chunks; few chunks are in memory at once."""
        waiting: deque[Future[dict[str, Part]]] = deque()
        for chunk in chunks:
            waiting.append(self._executor.submit(self._builder, chunk))
            if len(waiting) > CHUNKS_PER_WORKER * THREADS:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


class Processes:
    """A context in which `build` runs the builder in worker processes, which end with it, whatever ends it.

    Each worker has a pipe of its own and nothing is shared, neither queue nor lock: a worker can be killed at any
    moment, and no other process then waits for something that the dead one held.
    """

    def __init__(self, builder: Builder, count: int) -> None:
        self._builder, self._count = builder, count
        self._processes: list[BaseProcess] = []
        self._pipes: list[Connection] = []

    def __enter__(self) -> Processes:
        try:
            for _ in range(self._count):
                self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        # An interrupt in here leaves the rest to the interpreter, which at its exit terminates daemonic processes.
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.join()
        for pipe in self._pipes:
            pipe.close()

    def build(self, chunks: Iterable[Chunk]) -> Iterator[dict[str, Part]]:
        """The examples of each chunk, in the order of the chunks; few chunks are in memory at once.

        Chunk k goes to worker k modulo their number. Raises ChildProcessError when a worker dies.
        """
        sent = received = 0
        for chunk in chunks:
            self._send(sent % self._count, chunk)
            sent += 1
            if sent - received == CHUNKS_PER_WORKER * self._count:
                yield self._receive(received % self._count)
                received += 1
        for number in range(received, sent):
            yield self._receive(number % self._count)

    def _start(self) -> None:
        context = get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs,), daemon=True)
        # Ctrl-C reaches every process of a terminal, but it is the parent that ends the workers. They inherit the
        # blocked signal, so that not even one that is still starting sees it. The tracker is started before, because
        # its start unblocks SIGINT.
        resource_tracker.ensure_running()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            process.start()
        except BrokenPipeError as error:
            raise ChildProcessError(DIED) from error
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self._processes.append(process)
        self._pipes.append(ours)
        theirs.close()
        self._send(-1, self._builder)

    def _send(self, worker: int, item: Builder | Chunk) -> None:
        try:
            self._pipes[worker].send(item)
        except ConnectionError as error:
            raise ChildProcessError(DIED) from error

    def _receive(self, worker: int) -> dict[str, Part]:
        try:
            result = self._pipes[worker].recv()
        except (EOFError, ConnectionError) as error:
            raise ChildProcessError(DIED) from error
        if isinstance(result, BaseException):
            raise result
        return result


def _serve(pipe: Connection) -> None:
    """A worker process: receives a builder, then chunks, and sends the examples of each, or what the builder raised."""
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # the processes are the parallelism
    received: queue.Queue[Any] = queue.Queue(1)
    threading.Thread(target=_receive_all, args=(pipe, received), daemon=True).start()
    builder: Builder = received.get()
    while True:
        result: dict[str, Part] | Exception
        try:
            result = builder(received.get())
        except Exception as error:
            result = error
        try:
            pipe.send(result)
        except ConnectionError:
            os._exit(1)


def _receive_all(pipe: Connection, received: queue.Queue[Any]) -> None:
    """Receives while the worker builds, so that the parent's `send` never waits; ends the worker with its parent."""
    try:
        while True:
            received.put(pipe.recv())
    except (EOFError, ConnectionError):
        os._exit(1)
