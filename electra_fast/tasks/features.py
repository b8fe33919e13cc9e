"""Examples as sequences of token ids, with the places that are asked about and their labels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from electra_fast.data.tokenizer import Tokenizer
from electra_fast.tasks.examples import Example, Question, Sentence
from electra_fast.tasks.settings import FinetuneConfig
from electra_fast.tasks.windows import context_windows, most_context, truncate, word_windows

STSB_HIGHEST = 5.0  # STS-B's labels go from 0 to this, and are trained on divided by it
REMEMBERED = 1_000_000  # words whose pieces are kept


@dataclass(frozen=True)
class Feature:
    """One sequence for the model. An example has one, a long sentence or context several: windows on it.

    Places count tokens of the sequence from 0.

    Attributes:
        example: index of the example.
        ids: token ids, with [CLS] and [SEP].
        second: the place where tokens of type 1 begin.
        positions: the places to classify: 0 ([CLS]), or the first piece of each counted word (tagging). Empty for qa.
        labels: one for each position; multilabel: 0 or 1 for each label; qa: the first and last place of the answer, 0
            and 0 for none. Empty, but for qa, if they are to be predicted.
        first_word: index in the sentence of the word at positions[0]. tagging only.
        context: (first place of the context, place behind its last). qa only, as the rest.
        offsets: for each token of the context, its characters [start, end) in the whole context.
        central: for each token of the context, whether this window shows more around it than the others do.
        impossible: whether the window holds no answer.
    """

    example: int
    ids: list[int]
    second: int
    positions: list[int]
    labels: list[float]
    first_word: int = 0
    context: tuple[int, int] = (0, 0)
    offsets: list[tuple[int, int]] = field(default_factory=list)
    central: list[bool] = field(default_factory=list)
    impossible: bool = False


class Featurizer:
    """Makes features of examples.

    Attributes:
        truncated: how many examples have lost tokens so far.
        closer: how many questions have been read in windows that are closer than the stride.
    """

    def __init__(
        self, tokenizer: Tokenizer, kind: str, labels: Sequence[str], config: FinetuneConfig, max_length: int
    ) -> None:
        """tokenizer: the model's. kind: of the task. labels: the task's, in the model's order. config: the model's
        settings. max_length: tokens of a sequence, at most."""
        self.tokenizer, self.kind, self.config, self.max_length = tokenizer, kind, config, max_length
        self.number = {label: i for i, label in enumerate(labels)}
        self.truncated = 0
        self.closer = 0
        self._pieces: dict[str, list[int]] = {}  # word -> its ids, never none

    def __call__(self, examples: Sequence[Any], scale: float = 1.0, swap: bool = False) -> list[Feature]:
        """Makes the features of examples, in order.

        Args:
            examples: Examples, Sentences or Questions, with labels or without.
            scale: what the labels of regression are divided by.
            swap: whether (b, a) follows each pair of texts (a, b).
        """
        if self.kind == "qa":
            return [f for i, example in enumerate(examples) for f in self._question(i, example)]
        if self.kind == "tagging":
            return [f for i, example in enumerate(examples) for f in self._sentence(i, example)]
        return list(self._texts(examples, scale, swap))

    def _texts(self, examples: Sequence[Example], scale: float, swap: bool) -> Iterator[Feature]:
        """[CLS] text [SEP], or [CLS] text [SEP] text [SEP] whose second text is of type 1."""
        cls, sep = self.tokenizer.cls_token_id, self.tokenizer.sep_token_id
        ids = iter(self.tokenizer.encode([text for example in examples for text in example.texts]))
        for i, example in enumerate(examples):
            pieces = [next(ids) for _ in example.texts]
            room = self.max_length - 1 - len(pieces)
            if sum(map(len, pieces)) > room:
                self.truncated += 1
                pieces = truncate(pieces, room)
            labels = self._labels(example.label, scale)
            for a, *rest in [pieces, pieces[::-1]] if swap and len(pieces) == 2 else [pieces]:
                first = [cls, *a, sep]
                yield Feature(i, first + [id for b in rest for id in (*b, sep)], len(first), [0], labels)

    def _labels(self, label: str | float | tuple[str, ...] | None, scale: float) -> list[float]:
        if label is None:
            return []
        if isinstance(label, tuple):
            return [float(name in label) for name in self.number]
        return [self.number[label] if isinstance(label, str) else label / scale]

    def _sentence(self, example: int, sentence: Sentence) -> Iterator[Feature]:
        """[CLS] words [SEP], in windows of as many words as fit; see `word_windows`."""
        tokenizer, room = self.tokenizer, self.max_length - 2
        pieces = [ids[:room] for ids in self._pieces_of(sentence.words)]
        starts = np.concatenate([[0], np.cumsum([len(ids) for ids in pieces])]).tolist()
        for first, last, begin, end in word_windows(starts, room, min(self.config.stride, room // 2)):
            ids = [tokenizer.cls_token_id, *(id for p in pieces[first:last] for id in p), tokenizer.sep_token_id]
            positions = [1 + starts[word] - starts[first] for word in range(begin, end)]
            labels = [] if sentence.tags is None else [self.number[tag] for tag in sentence.tags[begin:end]]
            second = 0 if self.config.faithful else len(ids)
            yield Feature(example, ids, second, positions, list(map(float, labels)), begin)

    def _pieces_of(self, words: Sequence[str]) -> list[list[int]]:
        """The ids of each word, [UNK] for a word of which the normaliser leaves nothing."""
        if len(self._pieces) > REMEMBERED:
            self._pieces = {}
        new = [word for word in dict.fromkeys(words) if word not in self._pieces]
        for word, ids in zip(new, self.tokenizer.encode(new), strict=True):
            self._pieces[word] = ids or [self.tokenizer.unk_token_id]
        return [self._pieces[word] for word in words]

    def _question(self, example: int, question: Question) -> Iterator[Feature]:
        """[CLS] question [SEP] window of the context [SEP], a window every `stride` tokens.

        They are closer if an answer of answer_length tokens, or of half a window where that is less, would otherwise
        lie in none of them whole.
        """
        tokenizer, config = self.tokenizer, self.config
        query = tokenizer.encode([question.question])[0][: min(config.query_length, self.max_length // 2)]
        ids, offsets = tokenizer.encode_offsets(question.context)
        head = [tokenizer.cls_token_id, *query, tokenizer.sep_token_id]
        room = self.max_length - len(head) - 1
        stride = min(config.stride, max(1, room // 2, room - config.answer_length + 1))
        self.closer += stride < config.stride and len(ids) > room
        answer = answer_tokens(question, offsets)
        bounds = context_windows(len(ids), room, stride)
        best = most_context(bounds, len(ids))
        for number, (start, stop) in enumerate(bounds):
            labels, holds_answer = [0.0, 0.0], False
            if answer is not None and start <= answer[0] and answer[1] < stop:
                labels, holds_answer = [float(len(head) + token - start) for token in answer], True
            yield Feature(
                example,
                [*head, *ids[start:stop], tokenizer.sep_token_id],
                len(head),
                [],
                labels,
                context=(len(head), len(head) + stop - start),
                offsets=offsets[start:stop],
                central=[best[token] == number for token in range(start, stop)],
                impossible=question.impossible if config.faithful else not holds_answer,
            )


def answer_tokens(question: Question, offsets: list[tuple[int, int]]) -> tuple[int, int] | None:
    """The first and the last token that share a character with the question's first answer.

    Args:
        question: the question; its first answer counts.
        offsets: for each token of the context, its characters [start, end).

    Returns: their indices; None if there is no answer, or no token on it.
    """
    if not question.answers:
        return None
    start, text = question.answers[0]
    inside = [i for i, (a, b) in enumerate(offsets) if a < start + len(text) and b > start]
    return (inside[0], inside[-1]) if inside else None
