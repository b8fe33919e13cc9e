"""BERT's normalisation of text, a character at a time."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator
from functools import cache

from tokenizers import normalizers, pre_tokenizers


class Normalizer:
    """BertNormalizer in a tenth of its time: it takes characters one by one, so each one's form is asked for once.

    The exception are marks that it keeps and puts in order (Hangul's tones, say): their lines are given to it whole.
    """

    def __init__(self, library: normalizers.BertNormalizer) -> None:
        self._library, self._forms, self._lowercase = library, _Forms(library), library.lowercase

    def __call__(self, line: str) -> str:
        if line.isascii() and line.isprintable():
            return line.lower() if self._lowercase else line
        try:
            return line.translate(self._forms)
        except _OutOfOrder:
            return self._library.normalize_str(line)


class _OutOfOrder(Exception):
    """A character's form depends on its neighbours."""


class _Forms(dict[int, str]):
    """Code point -> what the normaliser makes of it, filled as it is read."""

    def __init__(self, library: normalizers.BertNormalizer) -> None:
        self._library = library

    def __missing__(self, code: int) -> str:
        form: str = self._library.normalize_str(chr(code))
        if any(unicodedata.combining(part) and unicodedata.category(part) != "Mn" for part in form):
            raise _OutOfOrder
        self[code] = form
        return form


def stripped_characters(line: str) -> int:
    """How many characters of a line lose a mark when accents are stripped, or are themselves a mark that is dropped.

    Latin loses accents; Hindi and Thai lose vowel signs, and Japanese what tells ga from ka.
    """
    return 0 if line.isascii() else sum(map(_has_mark, line))


@cache
def _has_mark(character: str) -> bool:
    return any(unicodedata.category(part) == "Mn" for part in unicodedata.normalize("NFD", character))


class TrainingText:
    """Documents as a vocabulary is trained on them, as often as they are read: normalised, without overlong words.

    The trainer's time grows with the square of a word's length, and a word of more than `longest` characters is [UNK]
    whatever the vocabulary holds.
    """

    def __init__(
        self, documents: Iterable[list[str]], normalize: Normalizer, words: pre_tokenizers.PreTokenizer, longest: int
    ) -> None:
        self._documents, self._normalize, self._words, self._longest = documents, normalize, words, longest

    def __iter__(self) -> Iterator[list[str]]:
        for document in self._documents:
            yield [self._without_overlong_words(self._normalize(line)) for line in document]

    def _without_overlong_words(self, line: str) -> str:
        if len(line) <= self._longest or max(map(len, line.split()), default=0) <= self._longest:
            return line
        return " ".join(word for word, _ in self._words.pre_tokenize_str(line) if len(word) <= self._longest)
