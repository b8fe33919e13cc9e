"""Files of predictions: what each benchmark's server takes, and that they are read back as they were."""

import json

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from electra_fast.storage.atomic import write_file
from electra_fast.tasks.answers import read_answers
from electra_fast.tasks.datasets import read_dataset
from electra_fast.tasks.examples import Columns, Dataset, Example, Question, Sentence
from electra_fast.tasks.predictions import check_predictions_path, json_line, write_predictions

QUICK = settings(deadline=None, max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.mark.parametrize(
    ("name", "title", "predicted", "wanted"),
    [
        ("rte", "RTE", ["entailment", "not_entailment"], "index\tprediction\n7\tentailment\n9\tnot_entailment\n"),
        ("cola", "CoLA", ["1", "0"], "index\tprediction\n7\t1\n9\t0\n"),
        ("sst2", "SST-2", ["1", "0"], "index\tprediction\n7\t1\n9\t0\n"),
        ("stsb", "STS-B", [5.2, -0.1], "index\tprediction\n7\t5.000\n9\t0.000\n"),
        ("stsb", "STS-B", [1.23456, 3], "index\tprediction\n7\t1.235\n9\t3.000\n"),
    ],
)
def test_submissions(tmp_path, name, title, predicted, wanted):
    kind = "regression" if name == "stsb" else "classification"
    dataset = Dataset(kind, name, [Example("7", ("a",)), Example("9", ("b",))], [])
    assert write_predictions(tmp_path, dataset, predicted) == [tmp_path / f"{title}.tsv"]
    assert (tmp_path / f"{title}.tsv").read_text() == wanted
    assert [path.name for path in tmp_path.iterdir()] == [f"{title}.tsv"]  # nothing temporary stays


def test_predictions_of_answers(tmp_path):
    dataset = Dataset("qa", "squad2", [Question("a", "?", "x"), Question("b", "?", "y")], [])
    files = write_predictions(tmp_path, dataset, ["größer", ""], {"a": -1.5, "b": 2.0})
    assert [file.name for file in files] == ["predictions.json", "predictions.null_odds.json"]
    assert read_answers(files[0]) == {"a": "größer", "b": ""}
    assert json.loads(files[1].read_text()) == {"a": -1.5, "b": 2.0}
    assert write_predictions(tmp_path / "p.json", dataset, ["", ""]) == [tmp_path / "p.json"]


def test_predictions_refused(tmp_path):
    dataset = Dataset("tagging", None, [Sentence("0", ("York",))], [])
    with pytest.raises(ValueError, match="0 predictions and 1 examples are given"):
        write_predictions(tmp_path, dataset, [])
    with pytest.raises(
        ValueError, match="a.csv ends in .csv; predictions of tagging are written to .txt, .conll, .jsonl"
    ):
        check_predictions_path(tmp_path / "a.csv", dataset)
    with pytest.raises(FileNotFoundError, match="there is no directory .*no; make it"):
        write_predictions(tmp_path / "no" / "a.txt", dataset, [["O"]])
    check_predictions_path(tmp_path, dataset)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "tags"), [(("học sinh", "đi"), ["NOUN", "VERB"]), (("đi",), ["V N"]), (("-DOCSTART-x",), ["O"])]
)
def test_what_columns_cannot_hold_goes_to_jsonl(tmp_path, words, tags):
    """Vietnamese words hold spaces. A directory gets .jsonl; a column file that is named is refused beforehand."""
    dataset = Dataset("tagging", None, [Sentence("0", words)], [])
    (file,) = write_predictions(tmp_path, dataset, [tags])
    assert file.name == "predictions.jsonl"
    (found,) = read_dataset(file, "tagging").examples
    assert (found.words, found.tags) == (words, tuple(tags))
    for name in ("p.txt", "p.conll"):
        with pytest.raises(ValueError, match=f"{name} would have columns, which cannot hold .*; name a .jsonl file"):
            check_predictions_path(tmp_path / name, dataset, tags)
    check_predictions_path(tmp_path / "p.jsonl", dataset, tags)


def test_a_class_with_a_tab_is_refused_in_tsv(tmp_path):
    dataset = Dataset("classification", None, [Example("0", ("t",))], ["a", "b\tc"])
    with pytest.raises(ValueError, match="p.tsv would have columns, which cannot hold the label 'b.tc'"):
        check_predictions_path(tmp_path / "p.tsv", dataset)
    (file,) = write_predictions(tmp_path, dataset, ["b\tc"])
    assert file.name == "predictions.csv"


@pytest.mark.parametrize("unsafe", ["\x1b[2J", "\x7f", "\x85", "\x9b2J", "\u2028", "\u202e", "\u2066", "\ud800"])
def test_json_lines_hold_no_terminal_escape(unsafe):
    """C0 and C1 controls, line separators and marks of direction are escaped; the value is the same."""
    line = json_line({unsafe: f"học {unsafe} 家"})
    assert "học" in line and "家" in line and line.isascii() is False
    assert not any(character in line for character in unsafe if not "\x20" <= character <= "\x7e")
    assert len(line.splitlines()) == 1 and json.loads(line) == {unsafe: f"học {unsafe} 家"}
    assert line.encode()


def test_sets_of_labels_are_lists_or_have_a_bar_between_them(tmp_path):
    sets = [("joy", "fear"), (), ("fear",)]
    dataset = Dataset("multilabel", None, [Example(id, ("t",), ()) for id in "a|b c d".split()], ["joy", "fear"])
    (file,) = write_predictions(tmp_path, dataset, sets)
    assert file.name == "predictions.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    assert [row["prediction"] for row in rows] == [["joy", "fear"], [], ["fear"]]
    write_predictions(tmp_path / "p.csv", dataset, sets)
    assert (tmp_path / "p.csv").read_text() == "id,prediction\na|b,joy|fear\nc,\nd,fear\n"
    dataset.labels.append("a|b")
    with pytest.raises(ValueError, match="p.tsv would have columns, which cannot hold the label 'a.b' beside others"):
        check_predictions_path(tmp_path / "p.tsv", dataset)


def test_a_directory_that_is_not_writable_is_refused_beforehand(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write anywhere
    dataset = Dataset("qa", "squad1", [], [])
    for path in (tmp_path, tmp_path / "p.json"):
        with pytest.raises(PermissionError, match="is not writable; name another place for the predictions"):
            check_predictions_path(path, dataset)


def test_a_full_disk_between_two_files_names_the_first(tmp_path, monkeypatch):
    def full(path, pieces):
        if "null_odds" in path.name:
            raise OSError(28, "No space left on device", str(path))
        return write_file(path, pieces)

    monkeypatch.setattr("electra_fast.tasks.predictions.write_file", full)
    with pytest.raises(OSError, match="No space left on device: .*p.null_odds.json.*; .*p.json was written before it"):
        write_predictions(tmp_path / "p.json", Dataset("qa", "squad2", [Question("a", "?", "x")], []), [""], {"a": 1.0})


LINES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r"), min_size=1).filter(str.strip)
WORDS = st.text(
    st.characters(exclude_categories=["Cs", "Cc", "Zs", "Zl", "Zp"], exclude_characters="\ufeff"), min_size=1
)


@QUICK
@given(st.lists(LINES.map(str.strip).filter(bool), min_size=1, max_size=5), st.sampled_from([".csv", ".jsonl"]))
def test_classes_read_back(tmp_path, predicted, kind):
    dataset = Dataset("classification", None, [Example(str(i), ("t",)) for i in range(len(predicted))], [])
    (file,) = write_predictions(tmp_path / f"p{kind}", dataset, predicted)
    found = read_dataset(file, "classification", columns=Columns(text="id", label="prediction")).examples
    assert [(e.id, e.label) for e in found] == [(str(i), p) for i, p in enumerate(predicted)]


@QUICK
@given(
    st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=5),
    st.sampled_from([".csv", ".tsv", ".jsonl"]),
)
def test_numbers_read_back(tmp_path, predicted, kind):
    dataset = Dataset("regression", None, [Example(str(i), ("t",)) for i in range(len(predicted))], [])
    (file,) = write_predictions(tmp_path / f"p{kind}", dataset, predicted)
    found = read_dataset(file, "regression", columns=Columns(text="id", label="prediction")).examples
    assert [e.label for e in found] == predicted


@QUICK
@given(
    st.lists(st.lists(st.tuples(WORDS, WORDS, WORDS), min_size=1, max_size=4), min_size=1, max_size=4),
    st.sampled_from([".txt", ".conll", ".jsonl"]),
    st.booleans(),
)
def test_tags_read_back(tmp_path, rows, kind, labelled):
    columns = [tuple(zip(*sentence, strict=True)) for sentence in rows]
    # Where a sentence's first word begins with "#" and its tag is new, a column file's line reads as a comment.
    assume(kind == ".jsonl" or not any(words[0].startswith("#") for words, _, _ in columns))
    sentences = [Sentence(str(i), words, tags if labelled else None) for i, (words, tags, _) in enumerate(columns)]
    (file,) = write_predictions(tmp_path / f"p{kind}", Dataset("tagging", None, sentences, []), [c[2] for c in columns])
    found = read_dataset(file, "tagging").examples
    assert [(s.words, s.tags) for s in found] == [(words, ours) for words, _, ours in columns]


@QUICK
@given(st.dictionaries(LINES, LINES | st.just(""), min_size=1, max_size=5))
def test_answers_read_back(tmp_path, answers):
    dataset = Dataset("qa", "squad1", [Question(id, "?", "x") for id in answers], [])
    (file,) = write_predictions(tmp_path / "p.json", dataset, list(answers.values()))
    assert read_answers(file) == answers
