"""A chunk of documents -> training examples."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from itertools import chain

import numpy as np

from electra_fast.data.examples import pack_examples, pair_examples
from electra_fast.data.normalizer import stripped_characters
from electra_fast.data.shards import token_type
from electra_fast.data.tokenizer import Tokenizer

Chunk = list[tuple[str, int, list[str]]]  # (split, document number, lines)


@dataclass
class Part:
    """The examples that a chunk gives one split: ids in the type of the shards, as bytes."""

    dtype: str
    ids: bytes = b""
    lengths: array[int] = field(default_factory=lambda: array("I"))
    starts: array[int] = field(default_factory=lambda: array("I"))
    documents: int = 0
    tokens: int = 0  # of the text
    unknown: int = 0
    kept: int = 0  # tokens of the text that are in examples
    characters: int = 0  # of the text
    stripped: int = 0  # characters that the tokenizer takes a mark from

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        lengths, starts = (np.frombuffer(column, np.uint32) for column in (self.lengths, self.starts))
        return np.frombuffer(self.ids, self.dtype), lengths, starts


class Builder:
    """Chunk -> examples; what a worker holds."""

    def __init__(self, tokenizer: Tokenizer, max_length: int, packing: str, seed: int) -> None:
        self.tokenizer, self.max_length, self.packing, self.seed = tokenizer, max_length, packing, seed

    def __call__(self, chunk: Chunk) -> dict[str, Part]:
        special = dict(cls_id=self.tokenizer.cls_token_id, sep_id=self.tokenizer.sep_token_id)
        encoded = iter(self.tokenizer.encode([line for _, _, document in chunk for line in document]))
        dtype = token_type(self.tokenizer.vocab_size)
        parts: dict[str, Part] = {}
        examples: dict[str, list[tuple[list[int], int]]] = {}
        packed: dict[str, list[list[list[int]]]] = {}
        for split, number, document in chunk:
            part = parts.setdefault(split, Part(dtype.str))
            lines = [next(encoded) for _ in document]
            part.documents += 1
            part.characters += sum(map(len, document))
            if self.tokenizer.strips_accents:
                part.stripped += sum(map(stripped_characters, document))
            part.tokens += sum(map(len, lines))
            part.unknown += sum(line.count(self.tokenizer.unk_token_id) for line in lines)
            if self.packing == "plain":
                packed.setdefault(split, []).append(lines)
            else:
                found = pair_examples(lines, self.max_length, **special, seed=self.seed, index=number)
                examples.setdefault(split, []).extend(found)
        for split, documents in packed.items():
            examples[split] = pack_examples(documents, self.max_length, **special)
        for split, found in examples.items():
            part = parts[split]
            ids = list(chain.from_iterable(ids for ids, _ in found))
            part.ids = np.fromiter(ids, dtype, len(ids)).tobytes()
            part.lengths = array("I", [len(ids) for ids, _ in found])
            part.starts = array("I", [start for _, start in found])
            if self.packing == "plain":
                part.kept = part.tokens
            else:  # all but [CLS] and [SEP]
                part.kept = sum(len(ids) - 2 - (start < len(ids)) for ids, start in found)
        return parts
