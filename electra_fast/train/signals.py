"""Stop: a signal ends a training loop between two steps, so that it can save first."""

from __future__ import annotations

import signal
import sys
from types import FrameType, TracebackType
from typing import Any

from electra_fast.report.terminal import say


class Stop:
    """Within a `with` block, SIGTERM, SIGINT and SIGHUP set `signal` in place of ending the process.

    The loop looks at `signal` after each step, saves and leaves. A second SIGTERM or SIGINT ends the process at once
    with status 128 + number. A second SIGHUP does not: when a terminal closes, the shell and the kernel both send one.
    SIGHUP stays ignored where the process was started to ignore it, as nohup does. The former handlers come back at
    the end of the block.
    """

    def __init__(self) -> None:
        self.signal: int | None = None
        self._former: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:
                self._former[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal = number
            name = signal.Signals(number).name
            say(f"{name}: finishing the step, saving, leaving; once more to leave at once")
        elif number != signal.SIGHUP:
            sys.exit(128 + number)  # a save under way removes what it has written
