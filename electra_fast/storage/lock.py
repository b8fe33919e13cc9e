"""Lock: only one process at a time writes to a path."""

from __future__ import annotations

import fcntl
import os
import socket
import weakref
from pathlib import Path


class InUseError(ValueError):
    """Another process is writing to the same path; the message names that process."""


class Lock:
    """Holds an exclusive lock on `file` within a `with` block, so that no other process writes to `subject`.

    The operating system drops the lock when the process ends, however it ends, so a killed run can be resumed at once.
    The file holds the owner's process id and host, and is removed at the end of the block.

    file: the path that is created and locked (flock); a symbolic link there is never followed.
    subject: the file or directory that the lock protects, for messages.

    Raises InUseError on entry if another process holds the lock, OSError if the file cannot be created.
    """

    def __init__(self, file: Path, subject: Path) -> None:
        self.file, self.subject = file, subject
        self._handle: int | None = None

    def __enter__(self) -> Lock:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        handle = self._locked()
        # An owner that is done removes the file. If it did so between our open and our lock, we hold a removed file.
        while not _is_at(handle, self.file):
            os.close(handle)
            handle = self._locked()
        os.ftruncate(handle, 0)
        os.write(handle, f"process {os.getpid()} on {socket.gethostname()}".encode())
        self._handle = handle
        _HELD.add(self)
        return self

    def __exit__(self, *_: object) -> None:
        if self.is_held():
            self.file.unlink(missing_ok=True)
        self.release()

    def is_held(self) -> bool:
        """Whether the locked file is still the one at `file`; False after somebody removed or moved its directory."""
        return self._handle is not None and _is_at(self._handle, self.file)

    def renew(self) -> None:
        """Lock again at the same path, after `is_held` said False. Raises as on entry."""
        self.release()
        self.__enter__()

    def release(self) -> None:
        """Give the lock back and leave the file where it is."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def _locked(self) -> int:
        handle = os.open(self.file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            owner = os.read(handle, 200).decode(errors="replace")
            os.close(handle)
            if not isinstance(error, BlockingIOError):
                raise
            raise InUseError(
                f"{self.subject} is in use by another run ({owner}); only one at a time may write there: "
                f"wait for it, stop it, or choose another directory"
            ) from None
        return handle


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), os.lstat(path))
    except OSError:
        return False


_HELD: weakref.WeakSet[Lock] = weakref.WeakSet()


def _release_in_child() -> None:
    """A forked child shares its parent's locks and may outlive a parent that was killed, so it gives them back."""
    for lock in _HELD:
        lock.release()


os.register_at_fork(after_in_child=_release_in_child)
