"""Readers of sources and references, and what they say of files that do not fit."""

import gzip
import json
from pathlib import Path

import pytest

from electra_fast.seq2seq.pairs import Pair, pairs_of_lines, read_pairs, read_parallel
from electra_fast.tasks.examples import Columns, Refused


def test_tables_have_a_column_of_sources_and_one_of_targets(tmp_path: Path) -> None:
    csv = tmp_path / "a.csv"
    csv.write_text('document,summary\n"one, two",one\nthree,3\n')
    assert read_pairs(csv, "summarization")[0] == [Pair("0", ("one, two",), ("one",)), Pair("1", ("three",), ("3",))]
    tsv = tmp_path / "a.tsv"
    tsv.write_text("id\ten\tde\nx\ta cat\teine Katze\n")
    columns = Columns(text="en", label="de")
    assert read_pairs(tsv, "translation", columns)[0] == [Pair("x", ("a cat",), ("eine Katze",))]


def test_rows_of_scitldr_have_sentences_and_several_references(tmp_path: Path) -> None:
    row = {"source": ["A first.", "A second."], "source_labels": [1, 0], "target": ["short", "brief"], "paper_id": "P"}
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps(row) + "\n")
    assert read_pairs(path, "summarization")[0] == [Pair("P", ("A first. A second.",), ("short", "brief"))]
    (pair,), _ = read_pairs(path, "extractive")
    assert pair.sentences == ("A first.", "A second.")


def test_squad_gives_a_question_its_context_and_its_answers(tmp_path: Path) -> None:
    answers = [
        {"text": "a cat", "answer_start": 0},
        {"text": "a cat", "answer_start": 0},
        {"text": "cat", "answer_start": 2},
    ]
    qas = [{"id": "q", "question": "what?", "answers": answers}]
    path = tmp_path / "a.json"
    path.write_text(json.dumps({"version": "1.1", "data": [{"paragraphs": [{"context": "a cat sees", "qas": qas}]}]}))
    assert read_pairs(path, "answering")[0] == [Pair("q", ("what?", "a cat sees"), ("a cat", "cat"))]


def test_line_n_of_one_file_belongs_to_line_n_of_the_other(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "a.en.gz", "wt") as file:
        file.write("one\ntwo\n")
    (tmp_path / "a.de").write_text("eins\nzwei\n")
    assert read_parallel(tmp_path / "a.en.gz", tmp_path / "a.de") == [
        Pair("0", ("one",), ("eins",)),
        Pair("1", ("two",), ("zwei",)),
    ]


@pytest.mark.parametrize(
    ("en", "de", "sentence"),
    [
        ("a\nb\nc\n", "a\n", "x.de has 1 line and .*x.en 3: line 2 of .*x.en has no counterpart"),
        ("a\n", "a\nb\n", "x.en has 1 line and .*x.de 2: line 2 of .*x.de has no counterpart"),
        ("a\n\nc\n", "a\nb\nc\n", "x.en, line 2 is empty; fill it, or drop it from both files"),
        ("a\nb\n", "a\n \n", "x.de, line 2 is empty"),
        ("", "a\n", "x.en is empty; name a file"),
    ],
)
def test_sides_that_do_not_fit_are_told_by_their_line(tmp_path: Path, en: str, de: str, sentence: str) -> None:
    (tmp_path / "x.en").write_text(en)
    (tmp_path / "x.de").write_text(de)
    with pytest.raises(ValueError, match=sentence):
        read_parallel(tmp_path / "x.en", tmp_path / "x.de")


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("a.csv", "a,b\n1,2\n", "has the columns a, b; a source is read from source or text or document or article"),
        ("a.csv", "text,b\n1,2\n", "a target is read from target or summary .*name it with --label-column"),
        ("a.jsonl", '{"text": "a", "summary": ""}\n', "line 1 has nothing in 'summary'; write a text there"),
        ("a.jsonl", '{"text": [], "summary": "a"}\n', "line 1 has nothing in 'text'"),
        ("a.jsonl", '{"text": 5, "summary": "a"}\n', "line 1 has a number in 'text'; write a text there"),
        ("a.jsonl", '{"text": "a", "summary": ["b", 5]}\n', "line 1 has a number in 'summary'"),
    ],
)
def test_what_is_no_pair_is_told_by_its_line(tmp_path: Path, name: str, text: str, sentence: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=sentence):
        read_pairs(tmp_path / name, "summarization", max_bad_lines=0)


def test_bad_lines_are_left_out_and_told(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "a", "summary": "b"}\n{"text": "c", "summary": null}\n')
    pairs, notes = read_pairs(path, "summarization")
    assert len(pairs) == 1 and "left out 1 malformed line (2)" in notes[0]


def test_lines_are_sources_as_they_come() -> None:
    assert list(pairs_of_lines([b"one\n", b"\n", b"two\n"], "translation")) == [
        Pair("0", ("one",)),
        Pair("1", ("two",)),
    ]
    rows = list(pairs_of_lines([b'{"text": "one", "id": "x"}\n', b"no json\n"], "summarization"))
    assert rows[0] == Pair("x", ("one",)) and isinstance(rows[1], Refused)
    asked = list(pairs_of_lines([b"what?\ta cat\n", b"what?\n"], "answering"))
    assert asked[0] == Pair("0", ("what?", "a cat")) and "has no tab" in asked[1].error
    (text,) = pairs_of_lines([b"One is. Two was.\n"], "extractive")
    assert text.sentences == ("One is.", "Two was.")
