"""Signals that ask a process to end: what is under way is cleared up first."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

from electra_fast.report.terminal import say


@contextlib.contextmanager
def exit_on_signals() -> Iterator[None]:
    """While the block runs, SIGTERM and SIGHUP raise SystemExit with the code 128 + the signal's number.

    So `finally` and `with` clear up behind them, as behind Ctrl-C. A signal that has a handler already, or is ignored,
    as under nohup, is left as it is; outside the main thread, where signals are not handled, nothing is done.
    """
    numbers = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is signal.SIG_DFL]
    if threading.current_thread() is not threading.main_thread():
        numbers = []
    for number in numbers:
        signal.signal(number, _leave)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)


def _leave(number: int, frame: FrameType | None) -> None:
    if number == signal.SIGHUP:  # when a terminal closes, the shell and the kernel both send one
        signal.signal(number, signal.SIG_IGN)
    say(f"stopped by {signal.Signals(number).name}", sys.stderr)
    raise SystemExit(128 + number)
