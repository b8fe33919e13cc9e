"""Philox, seeds and dropout masks, as the package calls them, against Philox in numpy."""

import math

import numpy as np
import pytest
import torch
from numerics import DEVICES, chi_squared, dropout_factors, philox

from electra_fast.ops import _philox
from electra_fast.ops._philox import (
    DeriveSeedsArguments,
    DropoutMaskArguments,
    derive_seeds,
    derive_seeds_reference,
    dropout_mask,
    dropout_mask_reference,
    dropout_reference,
    dropout_scale,
    dropout_threshold,
)

SEEDS = [0, 1, -3, 2**31, 2**40 + 17, -(2**50), 2**63 - 1, -(2**63)]
ROWS = torch.tensor([0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**33 + 5, 2**62])


def one(number, device="cpu"):
    return torch.tensor([number], device=device)


def test_the_known_answers_of_random123():
    zeros = philox(0, 0, 0, 0)
    assert " ".join(f"{word:08x}" for word in zeros) == "6627e8d5 e169c58d bc57ac4c 9b00dbd8"
    ones = philox(-1, -1, 2**32 - 1, 2**32 - 1)
    assert " ".join(f"{word:08x}" for word in ones) == "408f276d 41c83b0e a20bc7c6 6d5451fd"


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("seed", SEEDS)
def test_words(seed, device):
    found = _philox.philox(one(seed, device), ROWS.to(device)[:, None], torch.arange(9, device=device), 5)
    assert np.array_equal(torch.stack(found, -1).cpu().numpy(), philox(seed, ROWS.numpy()[:, None], np.arange(9), 5))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("seed", SEEDS)
def test_derived_seeds(seed, device):
    for step in (0, 5, 2**32 + 1):
        words = philox(seed, step, 3 + np.arange(9), 0)
        expected = (words[:, 0] | words[:, 1] << np.uint64(32)).view(np.int64)
        args = DeriveSeedsArguments(one(seed, device), one(step, device), 3, 9)
        for found in (derive_seeds(*args), derive_seeds_reference(args)):
            assert found.tolist() == expected.tolist()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("columns", [1, 15, 16, 17, 128, 300])
@pytest.mark.parametrize("p", [0.0, 1 / 256, 0.1, 255 / 256, 1.0])
def test_masks(p, columns, device):
    for seed, plane in ((-3, 0), (2**40 + 17, 5)):
        args = DropoutMaskArguments(one(seed, device), ROWS.to(device), columns, dropout_threshold(p), plane)
        for ours in (dropout_mask(*args), dropout_mask_reference(args)):
            assert torch.equal(ours.cpu(), dropout_factors(seed, ROWS, columns, p, plane) != 0)


def test_masks_of_no_rows_and_of_strided_rows():
    assert dropout_mask(one(0), ROWS[:0], 5, 26, 0).shape == (0, 5)
    assert torch.equal(dropout_mask(one(0), ROWS[::2], 5, 26, 0), dropout_mask(one(0), ROWS, 5, 26, 0)[::2])


def test_every_byte_is_as_likely():
    counts = [int((~dropout_mask(one(1), torch.arange(400), 1024, t, 0)).sum()) for t in range(257)]
    assert counts[0] == 0 and counts[256] == 400 * 1024
    assert abs(chi_squared(np.diff(counts), np.ones(256))) < 4


def test_rows_seeds_and_planes_are_independent():
    rows = torch.arange(500)
    masks = [dropout_mask(one(s), r, 256, 128, plane) for s, r, plane in ((0, rows, 0), (1, rows, 0), (0, rows, 1))]
    masks.append(dropout_mask(one(0), rows + 500, 256, 128, 0))
    for i, a in enumerate(masks):
        for b in masks[:i]:
            agree = (a == b).double().mean().item()
            assert abs(agree - 0.5) < 5 * 0.5 / math.sqrt(a.numel())


@pytest.mark.parametrize("p, threshold", [(0.0, 0), (0.001, 0), (0.1, 26), (0.5, 128), (0.999, 256), (1.0, 256)])
def test_thresholds_and_scales_keep_the_mean(p, threshold):
    assert dropout_threshold(p) == threshold
    if threshold < 256:
        assert dropout_scale(threshold) * (256 - threshold) / 256 == 1


def test_dropout_is_the_mask_times_the_scale():
    x = torch.randn(8, 40, dtype=torch.float64)
    assert torch.equal(dropout_reference(x, 0.1, one(7), ROWS, 2), x * dropout_factors(7, ROWS, 40, 0.1, 2))
    assert torch.equal(dropout_reference(x, 0.0, one(7), ROWS), x)
