"""A corpus: training examples on disk, and the order in which a run reads them.

A corpus is a directory: `corpus.json` (what it was made with, and size and sha256 of every shard), `tokenizer/`, and
shards `<split>-00000.bin`, which are read an example at a time (see shards.py).
"""

from __future__ import annotations

import hashlib
import itertools
import json
from bisect import bisect_right
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from electra_fast.data.examples import GOLDEN, mix64, random_words
from electra_fast.data.shards import FORMAT, MANIFEST, REBUILD, Shard, read_manifest, token_type, write_shard
from electra_fast.data.tokenizer import Tokenizer
from electra_fast.special_ids import SpecialIds


def order(seed: int, epoch: int, n: int, indices: np.ndarray) -> np.ndarray:
    """The examples at places `indices` of one epoch's shuffled order of n examples, as int64.

    A pure function in O(1) memory: a keyed Feistel network over the smallest even number of bits that holds n, walked
    on while it lands outside range(n). For each (seed, epoch) it is a permutation of range(n). Raises ValueError for
    an index outside range(n).
    """
    places = np.asarray(indices, dtype=np.int64)
    if places.size and (places.min() < 0 or places.max() >= n):
        raise ValueError(f"indices run from {places.min()} to {places.max()}; places of {n} examples are 0 to {n - 1}")
    half = np.uint64(max(1, ((n - 1).bit_length() + 1) // 2))
    low = np.uint64((1 << int(half)) - 1)
    words = random_words(seed, epoch)
    keys = [np.uint64(next(words)) for _ in range(8)]
    result = places.astype(np.uint64).reshape(-1)
    left_out = np.arange(result.size)
    while left_out.size:
        left, right = result[left_out] >> half, result[left_out] & low
        for key in keys:
            left, right = right, left ^ (mix64(right * np.uint64(GOLDEN) + key) & low)
        result[left_out] = left << half | right
        left_out = left_out[result[left_out] >= n]
    return result.astype(np.int64).reshape(places.shape)


def run_order(seed: int, n: int, start: int, count: int) -> np.ndarray:
    """The examples that an endless run over n of them reads as number start to start + count - 1: (count,) int64.

    Number k is place k % n of the order of epoch k // n: a function of (seed, k), whatever was read before.
    """
    if n < 1 or start < 0 or count < 0:
        raise ValueError(f"n is {n}, start {start}, count {count}; n must be positive, the others not negative")
    epochs, places = np.divmod(np.arange(start, start + count), n)
    found = np.empty(count, np.int64)
    for epoch in np.unique(epochs):
        found[epochs == epoch] = order(seed, int(epoch), n, places[epochs == epoch])
    return found


class Corpus:
    """One split of a corpus directory: a sequence of examples (ids, start of segment B)."""

    def __init__(self, path: str | Path, split: str = "train") -> None:
        """Opens and checks every shard of the split; raises FileNotFoundError or ValueError naming the file."""
        self.path, self.split = Path(path), split
        manifest = read_manifest(self.path)
        self.manifest: dict[str, Any] = manifest
        self.splits: dict[str, int] = {  # examples of each
            name: sum(shard["examples"] for shard in shards) for name, shards in manifest["splits"].items()
        }
        if not self.splits.get(split):
            what = "has 0 examples" if split in self.splits else "is not there"
            raise ValueError(
                f"split {split!r} of {self.path} {what}; the corpus has {self.splits}: choose another, "
                f"or prepare more text"
            )
        self.max_length: int = manifest["max_length"]
        self.vocab_size: int = manifest["vocab_size"]
        self.special_ids: dict[str, int] = manifest["special_ids"]  # by the names of SpecialIds
        self.tokens: int = sum(shard["tokens"] for shard in manifest["splits"][split])
        self._shards = [Shard(self.path, entry, self.vocab_size, self.max_length) for entry in self._entries]
        self._ends = list(itertools.accumulate(shard.examples for shard in self._shards))

    def __len__(self) -> int:
        return self.splits[self.split]

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        """Example `index`: its ids (length,) int64 of its own memory, and where segment B begins."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"example {index} of {len(self)} in split {self.split!r} of {self.path}")
        index %= len(self)
        number = bisect_right(self._ends, index)
        shard = self._shards[number]
        return shard.example(index - self._ends[number] + shard.examples)

    def __reduce__(self) -> tuple[type[Corpus], tuple[Path, str]]:
        return Corpus, (self.path, self.split)  # a process that it is sent to opens and checks the files itself

    def __repr__(self) -> str:
        return f"Corpus({str(self.path)!r}, {self.split!r}): {len(self):,} examples, {self.tokens:,} tokens"

    @property
    def _entries(self) -> list[dict[str, Any]]:
        return self.manifest["splits"][self.split]

    @property
    def sha256(self) -> str:
        """Digest of the data: of the tokenizer's and every shard's digest, of all splits."""
        digests = [self.manifest["tokenizer_sha256"]]
        for name, shards in sorted(self.manifest["splits"].items()):
            digests += [name, *(shard["sha256"] for shard in shards)]
        return hashlib.sha256("\n".join(digests).encode()).hexdigest()

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer that made the ids; raises ValueError where it is not the one that corpus.json speaks of."""
        tokenizer = Tokenizer.load(self.path / "tokenizer" / "tokenizer.json")
        found, wanted = (tokenizer.vocab_size, tokenizer.sha256), (self.vocab_size, self.manifest["tokenizer_sha256"])
        if found != wanted:
            raise ValueError(
                f"{self.path}/tokenizer has {found[0]} entries and sha256 {found[1][:16]}, but the ids were "
                f"made by one with {wanted[0]} entries and sha256 {wanted[1][:16]}; restore it, or {REBUILD}"
            )
        return tokenizer

    def verify(self) -> None:
        """Read all of the split: hash every shard and hold every id against the vocabulary. Raises ValueError."""
        _ = self.tokenizer
        self.check_digests()
        for shard in self._shards:
            shard.check_ids()

    def check_digests(self, cancelled: Callable[[], bool] = lambda: False) -> None:
        """Read all of the split; raises ValueError, naming the file, if a shard's SHA-256 is not that of corpus.json.

        cancelled: is asked before every megabyte; True ends the reading without a verdict.
        """
        for shard, entry in zip(self._shards, self._entries, strict=True):
            shard.check_digest(entry["sha256"], cancelled)


def examples_at(corpus: Corpus, seed: int, start: int, count: int) -> list[tuple[np.ndarray, int]]:
    """Examples number start to start + count - 1 of an endless, shuffled run over the corpus (see `run_order`)."""
    return [corpus[index] for index in run_order(seed, len(corpus), start, count).tolist()]


class CorpusWriter:
    """Writes the files of a corpus into an empty directory; `staged_directory` makes one that appears whole."""

    def __init__(
        self,
        directory: Path,
        tokenizer: Tokenizer,
        max_length: int,
        *,
        settings: dict[str, Any],
        shard_tokens: int = 1 << 25,
    ) -> None:
        """settings: what corpus.json is to remember of the builder (its name, the seed). shard_tokens: about how many
        tokens a shard holds, and how many a split keeps in memory."""
        self._directory, self._tokenizer, self._shard_tokens = directory, tokenizer, shard_tokens
        self.dtype = token_type(tokenizer.vocab_size)
        self._manifest = {
            "format": FORMAT,
            "tokenizer_sha256": tokenizer.sha256,
            "vocab_size": tokenizer.vocab_size,
            "special_ids": SpecialIds.of(tokenizer)._asdict(),
            "max_length": max_length,
            **settings,
        }
        self._splits: dict[str, list[dict[str, Any]]] = {}
        self._waiting: dict[str, list[tuple[np.ndarray, np.ndarray, np.ndarray]]] = {}

    def add(self, split: str, tokens: np.ndarray, lengths: np.ndarray, starts: np.ndarray) -> None:
        """Append examples: their tokens (sum of lengths,) one after another, lengths (n,), starts of segment B (n,)."""
        self._splits.setdefault(split, [])
        waiting = self._waiting.setdefault(split, [])
        waiting.append((tokens.astype(self.dtype, copy=False), lengths, starts))
        if sum(len(part[0]) for part in waiting) >= self._shard_tokens:
            self._write_shard(split)

    def finish(self, counts: dict[str, Any]) -> None:
        """Write what is left, and then corpus.json with counts of the text."""
        for split, waiting in self._waiting.items():
            if sum(len(part[1]) for part in waiting):
                self._write_shard(split)
        self._tokenizer.save(self._directory / "tokenizer")
        self._manifest |= {"splits": self._splits, "text": counts}
        (self._directory / MANIFEST).write_text(json.dumps(self._manifest, indent=1) + "\n", "utf-8")

    def _write_shard(self, split: str) -> None:
        parts = self._waiting[split]
        self._waiting[split] = []
        tokens, lengths, starts = (np.concatenate(columns) for columns in zip(*parts, strict=True))
        name = f"{split}-{len(self._splits[split]):05d}.bin"
        self._splits[split].append(write_shard(self._directory / name, tokens, lengths, starts))
