"""Google's example builder against a re-statement of its rules, hand-worked cases, and plain packing."""

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from electra_fast.data import examples
from electra_fast.data.examples import mix64, pack_examples, pair_examples, random_words

CLS, SEP = 1, 2
IDS = dict(cls_id=CLS, sep_id=SEP)


def build(document, max_length, seed=0, index=0):
    return pair_examples(document, max_length, **IDS, seed=seed, index=index)


@pytest.fixture
def coins(monkeypatch):
    """Words chosen by the test: each is a number in [0, 1), as Google's random.random() gives it."""

    def choose(*numbers):
        monkeypatch.setattr(examples, "random_words", lambda *key: iter([int(number * 2**64) for number in numbers]))

    return choose


LONG, SHORT, PAIR, SINGLE, HEADS, TAILS = 0.5, 0.01, 0.5, 0.05, 0.1, 0.9


def test_two_segments_by_hand(coins):
    # target 16: the first three lines reach it (18); segment A aims at (16 - 3) // 2 = 6 tokens.
    coins(LONG, PAIR, TAILS, LONG, SINGLE)
    lines = [[10, 11], [12, 13, 14], [20] * 13, [30]]
    first, second = build(lines, 16)
    # 2 + 3 < 6 goes to A; 5 + 13 does not fit, and the coin says B; B keeps 16 - 5 - 3 = 8.
    assert first == ([CLS, 10, 11, 12, 13, 14, SEP] + [20] * 8 + [SEP], 7)
    assert second == ([CLS, 30, SEP], 3)


def test_coin_lets_a_line_overflow_the_first_segment(coins):
    coins(LONG, PAIR, HEADS, LONG, PAIR)
    (ids, start), rest = build([[10] * 5, [11] * 8, [12] * 3, [13]], 16)
    assert (
        ids == [CLS] + [10] * 5 + [11] * 8 + [SEP] and start == 15
    )  # 13 tokens in A, so B has room for 16 - 13 - 3 = 0
    assert rest == ([CLS, 13, SEP], 3)


def test_exact_fit_does_not_fit(coins):
    coins(LONG, PAIR, TAILS, LONG, PAIR)
    ((ids, start),) = build([[10] * 3, [11] * 3, [12] * 10], 16)  # 3 + 3 < 6 is false
    assert (ids, start) == ([CLS, 10, 10, 10, SEP, 11, 11, 11] + [12] * 7 + [SEP], 5)


def test_first_line_always_goes_to_the_first_segment(coins):
    coins(LONG, PAIR, LONG)
    ((ids, start),) = build([[10] * 40], 16)
    assert (ids, start) == ([CLS] + [10] * 14 + [SEP], 16)  # trimmed to 14, the rest is dropped


def test_short_line_behind_the_second_segment_still_joins_the_first(coins):
    coins(LONG, PAIR, TAILS, LONG)
    ((ids, start),) = build([[10] * 2, [11] * 9, [12], [13] * 4], 16)  # lines are reordered: so is Google's text
    assert (ids, start) == ([CLS, 10, 10, 12, SEP] + [11] * 9 + [13] + [SEP], 5)


def test_short_target(coins):
    coins(SHORT, 0.3, PAIR, TAILS, LONG, PAIR, TAILS)
    found = build([[10] * 4, [11] * 5, [12] * 2, [13] * 9], 16)  # target 5 + floor(0.3 * 12) = 8; A aims at 2
    assert found[0] == ([CLS] + [10] * 4 + [SEP] + [11] * 5 + [SEP], 6)
    assert found[1] == ([CLS, 12, 12, SEP] + [13] * 9 + [SEP], 4)


def test_single_segment(coins):
    coins(LONG, SINGLE, LONG)
    assert build([[10] * 9, [11] * 9], 16) == [([CLS] + [10] * 9 + [11] * 5 + [SEP], 16)]


def restated(document, max_length, draw):
    """The rules of the specification once more, from its words; `draw()` is uniform in [0, 1)."""
    found, gathered = [], []

    def new_target():
        return 5 + int(draw() * (max_length - 4)) if draw() < 0.05 else max_length

    target = new_target()
    for position, line in enumerate(document):
        gathered.append(line)
        if sum(map(len, gathered)) < target and position < len(document) - 1:
            continue
        room = 100_000 if draw() < 0.1 else (target - 3) // 2
        a, b = [], []
        for sentence in gathered:
            fits = not a or not len(a) + len(sentence) >= room
            (a if fits or (not b and len(a) < room and draw() < 0.5) else b).extend(sentence)
        a = a[: max_length - 2]
        b = b[: max(0, max_length - len(a) - 3)]
        found.append(([CLS, *a, SEP, *b, SEP], len(a) + 2) if b else ([CLS, *a, SEP], len(a) + 2))
        gathered = []
        if position < len(document) - 1:
            target = new_target()
    return found


LINES = st.lists(st.integers(1, 40).flatmap(lambda n: st.just([n + 2] * n)), min_size=1, max_size=40)


@settings(max_examples=200, deadline=None)
@given(LINES, st.integers(5, 64), st.integers(-(2**63), 2**63 - 1), st.integers(0, 2**40))
def test_equals_the_restatement(document, max_length, seed, index):
    words = random_words(seed, index)
    found = build(document, max_length, seed, index)
    assert found == restated(document, max_length, lambda: next(words) / 2**64)
    assert found == build(document, max_length, seed, index)
    assert all(len(ids) <= max_length and 3 <= start <= len(ids) for ids, start in found)


def test_empty_lines_and_documents():
    lines = [[10] * 5, [11] * 9, [12] * 40]
    assert build([[], *lines, [], []], 16) == build(lines, 16)
    assert build([], 16) == build([[], []], 16) == []


def test_shares_are_those_of_the_paper():
    """Of documents of many short lines: 5 % short targets, 10 % single segments, A of about 62 tokens and two more."""
    generator = random.Random(0)
    found = []
    for index in range(300):
        document = [[9] * generator.randint(1, 12) for _ in range(200)]
        found += build(document, 128, index=index)[:-1]
    single = np.mean([start == len(ids) for ids, start in found])
    short = np.mean([len(ids) < 110 for ids, _ in found])
    first = np.mean([start for ids, start in found if start < len(ids) and len(ids) > 110])
    assert len(found) > 2500
    assert abs(single - 0.1) < 0.02 and abs(short - 0.05 * 105 / 124) < 0.015 and abs(first - 64) < 3


def test_numbers_depend_on_seed_and_document():
    document = [[i] * (i % 7 + 1) for i in range(3, 300)]
    found = {str(build(document, 32, seed, index)) for seed in (0, 1, -1, 2**40) for index in (0, 1, 2**33)}
    assert len(found) == 12


def test_mix64_is_splitmix64():
    """The published first outputs of SplitMix64 from state 1234567, and the same of arrays."""
    golden, state = 0x9E3779B97F4A7C15, 1234567
    states = [(state + golden * (i + 1)) % 2**64 for i in range(3)]
    wanted = [6457827717110365317, 3203168211198807973, 9817491932198370423]
    assert [mix64(word) for word in states] == wanted
    assert mix64(np.array(states, np.uint64)).tolist() == wanted


@pytest.mark.parametrize(
    ("documents", "wanted"),
    [
        ([], []),
        ([[[], []]], []),
        ([[[10]]], [[CLS, 10, SEP]]),
        ([[[10, 11], [12]]], [[CLS, 10, 11, 12, SEP]]),
        ([[[10, 11], [12]], [[]], [[13]]], [[CLS, 10, 11, 12, SEP], [CLS, SEP, 13, SEP]]),
        ([[[10]], [[11]], [[12, 13, 14]]], [[CLS, 10, SEP, 11, SEP], [CLS, SEP, 12, 13, SEP], [CLS, 14, SEP]]),
    ],
)
def test_packing_by_hand(documents, wanted):
    assert pack_examples(documents, 5, **IDS) == [(ids, len(ids)) for ids in wanted]


@settings(max_examples=100, deadline=None)
@given(st.lists(LINES, max_size=10), st.integers(5, 50))
def test_packing_drops_nothing(documents, max_length):
    found = pack_examples(documents, max_length, **IDS)
    stream = [token for ids, _ in found for token in ids[1:-1]]
    assert [token for token in stream if token != SEP] == [
        t for document in documents for line in document for t in line
    ]
    assert stream.count(SEP) == max(0, len(documents) - 1)
    assert all(len(ids) == max_length for ids, _ in found[:-1])


@pytest.mark.parametrize("function", [lambda n: build([[9]], n), lambda n: pack_examples([[[9]]], n, **IDS)])
def test_short_examples_are_refused(function):
    with pytest.raises(ValueError, match="max_length is 4; examples need at least 5 tokens"):
        function(4)
