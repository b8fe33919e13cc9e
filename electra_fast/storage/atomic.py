"""Files and directories that appear whole or not at all, and JSON that is checked before it is trusted."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from electra_fast.storage.lock import Lock

LARGEST_JSON = 1 << 20
DAMAGED = "the file is damaged or was made to mislead: fetch it or save it again"
RANDOM = "[0-9a-f]{16}"  # what ends the name of a file or directory under way


def write_file(path: Path, pieces: Iterable[Any]) -> str:
    """Write a file that is complete or absent, even after kill -9, and return its SHA-256 in hexadecimal.

    The bytes go to a new file beside `path`, with a random name, which is synced and then renamed. An existing file is
    replaced and its permissions are kept; a symbolic link at `path` is replaced, and its target is left alone.
    Temporary files of earlier processes that were killed while they wrote the same path are removed.

    path: the file to write.
    pieces: bytes-like objects, written one after another.

    Raises OSError if the disk is full or the directory is not writable; then nothing was changed.
    """
    _remove_abandoned_files(path)
    digest = hashlib.sha256()
    temporary, handle = _new_file(path)
    try:
        with os.fdopen(handle, "wb") as file:
            for piece in pieces:
                digest.update(piece)
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:  # the error of a full disk names no file
            error.filename = str(path)
        raise
    sync(path.parent)
    return digest.hexdigest()


def _new_file(path: Path) -> tuple[Path, int]:
    """Create and lock a file of a new name beside `path`, with the permissions of the file at `path` if there is one.

    The lock tells `_remove_abandoned_files` of other processes that the writer lives.
    """
    while True:
        temporary = path.with_name(f".{path.name}.tmp-{secrets.token_hex(8)}")
        handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        with suppress(OSError):  # some network file systems have no locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        if os.fstat(handle).st_nlink:  # else it was taken for abandoned before it was locked
            break
        os.close(handle)
    with suppress(OSError):
        existing = os.lstat(path)
        if stat.S_ISREG(existing.st_mode):
            os.fchmod(handle, stat.S_IMODE(existing.st_mode))
    return temporary, handle


def _remove_abandoned_files(path: Path) -> None:
    """Remove the temporary files of processes that died while they wrote `path`."""
    pattern = re.compile(rf"\.{re.escape(path.name)}\.tmp-{RANDOM}")
    with suppress(OSError):
        for other in [entry for entry in path.parent.iterdir() if pattern.fullmatch(entry.name)]:
            with suppress(OSError):
                handle = os.open(other, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
                try:
                    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    other.unlink()
                finally:
                    os.close(handle)


@contextmanager
def staged_directory(target: Path, manifest: str | None = None) -> Iterator[Path]:
    """Yield an empty directory to fill; when the block ends without an exception, it becomes `target` in one rename.

    After an exception or kill -9 there is no `target`: half-written results are never seen. A lock beside the target
    (.NAME.lock) keeps a second process from writing the same target, and what killed processes left of it is removed
    on entry. All files are synced before the rename.

    target: the directory to create; it must not exist, or be an empty directory. Its parents are created.
    manifest: the file name by which a corpus is known, for the message of FileExistsError.

    Raises FileExistsError or NotADirectoryError if `target` is not free, InUseError if another process is writing it.
    """
    target = Path(os.path.abspath(target))
    check_free(target, manifest)
    with Lock(target.with_name(f".{target.name}.lock"), target):
        pattern = re.compile(rf"\.tmp-{re.escape(target.name)}-{RANDOM}")
        for path in [entry for entry in target.parent.iterdir() if pattern.fullmatch(entry.name)]:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
        with staged_rename(target) as staging:
            yield staging
            check_free(target, manifest)


@contextmanager
def staged_rename(target: Path, replace: bool = False) -> Iterator[Path]:
    """Yield an empty directory of a random name beside `target`, and rename it to `target` when the block ends.

    After an exception the new directory is removed, and `target` is what it was. The caller makes sure that no other
    process writes `target` at the same time.

    replace: whether `target` may exist; then it is set aside, and removed after the rename.
    """
    staging, aside = (target.with_name(f".tmp-{name}-{secrets.token_hex(8)}") for name in (target.name, "replaced"))
    try:
        staging.mkdir()
        yield staging
        for path in [*staging.rglob("*"), staging]:
            if not path.is_symlink():
                sync(path)
        if replace and target.exists():
            os.rename(target, aside)
        os.rename(staging, target)  # without `replace`, over an empty directory at most: the system refuses any other
        sync(target.parent)
    except BaseException:
        if aside.exists() and not target.exists():
            os.rename(aside, target)
        for path in (staging, aside):
            shutil.rmtree(path, ignore_errors=True)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def sync(path: Path) -> None:
    """Write a file's data to the disk (fsync); for a directory, the names in it."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_json(path: Path, largest: int = LARGEST_JSON) -> dict[str, Any]:
    """Read a file that holds one JSON object.

    largest: the bytes that the file may have, which bounds the memory that a hostile file can ask for.

    Raises ValueError, naming the file, if it is larger, not a regular file, not JSON, not an object, or has a key twice
    at any depth.
    """
    if (size := file_size(path)) > largest:
        raise ValueError(f"{path} has {size} bytes; at most {largest} are allowed; {DAMAGED}")
    return parse_json(path.read_bytes(), path)


def file_size(path: Path) -> int:
    """The size of a regular file in bytes; ValueError for a pipe, which would hang, a device, which never ends, etc."""
    if not path.is_file():
        raise ValueError(f"{path} is {'not a regular file' if path.exists() else 'missing'}; put such a file there")
    return path.stat().st_size


def parse_json(text: bytes, path: Path) -> dict[str, Any]:
    """Parse one JSON object, UTF-8; raises ValueError, naming `path`, for anything else or a key that stands twice."""
    try:
        values = json.loads(text.decode("utf-8"), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:  # RecursionError: brackets, thousands deep
        values = error
    if isinstance(values, dict):
        return values
    raise ValueError(f"{path}: {shortened(values)} was found; one JSON object, each key once, is allowed; {DAMAGED}")


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, value in pairs:
        if key in values:
            raise ValueError(f"key {key!r:.60} twice")
        values[key] = value
    return values


def shortened(value: Any) -> str:
    """The repr of a value that was read from a file, cut to 100 characters, for a message."""
    return text if len(text := repr(value)) <= 100 else f"{text[:97]}..."


def check_free(path: str | Path, manifest: str | None = None) -> None:
    """Check that a directory can be created at `path`: nothing is there, or an empty directory. Deletes nothing.

    manifest: the file name by which a corpus is known, so that the message can say that one is there.

    Raises FileExistsError if something is there, NotADirectoryError if a parent of `path` is a file.
    """
    path = Path(path)
    above = next((parent for parent in path.absolute().parents if parent.exists()), path)
    if not above.is_dir():
        raise NotADirectoryError(f"{path} would lie in {above}, which is a file; name another place")
    if manifest is not None and (path / manifest).exists():
        raise FileExistsError(
            f"{path} already holds a corpus; use it, write to another --out, or remove it: rm -r {path}"
        )
    if path.is_symlink() or (path.exists() and (not path.is_dir() or any(path.iterdir()))):
        raise FileExistsError(f"{path} exists and is no empty directory; name another place, nothing there is touched")
