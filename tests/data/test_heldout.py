"""What is held out: the share that is asked for, in whole documents where they are many."""

import itertools
import random

import pytest

from electra_fast.data.heldout import LEAST, MOST, HeldOut


def parts(documents: list[list[str]], share: float) -> tuple[HeldOut, list[tuple[str, list[str]]]]:
    heldout = HeldOut(share)
    split = [(heldout.split(lines), lines) for lines in documents[:-1]]
    return heldout, split + heldout.split_last(documents[-1])


@pytest.mark.parametrize("share", [0.001, 0.01, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("count", [1, 2, 3, 10, 100, 2000])
@pytest.mark.parametrize("longest", [40, 400])
def test_the_share_is_what_was_asked_for(share: float, count: int, longest: int) -> None:
    """Documents of all lengths: not a line is lost, none has another order, at most the last is divided."""
    draw = random.Random(count)
    documents = [["x" * draw.randint(1, 20) for _ in range(draw.randint(30, longest))] for _ in range(count)]
    heldout, split = parts(documents, share)
    whole = [lines for _, lines in split[: count - 1]]
    assert whole == documents[:-1] and [line for _, lines in split[count - 1 :] for line in lines] == documents[-1]
    held = sum(len(line) for kind, lines in split for line in lines if kind == "heldout")
    total = sum(len(line) for lines in documents for line in lines)
    assert heldout.share_found == held / total
    line = 20 / total
    room = sum(map(len, documents[-1])) / total  # what the last document can make up
    assert min(LEAST * share, room) - line <= held / total <= MOST * share + line
    assert {kind for kind, _ in split} == {"train", "heldout"}


def test_documents_of_one_line() -> None:
    """They cannot be divided: of two or more one is held out, of one none."""
    for count in (1, 2, 3, 5):
        _, split = parts([["a few words"]] * count, 0.01)
        assert [kind for kind, _ in split] == ["train"] * max(1, count - 1) + ["heldout"] * (count > 1)


def test_no_share_holds_nothing_out() -> None:
    heldout, split = parts([["a", "b"]] * 50, 0.0)
    assert {kind for kind, _ in split} == {"train"} and heldout.share_found == 0 and not heldout.divided


def test_a_choice_passes_on_to_a_document_that_fits() -> None:
    """Whole documents are chosen by their numbers, about as many as the share says."""
    documents = [["words"] * 10 for _ in range(5000)]
    heldout, split = parts(documents, 0.02)
    held = [i for i, (kind, _) in enumerate(split) if kind == "heldout"]
    assert 70 < len(held) < 150 and not heldout.divided
    assert min(held) > 30  # before that, one document would be more than 3 % of the text
    assert len({b - a for a, b in itertools.pairwise(held)}) > 20  # at no regular distance
