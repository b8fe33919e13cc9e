"""Examples to sequences: truncation, windows, words to pieces, answers to tokens, packing."""

import random
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from electra_fast.data.tokenizer import Tokenizer
from electra_fast.tasks.batch import bucketed, collate
from electra_fast.tasks.examples import Example, Question, Sentence
from electra_fast.tasks.features import Featurizer, answer_tokens
from electra_fast.tasks.settings import FinetuneConfig
from electra_fast.tasks.windows import most_context, truncate, word_windows

TEXT = "Émile saw the cats' 12 small houses, unbelievably near the river; nobody knew why they had been built there."


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([[TEXT, TEXT.upper(), "a b c d e"]] * 2, 80)


def featurizer(tokenizer: Tokenizer, kind: str, max_length: int = 24, **changes: Any) -> Featurizer:
    return Featurizer(tokenizer, kind, ("x", "y"), FinetuneConfig(**changes), max_length)


def test_pairs_are_cut_as_google_cuts_them() -> None:
    for a in range(1, 12):
        for b in range(1, 12):
            for room in range(2, 16):
                left, right = list(range(a)), list(range(b))
                while len(left) + len(right) > room:
                    (left if len(left) > len(right) else right).pop()
                assert truncate([list(range(a)), list(range(b))], room) == [left, right], (a, b, room)
    assert truncate([list(range(9))], 4) == [[0, 1, 2, 3]]


def test_a_pair_and_its_types(tokenizer: Tokenizer) -> None:
    make = featurizer(tokenizer, "classification")
    one, two = make([Example("0", ("the cats", "the river"), "y")], swap=True)
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    a, b = tokenizer.encode(["the cats", "the river"])
    assert one.ids == [cls, *a, sep, *b, sep] and two.ids == [cls, *b, sep, *a, sep]
    assert one.second == len(a) + 2 and one.labels == two.labels == [1.0] and one.positions == [0]
    (single,) = make([Example("0", ("the cats",), "x")], swap=True)
    assert single.ids == [cls, *a, sep] and single.second == len(single.ids)
    assert make.truncated == 0
    (cut,) = make([Example("0", (TEXT,), "x")])
    assert len(cut.ids) == 24 and cut.ids[-1] == sep and make.truncated == 1


def test_stsb_is_trained_on_fifths(tokenizer: Tokenizer) -> None:
    (feature,) = featurizer(tokenizer, "regression")([Example("0", ("a", "b"), 3.0)], scale=5.0)
    assert feature.labels == [0.6]


def test_each_word_is_asked_for_once_at_its_first_piece(tokenizer: Tokenizer) -> None:
    words = tuple(TEXT.split())
    make = featurizer(tokenizer, "tagging", 200)
    (feature,) = make([Sentence("0", words, ("x", "y") * (len(words) // 2))])
    pieces = tokenizer.encode(list(words))
    place = 1
    for word, position in zip(pieces, feature.positions, strict=True):
        assert position == place and feature.ids[place : place + len(word)] == word
        place += len(word)
    assert place == len(feature.ids) - 1 and feature.second == len(feature.ids)
    assert featurizer(tokenizer, "tagging", 200, faithful=True)([Sentence("0", words)])[0].second == 0


def test_a_word_that_the_tokenizer_makes_nothing_of_still_has_a_tag(tokenizer: Tokenizer) -> None:
    (feature,) = featurizer(tokenizer, "tagging")([Sentence("0", ("a", "\u200b\u0301", "b"), ("x", "y", "x"))])
    assert len(feature.positions) == 3 and feature.ids[2] == tokenizer.unk_token_id


def test_windows_count_every_word_once_in_the_middle() -> None:
    dice = random.Random(0)
    for _ in range(500):
        room, stride = dice.randint(4, 20), dice.randint(1, 10)
        stride = min(stride, room // 2)
        starts = [0]
        for _ in range(dice.randint(1, 40)):
            starts.append(starts[-1] + dice.randint(1, min(4, room)))
        words = len(starts) - 1
        counted: list[int] = []
        for first, last, begin, end in word_windows(starts, room, stride):
            assert first <= begin < end <= last and starts[last] - starts[first] <= room
            counted += range(begin, end)
        assert counted == list(range(words))


def test_long_sentences_overlap(tokenizer: Tokenizer) -> None:
    words = tuple("abcde"[i % 5] for i in range(60))
    features = featurizer(tokenizer, "tagging", 22, stride=8)([Sentence("0", words, ("x",) * 60)])
    assert len(features) > 3 and sum(len(f.positions) for f in features) == 60
    for f in features[1:]:
        assert f.positions[0] > 2, "a word at a window's edge has words before it"
    assert [f.first_word for f in features] == [
        sum(len(g.positions) for g in features[:i]) for i in range(len(features))
    ]


def test_offsets_are_of_the_ids_that_encode_gives(tokenizer: Tokenizer) -> None:
    for text in (TEXT, "  É  x [MASK] 家b\u0301c ", "", "a\u00a0b\tc"):
        ids, offsets = tokenizer.encode_offsets(text)
        assert ids == tokenizer.encode([text])[0] and len(ids) == len(offsets)
        assert all(a <= b for (_, a), (b, _) in pairwise(offsets))


def test_answers_are_found_by_their_characters(tokenizer: Tokenizer) -> None:
    for text in ("Émile", "cats", "12 small houses", "the river", "; nobody", "there"):
        start = TEXT.index(text)
        question = Question("q", "who?", TEXT, ((start, text),))
        _, offsets = tokenizer.encode_offsets(TEXT)
        span = answer_tokens(question, offsets)
        assert span is not None and TEXT[offsets[span[0]][0] : offsets[span[1]][1]] == text
    assert answer_tokens(Question("q", "who?", TEXT), offsets) is None


def test_windows_on_a_context(tokenizer: Tokenizer) -> None:
    start = TEXT.index("12 small")
    question = Question("q", "who saw the cats?", TEXT, ((start, "12 small"),))
    features = featurizer(tokenizer, "qa", 30, stride=5, query_length=4)([question])
    ids, offsets = tokenizer.encode_offsets(TEXT)
    asked = tokenizer.encode([question.question])[0][:4]
    central = []
    for f in features:
        a, b = f.context
        assert f.ids[:a] == [tokenizer.cls_token_id, *asked, tokenizer.sep_token_id] and f.second == a
        assert f.ids[b:] == [tokenizer.sep_token_id] and len(f.ids) <= 30
        first = offsets.index(f.offsets[0])
        assert f.ids[a:b] == ids[first : first + b - a]
        central += [first + i for i, most in enumerate(f.central) if most]
        if f.impossible:
            assert f.labels == [0, 0]
        else:
            s, e = (int(x) - a for x in f.labels)
            assert TEXT[f.offsets[s][0] : f.offsets[e][1]] == "12 small"
    assert sorted(central) == list(range(len(ids))), "each token is central in one window"
    assert any(f.impossible for f in features) and not all(f.impossible for f in features)
    faithful = featurizer(tokenizer, "qa", 30, stride=5, query_length=4, faithful=True)([question])
    assert not any(f.impossible for f in faithful)
    (whole,) = featurizer(tokenizer, "qa", 500)([question])
    assert whole.context[1] - whole.context[0] == len(ids)


@given(
    max_length=st.integers(8, 80),
    stride=st.integers(1, 200),
    answer_length=st.integers(1, 40),
    query=st.integers(0, 60),
    words=st.integers(1, 150),
)
@settings(deadline=None)
def test_every_token_of_a_context_lies_in_a_window(
    tokenizer: Tokenizer, max_length: int, stride: int, answer_length: int, query: int, words: int
) -> None:
    """And so does every answer, whole, that has at most answer_length tokens and is no longer than half a window."""
    make = featurizer(tokenizer, "qa", max_length, stride=stride, answer_length=answer_length)
    context = " ".join("abcde"[i % 5] for i in range(words))
    features = make([Question("q", "a " * query, context)])
    starts = [f.offsets[0][0] // 2 for f in features]
    windows = [(start, start + len(f.offsets)) for start, f in zip(starts, features, strict=True)]
    assert all(a < b and len(f.ids) <= max_length for (a, b), f in zip(windows, features, strict=True))
    assert {token for window in windows for token in range(*window)} == set(range(words))
    central = [token for start, f in zip(starts, features, strict=True) for token in counted(start, f.central)]
    assert sorted(central) == list(range(words))
    room = max(b - a for a, b in windows)
    longest = min(words, answer_length, room - max(1, room // 2) + 1)
    for first in range(words - longest + 1):
        assert any(a <= first and first + longest <= b for a, b in windows), (first, windows)
    wide = [b - a for a, b in pairwise(starts)]
    assert make.closer == (len(wide) > 0 and wide[0] < stride)


def counted(start: int, central: list[bool]) -> list[int]:
    return [start + i for i, most in enumerate(central) if most]


@given(max_length=st.integers(8, 40), stride=st.integers(1, 200), lengths=st.lists(st.integers(1, 6), min_size=1))
@settings(deadline=None)
def test_every_word_of_a_sentence_is_counted_in_one_window(
    tokenizer: Tokenizer, max_length: int, stride: int, lengths: list[int]
) -> None:
    words = tuple(";" * length for length in lengths)  # each character is a token
    features = featurizer(tokenizer, "tagging", max_length, stride=stride)([Sentence("0", words)])
    found = [f.first_word + i for f in features for i in range(len(f.positions))]
    assert found == list(range(len(words)))
    assert all(len(f.ids) <= max_length and max(f.positions) < len(f.ids) - 1 for f in features)


def test_the_usual_windows_are_where_google_puts_them(tokenizer: Tokenizer) -> None:
    """max_seq_length 512 and doc_stride 128, as in google-research/electra: the stride is not limited there."""
    make = featurizer(tokenizer, "qa", 512)
    features = make([Question("q", "a " * 64, "a " * 1000)])
    assert [f.offsets[0][0] // 2 for f in features] == [0, 128, 256, 384, 512, 640] and make.closer == 0


def test_most_context() -> None:
    assert most_context([(0, 6), (3, 9)], 9) == [0, 0, 0, 0, 0, 1, 1, 1, 1]


def test_packing_puts_each_question_where_its_sequence_is(tokenizer: Tokenizer) -> None:
    make = featurizer(tokenizer, "tagging")
    features = make([Sentence("0", ("a", "b"), ("x", "y")), Sentence("1", ("the", "river"), ("y", "y"))])
    asked = collate(features, [5, 9], "tagging")
    assert asked.batch.input_ids[asked.positions].tolist() == [
        features[0].ids[1], features[0].ids[2], *(features[1].ids[p] for p in features[1].positions)
    ]  # fmt: skip
    assert asked.labels.tolist() == [0, 1, 1, 1] and asked.labels.dtype == torch.int64
    qa = featurizer(tokenizer, "qa")([Question("q", "a", "the cats", ((4, "cats"),))] * 2)
    packed = collate(qa, [0, 1], "qa")
    starts = packed.batch.cu_seqlens[:-1].tolist()
    assert packed.labels.tolist() == [[s + int(x) for x in f.labels] for s, f in zip(starts, qa, strict=True)]
    assert packed.context.sum() == sum(b - a for a, b in (f.context for f in qa))


def test_batches_for_inference_are_of_like_length_and_hold_each_feature_once(tokenizer: Tokenizer) -> None:
    texts = [Example(str(i), (" ".join("abcde"[j % 5] for j in range(i % 20)),)) for i in range(2000)]
    features = featurizer(tokenizer, "classification")(texts)
    found = list(bucketed(features))
    assert sorted(i for batch in found for i in batch) == list(range(2000)) and len(found) > 3
    lengths = [[len(features[i].ids) for i in batch] for batch in found]
    assert all(sum(each) <= 4096 for each in lengths)
    assert all(max(a) <= min(b) for a, b in pairwise(lengths))
