"""What counts of neighbouring tokens know of a text: the figures that a trained network has to beat.

A table of counts costs seconds. Counts of pairs find replaced tokens, which a discriminator is to do better; counts of
triples predict a token from the two before it, which a generator is to do better.

Probabilities are interpolated as Witten and Bell do (IEEE Transactions on Information Theory 37, 1991): with c(h x) how
often token x follows history h, c(h) the sum over x, and t(h) how many different tokens follow h,

    P(x | h) = (c(h x) + t(h) P(x | shorter h)) / (c(h) + t(h)),    P(x) = (c(x) + 1) / (N + V).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from electra_fast.data.corpus import Corpus

if TYPE_CHECKING:
    from typing_extensions import Self

LARGEST_VOCABULARY = 1 << 20  # three ids are packed into 63 bits


@dataclass(frozen=True)
class Successors:
    """How often each token follows each history, sorted by history and token."""

    keys: np.ndarray  # (K,) int64: history * V + token
    counts: np.ndarray  # (K,) int64
    histories: np.ndarray  # (H,) int64: the different histories, sorted
    totals: np.ndarray  # (H,) int64: c(h)
    kinds: np.ndarray  # (H,) int64: t(h)

    @classmethod
    def of(cls, histories: np.ndarray, tokens: np.ndarray, vocab_size: int) -> Self:
        """From (n,) histories and the (n,) tokens that follow them."""
        keys, counts = np.unique(histories * vocab_size + tokens, return_counts=True)
        different, first, kinds = np.unique(keys // vocab_size, return_index=True, return_counts=True)
        totals = np.add.reduceat(counts, first) if len(keys) else counts
        return cls(keys, counts, different, totals, kinds)

    def interpolate(
        self, histories: np.ndarray, tokens: np.ndarray, shorter: np.ndarray, vocab_size: int
    ) -> np.ndarray:
        """P(token | history) of each of n pairs, where `shorter` (n,) holds P(token | shorter history)."""
        count = _look_up(self.keys, self.counts, histories * vocab_size + tokens)
        total = _look_up(self.histories, self.totals, histories)
        kinds = _look_up(self.histories, self.kinds, histories)
        return np.where(total > 0, (count + kinds * shorter) / np.maximum(total + kinds, 1), shorter)


@dataclass(frozen=True)
class NGrams:
    """Counts of single tokens, pairs and triples within the examples of a corpus."""

    tokens: np.ndarray  # (V,) int64
    pairs: Successors
    triples: Successors

    @classmethod
    def of(cls, corpus: Corpus, most_tokens: int = 1 << 24, vocab_size: int | None = None) -> Self:
        """Count the examples of a corpus's split.

        most_tokens: about how many tokens are counted; of a larger corpus, examples at even distances.
        vocab_size: of the model, where its word table has more rows than the corpus's vocabulary.

        Raises ValueError for a vocabulary of more than 1,048,576 tokens.
        Cost: two sorts of the tokens counted; about 2 s and 1 GB for the default.
        """
        vocab_size = vocab_size or corpus.vocab_size
        if vocab_size > LARGEST_VOCABULARY:
            raise ValueError(
                f"the vocabulary has {vocab_size:,} tokens; pairs and triples are counted for at most "
                f"{LARGEST_VOCABULARY:,}"
            )
        step = max(1, len(corpus) * corpus.max_length // most_tokens)
        examples = [np.asarray(corpus[i][0], np.int64) for i in range(0, len(corpus), step)]
        return cls.count(np.concatenate(examples), np.array([len(ids) for ids in examples]), vocab_size)

    @classmethod
    def count(cls, ids: np.ndarray, lengths: np.ndarray, vocab_size: int) -> Self:
        """Count ids (T,) int64 of sequences that lie one after the other, lengths (N,) of each."""
        place = np.arange(len(ids)) - np.repeat(lengths.cumsum() - lengths, lengths)
        second, third = np.flatnonzero(place >= 1), np.flatnonzero(place >= 2)
        return cls(
            np.bincount(ids, minlength=vocab_size),
            Successors.of(ids[second - 1], ids[second], vocab_size),
            Successors.of(ids[third - 2] * vocab_size + ids[third - 1], ids[third], vocab_size),
        )

    @property
    def vocab_size(self) -> int:
        return len(self.tokens)

    def unigram(self, tokens: np.ndarray) -> np.ndarray:
        """P(x) of each token (n,)."""
        return (self.tokens[tokens] + 1) / (self.tokens.sum() + self.vocab_size)

    def bigram(self, before: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """P(x | the token before) of each token (n,)."""
        return self.pairs.interpolate(before, tokens, self.unigram(tokens), self.vocab_size)

    def suspicion(self, ids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """How little each token goes with its neighbours: the score by which counts of pairs find replaced tokens.

        -[log P(x | left) - log P(x) + log P(right | x) - log P(right)]; a neighbour that is not there adds 0.

        ids (T,) int64: sequences one after the other. lengths (N,): how long each is. Returns (T,) float64.
        """
        place = np.arange(len(ids)) - np.repeat(lengths.cumsum() - lengths, lengths)
        right = np.flatnonzero(place >= 1)
        joined = np.log(self.bigram(ids[right - 1], ids[right])) - np.log(self.unigram(ids[right]))
        score = np.zeros(len(ids))
        score[right] -= joined
        score[right - 1] -= joined
        return score

    def losses(self, ids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """-log P(x | the two tokens before it) of each token in nats: the loss of an interpolated trigram.

        The second token of a sequence is predicted from the first, the first from nothing.

        ids (T,) int64: sequences one after the other. lengths (N,): how long each is. Returns (T,) float64.
        """
        place = np.arange(len(ids)) - np.repeat(lengths.cumsum() - lengths, lengths)
        probability = self.unigram(ids)
        second, third = np.flatnonzero(place >= 1), np.flatnonzero(place >= 2)
        probability[second] = self.bigram(ids[second - 1], ids[second])
        history = ids[third - 2] * self.vocab_size + ids[third - 1]
        probability[third] = self.triples.interpolate(history, ids[third], probability[third], self.vocab_size)
        return -np.log(probability)


def _look_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """values[i] where keys[i], sorted, is what is wanted; 0 where no key is."""
    if not len(keys):
        return np.zeros(len(wanted), np.int64)
    at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[at] == wanted, values[at], 0)
