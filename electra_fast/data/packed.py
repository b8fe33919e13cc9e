"""Archives read as streams: each read unpacks no more than was asked for, whatever the archive claims to hold."""

from __future__ import annotations

import gzip
import io
import lzma
from collections.abc import Callable
from typing import BinaryIO

PIECE = 1 << 16  # packed bytes that are read at once
XZ_MEMORY = 1 << 27  # bytes that an .xz may need to be unpacked; `xz -9` needs 65 MB


class _Xz(io.RawIOBase):
    """The content of an .xz file of one or several streams. Unlike lzma.open it limits the size of the dictionary."""

    def __init__(self, packed: BinaryIO) -> None:
        self._packed, self._decompressor = packed, _decompressor()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        content = b""
        while not content:
            if self._decompressor.eof:
                unused = self._decompressor.unused_data.lstrip(b"\0")  # streams are padded with zeros
                while not unused and (unused := self._packed.read(PIECE)):
                    unused = unused.lstrip(b"\0")
                if not unused:
                    return 0
                self._decompressor = _decompressor()
                content = self._decompressor.decompress(unused, len(buffer))
            else:
                packed = self._packed.read(PIECE) if self._decompressor.needs_input else b""
                if self._decompressor.needs_input and not packed:
                    raise EOFError("it ends before the end of its stream")
                content = self._decompressor.decompress(packed, len(buffer))
        buffer[: len(content)] = content
        return len(content)


def _decompressor() -> lzma.LZMADecompressor:
    return lzma.LZMADecompressor(memlimit=XZ_MEMORY)


def open_xz(packed: BinaryIO) -> BinaryIO:
    """The content of an .xz file as a stream of bytes.

    Raises, while it is read, EOFError for a file that was cut short, and lzma.LZMAError for one that is damaged or
    needs more than XZ_MEMORY bytes to be unpacked.
    """
    return io.BufferedReader(_Xz(packed))


def open_gzip(packed: BinaryIO) -> BinaryIO:
    """The content of a .gz file as a stream of bytes; raises EOFError, OSError or zlib.error while it is read."""
    return gzip.GzipFile(fileobj=packed)  # type: ignore[return-value]


PACKED: dict[str, Callable[[BinaryIO], BinaryIO]] = {".xz": open_xz, ".gz": open_gzip}
