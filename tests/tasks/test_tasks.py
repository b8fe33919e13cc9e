"""Files of tasks: benchmarks as published, plain files, streams, and what is refused."""

import gzip
import io
import json
import lzma
import re
import sys
import tarfile
from pathlib import Path

import pytest

from electra_fast.tasks.datasets import read_dataset, stream_examples
from electra_fast.tasks.examples import (
    Columns,
    Dataset,
    Example,
    Question,
    Refused,
    Sentence,
    check_labels,
    sorted_labels,
)

GLUE = {
    "CoLA": ("cola", 8551, 1043),
    "MRPC": ("mrpc", 3667, 408),
    "RTE": ("rte", 2490, 277),
    "SST-2": ("sst2", 67349, 872),
    "STS-B": ("stsb", 5749, 1500),
    "WNLI": ("wnli", 635, 71),
    "QNLI": ("qnli", None, 5463),
}
STSB = "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore\n"
STSB_ROW = "0\tg\tf\ty\to\ts\ts\tone\ttwo\t{}\n"
TWO = "text,label\na,x\nb,y\n"
ONE, PAIR = '{"text": "a", "label": "x"}', '{"text": "a", "text2": "b", "label": "x"}'
CLASSES, NUMBERS, TAGS = "classification", "regression", "tagging"


def texts(*texts: str) -> list[Example]:
    return [Example(str(i), (text,)) for i, text in enumerate(texts)]


def write(path: Path, content: str | bytes) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.fixture
def glue(data):
    return tarfile.open(data / "glue" / "glue-nomnli.tar.xz")


@pytest.mark.parametrize("title", GLUE)
def test_glue(glue, tmp_path, title):
    """The official counts (MRPC's training file lacks one pair), and what the test files ask for."""
    name, train, dev = GLUE[title]
    with glue:
        members = [m for m in glue.getmembers() if m.name.startswith(f"{title}/") and m.name.endswith(".tsv")]
        glue.extractall(tmp_path, members)
    kind = "regression" if title == "STS-B" else "classification"
    for split, count in (("train", train), ("dev", dev)):
        if count:
            found = read_dataset(tmp_path / title / f"{split}.tsv", kind)
            assert (found.kind, found.name, len(found.examples)) == (kind, name, count)
            assert all(example.label is not None for example in found.examples)
            assert {len(example.texts) for example in found.examples} == {1 if title in ("CoLA", "SST-2") else 2}
            if kind == "classification":
                assert {example.label for example in found.examples} == set(found.labels)
    found = read_dataset(tmp_path / title / "test.tsv", kind, labelled=False)
    assert found.name == name and [e.id for e in found.examples] == [str(i) for i in range(len(found.examples))]


def test_conll2000(data):
    for split, count in (("train", 8936), ("test", 2012)):
        found = read_dataset(data / "conll2000" / f"{split}.txt.xz", "tagging")
        assert (found.name, len(found.examples), len(found.labels)) == ("conll2000", count, 23)
    assert found.examples[0].words[:3] == ("Rockwell", "International", "Corp.")
    assert found.examples[0].tags[:3] == ("B-NP", "I-NP", "I-NP")


def test_glue_quotes_are_characters(tmp_path):
    content = '\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n1\t7\t8\t" He said , ""\thim " .\r\n'
    found = read_dataset(write(tmp_path / "train.tsv", content), "classification")
    assert (found.name, found.labels) == ("mrpc", ["0", "1"])
    assert found.examples == [Example("0", ('" He said , ""', 'him " .'), "1")]


def test_cola_has_no_header(tmp_path):
    path = write(tmp_path / "train.tsv", "gj04\t1\t\tFine.\ngj04\t0\t*\tFine not.\n")
    found = read_dataset(path, "classification")
    assert found == Dataset(
        "classification", "cola", [Example("0", ("Fine.",), "1"), Example("1", ("Fine not.",), "0")], ["0", "1"]
    )
    with pytest.raises(ValueError, match="train.tsv, line 3 has 2 columns; 4 are wanted"):
        path = write(tmp_path / "train.tsv", "g\t1\t\ta\ng\t0\t*\tb\ng\t1\n")
        read_dataset(path, "classification", max_bad_lines=0)


@pytest.mark.parametrize(
    ("folder", "hint", "header", "name"),
    [
        ("RTE", None, "index\tsentence1\tsentence2", "rte"),
        ("WNLI", None, "index\tsentence1\tsentence2", "wnli"),
        ("x", "wnli", "index\tsentence1\tsentence2", "wnli"),
        ("x", None, "index\tsentence1\tsentence2", None),
        ("CoLA", None, "index\tsentence", "cola"),
        ("SST-2", None, "index\tsentence", "sst2"),
        ("CoLA", "sst2", "index\tsentence", "sst2"),
        ("CoLA", "rte", "index\tsentence", "cola"),
        ("x", None, "index\tquestion\tsentence", "qnli"),
    ],
)
def test_test_files_of_the_same_header(tmp_path, folder, hint, header, name):
    row = "7\t" + "\t".join("ab"[: header.count("\t")])
    path = write(tmp_path / folder / "test.tsv", f"{header}\n{row}\n")
    found = read_dataset(path, "classification", labelled=False, benchmark=hint)
    assert (found.name, found.examples) == (name, [Example("7", tuple("ab"[: header.count("\t")]))])


def test_other_labels_are_no_benchmark(tmp_path):
    """A file of one's own under a header of GLUE: read by it, with its own classes."""
    path = write(tmp_path / "a.tsv", "sentence\tlabel\na\tgood\nb\tbad\n")
    assert read_dataset(path, "classification") == Dataset(
        "classification", None, [Example("0", ("a",), "good"), Example("1", ("b",), "bad")], ["bad", "good"]
    )
    found = read_dataset(write(tmp_path / "b.tsv", STSB + STSB_ROW.format("7.5")), "regression")
    assert (found.name, found.examples) == (None, [Example("0", ("one", "two"), 7.5)])
    assert read_dataset(write(tmp_path / "b.tsv", STSB + STSB_ROW.format("5.0")), "regression").name == "stsb"
    found = read_dataset(write(tmp_path / "c.tsv", "sentence\tlabel\na\t1\n"), "regression")
    assert (found.name, found.examples[0].label) == (None, 1.0)


@pytest.mark.parametrize("pack", [lambda b: b, gzip.compress, lzma.compress], ids=["plain", "gz", "xz"])
@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl"])
def test_plain_formats_agree(tmp_path, pack, kind):
    rows = [("größer", "한국어", "ja"), ("zwei", "drei", "nein")]
    if kind == "jsonl":
        content = "\n\n".join(json.dumps(dict(text=a, text2=b, label=c)) for a, b, c in rows)
    else:
        by = {"csv": ",", "tsv": "\t"}[kind]
        content = (
            "\r\n".join(by.join(row) for row in [("label", "text2", "text"), *(row[::-1] for row in rows)]) + "\r\n"
        )
    path = write(
        tmp_path / f"a.{kind}{ {gzip.compress: '.gz', lzma.compress: '.xz'}.get(pack, '') }", pack(content.encode())
    )
    found = read_dataset(path, "classification")
    assert found.examples == [Example(str(i), (a, b), c) for i, (a, b, c) in enumerate(rows)]
    assert (found.name, found.labels) == (None, ["ja", "nein"])


def test_columns_by_name(tmp_path):
    path = write(tmp_path / "a.csv", 'key,stars,review,text2\nk1,4.5,"Good, ""very""\ngood",x\n')
    columns = Columns(text="review", text2=None, label="stars", id="key")
    assert read_dataset(path, "regression", columns=columns).examples == [Example("k1", ('Good, "very"\ngood',), 4.5)]
    columns = Columns(text="review", label="stars")
    assert read_dataset(path, "regression", columns=columns).examples[0].texts == ('Good, "very"\ngood', "x")
    with pytest.raises(
        ValueError, match="has the columns key, stars, review, text2; wanted are review, other, stars: rename"
    ):
        read_dataset(path, "regression", columns=Columns(text="review", text2="other", label="stars"))
    glue = write(tmp_path / "a.tsv", "sentence\tlabel\na\t1\n")  # named columns: no benchmark is looked for
    assert read_dataset(glue, "classification", columns=Columns(text="sentence")).name is None


def test_a_long_field(tmp_path):
    """Longer than the csv module takes by itself."""
    path = write(tmp_path / "a.csv", "text,label\n" + "word " * 50_000 + ",x\n")
    assert len(read_dataset(path, CLASSES).examples[0].texts[0]) == 250_000


def test_labels_of_json(tmp_path):
    rows = [{"text": "a", "label": label, "id": i} for i, label in enumerate([1, True, "x ", 1.5], 5)]
    path = write(tmp_path / "a.jsonl", "\n".join(map(json.dumps, rows)))
    found = read_dataset(path, "classification")
    assert [(e.id, e.label) for e in found.examples] == [("5", "1"), ("6", "true"), ("7", "x"), ("8", "1.5")]


def test_whole_numbers_are_sorted_as_numbers(tmp_path):
    """2 before 10: class n of a model is label n, as transformers has it."""
    numbers = [str(i) for i in range(12)]
    path = write(tmp_path / "a.csv", "text,label\n" + "".join(f"t,{n}\n" for n in reversed(numbers)))
    assert read_dataset(path, "classification").labels == numbers
    path = write(tmp_path / "a.txt", "".join(f"w {n}\n" for n in reversed(numbers)))
    assert read_dataset(path, "tagging").labels == numbers
    assert sorted_labels(["LABEL_10", "LABEL_9", "LABEL_9"]) == ["LABEL_9", "LABEL_10"]
    assert sorted_labels(["1", "-1", "0"]) == ["-1", "0", "1"]
    assert sorted_labels(["10", "9", "x"]) == ["10", "9", "x"]
    assert sorted_labels(["LABEL_10", "9"]) == ["9", "LABEL_10"]


def test_without_labels(tmp_path):
    path = write(tmp_path / "a.csv", "text,label\na,\n,y\n")
    assert read_dataset(path, "classification", labelled=False) == Dataset(
        "classification", None, [Example("0", ("a",)), Example("1", ("",))], []
    )
    path = write(tmp_path / "a.txt", "one\n\nthree\n")
    assert [e.texts for e in read_dataset(path, "regression", labelled=False).examples] == [("one",), ("",), ("three",)]
    path = write(tmp_path / "b.tsv", "who?\tme, of course\n")
    assert read_dataset(path, "qa", labelled=False).examples == [Question("0", "who?", "me, of course")]


def test_columns_of_words(tmp_path):
    content = "-DOCSTART- -X- O\n\nEU NNP B-ORG\nrejects VBZ O \n\n\n# # O\n\u00a0 SP O\n"
    path = write(tmp_path / "a.conll", content)
    found = read_dataset(path, "tagging")
    assert (found.name, found.labels) == (None, ["B-ORG", "O"])
    assert found.examples == [
        Sentence("0", ("EU", "rejects"), ("B-ORG", "O")),
        Sentence("1", ("#", "\u00a0"), ("O", "O")),
    ]
    assert read_dataset(path, "tagging", labelled=False).examples[0] == Sentence("0", ("EU", "rejects"))
    path = write(tmp_path / "b.txt", "New York\tB-LOC\nis\tO\n")
    assert read_dataset(path, "tagging").examples == [Sentence("0", ("New York", "is"), ("B-LOC", "O"))]
    path = write(tmp_path / "c.txt", "one\ntwo\n\nthree")
    assert [s.words for s in read_dataset(path, "tagging", labelled=False).examples] == [("one", "two"), ("three",)]
    path = write(tmp_path / "d.jsonl", '{"id": "x", "words": ["a b", "c"], "tags": ["T", "O"]}')
    assert read_dataset(path, "tagging").examples == [Sentence("x", ("a b", "c"), ("T", "O"))]


@pytest.mark.parametrize(
    ("kind", "lines", "wanted"),
    [
        ("classification", ["\ufeffone text\r\n", "\n", "last"], texts("one text", "", "last")),
        ("regression", ["a\tb\n", "c\td\n"], [Example("0", ("a", "b")), Example("1", ("c", "d"))]),
        (CLASSES, [' {"text": "a", "id": 7}\n', "\n", '{"text": "b"}'], [Example("7", ("a",)), texts("", "b")[1]]),
        ("tagging", ["\n", "two  words\n"], [Sentence("0", ("two", "words"))]),
        ("tagging", ['{"words": ["a b", "c"]}'], [Sentence("0", ("a b", "c"))]),
        ("qa", ["who?\tme\n"], [Question("0", "who?", "me")]),
        ("qa", ['{"question": "who?", "context": "me", "id": "q"}'], [Question("q", "who?", "me")]),
    ],
)  # fmt: skip
def test_stream(monkeypatch, kind, lines, wanted):
    assert list(stream_examples((line.encode() for line in lines), kind)) == wanted
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("".join(lines).encode())))
    assert read_dataset("-", kind, labelled=False).examples == wanted


def test_columns_of_a_stream():
    row = b'{"key": "k", "review": "a", "text": "b"}'
    assert list(stream_examples([row], CLASSES, columns=Columns(text="review", id="key"))) == [Example("k", ("a",))]


def test_stream_is_one_by_one():
    def lines():
        yield b"first\n"
        raise AssertionError("read ahead")

    assert next(stream_examples(lines(), "classification")) == Example("0", ("first",))


@pytest.mark.parametrize(
    ("kind", "lines", "message"),
    [
        (
            "classification",
            ["a\n", "b\tc\n"],
            "stdin, line 2 has 2 texts; 1, as the model or the first line has, are wanted",
        ),
        ("classification", ["a\tb\tc"], "stdin, line 1 has 3 texts; one text, or two with a tab between them"),
        ("classification", ['{"body": "a"}'], "stdin, line 1 has the fields body; 'text' is wanted"),
        ("classification", ['{"text": "a"}\n', "b"], "stdin, line 2 is no JSON"),
        ("qa", ["no context\n"], "stdin, line 1 has 1 part; a question, a tab and a context are wanted"),
        ("tagging", ['{"words": "a b"}'], "stdin, line 1 has 'a b' in \"words\"; write a list of strings"),
    ],
)
def test_a_refused_line_of_a_stream_does_not_end_it(kind, lines, message):
    """A row for each line, in order: what is wrong with it, or its example; the lines behind it are as they were."""
    good = {"qa": b"who?\tme\n", "tagging": b'{"words": ["a"]}\n'}.get(kind, b"a\n")
    if lines[0].startswith("{") and kind == "classification":
        good = b'{"text": "a"}\n'
    whole = [line.rstrip("\n").encode() + b"\n" for line in lines]
    found = list(stream_examples([*whole, good], kind))
    assert [each.id for each in found] == list(map(str, range(len(lines) + 1)))
    refused, last = found[-2:]
    assert isinstance(refused, Refused) and re.match(message, refused.error) and refused.line == len(lines)
    assert not isinstance(last, Refused)


def test_refused_lines_of_a_stream():
    lines = [b"a\n", b"b\xff\n", b"c\0\n", b"\xff\xfea\0", b"d\te\n", b"f\n"]
    first, *refused, last = stream_examples(lines, "classification")
    assert (first, last) == (Example("0", ("a",)), Example("5", ("f",)))
    said = "holds the byte 0xff", "holds a NUL", "is UTF-16", "has 2 texts"
    for i, (each, text) in enumerate(zip(refused, said, strict=True), 2):
        assert f"stdin, line {i} {text}" in each.error
    named, _ = stream_examples([b'{"id": "k", "text": 5}\n', b'{"text": "a"}'], "classification")
    assert named == Refused("k", "stdin, line 1 has a number in 'text'; write a string there", 1)
    with pytest.raises(ValueError, match="the kind of task is 'sorting'; it must be one of classification, multilabel"):
        next(stream_examples([b"a"], "sorting"))


def test_a_stray_tab_in_the_first_line_is_that_line_s_error():
    """Where the model says how many texts it was trained with; the others are read."""
    first, *rest = stream_examples([b"a\tb\n", b"c\n", b"d\n"], "classification", texts=1)
    assert isinstance(first, Refused) and "line 1 has 2 texts; 1, as the model" in first.error
    assert rest == [Example("1", ("c",)), Example("2", ("d",))]


def test_refused_lines_of_a_file_are_left_out(tmp_path):
    path = write(tmp_path / "a.txt", "a\nb\tc\nd\n")
    found = read_dataset(path, "classification", labelled=False)
    assert found.examples == [Example("0", ("a",)), Example("2", ("d",))]
    assert found.notes == (
        f"{path}: left out 1 malformed line (2), the first of which: {path}, line 2 has 2 texts; 1, as the model or "
        "the first line has, are wanted",
    )


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.jsonl", '{"text": "x", "labels": ["joy", "a, b"]}\n{"text": "y", "labels": []}\n'
                    '{"text": "z", "labels": "joy"}\n{"text": "w", "labels": [10, 9]}\n'),
        ("a.csv", "text,labels\nx,\"joy| a, b\"\ny,\nz,joy\nw,10|9\n"),
        ("a.tsv", "text\tlabel\nx\tjoy|a, b\ny\t\nz\tjoy\nw\t10|9\n"),
    ],
)  # fmt: skip
def test_sets_of_labels(tmp_path, name, content):
    """Lists in .jsonl, which also classification recognises; a bar between labels elsewhere."""
    path = write(tmp_path / name, content)
    wanted = [("joy", "a, b"), (), ("joy",), ("10", "9")]
    found = read_dataset(path, "multilabel")
    assert [e.label for e in found.examples] == wanted
    assert (found.kind, found.name, sorted(found.labels)) == ("multilabel", None, ["10", "9", "a, b", "joy"])
    if name == "a.jsonl":
        assert read_dataset(path, "classification") == found
    unlabelled = read_dataset(path, "multilabel", labelled=False).examples
    assert [(e.texts, e.label) for e in unlabelled] == [((text,), None) for text in "xyzw"]


def test_go_emotions_file_as_published(tmp_path):
    """data/train.tsv of GoEmotions has no header: text, numbers with commas, id. Under a header it is read as it is."""
    path = write(tmp_path / "a.tsv", "text\tlabel\tid\nGood.\t2,14\teb\nWell\t27\ted\n")
    found = read_dataset(path, "multilabel")
    assert [e.label for e in found.examples] == [("2", "14"), ("27",)] and found.labels == ["2", "14", "27"]


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (
            "[0, 1, 0]",
            "has the label '0' twice in 'label'; write those that apply, each once, and not 0 or 1 for every",
        ),
        ('["joy", null]', "has null in 'label'; write a list of labels there"),
        ('["joy", " "]', "has \" \" in 'label'"),
        ("null", "has nothing in 'label'; give each example its label"),
        ('{"joy": 1}', "has an object in 'label'"),
    ],
)
def test_what_is_no_set_of_labels(tmp_path, label, message):
    path = write(tmp_path / "a.jsonl", f'{{"text": "x", "label": {label}}}')
    with pytest.raises(ValueError, match=message):
        read_dataset(path, "multilabel", max_bad_lines=0)


@pytest.mark.parametrize(
    ("file", "content", "kind", "message"),
    [
        ("a.csv", "", CLASSES, "a.csv is empty; name a file with examples"),
        ("a.csv", "\n \n", CLASSES, "a.csv is empty"),
        ("a.csv", "text,label\n", CLASSES, r"a.csv has a header \(text, label\) and no rows"),
        ("a.csv", "review,label\na,x\n", CLASSES, r"columns review, label; wanted are text, label \(text2 for"),
        ("a.csv", "text,text\na,x\n", CLASSES, "a.csv has two columns named 'text'"),
        ("a.csv", "text,label\na,x\n\nb\n", CLASSES, r"a.csv, line 4 has 1 column; 2 are wanted \(text, label\)$"),
        ("a.csv", 'text,label\n"a\nb",x\n"c,y\n', CLASSES, "a.csv, the row from line 4 on is no CSV"),
        ("a.csv", 'text,label\n"a" b,x\n', CLASSES, "a.csv, the row from line 2 on is no CSV"),
        ("a.csv", "text,label\na, \n", CLASSES, "line 2 has an empty string in 'label'"),
        ("a.csv", "id,text,label\n3,a,x\n3,b,y\n", CLASSES, "a.csv has the id 3 twice"),
        ("a.csv", "id,text,label\n,a,x\n", CLASSES, "a.csv, line 2 has the id ''"),
        ("a.tsv", "text\tlabel\na\tb\tx\n", CLASSES, "a.tsv, line 2 has 3 columns; 2 are wanted .*with a tab"),
        ("a.tsv", "text\tlabel\na\tx\n\nb\ty\n", CLASSES, "a.tsv, line 3 has 1 column"),
        ("a.tsv", "index\tsentence\n0\ta\n", CLASSES, "has the columns index, sentence: a test file, without"),
        ("a.tsv", STSB + STSB_ROW.format("5.0"), CLASSES, "a.tsv is STS-B by its columns, a task of regression"),
        ("a.csv", "text,label\na,1.5\nb,high\n", NUMBERS, "line 3 has the label 'high'; regression needs a finite"),
        ("a.csv", "text,label\na,nan\n", NUMBERS, "line 2 has the label 'nan'"),
        ("a.jsonl", '{"text": "a", "label": true}', NUMBERS, "line 1 has the label True"),
        ("a.jsonl", '{"text": "a", "label": 1' + "0" * 400 + "}", NUMBERS, "line 1 has the label 1000"),
        ("a.jsonl", '{"text": "a", "label": NaN}', NUMBERS, "line 1 has the label nan"),
        ("a.jsonl", '{"text": "a", "label": null}', CLASSES, "line 1 has nothing in 'label'"),
        ("a.jsonl", '{"text": "a", "label": ["x"]}', "regression", "line 1 has the label list; regression needs"),
        ("a.jsonl", '{"text": "a", "label": "x"}\n{"text": ', CLASSES, "a.jsonl, line 2 is no JSON"),
        ("a.jsonl", "[" * 100_000, CLASSES, "a.jsonl, line 1 is no JSON"),
        ("a.jsonl", "[1]", CLASSES, "a.jsonl, line 1 is a list; each line is an object"),
        ("a.jsonl", "{}", CLASSES, "a.jsonl, line 1 is an object without fields"),
        ("a.jsonl", '{"text": 3, "label": "x"}', CLASSES, "line 1 has a number in 'text'; write a string"),
        ("a.jsonl", '{"text": "a", "label": "x"}\n{"label": "x"}', CLASSES, "line 2 has the fields label; 'text'"),
        ("a.jsonl", f"{PAIR}\n{ONE}", CLASSES, "line 2 has the fields text, label; 'text2'"),
        ("a.jsonl", f"{ONE}\n{PAIR}", CLASSES, "line 2 has a second text, 'text2', and the first row has none"),
        ("a.jsonl", '{"text": "a", "label": "x", "id": [1]}', CLASSES, r"line 1 has the id \[1\]"),
        ("a.txt", "text", CLASSES, "a.txt ends in .txt and has no tab in its first line; labelled texts"),
        ("a", "text", CLASSES, "a ends in nothing"),
        ("a.csv", b"text,label\na,x\nb\xe4,y\n", CLASSES, "line 3 holds the byte 0xe4, which is no UTF-8; .*iconv"),
        ("a.csv", TWO.encode("utf-16"), CLASSES, "a.csv, line 1 is UTF-16"),
        ("a.csv", b"text,label\na\0,x\n", CLASSES, "a.csv, line 2 holds a NUL"),
        ("a.csv.gz", gzip.compress(TWO.encode() * 99, mtime=0)[:-9], CLASSES, "a.csv.gz is a damaged .gz archive"),
        ("a.csv.gz", TWO, CLASSES, "a.csv.gz is a damaged .gz archive"),
        ("a.csv.xz", lzma.compress(TWO.encode() * 99)[:-9], CLASSES, "a.csv.xz is a damaged .xz archive"),
        ("a.txt", "a X O\nb O\n", TAGS, "a.txt, line 2 has 2 columns and 3 are wanted; write as many"),
        ("a.txt", "a\nb\n", TAGS, "a.txt, line 1 has one column; a word and its tag are wanted"),
        ("a.txt", "-DOCSTART- O\n\n", TAGS, "a.txt has no sentences"),
        ("a.txt", "a\tO\nb\t\tO", TAGS, "a.txt, line 2 has 3 columns"),
        ("a.csv", "a,O\n", TAGS, "a.csv ends in .csv; tagging is read from columns"),
        ("a.jsonl", '{"words": ["a", "b"], "tags": ["O"]}', TAGS, "line 1 has 2 words and 1 tag; each word has one"),
        ("a.jsonl", '{"words": ["a"]}', TAGS, "line 1 has the fields words and no \"tags\"; write a list"),
        ("a.jsonl", '{"words": [], "tags": []}', TAGS, r"line 1 has \[\] in \"words\""),
        ("a.jsonl", '{"words": ["a", " "], "tags": ["O", "O"]}', TAGS, r"line 1 has ' ' as \"words\"\[1\]"),
        ("a.jsonl", '{"words": ["a"], "tags": [true]}', TAGS, r"line 1 has True as \"tags\"\[0\]"),
        ("a.json", "{", "qa", "a.json is no JSON"),
        ("a.csv", TWO, "sorting", "the kind of task is 'sorting'"),
    ],
)  # fmt: skip
def test_refused(tmp_path, file, content, kind, message):
    with pytest.raises(ValueError, match=message) as caught:
        read_dataset(write(tmp_path / file, content), kind, max_bad_lines=0)
    assert "\n" not in str(caught.value)[:500]


def test_no_such_file(tmp_path, monkeypatch):
    for kind, ending in (("classification", "tsv"), ("tagging", "txt"), ("qa", "json")):
        with pytest.raises(FileNotFoundError, match=f"there is no file .*no.{ending}; check the name"):
            read_dataset(tmp_path / f"no.{ending}", kind)
        with pytest.raises(ValueError, match="is a directory, not a file of examples"):
            read_dataset(tmp_path, kind, labelled=kind == "qa")
    with pytest.raises(ValueError, match="labels are not read from stdin"):
        read_dataset("-", "classification")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"")))
    with pytest.raises(ValueError, match="stdin is empty"):
        read_dataset("-", "classification", labelled=False)


def test_unseen_labels(tmp_path):
    train = read_dataset(write(tmp_path / "train.csv", TWO), "classification")
    dev = read_dataset(write(tmp_path / "dev.csv", "text,label\na,x\nb,z\n"), "classification")
    check_labels(train, train, "train.csv")
    with pytest.raises(
        ValueError, match="dev.csv has the label 'z' .example 1., which training lacks; it knows x, y: mend"
    ):
        check_labels(train, dev, "dev.csv")
    single = read_dataset(write(tmp_path / "one.csv", "text,label\na,x\n"), "classification")
    with pytest.raises(ValueError, match="all examples of training have the label 'x'"):
        check_labels(single, single, "one.csv")
    train = read_dataset(write(tmp_path / "a.txt", "a O\n"), "tagging")
    dev = read_dataset(write(tmp_path / "b.txt", "a O\n\nb O\nc B-X\n"), "tagging")
    with pytest.raises(ValueError, match="b.txt has the label 'B-X' .sentence 1., which training lacks; it knows O"):
        check_labels(train, dev, "b.txt")
    numbers = Dataset("regression", None, [Example("0", ("a",), 1.0)], [])
    check_labels(numbers, numbers, "c.csv")
    check_labels(train, Dataset("tagging", None, [Sentence("0", ("a",))], []), "d.txt")
