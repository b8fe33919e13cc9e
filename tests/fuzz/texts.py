"""Targets that read texts to prepare and files of examples."""

from __future__ import annotations

import gzip
import io
import itertools
import json
import lzma
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from electra_fast.data.text import documents
from electra_fast.tasks.datasets import read_dataset, stream_examples
from electra_fast.tasks.examples import KINDS, Question, Refused, Sentence
from electra_fast.tasks.minimal_pairs import read_pairs
from fuzz.judge import Target, expect
from fuzz.models import fresh

MOST = 2000  # documents or examples that are looked at
UNLABELLED, TRAINING, STRICT = 8, 16, 32  # bits of an input's first byte


def kind_of(data: bytes) -> str:
    """The kind of task that an input is read for."""
    return KINDS[(data[0] & 7) % len(KINDS) if data else 0]


def check_example(example: Any, labels: set[str]) -> None:
    """Raise Insane unless an example is what its class says."""
    expect(isinstance(example.id, str), "an id that is no text")
    if isinstance(example, Question):
        for start, text in example.answers:
            expect(start < 0 or example.context[start : start + len(text)] == text, "an answer that is not there")
        return
    if isinstance(example, Sentence):
        expect(all(isinstance(word, str) and word for word in example.words), "an empty word")
        expect(example.tags is None or len(example.tags) == len(example.words), "not a tag for each word")
        return expect(set(example.tags or ()) <= labels or not labels, "a tag that is not among the labels")
    expect(1 <= len(example.texts) <= 2 and all(isinstance(text, str) for text in example.texts), "no text")
    label = example.label
    if isinstance(label, float):
        return expect(math.isfinite(label), "a label that is not finite")
    values = label if isinstance(label, tuple) else () if label is None else (label,)
    expect(set(values) <= labels, "a label that is not among the labels")


def reader(suffix: str) -> Any:
    """A function that reads a file of examples with this ending. The first byte chooses the kind of task, whether there
    are labels, and how many malformed lines are allowed."""

    def read(data: bytes, folder: Path) -> None:
        choice = data[0] if data else 0
        path = folder / f"examples{suffix}"
        path.write_bytes(data[1:])
        options = dict(labelled=not choice & UNLABELLED, training=bool(choice & TRAINING))
        data_set = read_dataset(path, kind_of(data), max_bad_lines=0 if choice & STRICT else 10, **options)
        expect(bool(data_set.examples), "no examples and no error")
        labels = set(data_set.labels)
        for example in data_set.examples[:MOST]:
            check_example(example, labels)

    return read


def head(kind: str, more: int = 0) -> bytes:
    """The first byte of an input for this kind of task."""
    return bytes([KINDS.index(kind) | more])


def csv_seeds() -> Iterator[bytes]:
    yield head("classification") + b'text,label\n"a, ""b""",x\nc,y\n'
    yield head("regression") + b"text,text2,label,id\na,b,0.5,1\nc,d,1e3,2\n"
    yield head("multilabel") + b"text,label\na,x|y\nb,\n"


def tsv_seeds() -> Iterator[bytes]:
    yield head("classification") + b"sentence\tlabel\nfine \t1\nbad \t0\n"
    yield head("classification") + b"gj04\t1\t\tThe book.\ngj04\t0\t*\tBook the.\n"
    yield head("regression") + b"text\ttext2\tlabel\na\tb\t2\n"
    yield head("classification", UNLABELLED) + b"index\tsentence\n0\tone\n"


def jsonl_seeds() -> Iterator[bytes]:
    yield head("classification") + b'{"text": "a", "label": "x"}\n{"text": "b", "label": "y"}\n'
    yield head("multilabel") + b'{"text": "a", "labels": ["x", "y"]}\n{"text": "b", "labels": []}\n'
    yield head("tagging") + b'{"words": ["a", "b"], "tags": ["O", "B-X"]}\n'
    yield (
        head("qa") + b'{"id": 1, "question": "q", "context": "a b", "answers": {"text": ["b"], "answer_start": [2]}}\n'
    )


def conll_seeds() -> Iterator[bytes]:
    yield head("tagging") + b"-DOCSTART- -X- O O\n\nEU NNP B-NP B-ORG\nrejects VBZ B-VP O\n\na DT O O\n"
    yield head("tagging") + b"# text = a b\n1\ta\ta\tDET\n2-3\tbc\t_\t_\n2\tb\tb\tNOUN\n3\tc\tc\tX\n\n1\tb\tb\tVERB\n"


def squad_seeds() -> Iterator[bytes]:
    qa = {"id": "1", "question": "q", "answers": [{"text": "b", "answer_start": 2}]}
    paragraph = {"context": "a b c", "qas": [qa]}
    yield head("qa") + json.dumps({"version": "1.1", "data": [{"title": "t", "paragraphs": [paragraph]}]}).encode()
    impossible = dict(qa, id="2", is_impossible=True, answers=[])
    half = dict(paragraph, qas=[dict(qa, is_impossible=False), impossible])
    yield head("qa") + json.dumps({"version": "v2.0", "data": [{"paragraphs": [half]}]}).encode()


def parquet_seeds() -> Iterator[bytes]:
    import pyarrow
    import pyarrow.parquet

    tables = {
        "classification": {"text": ["a", "b"], "label": ["x", "y"]},
        "tagging": {"words": [["a", "b"], ["c"]], "tags": [["O", "X"], ["O"]]},
        "qa": {"id": ["1"], "question": ["q"], "context": ["a b"], "answers": [{"text": ["b"], "answer_start": [2]}]},
    }
    for kind, columns in tables.items():
        for options in ({"compression": "none"}, {"compression": "zstd", "use_dictionary": False}):
            file = io.BytesIO()
            pyarrow.parquet.write_table(pyarrow.table(columns), file, **options)
            yield head(kind) + file.getvalue()


ENDINGS = (".txt", ".tokens", ".jsonl", ".parquet", ".txt.gz", ".txt.xz", ".jsonl.gz", ".jsonl.xz")


def read_text(data: bytes, folder: Path) -> None:
    """The first byte chooses the ending, and whether the others are packed here or stand for the archive itself."""
    choice = data[0] if data else 0
    ending, content = ENDINGS[choice % len(ENDINGS)], data[1:]
    if choice & 128:
        content = {"z": lzma.compress, "g": gzip.compress}.get(ending[-2:][1:], bytes)(content) if content else b""
    path = folder / f"text{ending}"
    path.write_bytes(content)
    for document in itertools.islice(documents(path), MOST):
        expect(bool(document), "an empty document")
        for line in document:
            expect(bool(line.strip()) and not set("\n\0") & set(line), "an empty line, or a line with an end within")


def text_seeds() -> Iterator[bytes]:
    plain, rows = b"One line.\nAnother.\n\nA new one \xff.\n", b'{"text": "One.\\nTwo."}\n{"text": ""}\n{"text": "b"}\n'
    yield b"\x00" + plain
    yield b"\x01" + b" = Title = \n\n = = Part = = \n\n text \n"
    yield b"\x02" + rows
    yield b"\x04" + gzip.compress(plain, mtime=0)
    yield b"\x05" + lzma.compress(plain)
    yield b"\x86" + rows
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        return
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table({"text": ["One.\nTwo.", None, "b"]}), file)
    yield b"\x03" + file.getvalue()


def read_stream(data: bytes, folder: Path) -> None:
    """What `predict` reads from a pipe: a malformed line is an error of its own, and ends nothing."""
    kind = kind_of(data)
    for example in itertools.islice(stream_examples(data[1:].split(b"\n"), kind, name=str(folder)), MOST):
        if isinstance(example, Refused):
            expect(str(folder) in example.error, f"a refusal without its place: {example.error}")
        else:
            check_example(example, set())


def stream_seeds() -> Iterator[bytes]:
    yield head("classification") + b"a text\nanother\n\n"
    yield head("tagging") + b'{"words": ["a", "b"]}\n{"id": 3, "words": ["c"]}'
    yield head("qa") + b"q\ta context\n"


def read_minimal_pairs(data: bytes, folder: Path) -> None:
    (folder / "set.jsonl").write_bytes(data[1:])
    for pair in read_pairs(folder / "set.jsonl")[:MOST]:
        expect(isinstance(pair.good, str) and isinstance(pair.phenomenon, str), "a pair without its texts")
        expect(bool(pair.good.strip() and pair.bad.strip()), "an empty sentence")


def pair_seeds() -> Iterator[bytes]:
    yield b"\0" + b'{"sentence_good": "a b", "sentence_bad": "b a", "linguistics_term": "order"}\n'


TARGETS = [
    Target("csv", fresh(reader(".csv")), csv_seeds),
    Target("tsv", fresh(reader(".tsv")), tsv_seeds),
    Target("jsonl", fresh(reader(".jsonl")), jsonl_seeds, json=True),
    Target("conll", fresh(reader(".txt")), conll_seeds),
    Target("squad", fresh(reader(".json")), squad_seeds, json=True),
    Target("parquet", fresh(reader(".parquet")), parquet_seeds),
    Target("text", fresh(read_text), text_seeds),
    Target("stream", fresh(read_stream), stream_seeds, json=True),
    Target("pairs", fresh(read_minimal_pairs), pair_seeds, json=True),
]
