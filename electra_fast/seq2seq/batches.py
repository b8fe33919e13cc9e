"""Batches of examples of like length, by their number of tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

NEAR = 64  # batches among whose examples those of like length are put together


def token_batches(sizes: Sequence[int], most: int, seed: int, epoch: int) -> list[list[int]]:
    """The batches of one epoch, in their order; a pure function of the arguments.

    The examples are shuffled and cut into pieces of about NEAR batches; each piece is sorted by length and cut into
    batches, and all batches are shuffled. So batches waste little and differ from epoch to epoch.

    sizes: tokens of each example. most: tokens of a batch at most; a longer example is a batch of its own.

    Returns lists of indices; each example is in one of them.
    """
    draws = np.random.default_rng((seed % 2**64, epoch))
    order = draws.permutation(len(sizes))
    lengths = np.asarray(sizes)[order]
    piece = (lengths.cumsum() - 1) // max(1, NEAR * most)
    order = order[np.lexsort((lengths, piece))]
    batches = list(filled(order.tolist(), sizes, most))
    return [batches[i] for i in draws.permutation(len(batches))]


def filled(order: Sequence[int], sizes: Sequence[int], most: int) -> Iterator[list[int]]:
    """Cut examples, in the order given, into batches of at most so many tokens; one of one example may have more."""
    batch: list[int] = []
    tokens = 0
    for i in order:
        if batch and tokens + sizes[i] > most:
            yield batch
            batch, tokens = [], 0
        batch.append(i)
        tokens += sizes[i]
    if batch:
        yield batch


def by_length(sizes: Sequence[int], most: int) -> Iterator[list[int]]:
    """Batches for inference: indices of examples from short to long."""
    return filled(sorted(range(len(sizes)), key=lambda i: sizes[i]), sizes, most)
