"""BERT's normalisation of text, a character at a time."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Iterator

from tokenizers import normalizers


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


class NormalizedDocuments:
    """Documents with their lines normalised, as often as they are read."""

    def __init__(self, documents: Iterable[list[str]], normalize: Normalizer) -> None:
        self._documents, self._normalize = documents, normalize

    def __iter__(self) -> Iterator[list[str]]:
        for document in self._documents:
            yield list(map(self._normalize, document))
