"""What the terminal gets: text from files made harmless, on streams whose failure costs the text and not the run."""

from __future__ import annotations

import os
import re
import sys
from contextlib import suppress
from typing import Any, TextIO

from tqdm import tqdm

# C0 and C1 control characters but tab and newline, DEL, Unicode's line separators and direction overrides, surrogates.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

LARGE = 100 << 20  # bytes


def printable(text: str) -> str:
    r"""Return the text with control characters written as escapes such as \x1b, so that a terminal obeys none of them.

    Tabs and newlines stay. What comes from a file, a file name or a vocabulary must pass here before it is printed: it
    could otherwise move the cursor, change the title or hide other lines.
    """
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def say(text: str, stream: TextIO | None = None) -> None:
    """Print a line, made `printable`, above any progress bar; if the stream fails, the line is lost and nothing raised.

    stream: sys.stdout by default.
    """
    with tqdm.external_write_mode(file=Terminal(sys.stderr)):
        terminal = Terminal(sys.stdout if stream is None else stream)
        terminal.write(printable(text) + "\n")
        terminal.flush()


def progress_bar(**options: Any) -> tqdm:
    """A tqdm bar on stderr that goes on without being seen when stderr is closed, full or a broken pipe.

    options: those of tqdm.
    """
    return tqdm(**{"file": Terminal(sys.stderr), "dynamic_ncols": True} | options)


def bytes_bar(total: int, label: str) -> tqdm:
    """A progress bar that counts bytes; it stays hidden below LARGE bytes, which take a moment only."""
    return progress_bar(total=total, desc=label, unit="B", unit_scale=True, disable=total < LARGE)


class Terminal:
    """A text stream that drops what it cannot write: the reader is gone, the disk is full or the stream is closed.

    After a failure the file descriptor is pointed at /dev/null. Otherwise Python would try to flush the same text again
    when it exits, and report that as a failure of the whole process.

    stream: sys.stdout, sys.stderr or None, which they are in a process that was started without them.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        if self.stream is not None:
            encoding = self.stream.encoding or "utf-8"
            try:
                self.stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
            except RuntimeError:  # this is the handler of a signal that came amid a write to the same stream
                pass
            except (OSError, ValueError):
                self._give_up()
        return len(text)

    def flush(self) -> None:
        if self.stream is not None:
            try:
                self.stream.flush()
            except RuntimeError:
                pass
            except (OSError, ValueError):
                self._give_up()

    def _give_up(self) -> None:
        with suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            try:
                os.dup2(nowhere, self.stream.fileno())  # type: ignore[union-attr]
            finally:
                os.close(nowhere)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Terminal) and self.stream is other.stream

    def __hash__(self) -> int:
        return id(self.stream)
