"""Documents' token ids -> training examples, as pure functions: no state, no shared generator.

Google's example builder (google-research/electra, build_pretraining_dataset.py) with one change that leaves the
distribution as it is: every document draws from numbers of its own, keyed by (seed, index of the document), so the
examples do not depend on how many processes build them. And plain packing, which drops nothing.

An example is (ids, start of segment B): the tokens before that start have type 0, the others type 1; an example of one
segment has the start at its end.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

import numpy as np

Example = tuple[list[int], int]
Words = TypeVar("Words", int, np.ndarray)

MASK64 = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15  # 2^64 / the golden ratio: the step of SplitMix64
SHORTEST = 5  # tokens: the smallest target that Google draws
SINGLE_PROB, SHORT_PROB = 0.1, 0.05


def mix64(word: Words) -> Words:
    """SplitMix64's finaliser (Steele et al., 2014): a bijection of 64-bit words that scatters every bit.

    `word` is an int below 2^64 or a uint64 array.
    """
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 & MASK64
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB & MASK64
    return word ^ (word >> 31)


def random_words(*key: int) -> Iterator[int]:
    """An endless stream of 64-bit words, a pure function of the key."""
    state = 0
    for part in key:
        state = mix64((state + GOLDEN & MASK64) ^ (part & MASK64))
    while True:
        state = state + GOLDEN & MASK64
        yield mix64(state)


def pair_examples(
    document: Iterable[Sequence[int]], max_length: int, *, cls_id: int, sep_id: int, seed: int, index: int
) -> list[Example]:
    """Google's examples of one document: `[CLS] A [SEP]` or `[CLS] A [SEP] B [SEP]`, of at most max_length tokens.

    document: the token ids of each of its lines; index: its number in the text. Lines are gathered until they reach a
    target length (max_length, or with probability 0.05 a uniform one from 5 to max_length), then laid into A and B;
    what does not fit is dropped, so a line longer than max_length loses its end. Raises ValueError for a max_length
    below 5.
    """
    if max_length < SHORTEST:
        raise ValueError(f"max_length is {max_length}; examples need at least {SHORTEST} tokens, and 128 are usual")
    words = random_words(seed, index)
    examples: list[Example] = []
    lines: list[Sequence[int]] = []
    length, target = 0, _target(words, max_length)
    for line in document:
        if not line:
            continue
        lines.append(line)
        length += len(line)
        if length >= target:
            examples.append(_example(lines, target, max_length, words, cls_id, sep_id))
            lines, length, target = [], 0, _target(words, max_length)
    if lines:
        examples.append(_example(lines, target, max_length, words, cls_id, sep_id))
    return examples


def pack_examples(
    documents: Iterable[Iterable[Sequence[int]]], max_length: int, *, cls_id: int, sep_id: int
) -> list[Example]:
    """Plain packing: the documents' tokens as one stream, [SEP] between documents, cut where it falls.

    Each example is `[CLS] max_length - 2 tokens of the stream [SEP]`, one segment; the last may be shorter. Raises
    ValueError for a max_length below 5.
    """
    if max_length < SHORTEST:
        raise ValueError(f"max_length is {max_length}; examples need at least {SHORTEST} tokens, and 128 are usual")
    stream: list[int] = []
    for document in documents:
        tokens = [token for line in document for token in line]
        if stream and tokens:
            stream.append(sep_id)
        stream += tokens
    bodies = (stream[start : start + max_length - 2] for start in range(0, len(stream), max_length - 2))
    return [([cls_id, *body, sep_id], len(body) + 2) for body in bodies]


def _coin(words: Iterator[int], probability: float) -> bool:
    return (next(words) >> 11) * 2.0**-53 < probability


def _target(words: Iterator[int], max_length: int) -> int:
    if _coin(words, SHORT_PROB):
        return SHORTEST + (next(words) * (max_length - SHORTEST + 1) >> 64)
    return max_length


def _example(
    lines: list[Sequence[int]], target: int, max_length: int, words: Iterator[int], cls_id: int, sep_id: int
) -> Example:
    single = _coin(words, SINGLE_PROB)
    first_target = 100_000 if single else (target - 3) // 2
    first: list[int] = []
    second: list[int] = []
    for line in lines:
        fits = not first or len(first) + len(line) < first_target
        if fits or (not second and len(first) < first_target and _coin(words, 0.5)):
            first += line
        else:
            second += line
    first = first[: max_length - 2]
    second = second[: max(0, max_length - len(first) - 3)]
    ids = [cls_id, *first, sep_id]
    start = len(ids)
    return (ids + [*second, sep_id] if second else ids), start
