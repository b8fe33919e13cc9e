"""The strings of a parquet file's column "text", in memory that does not depend on what the file claims to hold.

A value of some hundred bytes on disk can stand for gigabytes: pages are compressed, and one page can hold a string that
a million rows refer to. So the sizes of all pages are read before pyarrow unpacks one, and rows are read in batches so
small that they fit into memory even if each of them is as long as the largest page.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, BinaryIO

LARGEST_PAGE = 1 << 27  # bytes when unpacked; most writers aim at 1 MB, DuckDB at 100 MB
BATCH = 1 << 24  # bytes of a batch of rows, at most
ROWS = 256  # of a batch, at most
HEADER = 1 << 16  # bytes: more than the header of a page has


def texts(path: Path) -> Iterator[tuple[bytes, float]]:
    """The column "text" row by row, as UTF-8 bytes, each with the share of the rows that are read with it.

    Raises ImportError without pyarrow. Raises ValueError for a file that is not parquet or is damaged, has no column
    "text" or one that does not hold strings, or has a page of more than LARGEST_PAGE bytes.
    """
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError(f"reading {path} needs pyarrow, which is not installed; run: pip install pyarrow") from error
    try:
        # With a buffer_size the file is read in pieces, without one a whole column of a row group at once.
        with path.open("rb") as file, pyarrow.parquet.ParquetFile(path, buffer_size=1 << 20) as table:
            names = table.schema_arrow.names
            if "text" not in names:
                raise ValueError(f'{path} has the columns {names}; one must be called "text": rename it')
            kind = table.schema_arrow.field("text").type
            if pyarrow.types.is_primitive(kind):
                raise ValueError(f'{path} has {kind} in the column "text"; strings are read: write it anew')
            rows = 0
            for number in range(table.num_row_groups):
                size = batch_size(path, file, table.metadata.row_group(number), ["text"], BATCH)
                for batch in table.iter_batches(size, row_groups=[number], columns=["text"], use_threads=False):
                    rows += batch.num_rows
                    for text in batch.column(0).cast(pyarrow.string()).cast(pyarrow.binary()):
                        yield text.as_py() or b"", rows / table.metadata.num_rows
    except pyarrow.ArrowMemoryError as error:
        raise MemoryError(f"{path} needs more memory than there is ({error})") from error
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno is not None:  # of the disk; pyarrow's own have no number
            raise
        raise ValueError(
            f'{path} is no readable parquet file with strings in "text" ({error}); write it anew'
        ) from error


def batch_size(path: Path, file: BinaryIO, group: Any, names: Collection[str], most: int) -> int:
    """How many rows of a row group to read at once: as many as take `most` bytes if each string fills a page, or one.

    path, file: of the parquet file. group: the metadata of the row group. names: the columns that will be read.

    Raises ValueError for a page of strings of more than LARGEST_PAGE bytes.
    """
    row = 1
    for column in (group.column(index) for index in range(group.num_columns)):
        try:
            place = column.path_in_schema  # "text", and "words.list.element" for the strings of lists
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} has a column whose name is no UTF-8 ({error}); write it anew") from error
        name = next((name for name in names if place == name or place.startswith(f"{name}.")), None)
        if name is None or column.physical_type != "BYTE_ARRAY":  # a number takes some bytes, whatever the page says
            continue
        largest = max(_page_sizes(path, file, column), default=0)
        if largest > LARGEST_PAGE:
            raise ValueError(
                f'{path} has a page of {largest} bytes in the column "{name}"; at most {LARGEST_PAGE} are read: write '
                f"it anew with shorter strings, such as one document or paragraph a row"
            )
        row += largest
    return min(ROWS, max(1, most // row))


def _page_sizes(path: Path, file: BinaryIO, column: Any) -> Iterator[int]:
    """The unpacked size of each page of a column chunk, from the page headers."""
    at = column.data_page_offset
    if column.dictionary_page_offset:
        at = min(at, column.dictionary_page_offset)
    end = at + column.total_compressed_size
    while at < end:
        try:
            if at < 0:
                raise IndexError(at)
            file.seek(at)
            header = _Header(file.read(HEADER))
            fields = header.read_struct()
            unpacked, packed = fields[2], fields[3]
        except (IndexError, KeyError, OverflowError) as error:  # the last: a place beyond any file
            raise ValueError(
                f"{path} has a damaged page header at byte {at}; fetch it again, or write it anew"
            ) from error
        if min(unpacked, packed) < 0:
            raise ValueError(f"{path} has a page of {min(unpacked, packed)} bytes at byte {at}; write it anew")
        yield unpacked
        at += header.at + packed


class _Header:
    """Reads a struct of Thrift's compact protocol, in which parquet's page headers are written.

    Source: https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md
    """

    DEPTH = 16  # structs within structs; a page header has three

    def __init__(self, data: bytes) -> None:
        self._data, self.at = data, 0

    def read_struct(self, depth: int = 0) -> dict[int, int]:
        """The integers of the struct by field number; everything else is skipped. IndexError where data ends early."""
        if depth > self.DEPTH:
            raise IndexError("structs are nested too deeply")
        fields: dict[int, int] = {}
        number = 0
        while (byte := self._byte()) & 15:
            number = number + (byte >> 4) if byte >> 4 else self._integer()
            value = self._value(byte & 15, depth)
            if value is not None:
                fields[number] = value
        return fields

    def _value(self, kind: int, depth: int) -> int | None:
        if kind in (4, 5, 6):
            return self._integer()
        if kind == 3:  # a byte
            self.at += 1
        elif kind == 7:  # a double
            self.at += 8
        elif kind == 8:  # a string
            length = self._varint()
            self.at += length
        elif kind == 12:
            self.read_struct(depth + 1)
        elif kind > 2:  # 1 and 2 are true and false, without content; a page header has no list, set or map
            raise IndexError(f"a value of type {kind}")
        return None

    def _byte(self) -> int:
        byte = self._data[self.at]
        self.at += 1
        return byte

    def _varint(self) -> int:
        value = shift = 0
        while True:
            byte = self._byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7

    def _integer(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)
