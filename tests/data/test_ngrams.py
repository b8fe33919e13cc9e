"""Counts of neighbouring tokens: probabilities worked out by hand, sums of 1, and what they find."""

import math
from types import SimpleNamespace

import numpy as np
import pytest

from electra_fast.data.ngrams import NGrams
from electra_fast.data.prepare import prepare

# Two sequences over five tokens: 0 1 2 1 2, and 0 1 3.
IDS, LENGTHS, V = np.array([0, 1, 2, 1, 2, 0, 1, 3]), np.array([5, 3]), 5


@pytest.fixture
def ngrams() -> NGrams:
    return NGrams.count(IDS, LENGTHS, V)


def test_unigrams_by_hand(ngrams: NGrams) -> None:
    """(count + 1) / (8 + 5); token 4 never occurs."""
    assert ngrams.unigram(np.arange(V)) == pytest.approx(np.array([3, 4, 3, 2, 1]) / 13)


def test_bigrams_by_hand(ngrams: NGrams) -> None:
    """1 is followed by 2, 2 and 3: c = 3, t = 2. Nothing follows 3: P(x | 3) = P(x). 2 | 0 does not cross sequences."""
    p = ngrams.unigram(np.arange(V))
    found = ngrams.bigram(np.array([1, 1, 1, 3, 2]), np.array([2, 3, 4, 1, 0]))
    assert found == pytest.approx([(2 + 2 * p[2]) / 5, (1 + 2 * p[3]) / 5, 2 * p[4] / 5, p[1], p[0] / 2])


def test_probabilities_sum_to_1(ngrams: NGrams) -> None:
    every = np.arange(V)
    for before in range(V):
        assert ngrams.bigram(np.full(V, before), every).sum() == pytest.approx(1)
        losses = [ngrams.losses(np.array([0, before, x]), np.array([3]))[2] for x in every]
        assert np.exp(-np.array(losses)).sum() == pytest.approx(1)


def test_trigram_losses_by_hand(ngrams: NGrams) -> None:
    """After 0 1 come 2 and 3, once each: c = 2, t = 2."""
    losses = ngrams.losses(np.array([0, 1, 2, 4]), np.array([3, 1]))
    p, given_1 = ngrams.unigram(np.arange(V)), ngrams.bigram(np.array([1]), np.array([2]))[0]
    given_0 = ngrams.bigram(np.array([0]), np.array([1]))[0]
    assert losses == pytest.approx(
        [-math.log(p[0]), -math.log(given_0), -math.log((1 + 2 * given_1) / 4), -math.log(p[4])]
    )


def test_suspicion_by_hand(ngrams: NGrams) -> None:
    """The middle token answers for both pairs, the outer ones for one; another sequence's tokens are no neighbours."""
    ids = np.array([0, 1, 2])
    p, pairs = ngrams.unigram(ids), ngrams.bigram(ids[:2], ids[1:])
    first, second = np.log(pairs / p[1:])
    assert ngrams.suspicion(ids, np.array([3])) == pytest.approx([-first, -first - second, -second])
    assert ngrams.suspicion(ids, np.array([1, 2])) == pytest.approx([0, -second, -second])
    assert ngrams.suspicion(ids[:0], np.array([], np.int64)).shape == (0,)


def test_a_token_out_of_place_is_suspected_most() -> None:
    """Of a text that repeats 0 to 9 in order, one token replaced."""
    ngrams = NGrams.count(np.tile(np.arange(10), 50), np.array([500]), 10)
    ids = np.arange(10)
    ids[4] = 8
    assert ngrams.suspicion(ids, np.array([10])).argmax() == 4
    assert ngrams.losses(np.arange(10), np.array([10])).argmax() == 0


def test_a_corpus_is_counted_within_its_examples(tmp_path) -> None:
    """Whole, or a share of its examples at even distances."""
    text = tmp_path / "text.txt"
    text.write_text("\n\n".join(f"the cat number {i} sat on the mat and said so." for i in range(300)))
    corpus = prepare(text, tmp_path / "corpus", vocab_size=80, max_length=16, packing="plain", progress=False)
    ids = [np.asarray(corpus[i][0], np.int64) for i in range(len(corpus))]
    whole = NGrams.of(corpus)
    assert whole.tokens.sum() == sum(map(len, ids)) and whole.pairs.counts.sum() == sum(len(x) - 1 for x in ids)
    assert whole.triples.counts.sum() == sum(len(x) - 2 for x in ids)
    share = NGrams.of(corpus, most_tokens=len(corpus) * 16 // 4)
    assert share.tokens.sum() == sum(map(len, ids[::4]))


def test_a_vocabulary_too_large_to_pack_is_refused() -> None:
    with pytest.raises(ValueError, match="the vocabulary has 2,000,000 tokens; .* at most 1,048,576"):
        NGrams.of(SimpleNamespace(vocab_size=2_000_000))
