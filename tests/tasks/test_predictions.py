"""Files of predictions: what each benchmark's server takes, and that they are read back as they were."""

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from electra_fast.tasks.answers import read_answers
from electra_fast.tasks.datasets import read_dataset
from electra_fast.tasks.examples import Columns, Dataset, Example, Question, Sentence
from electra_fast.tasks.predictions import check_predictions_path, write_predictions

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
    dataset = Dataset("tagging", None, [Sentence("0", ("New York",))], [])
    with pytest.raises(ValueError, match="0 predictions and 1 examples are given"):
        write_predictions(tmp_path, dataset, [])
    with pytest.raises(ValueError, match="sentence 0 has the row .*whose spaces columns cannot hold; write to .jsonl"):
        write_predictions(tmp_path, dataset, [["O"]])
    with pytest.raises(
        ValueError, match="a.csv ends in .csv; predictions of tagging are written to .txt, .conll, .jsonl"
    ):
        check_predictions_path(tmp_path / "a.csv", "tagging")
    with pytest.raises(FileNotFoundError, match="there is no directory .*no; make it"):
        write_predictions(tmp_path / "no" / "a.txt", dataset, [["O"]])
    check_predictions_path(tmp_path, "tagging")
    assert not list(tmp_path.iterdir())


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
