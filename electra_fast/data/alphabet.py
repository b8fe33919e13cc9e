"""The characters of a text that get entries of their own in a vocabulary."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import chain

import numpy as np
import tokenizers

CHARACTERS_AT_ONCE = 1 << 20  # that are counted


def alphabet_of(
    library: tokenizers.Tokenizer, documents: Iterable[list[str]], most: int
) -> tuple[list[str], list[str]]:
    """The characters that get entries of their own, and those entries: characters, then ## forms, each sorted.

    Kept are the most frequent 1,000 and further ones up to 99.95 % of the text, so that Chinese keeps its thousands
    and English does not spend its vocabulary on scattered foreign letters; never more than `most` entries.
    """
    raw = np.zeros(sys.maxunicode + 1, np.int64)  # by code point
    for text in _batches(documents):
        raw += np.bincount(np.frombuffer(text.encode("utf-32-le"), np.uint32), minlength=len(raw))
    counts: Counter[str] = Counter()
    for code in raw.nonzero()[0].tolist():
        for part in library.normalizer.normalize_str(chr(code)).strip():
            counts[part] += int(raw[code])
    total, covered, entries = sum(counts.values()), 0, 0
    alphabet: list[str] = []
    continuing: list[str] = []
    for character, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        glued = _continues_words(library, character)
        entries += 2 if glued else 1
        if entries > most or (len(alphabet) >= 1000 and covered >= 0.9995 * total):
            break
        covered += count
        alphabet.append(character)
        continuing += [f"##{character}"] if glued else []
    return sorted(alphabet), sorted(alphabet) + sorted(continuing)


def _batches(documents: Iterable[list[str]]) -> Iterator[str]:
    """The text in strings of about CHARACTERS_AT_ONCE characters."""
    lines: list[str] = []
    size = 0
    for line in chain.from_iterable(documents):
        for start in range(0, len(line), CHARACTERS_AT_ONCE):
            lines.append(line[start : start + CHARACTERS_AT_ONCE])
            size += len(lines[-1])
            if size >= CHARACTERS_AT_ONCE:
                yield "".join(lines)
                lines, size = [], 0
    yield "".join(lines)


def _continues_words(library: tokenizers.Tokenizer, character: str) -> bool:
    """False for what always stands alone: punctuation, and the ideographs that the normaliser sets spaces around."""
    normalized = library.normalizer.normalize_str(f"a{character}")
    return any(len(word) > 1 for word, _ in library.pre_tokenizer.pre_tokenize_str(normalized))
