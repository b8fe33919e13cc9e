"""Schemes of tags: which tags belong to which, and the spans that they mark, as conlleval and seqeval count them."""

import random
import warnings
from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.metrics import classification_report
from seqeval.scheme import BILOU

from electra_fast.tasks.scores import primary, tagging_scores
from electra_fast.tasks.tag_spans import PLACES, Scheme, described, scheme_of, spans

IOB = ("O", "B-NP", "I-NP", "B-VP", "I-VP")


@pytest.mark.parametrize(
    ("written", "wanted"),
    [
        ("O O", []),
        ("B-X I-X O B-X", [("X", 0, 2), ("X", 3, 4)]),
        ("O I-X I-X", [("X", 1, 3)]),  # IOB1, or a model's mistake: the span begins nevertheless
        ("I-X I-Y I-Y", [("X", 0, 1), ("Y", 1, 3)]),
        ("I-X B-X I-X", [("X", 0, 1), ("X", 1, 3)]),
        ("B-X I-X E-X S-X S-X", [("X", 0, 3), ("X", 3, 4), ("X", 4, 5)]),
        ("E-X E-X I-X", [("X", 0, 1), ("X", 1, 2), ("X", 2, 3)]),
        ("B-X-Y I-X-Y", [("X-Y", 0, 2)]),
        ("B I O I", [("", 0, 2), ("", 3, 4)]),
        ("B-X I-X L-X U-X O", [("X", 0, 3), ("X", 3, 4)]),
        ("B-X I-X O L-X I-X U-X", [("X", 5, 6)]),  # neither a beginning without an end nor an end without a beginning
        ("B-X L-Y U-Y", [("Y", 2, 3)]),
        ("B O L U", [("", 3, 4)]),
        ("B-X M-X E-X S-X", [("X", 0, 3), ("X", 3, 4)]),
        ("X-B X-I O Y-B", [("X", 0, 2), ("Y", 3, 4)]),
        ("B_X_Z I_X_Z O B_Y", [("X_Z", 0, 2), ("Y", 3, 4)]),
        ("X_U O Y_B Y_L", [("X", 0, 1), ("Y", 2, 4)]),
    ],
)
def test_spans(written: str, wanted: list[tuple[str, int, int]]) -> None:
    scheme = scheme_of(written.split())
    assert scheme is not None and spans(written.split(), scheme) == wanted


@pytest.mark.parametrize(
    ("tags", "scheme"),
    [
        ("O", Scheme("BIO")),
        ("O B-X I-Y", Scheme("BIO")),
        ("O I-X E-X", Scheme("IOE")),
        ("O B-X E-X", Scheme("BIOES")),
        ("S-X O", Scheme("BIOES")),
        ("B-X M-X O", Scheme("BMES")),
        ("B M E S", Scheme("BMES")),
        ("U-X O", Scheme("BILOU")),
        ("PER-B O", Scheme("BIO", suffix=True)),
        ("B_PER O L_PER", Scheme("BILOU", "_")),
        ("PER_S PER_E", Scheme("BIOES", "_", True)),
        ("O PER", None),
        ("NOUN VERB", None),
        ("B-X U-X M-X", None),
        ("B-X B_X", None),
        ("LABEL_0 LABEL_1", None),
    ],
)
def test_scheme_of_tags(tags: str, scheme: Scheme | None) -> None:
    assert scheme_of(tags.split()) == scheme
    assert primary("tagging", None, tags.split()) == ("f1" if scheme else "accuracy")


def test_described() -> None:
    assert described(["O", "U-PER", "B-PER"]) == (
        "the tags mark spans by BILOU, such as B-PER; the score is the F1 of whole spans"
    )
    assert described(["B-X", "O", "Q-X"]).startswith("tags such as Q-X mark no spans by BIO, IOE, BIOES, BMES, BILOU;")


def written(scheme: Scheme) -> Callable[[str, str], str]:
    """How a scheme writes a place and a type."""
    return lambda place, kind: scheme.joint.join((kind, place) if scheme.suffix else (place, kind))


@pytest.mark.parametrize("suffix", [False, True])
@pytest.mark.parametrize("joint", "-_")
@pytest.mark.parametrize("name", PLACES)
@pytest.mark.parametrize("noise", [0.05, 0.5])
def test_scores_are_those_of_seqeval(name: str, joint: str, suffix: bool, noise: float) -> None:
    """Sentences of spans as the scheme writes them, and predictions of which a part is any tag, in any order.

    seqeval is given "-" for "_" and "I" for BMES' "M", neither of which it knows, and reads BILOU in its strict mode
    alone, where places must stand before types.
    """
    scheme, chance = Scheme(name, joint, suffix), random.Random(f"{name} {joint} {noise}")
    tag, letters = written(scheme), {ours: letter for letter, ours in PLACES[name].items()}
    alphabet = ["O", *(tag(place, kind) for place in PLACES[name] for kind in ("PER", "LOC"))]

    def sentence() -> list[str]:
        found: list[str] = []
        for _ in range(chance.randrange(1, 6)):
            kind, length = chance.choice(("PER", "LOC")), chance.randrange(1, 4)
            places = ["B", *"I" * (length - 2), "E"] if length > 1 else ["S"]
            places = [
                p if p in letters else {"B": "I", "E": "I", "S": "B" if "B" in letters else "E"}[p] for p in places
            ]
            found += [*(tag(letters[p], kind) for p in places), *["O"] * chance.randrange(3)]
        return found

    gold = [sentence() for _ in range(100)]
    ours = [[chance.choice(alphabet) if chance.random() < noise else t for t in s] for s in gold]
    found = tagging_scores(ours, gold)
    plain = {tag(place, kind): f"{place}-{kind}" for place in PLACES[name] for kind in ("PER", "LOC")} | {"O": "O"}
    theirs = [[[plain[t].replace("M-", "I-") for t in s] for s in sentences] for sentences in (gold, ours)]
    mode = dict(mode="strict", scheme=BILOU) if name == "BILOU" else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        wanted = classification_report(*theirs, output_dict=True, **mode)["micro avg"]
    assert found["f1"] == pytest.approx(wanted["f1-score"], abs=1e-12) and 0 < found["f1"] < 1
    assert found["precision"] == pytest.approx(wanted["precision"], abs=1e-12)
    assert found["recall"] == pytest.approx(wanted["recall"], abs=1e-12)


def test_the_labels_tell_the_scheme() -> None:
    """Gold tags that BIO has too are read by BILOU, which the model's labels show; labels of no scheme tell nothing."""
    labels = ["O", "B-X", "I-X", "L-X", "U-X"]
    gold, ours = [["B-X", "I-X"]], [["U-X", "O"]]
    assert tagging_scores(ours, gold)["recall"] == 0 and tagging_scores(gold, gold)["recall"] == 1
    assert tagging_scores(gold, gold, labels)["recall"] == 0
    assert tagging_scores(gold, gold, ["[PAD]"])["recall"] == 1


@settings(deadline=None)
@given(st.lists(st.lists(st.sampled_from(IOB), min_size=1, max_size=12), min_size=1, max_size=5), st.randoms())
def test_spans_against_pairs_of_tags(gold, chance):
    """Independently: a span begins where a pair of neighbouring tags says so, and ends before O or the next one."""

    def begins(before: str, tag: str) -> bool:
        return tag[0] == "B" or (tag[0] == "I" and before[1:] != tag[1:])

    def found(sentence):
        starts = [i for i, tag in enumerate(sentence) if begins(sentence[i - 1] if i else "O", tag)]
        stops = [i for i in range(len(sentence)) if sentence[i] == "O" or i in starts] + [len(sentence)]
        return [(sentence[i][2:], i, min(stop for stop in stops if stop > i)) for i in starts]

    ours = [[chance.choice(IOB) for _ in sentence] for sentence in gold]
    pairs = [(Counter(found(a)), Counter(found(b))) for a, b in zip(ours, gold, strict=True)]
    right = sum((a & b).total() for a, b in pairs)
    both = sum((a + b).total() for a, b in pairs)
    assert all(spans(sentence) == found(sentence) for sentence in gold)
    assert tagging_scores(ours, gold)["f1"] == pytest.approx(2 * right / both if both else 0)
