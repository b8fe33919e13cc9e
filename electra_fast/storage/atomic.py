"""Files that appear whole or not at all, and JSON that is checked before it is trusted."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

LARGEST_JSON = 1 << 20
DAMAGED = "the file is damaged or was made to mislead: fetch it or save it again"


def write_file(path: Path, pieces: Iterable[Any]) -> str:
    """Bytes-like pieces to a file that is whole or not there, even after kill -9; returns its SHA-256."""
    digest = hashlib.sha256()
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            for piece in pieces:
                digest.update(piece)
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:  # a full disk says not of itself which file it is
            error.filename = str(path)
        raise
    sync(path.parent)
    return digest.hexdigest()


def sync(path: Path) -> None:
    """Make a file durable; of a directory, the names in it."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_json(path: Path, largest: int = LARGEST_JSON) -> dict[str, Any]:
    """A JSON object, with no key twice in it or in those inside, from at most `largest` bytes; ValueError otherwise."""
    if (size := file_size(path)) > largest:
        raise ValueError(f"{path} has {size} bytes; at most {largest} are allowed; {DAMAGED}")
    return parse_json(path.read_bytes(), path)


def file_size(path: Path) -> int:
    if not path.is_file():  # a pipe would hang, a device never end
        raise ValueError(f"{path} is {'not a regular file' if path.exists() else 'missing'}; put such a file there")
    return path.stat().st_size


def parse_json(text: bytes, path: Path) -> dict[str, Any]:
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
    return text if len(text := repr(value)) <= 100 else f"{text[:97]}..."


def check_free(path: str | Path, manifest: str | None = None) -> None:
    """Raise FileExistsError unless `path` is free to be written: not there, or an empty directory. Nothing is deleted.

    manifest: the file name by which a corpus is known, so that the message can say that one is there.
    Raises NotADirectoryError where it would lie below a file.
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
