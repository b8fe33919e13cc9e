"""Tables: published files by their header, .parquet, malformed lines, and what would fill the memory or hang."""

import gzip
import json
import lzma
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from electra_fast.tasks.datasets import read_dataset, unlabelled_examples
from electra_fast.tasks.examples import Columns, Dataset, Example
from electra_fast.tasks.files import LONGEST_LINE, Malformed

PARSES = "sentence1_binary_parse sentence2_binary_parse sentence1_parse sentence2_parse sentence1 sentence2"
VOTES = "label1 label2 label3 label4 label5"
NLI = ["contradiction", "entailment", "neutral"]


def write(path: Path, content: str) -> Path:
    path.write_text(content)
    return path


GLUE_MNLI, GLUE_SNLI = f"index promptID pairID genre {PARSES}", f"index captionID pairID {PARSES}"


@pytest.mark.parametrize(
    ("file", "header", "name", "id"),
    [
        ("train.tsv", "id qid1 qid2 question1 question2 is_duplicate", "qqp", "7"),
        ("train.tsv", f"{GLUE_MNLI} label1 gold_label", "mnli", "7"),
        ("dev_matched.tsv", f"{GLUE_MNLI} {VOTES} gold_label", "mnli", "7"),
        ("dev.tsv", f"{GLUE_SNLI} {VOTES} gold_label", "snli", "7"),
        ("multinli_1.0_train.txt", f"gold_label {PARSES} promptID pairID genre {VOTES}", "mnli", "0"),
        ("snli_1.0_dev.txt", f"gold_label {PARSES} captionID pairID {VOTES}", "snli", "0"),
    ],
)
def test_published_files_are_known_by_their_header(tmp_path: Path, file: str, header: str, name: str, id: str) -> None:
    cells = dict(sentence1="a", sentence2="b", question1="a", question2="b", index="7", id="7")
    cells |= dict(gold_label="neutral", is_duplicate="0")
    row = "\t".join(cells.get(column, "") for column in header.split())
    path = write(tmp_path / file, header.replace(" ", "\t") + f"\n{row}\n")
    found = read_dataset(path, "classification", max_bad_lines=0)
    label, labels = ("0", ["0", "1"]) if name == "qqp" else ("neutral", NLI)
    assert found == Dataset("classification", name, [Example(id, ("a", "b"), label)], labels)


def test_published_files_without_labels(tmp_path: Path) -> None:
    for header, row, name in (
        ("id question1 question2", "7 a b", "qqp"),
        (GLUE_MNLI, "7 1 1n g p p p p a b", "mnli"),
        (f"{GLUE_MNLI} label1 gold_label", "7 1 1n g p p p p a b - -", "mnli"),
    ):
        for file in ("test.tsv", "test.txt"):
            path = write(tmp_path / file, f"{header}\n{row}\n".replace(" ", "\t"))
            found = read_dataset(path, "classification", labelled=False)
            assert (found.name, found.examples) == (name, [Example("7", ("a", "b"))])


def test_rows_without_a_majority_are_left_out(tmp_path: Path) -> None:
    """SNLI's and MultiNLI's "-" is no class; it is what the annotators did not agree on."""
    row = dict.fromkeys(f"annotator_labels captionID gold_label pairID {PARSES}".split(), "x")
    row |= dict(sentence1="a", sentence2="b")
    rows = [row | dict(gold_label=label) for label in ("-", "neutral", "-")]
    path = write(tmp_path / "snli_1.0_dev.jsonl", "\n".join(map(json.dumps, rows)))
    found = read_dataset(path, "classification", max_bad_lines=0)
    assert (found.name, found.examples) == ("snli", [Example("1", ("a", "b"), "neutral")])
    assert found.notes == (f"{path}: left out 2 examples without a majority label (-)",)
    plain = write(tmp_path / "a.tsv", "text\tlabel\na\t-\nb\t+\n")  # elsewhere it is a label like others
    assert read_dataset(plain, "classification").labels == ["+", "-"]


def test_text_with_tabs(tmp_path: Path) -> None:
    path = write(tmp_path / "a.txt", "text\tlabel\none\tx\n\ty\n")
    wanted = [Example("0", ("one",), "x"), Example("1", ("",), "y")]
    assert read_dataset(path, "classification", max_bad_lines=0).examples == wanted
    bare = read_dataset(path, "classification", labelled=False, max_bad_lines=0)
    assert bare.examples == [Example(e.id, e.texts) for e in wanted]
    path = write(tmp_path / "b.txt", "one\ttwo\n")  # no name of a column: two texts, as on stdin
    assert read_dataset(path, "classification", labelled=False).examples == [Example("0", ("one", "two"))]


@pytest.mark.parametrize(
    ("file", "line", "message"),
    [
        ("a.tsv", "b", "a.tsv, line 3 has 1 column; 2 are wanted"),
        ("a.csv", "b,x,y", "a.csv, line 3 has 3 columns; 2 are wanted"),
        ("a.csv", '"b" c,x', "a.csv, the row from line 3 on is no CSV"),
        ("a.tsv", "b\t ", "a.tsv, line 3 has an empty string in 'label'"),
        ("a.tsv", "b\udcff\tx", "a.tsv, line 3 holds the byte 0xff"),
        ("a.tsv", "b\0\tx", "a.tsv, line 3 holds a NUL"),
        ("a.jsonl", '{"text": ', "a.jsonl, line 3 is no JSON"),
        ("a.jsonl", '{"text": 3, "label": "x"}', "a.jsonl, line 3 has a number in 'text'"),
        (
            "a.jsonl",
            '{"text": "b", "label": ' + "[" * 900 + "]" * 900 + "}",
            "a.jsonl, line 3 is no JSON .maximum recursion",
        ),
        ("a.jsonl", '{"text": "b", "label": {"x": 1}}', "a.jsonl, line 3 has an object in 'label'"),
    ],
)
def test_a_malformed_line_is_left_out_and_told(tmp_path: Path, file: str, line: str, message: str) -> None:
    kind = file[1:]
    rows = [{".tsv": f"{t}\t{label}", ".csv": f"{t},{label}", ".jsonl": json.dumps(dict(text=t, label=label))}[kind]
            for t, label in (("text", "label"), ("a", "x"), ("c", "y"))]  # fmt: skip
    path = tmp_path / file
    path.write_text("\n".join([*rows[:2], line, rows[2]]), "utf-8", "surrogateescape")
    found = read_dataset(path, "classification")
    ids = ["0", "1", "3"] if kind == ".jsonl" else ["0", "2"]  # rows are counted as they lie in the file
    assert [e.id for e in found.examples] == ids and found.examples[-1].texts == ("c",)
    (note,) = found.notes
    assert note.startswith(f"{path}: left out 1 malformed line (3), the first of which: {path}")
    with pytest.raises(ValueError, match=message):
        read_dataset(path, "classification", max_bad_lines=0)


def test_too_many_malformed_lines(tmp_path: Path) -> None:
    good, bad = "text\tlabel\na\tx\n", "bad\n" * 10
    path = write(tmp_path / "a.tsv", good + bad)
    (note,) = read_dataset(path, "classification").notes
    assert note.startswith(f"{path}: left out 10 malformed lines (3; 4; 5; 6; 7; 8; 9; 10; 11; 12), the first")
    path = write(tmp_path / "a.tsv", good + bad + "bad\n")
    message = "a.tsv has more than 10 malformed lines, the first of which: .*, line 3 has 1 column; .* --max-bad-lines"
    for labelled in (True, False):
        with pytest.raises(ValueError, match=message):
            read_dataset(path, "classification", labelled=labelled)
    assert len(read_dataset(path, "classification", max_bad_lines=11).examples) == 1
    path = write(tmp_path / "b.tsv", "text\tlabel\nbad\n")
    with pytest.raises(ValueError, match="b.tsv, line 2 has 1 column"):  # nothing is left
        read_dataset(path, "classification")
    swallowed = "text,label\na,x\n" + '"b,x\n' + "c,y\n" * 20 + 'd"e,x\nf,y\n'
    path = write(tmp_path / "c.csv", swallowed)  # one quote too many, and its row has 22 lines
    with pytest.raises(ValueError, match="more than 10 malformed lines, .*the row from line 3 on is no CSV"):
        read_dataset(path, "classification")
    path = write(tmp_path / "d.csv", 'text,label\na,x\n"b,x\nc,y\n')
    with pytest.raises(ValueError, match="d.csv, the row from line 3 on is no CSV .unexpected end of data"):
        read_dataset(path, "classification", max_bad_lines=100)


def table(**columns: list[Any]) -> Any:
    return pytest.importorskip("pyarrow").table(columns)


def test_parquet(tmp_path: Path) -> None:
    import pyarrow.parquet

    path = tmp_path / "train.parquet"
    numbers = [10, 2, 9]
    pyarrow.parquet.write_table(table(text=["a", "größer", ""], label=numbers, vector=[[0.5]] * 3), path)
    found = read_dataset(path, "classification", max_bad_lines=0)
    assert found.labels == ["2", "9", "10"]
    assert found.examples == [Example("0", ("a",), "10"), Example("1", ("größer",), "2"), Example("2", ("",), "9")]
    assert [e.label for e in read_dataset(path, "regression").examples] == [10.0, 2.0, 9.0]
    bare = read_dataset(path, "classification", labelled=False)
    assert [e.texts for e in bare.examples] == [("a",), ("größer",), ("",)]
    pyarrow.parquet.write_table(table(premise=["a"], hypothesis=["b"], label=[True], idx=["k"]), path)
    columns = Columns(text="premise", text2="hypothesis", id="idx")
    assert read_dataset(path, "classification", columns=columns).examples == [Example("k", ("a", "b"), "true")]
    pyarrow.parquet.write_table(table(text=["a", "b"], labels=[["x", "y"], []]), path)
    sets = read_dataset(path, "multilabel")
    assert sets == read_dataset(path, "classification") and [e.label for e in sets.examples] == [("x", "y"), ()]
    pyarrow.parquet.write_table(table(words=[["a b", "c"]], tags=[["X", "Y"]]), path)
    assert read_dataset(path, "tagging").examples[0].words == ("a b", "c")


def test_parquet_that_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow.parquet

    path = tmp_path / "a.parquet"

    def refused(message: str, **options: Any) -> None:
        with pytest.raises((ValueError, ImportError), match=message) as caught:
            read_dataset(path, "classification", **options)
        assert str(path) in str(caught.value) and "\n" not in str(caught.value)

    pyarrow.parquet.write_table(table(text=["a", None, "c"], label=["x", "y", None]), path)
    refused("a.parquet, row 2 has nothing in 'text'", max_bad_lines=0)
    (note,) = read_dataset(path, "classification").notes
    assert "left out 2 malformed lines (2; 3)" in note
    whole = path.read_bytes()
    for damaged in (whole[:-9], b"PAR1" + whole[4:40] + whole[60:], whole[:4] + b"\xff" * 200 + whole[204:], b"text"):
        path.write_bytes(damaged)
        refused("a.parquet is no readable parquet file|a.parquet, row|a.parquet has (more than|a damaged page header)")
    pyarrow.parquet.write_table(table(text=["a"], label=[{"x": 1}]), path)
    refused("a.parquet, row 1 has an object in 'label'")
    pyarrow.parquet.write_table(table(text=[], label=[]), path)
    refused("a.parquet has the columns text, label and no rows")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    refused("a.parquet needs pyarrow, which is not installed; run: pip install 'electra_fast.parquet.'")


def test_a_pipe_is_refused_at_once(tmp_path: Path) -> None:
    """Opening one waits for its writer, for ever where there is none."""
    os.mkfifo(tmp_path / "a.tsv")
    for kind in ("classification", "tagging", "qa"):
        for labelled in (True, False):
            with pytest.raises(ValueError, match="a.tsv is a pipe or a device, not a regular file; write the examples"):
                read_dataset(tmp_path / "a.tsv", kind, labelled=labelled)


def test_a_line_without_end(tmp_path: Path) -> None:
    path = tmp_path / "a.tsv.gz"
    with gzip.open(path, "wb", 1) as file:
        file.write(b"text\tlabel\n")
        for _ in range((LONGEST_LINE >> 20) + 1):
            file.write(b" " * (1 << 20))
    with pytest.raises(ValueError, match="a.tsv.gz, line 2 is longer than 64 MB; write an example per line"):
        read_dataset(path, "classification")


FLAT = """
import gc, resource, sys
from electra_fast.tasks.datasets import unlabelled_examples
from electra_fast.tasks.files import Malformed

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

path, kind = sys.argv[1:]
gc.collect()
before = most = resident()
examples = unlabelled_examples(path, kind, Malformed(path, 10))
for count, _ in enumerate(examples, 1):
    if count % 1000 == 0:
        most = max(most, resident())
print(count, most - before)
"""


@pytest.mark.parametrize(
    ("file", "kind", "line"),
    [
        pytest.param("a.txt.xz", "classification", "a film to remember " * 5, marks=pytest.mark.slow),
        pytest.param("a.tsv.gz", "classification", "a film to remember " * 5 + "\tx", marks=pytest.mark.slow),
        pytest.param("a.csv.xz", "regression", "a film to remember " * 5 + ",1", marks=pytest.mark.slow),
        ("a.jsonl.gz", "classification", json.dumps({"text": "a film to remember " * 5})),
        ("a.conll.xz", "tagging", "longer-words O\n" * 7),
        pytest.param(
            "a.jsonl.xz", "qa", json.dumps({"question": "Who?", "context": "a film " * 10}), marks=pytest.mark.slow
        ),
    ],
    ids=lambda value: value[:6],
)
def test_memory_does_not_grow_with_the_file(tmp_path: Path, file: str, kind: str, line: str) -> None:
    """100,000 examples, which as a list take 38 MB, are handed out in less than 20 MB; 8 of these xz needs."""
    path, count = tmp_path / file, 100_000
    pack: Callable[..., Any] = lzma.open if file.endswith("xz") else gzip.open
    with pack(path, "wt") as stream:
        stream.write({".tsv": "text\tlabel\n", ".csv": "text,label\n"}.get(Path(path.stem).suffix, ""))
        stream.write(f"{line}\n" * count)
    run = subprocess.run([sys.executable, "-c", FLAT, path, kind], capture_output=True, text=True, check=True)
    found, grown = map(int, run.stdout.split())
    assert found == count and grown < 20 << 20


def test_unlabelled_examples_are_those_of_the_dataset(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "text,label\na,x\nb\nc,y\n")
    malformed = Malformed(path, 10)
    found = list(unlabelled_examples(path, "classification", malformed))
    assert found == read_dataset(path, "classification", labelled=False).examples == [
        Example("0", ("a",)), Example("2", ("c",))
    ]  # fmt: skip
    assert malformed.notes()[0].startswith(f"{path}: left out 1 malformed line (3)")
