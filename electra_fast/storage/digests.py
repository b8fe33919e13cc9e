"""SHA256SUMS: digests of a directory's files, written with them and checked before they are used.

The file has a line `<sha256>  <name>` for each, as the command sha256sum writes it, so `sha256sum -c SHA256SUMS` checks
a directory too. Other programs ignore it. A file that the list lacks is not checked.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from electra_fast.storage.atomic import file_size, shortened, write_file

SUMS = "SHA256SUMS"
_LINE = re.compile(r"([0-9a-f]{64}) [ *]([^/\0]+)")
_LARGEST = 1 << 20


def file_digest(path: Path) -> str:
    """The SHA-256 of a file in hexadecimal; costs one read."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_files(directory: Path, contents: Mapping[str, bytes]) -> None:
    """Write files into a directory, which is made if need be, and record their digests.

    contents: name -> bytes.
    """
    directory.mkdir(parents=True, exist_ok=True)
    forget(directory, contents)
    record(directory, {name: write_file(directory / name, [content]) for name, content in contents.items()})


def record(directory: Path, digests: Mapping[str, str]) -> None:
    """Add digests to the list of a directory.

    digests: name -> SHA-256 in hexadecimal, as `write_file` returns it.
    """
    _write(directory, _read(directory) | dict(digests))


def forget(directory: Path, names: Iterable[str]) -> None:
    """Take files off the list before they are replaced: a process killed in between must not leave a false digest."""
    listed = _read(directory)
    kept = {name: digest for name, digest in listed.items() if name not in set(names)}
    if kept != listed:
        _write(directory, kept)


def verify(directory: Path, *names: str) -> None:
    """Raise ValueError, naming the file, if one of these files is not what was written; costs one read of each.

    Files that are missing or not listed pass: whoever reads them says what is missing.
    """
    listed = _read(directory)
    for name in names:
        path = directory / name
        if name in listed and path.is_file() and (digest := file_digest(path)) != listed[name]:
            raise ValueError(
                f"{path} has SHA-256 {digest:.12}..., and {listed[name]:.12}... was written, says {directory / SUMS}; "
                f"the file was damaged or changed since: fetch it or save it again. If the change is meant, delete "
                f"its line there"
            )


def _read(directory: Path) -> dict[str, str]:
    """The list of a directory, name -> digest; empty if there is none."""
    path = directory / SUMS
    if not path.exists():
        return {}
    if (size := file_size(path)) > _LARGEST:
        raise ValueError(f"{path} has {size} bytes; at most {_LARGEST} are allowed; delete it, or save the model again")
    listed = {}
    for line in path.read_bytes().decode(errors="replace").splitlines():
        match = _LINE.fullmatch(line)
        if match is None:
            raise ValueError(
                f"{path}: {shortened(line)} is not a line <sha256>  <name>; the file is damaged: delete it to load "
                f"without a check, or save the model again"
            )
        listed[match[2]] = match[1]
    return listed


def _write(directory: Path, digests: Mapping[str, str]) -> None:
    write_file(directory / SUMS, ["".join(f"{digests[name]}  {name}\n" for name in sorted(digests)).encode()])
