"""Text files -> documents: formats, boundaries, bytes that are no text, and what is refused."""

import gzip
import json
import lzma
import os
import re
import tracemalloc
from pathlib import Path

import pytest

from electra_fast.data import text
from electra_fast.data.text import Counts, documents


def write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def read(path: Path) -> tuple[list[list[str]], Counts]:
    counts = Counts()
    return list(documents(path, counts)), counts


def test_blank_lines_separate_documents(tmp_path):
    found, counts = read(write(tmp_path / "a.txt", b"\n\none\ntwo\n \t\nthree\n\n\n\nfour"))
    assert found == [["one", "two"], ["three"], ["four"]]
    assert (counts.documents, counts.lines, counts.bytes, counts.read) == (3, 4, 26, 26)


@pytest.mark.parametrize("pack", [lambda b: b, gzip.compress, lzma.compress], ids=["plain", "gz", "xz"])
@pytest.mark.parametrize("kind", ["txt", "jsonl"])
def test_formats_agree(tmp_path, pack, kind):
    wanted = [["Ein Satz.", "Noch einer: größer."], ["한국어 문장"], ["中文 \U00020000"]]
    if kind == "txt":
        content = "\n\n".join("\n".join(document) for document in wanted)
    else:
        content = "\n".join(json.dumps({"id": 1, "text": "\n".join(document)}) for document in wanted)
    ending = {gzip.compress: ".gz", lzma.compress: ".xz"}.get(pack, "")
    found, counts = read(write(tmp_path / f"a.{kind}{ending}", pack(content.encode())))
    assert found == wanted
    assert counts.read == (tmp_path / f"a.{kind}{ending}").stat().st_size


def test_archives_of_several_streams(tmp_path):
    """As `cat a.xz b.xz` and parallel packers write them; .xz streams may have zeros between and after them."""
    parts = [b"one\n\n", b"two\n\n" * 50_000, b"three"]
    wanted = [["one"], *[["two"]] * 50_000, ["three"]]
    assert read(write(tmp_path / "a.txt.xz", b"".join(lzma.compress(part) + bytes(8) for part in parts)))[0] == wanted
    assert read(write(tmp_path / "a.txt.gz", b"".join(map(gzip.compress, parts))))[0] == wanted


def test_an_article_of_wikitext_is_a_document(tmp_path):
    content = " \n = One = \n \n A line . \n \n = = Part = = \n \n b = c = d \n \n = 2 = \n \n = = = Deep = = = \n E \n"
    found, counts = read(write(tmp_path / "wiki.train.tokens.xz", lzma.compress(content.encode())))
    assert found == [["= One =", "A line .", "= = Part = =", "b = c = d"], ["= 2 =", "= = = Deep = = =", "E"]]
    assert (counts.documents, counts.lines) == (2, 7)


@pytest.mark.parametrize(
    ("content", "wanted", "replaced"),
    [
        (b"a\r\nb\r\n\r\nc\r\n", [["a", "b"], ["c"]], 0),  # CRLF
        (b"a\rb\r\rc", [["a", "b"], ["c"]], 0),  # old Macs
        (b"\xef\xbb\xbfa\n", [["a"]], 0),  # byte-order mark
        (b"a\xff\xfeb \xc3\xa9\n", [["a\ufffd\ufffdb é"]], 2),  # invalid UTF-8
        (b"real \xef\xbf\xbd and \xe2\x82 cut\n", [["real \ufffd and \ufffd cut"]], 1),
        (b"a\0b\n", [["a\ufffdb"]], 1),  # NUL
        (b"\n \n\t\n\x0c\na\n\n\n", [["a"]], 0),  # blank documents
        ("a\u2028b\x0bc\x85d\n".encode(), [["a\u2028b\x0bc\x85d"]], 0),  # only line ends end lines
    ],
)
def test_strange_bytes_survive(tmp_path, content, wanted, replaced):
    found, counts = read(write(tmp_path / "a.txt", content))
    assert (found, counts.replaced) == (wanted, replaced)


def test_blocks_do_not_show(tmp_path, monkeypatch):
    """Whatever the size of a block, the lines are those of a plain split."""
    lines = ["", "é" * 7, "ab cd", "", "", "x", "한국어 문장 " * 3, ""] * 5
    path = write(tmp_path / "a.txt", "\r\n".join(lines).encode())
    wanted, _ = read(path)
    for block in (64, 65, 66, 67, 100, 1000):
        monkeypatch.setattr(text, "BLOCK", block)
        assert read(path)[0] == wanted


def test_long_lines_are_split(tmp_path, monkeypatch):
    monkeypatch.setattr(text, "BLOCK", 64)
    words = [f"wort{i}é" for i in range(100)]
    found, counts = read(write(tmp_path / "a.txt", (" ".join(words) + "\nnext\n\nlast").encode()))
    assert " ".join(found[0][:-1]).split() == words  # cut at spaces: nothing lost, no word torn
    assert (found[0][-1], found[1:]) == ("next", [["last"]])
    assert counts.split_lines >= 10 and max(len(line.encode()) for line in found[0]) <= 128
    solid = "é한\U0001f600" * 200  # no space: between characters
    found, counts = read(write(tmp_path / "b.txt", solid.encode()))
    assert "".join(found[0]) == solid and counts.replaced == 0
    # A line of exactly a block, its end in the next one: no blank line, so no boundary.
    found, _ = read(write(tmp_path / "c.txt", b"x" * 64 + b"\nsame\n\nother"))
    assert found == [["x" * 64, "same"], ["other"]]


def test_memory_stays_bounded(tmp_path):
    """A line of 20 MB and a document of 500,000 lines pass through less than a megabyte."""
    with lzma.open(tmp_path / "a.txt.xz", "wb", preset=0) as file:
        for _ in range(20):
            file.write(b"word " * 200_000)
        file.write(b"\n")
        for _ in range(5):
            file.write(b"a line\n" * 100_000)
    tracemalloc.start()
    counts = Counts()
    longest = max(sum(map(len, document)) for document in documents(tmp_path / "a.txt.xz", counts))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3e6 and longest < text.MOST_CHARACTERS + 2 * text.BLOCK
    assert counts.split_lines > 150 and counts.pieces > 500 and counts.bytes == 20_000_001 + 3_500_000


def test_long_documents_come_in_pieces(tmp_path):
    found, counts = read(write(tmp_path / "a.txt", b"x\n" * 2500 + b"\ny"))
    assert [len(document) for document in found] == [1000, 1000, 500, 1]
    assert (counts.documents, counts.pieces, counts.lines) == (4, 2, 2501)


@pytest.mark.parametrize(
    ("name", "content", "error", "message"),
    [
        ("no.txt", None, FileNotFoundError, "there is no text file .*no.txt; check the name"),
        ("a.txt", b"", ValueError, r"a.txt is empty \(0 bytes\)"),
        ("a.txt", b"\n \n\n", ValueError, "a.txt holds no text, blank lines at most"),
        ("a.csv", b"x", ValueError, r"a.csv ends in .csv; text is read from .txt, .tokens, .jsonl, .parquet"),
        ("a.zip", b"PK", ValueError, r"a.zip ends in .zip; text is read from"),
        ("a.parquet.gz", b"x", ValueError, r"a.parquet.gz ends in .parquet.gz; .*unpack"),
        ("text", b"x", ValueError, "text ends in nothing"),
        ("a.txt.gz", b"no archive", ValueError, r"a.txt.gz is a damaged .gz archive \(.*\); fetch or pack it again"),
        ("a.txt.gz", gzip.compress(b"text\n" * 99, mtime=0)[:-9], ValueError, "a.txt.gz is a damaged .gz archive"),
        ("a.txt.xz", lzma.compress(b"text\n" * 99)[:-9], ValueError, "a.txt.xz is a damaged .xz archive"),
        ("a.txt.xz", lzma.compress(b"text\n" * 99) + b"more", ValueError, "a.txt.xz is a damaged .xz archive"),
        ("a.txt", "text".encode("utf-16"), ValueError, "a.txt is UTF-16 .*iconv"),
        ("a.jsonl", b'{"text": "a"}\n{"text": ', ValueError, "a.jsonl, line 2 is no JSON"),
        ("a.jsonl", b"[1, 2]", ValueError, "a.jsonl, line 1 is a list; each line is an object with a string"),
        ("a.jsonl", b'\n{"body": "a"}', ValueError, r"a.jsonl, line 2 is an object with \['body'\]"),
        ("a.jsonl", b'{"text": 3}', ValueError, 'a.jsonl, line 1 has a int in "text"; write a string'),
        ("a.jsonl", b"[" * 100_000, ValueError, "a.jsonl, line 1 is no JSON"),
    ],
)
def test_refused(tmp_path, name, content, error, message):
    if content is not None:
        write(tmp_path / name, content)
    with pytest.raises(error, match=message):
        list(documents(tmp_path / name))


def test_refused_before_the_first_is_read(tmp_path):
    """A typing error in the last name costs no hours: documents() itself raises, not its first item."""
    good = write(tmp_path / "a.txt", b"x")
    with pytest.raises(FileNotFoundError):
        documents([good, tmp_path / "b.txt"])
    with pytest.raises(ValueError, match=f"{re.escape(str(tmp_path))} is a directory, .*name its files"):
        documents([good, tmp_path])
    with pytest.raises(ValueError, match="no text file is given"):
        documents([])


def test_a_pipe_is_refused(tmp_path):
    os.mkfifo(tmp_path / "a.txt")
    with pytest.raises(ValueError, match=r"a.txt is not a regular file, and text is read more than once; save it"):
        documents(tmp_path / "a.txt")


def test_lone_surrogates_in_json(tmp_path):
    found, counts = read(write(tmp_path / "a.jsonl", rb'{"text": "a \ud800 b \ud83d\ude00"}'))
    found[0][0].encode()  # encodable: the tokenizer would refuse a surrogate
    assert found[0][0].endswith(" b 😀") and counts.replaced > 0


def test_long_records_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(text, "LONGEST_RECORD", 100)
    path = write(tmp_path / "a.jsonl", b'{"text": "a"}\n' + json.dumps({"text": "b" * 200}).encode())
    with pytest.raises(ValueError, match=r"a.jsonl, line 2 is longer than"):
        read(path)
