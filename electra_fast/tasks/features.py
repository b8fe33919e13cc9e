"""Examples -> sequences of token ids with what is asked of them -> packed batches."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from electra_fast.data.batch import Batch
from electra_fast.data.tokenizer import Tokenizer
from electra_fast.tasks.examples import Example, Question, Sentence
from electra_fast.tasks.heads import TaskBatch
from electra_fast.tasks.settings import FinetuneConfig

TOKENS = 4096  # of a batch without gradients
STSB_HIGHEST = 5.0  # its labels are trained on as y / 5


@dataclass(frozen=True)
class Feature:
    """One sequence. A long sentence or context has several, windows on it."""

    example: int  # its index among the examples
    ids: list[int]
    second: int  # where tokens of type 1 begin
    positions: list[int]  # places asked for: [0], or the first piece of each word; [] for qa
    labels: list[float]  # one for each; multilabel: 0 or 1 for each label; qa: an answer's first and last place; or []
    first_word: int = 0  # of the sentence, that positions[0] is of
    context: tuple[int, int] = (0, 0)  # places of the context's tokens; qa only
    offsets: list[tuple[int, int]] = field(default_factory=list)  # the characters that each of these is
    central: list[bool] = field(default_factory=list)  # whether this window shows the most around each of these
    impossible: bool = False


class Featurizer:
    """Cuts examples into features for a tokenizer, the model's longest input, and the labels."""

    def __init__(
        self, tokenizer: Tokenizer, kind: str, labels: Sequence[str], config: FinetuneConfig, max_length: int
    ) -> None:
        self.tokenizer, self.kind, self.config, self.max_length = tokenizer, kind, config, max_length
        self.number = {label: i for i, label in enumerate(labels)}
        self.truncated = 0  # examples that lost tokens
        self.closer = 0  # questions whose windows are closer than the stride
        self._pieces: dict[str, list[int]] = {}

    def __call__(self, examples: Sequence[Any], scale: float = 1.0, swap: bool = False) -> list[Feature]:
        """The features of examples, in order. scale: what numbers are divided by; swap: (b, a) after each (a, b)."""
        if self.kind == "qa":
            return [f for i, example in enumerate(examples) for f in self._question(i, example)]
        if self.kind == "tagging":
            return [f for i, example in enumerate(examples) for f in self._sentence(i, example)]
        return list(self._texts(examples, scale, swap))

    def _texts(self, examples: Sequence[Example], scale: float, swap: bool) -> Iterator[Feature]:
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
        """Windows of as many words as fit, each word counted in the one that shows the most around it."""
        tokenizer, room = self.tokenizer, self.max_length - 2
        new = [word for word in dict.fromkeys(sentence.words) if word not in self._pieces]
        if len(self._pieces) > 1_000_000:  # a stream may never end
            self._pieces, new = {}, list(dict.fromkeys(sentence.words))
        for word, ids in zip(new, tokenizer.encode(new), strict=True):
            self._pieces[word] = ids or [tokenizer.unk_token_id]  # a word that the normaliser makes nothing of
        pieces = [self._pieces[word][:room] for word in sentence.words]
        starts = np.concatenate([[0], np.cumsum([len(p) for p in pieces])]).tolist()
        for first, last, begin, end in windows(starts, room, min(self.config.stride, room // 2)):
            ids = [tokenizer.cls_token_id, *(id for p in pieces[first:last] for id in p), tokenizer.sep_token_id]
            positions = [1 + starts[word] - starts[first] for word in range(begin, end)]
            labels = [] if sentence.tags is None else [self.number[tag] for tag in sentence.tags[begin:end]]
            second = 0 if self.config.faithful else len(ids)
            yield Feature(example, ids, second, positions, list(map(float, labels)), begin)

    def _question(self, example: int, question: Question) -> Iterator[Feature]:
        """[CLS] question [SEP] window of the context [SEP], a window every `stride` tokens.

        They are closer if an answer of answer_length tokens, or of half a window where that is less, would otherwise
        lie in none of them whole.
        """
        tokenizer, config = self.tokenizer, self.config
        asked = tokenizer.encode([question.question])[0][: config.query_length]
        if len(asked) > (most := self.max_length // 2):
            asked = asked[:most]
        ids, offsets = tokenizer.encode_offsets(question.context)
        head = [tokenizer.cls_token_id, *asked, tokenizer.sep_token_id]
        room = self.max_length - len(head) - 1
        span = answer_tokens(question, offsets)
        stride = min(config.stride, max(1, room // 2, room - config.answer_length + 1))
        self.closer += stride < config.stride and len(ids) > room
        starts = list(range(0, max(1, len(ids) - room + stride), stride))
        starts = [s for i, s in enumerate(starts) if i == 0 or starts[i - 1] + room < len(ids)]
        bounds = [(s, min(len(ids), s + room)) for s in starts]
        best = most_context(bounds, len(ids))
        for number, (start, stop) in enumerate(bounds):
            there = span is not None and start <= span[0] and span[1] < stop
            shift = len(head) - start
            labels = [span[0] + shift, span[1] + shift] if span is not None and there else [0, 0]
            yield Feature(
                example,
                [*head, *ids[start:stop], tokenizer.sep_token_id],
                len(head),
                [],
                list(map(float, labels)),
                context=(len(head), len(head) + stop - start),
                offsets=offsets[start:stop],
                central=[best[token] == number for token in range(start, stop)],
                impossible=question.impossible if config.faithful else not there,
            )


def truncate(pieces: list[list[int]], room: int) -> list[list[int]]:
    """Drop tokens from the end of the longer text (of the second, where they are equal) until both fit."""
    first, *rest = pieces
    most = max((room + 1) // 2, room - len(rest[0])) if rest else room
    first = first[:most]
    return [first, *(piece[: room - len(first)] for piece in rest)]


def windows(starts: list[int], room: int, stride: int) -> Iterator[tuple[int, int, int, int]]:
    """(first, behind the last, first counted, behind the last counted) word of each window on a sentence.

    starts: token at which each word begins, and the end. A window holds at most `room` tokens and begins a word, or as
    many as `stride` tokens hold, behind the one before; the words that two share are split in the middle.
    """
    words, first, begin = len(starts) - 1, 0, 0
    while True:
        last = bisect_right(starts, starts[first] + room) - 1
        if last == words:
            yield first, last, begin, last
            return
        after = max(first + 1, bisect_right(starts, starts[first] + stride) - 1)
        end = (after + last + 1) // 2
        if begin < end:
            yield first, last, begin, end
        first, begin = after, end


def most_context(bounds: list[tuple[int, int]], tokens: int) -> list[int]:
    """For each token the window in which the smaller of its two sides is largest; the first of equals."""
    best, most = [0] * tokens, [-1] * tokens
    for number, (start, stop) in enumerate(bounds):
        for token in range(start, stop):
            if (sides := min(token - start, stop - 1 - token)) > most[token]:
                best[token], most[token] = number, sides
    return best


def answer_tokens(question: Question, offsets: list[tuple[int, int]]) -> tuple[int, int] | None:
    """First and last token that share a character with the first answer; None where there is none."""
    if not question.answers:
        return None
    start, text = question.answers[0]
    inside = [i for i, (a, b) in enumerate(offsets) if a < start + len(text) and b > start]
    return (inside[0], inside[-1]) if inside else None


def collate(features: Sequence[Feature], names: Sequence[int], kind: str) -> TaskBatch:
    """Features as one packed batch; names key their random numbers."""
    batch = Batch.from_examples([(np.array(f.ids), f.second) for f in features], names)
    firsts = batch.cu_seqlens[:-1].tolist()
    asked = [first + p for first, f in zip(firsts, features, strict=True) for p in f.positions]
    context = torch.zeros(batch.num_tokens, dtype=torch.bool)
    if kind == "qa":
        for first, f in zip(firsts, features, strict=True):
            context[first + f.context[0] : first + f.context[1]] = True
        spans = [[first + int(label) for label in f.labels] for first, f in zip(firsts, features, strict=True)]
        labels = torch.tensor(spans)
    elif kind == "multilabel":
        labels = torch.tensor([f.labels for f in features], dtype=torch.float32)
    else:
        flat = [label for f in features for label in f.labels]
        labels = torch.tensor(flat, dtype=torch.float32 if kind == "regression" else torch.int64)
    impossible = torch.tensor([f.impossible for f in features])
    return TaskBatch(batch, torch.tensor(asked, dtype=torch.int64), labels, context, impossible)


def bucketed(features: Sequence[Feature]) -> Iterator[list[int]]:
    """Indices of features in batches of like length, at most TOKENS tokens each (or one feature)."""
    order = sorted(range(len(features)), key=lambda i: len(features[i].ids))
    batch: list[int] = []
    tokens = 0
    for i in order:
        if batch and tokens + len(features[i].ids) > TOKENS:
            yield batch
            batch, tokens = [], 0
        batch.append(i)
        tokens += len(features[i].ids)
    if batch:
        yield batch
