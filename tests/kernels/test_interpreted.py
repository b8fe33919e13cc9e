"""The interpreter's products: near those in float64, and of the same bits whatever their shape and order."""

import numpy as np
import pytest
from interpreted import ordered_product


def operands(rows: int, inner: int, columns: int, dtype: type = np.float32) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(0)
    spread = np.exp(draw.standard_normal((rows, inner)))
    return (draw.standard_normal((rows, inner)) * spread).astype(dtype), draw.standard_normal((inner, columns)).astype(
        dtype
    )


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("shape", [(1, 1, 1), (17, 64, 33), (128, 256, 64), (3, 1024, 5)], ids=str)
def test_it_is_the_product(shape: tuple[int, int, int], dtype: type) -> None:
    a, b = operands(*shape, dtype)
    largest = np.abs(a).max(1)[:, None].astype(float) * np.abs(b).max(0)[None].astype(float) * shape[1]
    assert (np.abs(ordered_product(a, b) - a.astype(float) @ b.astype(float)) <= 2.0**-40 * largest).all()


def test_neither_shape_nor_order_changes_a_bit() -> None:
    a, b = operands(70, 96, 40)
    whole, order = ordered_product(a, b), np.random.default_rng(1).permutation(96)
    assert np.array_equal(ordered_product(a[:, order], b[order]), whole)
    for row, column in ((0, 0), (33, 17), (69, 39)):
        assert np.array_equal(ordered_product(a[row : row + 1], b)[0], whole[row])
        assert np.array_equal(ordered_product(a, b[:, column : column + 1])[:, 0], whole[:, column])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_stays_in_its_row(bad: float) -> None:
    a, b = operands(4, 8, 3)
    a[1, 2] = bad
    found = ordered_product(a, b)
    assert np.isfinite(found[[0, 2, 3]]).all() and not np.isfinite(found[1]).any()
    assert np.array_equal(np.isnan(found[1]), np.isnan(a[1].astype(float) @ b))
