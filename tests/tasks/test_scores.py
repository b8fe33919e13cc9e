"""Official metrics: figures of the programs that define them, short versions of our own, and what is refused."""

import lzma
import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from electra_fast.tasks.benchmarks import BENCHMARKS
from electra_fast.tasks.datasets import read_dataset
from electra_fast.tasks.examples import KINDS
from electra_fast.tasks.scores import (
    classification_scores,
    confusion,
    confusion_table,
    primary,
    regression_scores,
    tagging_scores,
)
from electra_fast.tasks.tag_spans import spans

IOB = ("O", "B-NP", "I-NP", "B-VP", "I-VP")
BIOES = (*IOB, "E-NP", "S-NP", "E-VP", "S-VP")

# Figures that other programs gave for the inputs below; each test names its program.
TWO_CLASSES = dict(accuracy=0.76, f1=0.7647058823529411, matthews=0.5222451601341305)
MORE_CLASSES = dict(accuracy=0.64, f1=0.6391031460940275, matthews=0.5335489861358125)
REGRESSION = 0.6793232358473814, 0.6748411304137231
CONLLEVAL = dict(accuracy=73.88, precision=69.23, recall=67.74, f1=68.48)
SEQEVAL = dict(accuracy=0.7560137457044673, precision=0.8, recall=0.7868852459016393, f1=0.7933884297520661)
CONLL2000 = dict(accuracy=92.20, precision=81.80, recall=87.17, f1=84.40)


def classes(labels: str, seed: int) -> tuple[list[str], list[str]]:
    """100 classes predicted and given, two thirds of them equal."""
    chance = random.Random(seed)
    gold = [labels[int(chance.random() * len(labels))] for _ in range(100)]
    return [g if chance.random() < 0.5 else labels[int(chance.random() * len(labels))] for g in gold], gold


def numbers() -> tuple[list[float], list[float]]:
    """100 numbers predicted and given, with many ties."""
    chance = random.Random(3)
    gold = [int(chance.random() * 26) / 5 for _ in range(100)]
    return [int(4 * (g / 2 + chance.random() * 3)) / 4 for g in gold], gold


def tags(alphabet: tuple[str, ...], seed: int) -> tuple[list[list[str]], list[list[str]]]:
    """60 sentences of tags in any order, so I- after O and after other types, predicted and given."""
    chance = random.Random(seed)
    gold = [[alphabet[int(chance.random() * len(alphabet))] for _ in range(1 + n % 9)] for n in range(60)]
    ours = [[t if chance.random() < 0.7 else alphabet[int(chance.random() * len(alphabet))] for t in s] for s in gold]
    return ours, gold


def perturbed(tags: list[tuple[str, ...]]) -> list[list[str]]:
    """Tags of which one in ten is that of another word of the sentence."""
    chance = random.Random(0)
    return [[s[int(chance.random() * len(s))] if chance.random() < 0.1 else t for t in s] for s in tags]


def test_two_classes():
    """Figures of scikit-learn 1.9.1."""
    assert classification_scores(*classes("01", 1), "01") == pytest.approx(TWO_CLASSES, abs=1e-12)


def test_more_classes():
    """Figures of scikit-learn 1.9.1, f1 with average="macro"; the last label occurs nowhere and does not count."""
    assert classification_scores(*classes("abcd", 2), "abcdz") == pytest.approx(MORE_CLASSES, abs=1e-12)


def test_regression():
    """Figures of scipy 1.17.1."""
    pearson, spearman = REGRESSION
    wanted = dict(pearson=pearson, spearman=spearman, mean=(pearson + spearman) / 2)
    assert regression_scores(*numbers()) == pytest.approx(wanted, abs=1e-12)


def test_spans_of_iob():
    """Figures of conlleval.pl (2004, as CoNLL published it), which prints per cent with two decimals."""
    found = tagging_scores(*tags(IOB, 4))
    assert {name: round(100 * value, 2) for name, value in found.items()} == CONLLEVAL


def test_spans_of_bioes():
    """Figures of seqeval 1.2.2; conlleval.pl does not know S."""
    found = tagging_scores(*tags(BIOES, 5))
    assert {name: found[name] for name in SEQEVAL} == pytest.approx(SEQEVAL, abs=1e-12)


def test_conll2000(data):
    """Figures of conlleval.pl for the test set, one tag in ten exchanged."""
    path = data / "conll2000" / "test.txt.xz"
    gold = [sentence.tags for sentence in read_dataset(path, "tagging").examples]
    found = tagging_scores(perturbed(gold), gold)
    assert {name: round(100 * value, 2) for name, value in found.items()} == CONLL2000
    assert tagging_scores(gold, gold) == dict(accuracy=1, precision=1, recall=1, f1=1)
    assert sum(len(spans(sentence)) for sentence in gold) == 23852  # of the shared task, Tjong Kim Sang and Buchholz
    assert lzma.decompress(path.read_bytes()).count(b" B-") == 23852  # its files are IOB2: as many spans as beginnings


@settings(deadline=None)
@given(st.lists(st.tuples(st.sampled_from("01"), st.sampled_from("01")), min_size=1, max_size=30))
def test_two_classes_by_counting(pairs):
    count = Counter(pairs)
    tp, fp, fn, tn = count["1", "1"], count["1", "0"], count["0", "1"], count["0", "0"]
    root = ((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)) ** 0.5
    found = classification_scores([a for a, _ in pairs], [b for _, b in pairs], ["0", "1"])
    assert found["accuracy"] == pytest.approx((tp + tn) / len(pairs))
    assert found["f1"] == pytest.approx(2 * tp / (2 * tp + fp + fn) if tp else 0)
    assert found["matthews"] == pytest.approx((tp * tn - fp * fn) / root if root else 0)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=1, max_size=20))
def test_spearman_by_counting(pairs):
    x, y = zip(*pairs, strict=True)
    n = len(pairs)

    def ranks(values):
        return [sum(other < v for other in values) + (values.count(v) + 1) / 2 for v in values]

    def covariance(a, b):
        return sum(i * j for i, j in zip(a, b, strict=True)) / n - sum(a) / n * sum(b) / n

    a, b = ranks(x), ranks(y)
    constant = len(set(x)) == 1 or len(set(y)) == 1
    wanted = 0 if constant else covariance(a, b) / (covariance(a, a) * covariance(b, b)) ** 0.5
    assert regression_scores(x, y)["spearman"] == pytest.approx(wanted, abs=1e-9)


def test_correlation_of_extremes():
    assert regression_scores([1e200, 2e200, 3e200], [1e-200, 2e-200, 3e-200])["pearson"] == pytest.approx(1)
    assert regression_scores([1, 1, 1], [1, 2, 3]) == dict(pearson=0, spearman=0, mean=0)
    assert regression_scores([3, 2, 1], [1, 2, 3]) == pytest.approx(dict(pearson=-1, spearman=-1, mean=-1))


def test_confusion():
    counts = confusion(["b", "a", "a", "a"], ["a", "a", "b", "a"], ["a", "b"])
    assert counts.tolist() == [[2, 1], [1, 0]]
    assert confusion_table(counts, ["a", "b"]).split("\n") == [
        "given\\predicted  a  b",
        "a                2  1",
        "b                1  0",
    ]


def test_tags_that_mark_no_spans():
    assert tagging_scores([["NN", "VB"]], [["NN", "NN"]]) == dict(accuracy=0.5)
    assert tagging_scores([["O", "O"]], [["O", "O"]]) == dict(accuracy=1, precision=0, recall=0, f1=0)
    assert primary("tagging", None, ["NN", "VB"]) == "accuracy" and primary("tagging", None, IOB) == "f1"


def test_primary():
    assert {name: primary(b.kind, name) for name, b in BENCHMARKS.items()} == dict(
        cola="matthews", sst2="accuracy", mrpc="f1", qqp="f1", mnli="accuracy", snli="accuracy", rte="accuracy",
        wnli="accuracy", qnli="accuracy", stsb="spearman",
        conll2000="f1", squad1="f1", squad2="f1",
    )  # fmt: skip
    assert [primary(kind) for kind in KINDS] == ["accuracy", "f1_micro", "spearman", "f1", "f1"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: classification_scores(["a"], ["a", "b"], ["a", "b"]), "1 predictions and 2 labels are given"),
        (lambda: classification_scores([], [], ["a", "b"]), "of at least one"),
        (lambda: classification_scores(["c"], ["a"], ["a", "b"]), "predicted holds 'c'; the labels are a, b"),
        (lambda: classification_scores(["a"], ["c"], ["a", "b"]), "gold holds 'c'"),
        (lambda: regression_scores([1.0, float("nan")], [1, 2]), r"predicted\[1\] is nan; .*diverge"),
        (lambda: regression_scores([1.0], [float("inf")]), r"gold\[0\] is inf"),
        (lambda: regression_scores([1.0], []), "1 predictions and 0 labels"),
        (lambda: tagging_scores([["O"]], [["O", "O"]]), "sentence 0 has 1 predicted tags and 2 given ones"),
    ],
)
def test_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
