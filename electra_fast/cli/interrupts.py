"""Ctrl-C while modules are imported: the process ends at once, with a sentence and no traceback."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

INTERRUPTED = 128 + signal.SIGINT


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """End the process on Ctrl-C, as long as the block runs, which only imports.

    A KeyboardInterrupt would not do: code that is imported may catch it, or wrap it into an ImportError. Nothing has
    been written yet that would need care. Does nothing where Ctrl-C is not Python's (ignored, or another handler), and
    outside the main thread, where signals are not handled.
    """
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, _leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _leave(number: int, frame: FrameType | None) -> None:
    with contextlib.suppress(OSError):
        os.write(2, b"electra-fast: interrupted\n")
    os._exit(INTERRUPTED)
