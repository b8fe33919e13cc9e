"""Batches by tokens: each example once an epoch, none over the limit, examples of like length together."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from electra_fast.seq2seq.batches import by_length, token_batches


@given(st.lists(st.integers(1, 60), min_size=1, max_size=80), st.integers(1, 200), st.integers(0, 5))
def test_each_example_is_in_one_batch_of_an_epoch(sizes: list[int], most: int, epoch: int) -> None:
    batches = token_batches(sizes, most, 7, epoch)
    assert sorted(i for batch in batches for i in batch) == list(range(len(sizes)))
    assert all(sum(sizes[i] for i in batch) <= most or len(batch) == 1 for batch in batches)
    assert batches == token_batches(sizes, most, 7, epoch)


def test_examples_of_like_length_are_together_and_epochs_differ() -> None:
    sizes = np.random.default_rng(0).integers(5, 100, 500).tolist()
    first, second = (token_batches(sizes, 400, 1, epoch) for epoch in (0, 1))
    assert first != second
    spread = [max(sizes[i] for i in batch) - min(sizes[i] for i in batch) for batch in first]
    assert np.mean(spread) < 10
    assert [batch[0] for batch in first] != sorted((batch[0] for batch in first), key=lambda i: sizes[i])


def test_inference_goes_from_short_to_long() -> None:
    assert list(by_length([5, 1, 3, 9], 6)) == [[1, 2], [0], [3]]
