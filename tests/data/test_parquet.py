"""Parquet: rows as any writer lays them out, page sizes known before a page is unpacked, and what is refused."""

import itertools
import random
from pathlib import Path

import pytest

from electra_fast.data import parquet
from electra_fast.data.text import Counts, documents

pyarrow = pytest.importorskip("pyarrow")
writer = pytest.importorskip("pyarrow.parquet")


def write(path: Path, rows: list, kind=None, **options) -> Path:
    writer.write_table(pyarrow.table({"n": range(len(rows)), "text": pyarrow.array(rows, kind)}), path, **options)
    return path


def column(path: Path):
    return writer.ParquetFile(path).metadata.row_group(0).column(1)


@pytest.mark.parametrize("kind", [pyarrow.string(), pyarrow.large_string(), pyarrow.binary()])
def test_each_row_is_a_document(tmp_path, kind):
    counts = Counts()
    path = write(tmp_path / "a.parquet", ["one\ntwo", None, "", "three\n\nfour"], kind)
    assert list(documents(path, counts)) == [["one", "two"], ["three"], ["four"]]
    assert counts.read == path.stat().st_size


@pytest.mark.parametrize("packing", ["none", "snappy", "zstd"])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("encoding", [None, "PLAIN", "DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY"])
def test_pages_of_all_layouts(tmp_path, packing, version, encoding):
    """The sizes in the page headers add up to the size that the footer states, but for the headers themselves."""
    draw = random.Random(0)
    rows = [draw.choice([None, f"w{draw.randrange(50)} " * draw.randrange(40)]) for _ in range(5000)]
    for statistics, index, size in itertools.product((True, False), (True, False), (1 << 13, 1 << 20)):
        options = dict(write_statistics=statistics, write_page_index=index, data_page_size=size, row_group_size=4000)
        if encoding:
            options |= dict(use_dictionary=False, column_encoding={"text": encoding})
        path = write(tmp_path / "a.parquet", rows, compression=packing, data_page_version=version, **options)
        with path.open("rb") as file:
            sizes = list(parquet._page_sizes(path, file, column(path)))
        assert 0 < column(path).total_uncompressed_size - sum(sizes) < 250 * len(sizes)
        assert len(sizes) > 1 or size == 1 << 20
        assert [text.decode() for text, _ in parquet.texts(path)] == [row or "" for row in rows]


def test_batches_fit_the_largest_page(tmp_path, monkeypatch):
    path = write(tmp_path / "a.parquet", ["x" * 3000] * 50)
    with path.open("rb") as file:
        group = writer.ParquetFile(path).metadata.row_group(0)
        assert parquet.batch_size(path, file, group, ["n", "text"], 10_000) == 3
        assert parquet.batch_size(path, file, group, ["n"], 10_000) == parquet.ROWS
    monkeypatch.setattr(parquet, "LARGEST_PAGE", 2000)
    with pytest.raises(
        ValueError, match=r"a.parquet has a page of 3004 bytes in the column \"text\"; at most 2000 are"
    ):
        list(parquet.texts(path))


def test_refused(tmp_path):
    writer.write_table(pyarrow.table({"body": ["x"]}), tmp_path / "b.parquet")
    with pytest.raises(ValueError, match=r"b.parquet has the columns \['body'\]; one must be called \"text\""):
        list(parquet.texts(tmp_path / "b.parquet"))
    with pytest.raises(ValueError, match=r"c.parquet has int64 in the column \"text\"; strings are read"):
        list(parquet.texts(write(tmp_path / "c.parquet", [1, 2])))
    (tmp_path / "d.parquet").write_bytes(b"not parquet at all")
    with pytest.raises(ValueError, match="d.parquet is no readable parquet file"):
        list(parquet.texts(tmp_path / "d.parquet"))


def test_damaged_pages_are_refused(tmp_path):
    path = write(tmp_path / "a.parquet", ["some words"] * 300)
    at, content = column(path).dictionary_page_offset, path.read_bytes()
    for damage in (b"\xff" * 60, b"\x00" * 60, b"\x15\x00\x15\x03\x15\x00\x00", b"\x1c" * 60, b"\x18" + b"\xff" * 60):
        path.write_bytes(content[:at] + damage + content[at + len(damage) :])
        with pytest.raises(
            ValueError, match=r"a.parquet (has a damaged page header|has a page of -2 bytes|is no read)"
        ):
            list(parquet.texts(path))


def test_what_pyarrow_finds_damaged_names_the_file(tmp_path):
    """pyarrow raises OSError, without a number and a name, for a footer and for a page that it cannot read."""
    path = write(tmp_path / "a.parquet", ["some words of a text"] * 3, compression="none")
    whole = path.read_bytes()
    page = whole.index(b"some words")
    footer = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    for at in (page - 4, footer + 1):  # the length of the first string, a field of the footer
        path.write_bytes(whole[:at] + b"\xff\xff" + whole[at + 2 :])
        with pytest.raises(ValueError, match=r"a\.parquet (is no readable parquet file|has a damaged page header)"):
            list(parquet.texts(path))


def test_a_page_at_an_impossible_place_is_refused(tmp_path):
    path = write(tmp_path / "a.parquet", ["x"])

    class Chunk:
        data_page_offset, dictionary_page_offset, total_compressed_size = -5, None, 10

    with path.open("rb") as file, pytest.raises(ValueError, match=r"a\.parquet has a damaged page header at byte -5"):
        list(parquet._page_sizes(path, file, Chunk))
