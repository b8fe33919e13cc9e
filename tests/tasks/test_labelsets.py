"""Multi-label classification: cells of labels, and scores against scikit-learn's."""

import warnings

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from electra_fast.tasks.labelsets import multilabel_scores, multilabel_table, separator_of, split_labels

LABELS = ("anger", "joy", "fear", "love")
SETS = st.lists(st.sampled_from(LABELS), unique=True)


@given(st.lists(st.tuples(SETS, SETS), min_size=1, max_size=12))
@settings(deadline=None)
def test_scores_are_those_of_scikit_learn(pairs: list[tuple[list[str], list[str]]]) -> None:
    """With zero_division=0, which is its default where it warns."""
    from sklearn.metrics import accuracy_score, f1_score
    from sklearn.preprocessing import MultiLabelBinarizer

    predicted, gold = zip(*pairs, strict=True)
    binarizer = MultiLabelBinarizer(classes=LABELS)
    ours, theirs = binarizer.fit_transform(predicted), binarizer.transform(gold)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a mean over no class that occurs
        wanted = {
            "f1_micro": f1_score(theirs, ours, average="micro", zero_division=0),
            "f1_macro": f1_score(theirs, ours, average="macro", zero_division=0),
            "accuracy": accuracy_score(theirs, ours),
        }
    assert multilabel_scores(predicted, gold, LABELS) == pytest.approx(wanted, abs=1e-12)


def test_scores_refuse_what_cannot_be_scored() -> None:
    with pytest.raises(ValueError, match="1 predictions and 2 sets of labels are given"):
        multilabel_scores([("joy",)], [(), ()], LABELS)
    with pytest.raises(ValueError, match="0 predictions and 0 sets"):
        multilabel_scores([], [], LABELS)
    with pytest.raises(ValueError, match="the label 'hope' is not among anger, joy, fear, love"):
        multilabel_scores([("hope",)], [("joy",)], LABELS)


def test_the_table_counts_each_label() -> None:
    table = multilabel_table([("joy",), ("joy", "fear"), ()], [("joy",), ("joy",), ("anger",)], LABELS)
    assert [line.split() for line in table] == [
        ["label", "given", "predicted", "both"],
        ["anger", "1", "0", "0"],
        ["joy", "2", "2", "2"],
        ["fear", "0", "1", "0"],
        ["love", "0", "0", "0"],
    ]
    assert len({len(line) for line in table}) == 1


@pytest.mark.parametrize(
    ("cells", "wanted"),
    [
        (["joy|fear", "joy", ""], [("joy", "fear"), ("joy",), ()]),
        (["joy, fear", " joy ", "2,14"], [("joy", "fear"), ("joy",), ("2", "14")]),
        (["joy|a, b", "a, b"], [("joy", "a, b"), ("a, b",)]),
        (["joy|joy||", " | "], [("joy",), ()]),
    ],
)
def test_cells_of_labels(cells: list[str], wanted: list[tuple[str, ...]]) -> None:
    """A bar separates them if the file has one, else a comma, as in GoEmotions' published files."""
    separator = separator_of(cells)
    assert [split_labels(cell, separator) for cell in cells] == wanted


def test_a_case_counted_by_hand() -> None:
    """TP 2, FP 1, FN 1 over all: micro 4/6. F1 of joy is 1, of the others 0: macro 1/4. One set of three is right."""
    scores = multilabel_scores([("joy",), ("joy", "fear"), ()], [("joy",), ("joy",), ("anger",)], LABELS)
    assert scores == pytest.approx({"f1_micro": 4 / 6, "f1_macro": 1 / 4, "accuracy": 1 / 3})
