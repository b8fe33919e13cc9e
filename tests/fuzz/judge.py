"""What a reader may do with an input: accept it with a sane result, or refuse it in a sentence that names the file."""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

LONGEST_MESSAGE = 20_000  # characters


class Target(NamedTuple):
    """A reader of files and what it is fuzzed with.

    name: of the target. read: called with an input and an empty folder, whose files it writes and has the reader read;
    it returns where the reader accepted them with a sane result. seeds: inputs to begin with. json: whether the input
    is JSON (a document, or one a line), so that values in it are changed and not bytes alone. head: bytes in front of
    the JSON.
    """

    name: str
    read: Callable[[bytes, Path], None]
    seeds: Callable[[], Iterator[bytes]]
    json: bool = False
    head: int = 1


class Insane(Exception):
    """A reader accepted an input and what it returned is wrong."""


class Finding(Exception):
    """What must not happen. key: the same for findings of one cause. text: what a person reads of it."""

    def __init__(self, key: str, text: str) -> None:
        super().__init__(key)
        self.key, self.text = key, text


def expect(condition: bool, what: str) -> None:
    """Raise Insane with `what` unless the condition holds."""
    if not condition:
        raise Insane(what)


def judged(target: Target, data: bytes, folder: Path) -> bool:
    """Whether the reader accepts an input; raises Finding unless it does one of the two things that are allowed.

    The errors that may refuse are those that the command line tells in a sentence. MemoryError is not among them here:
    inputs are of some kB, and need no memory worth speaking of.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            target.read(data, folder)
    except (ValueError, TypeError, IndexError, OSError, FloatingPointError, ImportError) as error:
        message = str(error)
        if str(folder) not in message:
            raise _finding(error, "names no file") from error
        if len(message) > LONGEST_MESSAGE:
            raise _finding(error, f"has a message of {len(message)} characters") from error
        return False
    except KeyboardInterrupt:
        raise
    except BaseException as error:  # a panic of Rust is one
        raise _finding(error, "is no refusal") from error
    return True


def _finding(error: BaseException, why: str) -> Finding:
    """The finding of an exception, keyed by its type and the last line of the package that it came through."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [frame for frame in frames if "/electra_fast/" in frame.filename] or frames
    place = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}"
    detail = f" ({error})" if isinstance(error, Insane) else ""
    text = "".join(traceback.format_exception(error))
    return Finding(f"{type(error).__name__} {why}{detail:.80} at {place}", text[-6000:])
