"""Readers under a limit of their address space: bombs are read in little memory, or refused in a sentence."""

import lzma
import os
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

ROOM = 128  # MB for what is read and made; the bombs below hold more, or stand for more

CODE = f"""
import resource, sys
from itertools import islice
from pathlib import Path
import pyarrow.parquet
from electra_fast.data.prepare import prepare
from electra_fast.data.text import documents
from electra_fast.tasks.datasets import unlabelled_examples
from electra_fast.tasks.files import Malformed
path, out, command = sys.argv[1:]
Path(out, "few.txt").write_text("a few words\\n\\n" * 9)
prepare(out + "/few.txt", out + "/few", vocab_size=100, processes=1, progress=False)  # starts the threads
pages = int(Path("/proc/self/statm").read_text().split()[0])
resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + ({ROOM} << 20),) * 2)
try:
    if command == "predict":
        examples = unlabelled_examples(path, "classification", Malformed(path, 10))
        print(sum(len(example.texts[0]) for example in islice(examples, 100)))
    elif path.endswith(".parquet"):
        print(sum(len(line) for document in islice(documents(path), 100) for line in document))
    elif "10-gigabytes" in path:
        print(sum(len(document) for document in documents(path)))
    else:
        corpus = prepare(path, out + "/c", vocab_size=100, processes=1, progress=False)
        print(corpus.manifest["text"]["bytes"])
except ValueError as error:
    print(error)
"""


def zeros(root: Path) -> Path:
    """6 kB that unpack to 20 MB of NUL characters."""
    path = root / "zeros.txt.xz"
    path.write_bytes(lzma.compress(b"some words\n\n" * 20 + bytes(20_000_000)))
    return path


def long_lines(root: Path) -> Path:
    """3,000 lines of 4 kB; most of each is one word."""
    path = root / "long.txt"
    path.write_bytes(b"some words\n\n" * 20 + (b"a word " + b"x" * 4000 + b"\n") * 3000)
    return path


def brackets(root: Path) -> Path:
    """A record that would be ten million lists."""
    path = root / "brackets.jsonl.xz"
    path.write_bytes(lzma.compress(b"[" + b"[]," * 10_000_000 + b"]"))
    return path


def ten_gigabytes(root: Path) -> Path:
    """1.5 MB that unpack to 10 GB of spaces, and a document of three lines behind them."""
    stream = lzma.compress(b" " * 100_000_000, preset=1)
    (root / "10-gigabytes.txt.xz").write_bytes(stream * 100 + lzma.compress(b"\none\ntwo\nthree\n"))
    return root / "10-gigabytes.txt.xz"


def dictionary(root: Path) -> Path:
    """2 kB of parquet in which 256 rows refer to one string of 8 MB."""
    import pyarrow
    import pyarrow.parquet

    column = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 256, pyarrow.int32()), ["word " * (8 << 18)])
    pyarrow.parquet.write_table(pyarrow.table({"text": column}), root / "a.parquet", compression="zstd")
    return root / "a.parquet"


def xz_dictionary(root: Path) -> Path:
    """An archive whose header asks for a dictionary of 1 GiB."""
    content = bytearray(lzma.compress(b"text"))
    assert content[14:16] == b"\x21\x01"  # the filter LZMA2, with one byte of properties: the dictionary's size
    content[16] = 36
    content[20:24] = zlib.crc32(content[12:20]).to_bytes(4, "little")
    (root / "a.txt.xz").write_bytes(content)
    return root / "a.txt.xz"


@pytest.mark.parametrize(
    ("command", "bomb", "said"),
    [
        pytest.param("prepare", zeros, "20000240", marks=pytest.mark.slow),
        ("prepare", long_lines, "12024240"),
        ("prepare", brackets, "brackets.jsonl.xz, line 1 is longer than 16 MB; cut it into several records"),
        ("prepare", dictionary, "32767500\n"),  # characters of a hundred pieces, each of five lines of 64 kB
        ("predict", dictionary, f"{100 * 5 * (8 << 18)}\n"),
        ("prepare", xz_dictionary, "a.txt.xz is a damaged .xz archive (Memory usage limit exceeded)"),
        pytest.param("prepare", ten_gigabytes, "3\n", marks=[pytest.mark.slow, pytest.mark.timeout(1800)]),
    ],
)
def test_bomb(command: str, bomb: Callable[[Path], Path], said: str, light: Path, tmp_path: Path) -> None:
    if bomb is dictionary:
        pytest.importorskip("pyarrow")
    path = bomb(tmp_path)
    # Fewer arenas of memory, which take up the address space and not the memory itself.
    small = {"MALLOC_ARENA_MAX": "2", "ARROW_DEFAULT_MEMORY_POOL": "system"}
    environment = {**os.environ, **small, "PYTHONPATH": os.pathsep.join([str(light), *sys.path])}
    arguments = [sys.executable, "-c", CODE, str(path), str(tmp_path), command]
    run = subprocess.run(arguments, cwd=light, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert said in run.stdout
