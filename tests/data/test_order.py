"""The order in which a corpus is read: a permutation an epoch, place by place, in no memory."""

import numpy as np
import pytest

from electra_fast.data.corpus import order


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 16, 17, 100, 1000, 4097])
def test_order_is_a_permutation(n):
    orders = []
    for seed, epoch in ((0, 0), (0, 1), (1, 0), (-5, 2**40)):
        found = order(seed, epoch, n, np.arange(n))
        assert found.dtype == np.int64 and sorted(found) == list(range(n))
        pieces = [order(seed, epoch, n, np.array([i]))[0] for i in range(0, n, max(1, n // 20))]
        assert pieces == found[:: max(1, n // 20)].tolist()  # place by place as all at once
        orders.append(tuple(found))
    if n >= 16:
        assert len(set(orders)) == 4


def test_order_in_constant_memory():
    places = np.array([0, 1, 10**15, 3 * 10**15 - 1])
    found = order(1, 2, 3 * 10**15, places)
    assert len(set(found.tolist())) == 4 and found.min() >= 0 and found.max() < 3 * 10**15
    assert order(0, 0, 10, np.zeros((0, 3), np.int64)).shape == (0, 3)
    assert order(0, 0, 10, np.arange(6).reshape(2, 3)).shape == (2, 3)
    for wrong in ([-1], [10]):
        with pytest.raises(ValueError, match=r"indices run from -?\d+ to -?\d+; places of 10 examples are 0 to 9"):
            order(0, 0, 10, np.array(wrong))


def test_order_is_uniform():
    """Chi-squared over 1,000 epochs: where an item lands, and where the next one lands from there; alpha 1e-4."""
    n, epochs = 13, 2000
    orders = np.stack([order(7, epoch, n, np.arange(n)) for epoch in range(epochs)])
    for counts in (
        [np.bincount(orders[:, place], minlength=n) for place in range(n)],
        [np.bincount((orders[:, place + 1] - orders[:, place]) % n, minlength=n)[1:] for place in range(n - 1)],
    ):
        for found in counts:
            expected = epochs / len(found)
            chi2 = ((found - expected) ** 2 / expected).sum()
            assert chi2 < 42  # 12 degrees of freedom: 39.1 at 1e-4; 25 such tests


def test_order_is_pinned():
    """A run resumed by a later version reads the same examples."""
    assert order(0, 0, 10, np.arange(10)).tolist() == [9, 6, 8, 4, 2, 1, 0, 3, 7, 5]
    assert order(-1, 3, 1000, np.arange(5)).tolist() == [389, 239, 783, 833, 386]
