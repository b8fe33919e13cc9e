"""The C++ core in every instruction set of this CPU: random numbers against Philox in numpy, masking against its rules
in plain Python, functions of vectors against float64."""

import numpy as np
import pytest
import torch

from electra_fast.ops._core import core, why

pytestmark = pytest.mark.skipif(core is None, reason=why)
SEEDS = [0, 1, -3, 2**31, -(2**31) - 1, 2**40 + 17, -(2**50), 2**63 - 1, -(2**63)]
ROWS = np.array([0, 1, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**33 + 5, 2**62, -1])


@pytest.fixture(params=core.isas() if core else [None])
def ops(request):
    return getattr(core, request.param)


def philox(seed: int, row, group, plane) -> list[np.ndarray]:
    """The four words of every counter broadcast from row, group and plane; in uint64, where products do not wrap."""
    low, shift = np.uint64(2**32 - 1), np.uint64(32)
    k0, k1 = np.uint64(seed & 0xFFFFFFFF), np.uint64(seed >> 32 & 0xFFFFFFFF)
    row, group, plane = (np.asarray(part, dtype=np.int64).astype(np.uint64) for part in (row, group, plane))
    c0, c1, c2, c3 = np.broadcast_arrays(row & low, row >> shift, group, plane)
    for _ in range(10):
        p0, p1 = np.uint64(0xD2511F53) * c0, np.uint64(0xCD9E8D57) * c2
        c0, c1, c2, c3 = p1 >> shift ^ c1 ^ k0, p1 & low, p0 >> shift ^ c3 ^ k1, p0 & low
        k0, k1 = k0 + np.uint64(0x9E3779B9) & low, k1 + np.uint64(0xBB67AE85) & low
    return [c0, c1, c2, c3]


def words(ops, seed: int, rows: np.ndarray, group: int, plane: int) -> np.ndarray:
    out = np.zeros((len(rows), 4), np.uint32)
    ops.philox_words(seed, rows, len(rows), group, plane, out)
    return out


@pytest.mark.parametrize(
    "key, counter, expected",
    [  # the known answers of Random123 for philox4x32-10
        ((0, 0), (0, 0, 0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((0xFFFFFFFF,) * 2, (0xFFFFFFFF,) * 4, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (
            (0xA4093822, 0x299F31D0),
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_known_answers(ops, key, counter, expected):
    seed, row = (np.array(pair, np.uint32).view(np.int64) for pair in (key, counter[:2]))
    found = words(ops, int(seed[0]), row, counter[2], counter[3])
    assert " ".join(f"{word:08x}" for word in found[0]) == expected
    assert " ".join(f"{int(word[0]):08x}" for word in philox(int(seed[0]), row, *counter[2:])) == expected


@pytest.mark.parametrize("seed", SEEDS)
def test_words_and_seeds(ops, seed):
    assert (words(ops, seed, ROWS, 7, 3) == np.stack(philox(seed, ROWS, 7, 3), -1)).all()
    for step in (0, 5, 2**32 + 1):
        out = np.zeros(9, np.int64)
        ops.derive_seeds(seed, step, 3, 9, out)
        w0, w1, _, _ = philox(seed, step, 3 + np.arange(9), 0)
        assert (out == (w0 | w1 << np.uint64(32)).view(np.int64)).all()


@pytest.mark.parametrize("columns", [1, 15, 16, 17, 127, 128, 129, 300])
@pytest.mark.parametrize("threshold", [0, 1, 26, 255, 256])
def test_dropout_mask(ops, columns, threshold):
    for seed, plane in ((-3, 0), (2**40 + 17, 5)):
        bytes_ = np.stack(philox(seed, ROWS[:, None], np.arange((columns + 15) // 16), plane), -1)
        bytes_ = bytes_.astype("<u4").view(np.uint8).reshape(len(ROWS), -1)[:, :columns]
        out = np.full((len(ROWS) + 1, columns), 77, np.uint8)
        ops.dropout_mask((ROWS, seed, threshold), len(ROWS), columns, plane, out, 1)
        assert (out[:-1] == (bytes_ >= threshold)).all()
        assert (out[-1] == 77).all(), "wrote past the last row"


def test_dropout_mask_threads_and_rate(ops):
    rows = np.arange(2048)
    one, two = np.zeros((2, 2048, 257), np.uint8)
    ops.dropout_mask((rows, 11, 26), 2048, 257, 0, one, 1)
    ops.dropout_mask((rows, 11, 26), 2048, 257, 0, two, 2)
    assert (one == two).all()
    assert abs(one.mean() - 230 / 256) < 5 * (0.1 * 0.9 / one.size) ** 0.5
    ops.dropout_mask((None, 11, 26), 0, 257, 0, None, 2)  # no rows: nothing to do


def plain_masking(ids, cu, slots, rows, special, mask_id, threshold, faithful, seed):
    """The rules of electra_fast/ops/masking.py, one token at a time."""
    masked, chosen = ids.copy(), []
    w = np.stack(philox(seed, rows, 0, 0), -1) if len(rows) else np.zeros((0, 4))
    for n in range(len(cu) - 1):
        candidates = [i for i in range(cu[n], cu[n + 1]) if ids[i] not in special]
        count = slots[n + 1] - slots[n]
        draws = []  # position, row, word that decides on [MASK]
        if faithful:
            for j in range(count if candidates else 0):
                row = int(rows[cu[n]]) + j
                _, _, w2, w3 = (int(word) for word in philox(seed, row, 0, 0))
                draws.append((candidates[w2 * len(candidates) >> 32], row, w3))
        else:
            first = sorted(candidates, key=lambda i: (w[i, 0], i))[:count]
            draws = [(i, rows[i], w[i, 1]) for i in sorted(first)]
        chosen += [(i, ids[i], row) for i, row, _ in draws]
        chosen += [(cu[n], -100, rows[cu[n]] if cu[n] < cu[n + 1] else 0)] * (count - len(draws))
        for i, _, word in draws:
            if word < threshold:
                masked[i] = mask_id
    return masked, *np.array(chosen, dtype=np.int64).reshape(-1, 3).T


def random_case(rng):
    """Empty sequences, one-token sequences, ones of special tokens only, and slots for more tokens than there are."""
    lengths = rng.choice([0, 1, 5, 40, 128], rng.integers(0, 7))
    cu = np.concatenate([[0], lengths.cumsum()]).astype(np.int32)
    slots = np.concatenate([[0], rng.integers(0, 30, len(lengths)).cumsum()]).astype(np.int32)
    ids = rng.integers(0, rng.choice([5, 30]), cu[-1])
    rows = rng.choice(2**40, cu[-1])
    special = np.arange(rng.integers(0, 5))
    seed, faithful = int(rng.choice(SEEDS)), bool(rng.integers(2))
    words = (
        philox(seed, rows[:1], 0, 0)[3] if faithful else philox(seed, rows, 0, 0)[1]
    )  # a word itself is no longer below
    threshold = int(rng.choice([0, round(0.85 * 2**32), 2**32, *words.astype(np.int64)]))
    return ids, cu, slots, rows, special, 4, threshold, faithful, seed


def masking(ops, ids, cu, slots, rows, special, mask_id, threshold, faithful, seed, threads=1):
    masked, (positions, labels, sample_rows) = np.full(len(ids), -7), np.full((3, slots[-1]), -7)
    text, rule = (ids, rows, len(ids), cu, len(cu) - 1), (special, len(special), mask_id, threshold, faithful, seed)
    outputs = (masked, positions, labels, sample_rows)
    ops.masking(text, slots, rule, outputs, threads)
    return outputs


def test_masking_and_corrupt(ops):
    rng = np.random.default_rng(0)
    replaced = 0
    for _ in range(150):
        case = random_case(rng)
        ids, faithful = case[0], case[7]
        found = masking(ops, *case)
        for name, got, wanted in zip(
            ("masked_ids", "positions", "labels", "sample_rows"), found, plain_masking(*case), strict=True
        ):
            assert np.array_equal(got, wanted), (name, case)

        _, positions, labels, _ = found
        sampled = rng.integers(0, 30, len(positions))
        wanted = ids.copy()
        for i in set(positions[labels != -100]):
            samples = sampled[(positions == i) & (labels != -100)]
            wanted[i] = samples.sum() // len(samples)
        corrupted, is_replaced = np.full(len(ids), -7), np.full(len(ids), 7, np.uint8)
        ops.corrupt(ids, len(ids), (positions, labels, sampled, len(positions)), faithful, corrupted, is_replaced)
        assert np.array_equal(corrupted, wanted), case
        assert np.array_equal(is_replaced, wanted != ids), case
        replaced += is_replaced.sum()
    assert replaced > 1000


@pytest.mark.parametrize("faithful", [False, True])
def test_masking_threads(ops, faithful):
    rng = np.random.default_rng(1)
    cu, slots = np.arange(0, 8193, 128, dtype=np.int32), np.arange(0, 64 * 19 + 1, 19, dtype=np.int32)
    case = (rng.integers(0, 1000, 8192), cu, slots, np.arange(8192), np.arange(4), 4, 2**31, faithful, 3)
    for one, two in zip(masking(ops, *case), masking(ops, *case, threads=2), strict=True):
        assert (one == two).all()


def of_vectors(op, x: np.ndarray, outputs: int = 1) -> list[np.ndarray]:
    x = x.astype(np.float32)
    padded = np.append(x, np.ones(-len(x) % 16, np.float32))
    found = [np.zeros_like(padded) for _ in range(outputs)]
    op(padded, len(padded), *found)
    return [out[: len(x)].astype(np.float64) for out in found]


@pytest.mark.parametrize("name", ["exp", "log"])
def test_exp_and_log_are_within_2_ulp(ops, name):
    if name == "exp":
        x = np.concatenate([np.linspace(-87.3, 88, 2**21), np.linspace(-1, 1, 2**20), [0, -0.0]]).astype(np.float32)
        edges = {-np.inf: 0, -87.4: 0, -1e30: 0, np.nan: np.nan}
    else:
        x = np.concatenate([np.exp(np.linspace(-87.3, 88.7, 2**21)), np.linspace(0.5, 2, 2**20)]).astype(np.float32)
        edges = {0: -np.inf, np.inf: np.inf, np.nan: np.nan, 1: 0}
    op, gold = getattr(ops, f"vector_{name}"), getattr(np, name)(x.astype(np.float64))
    error = np.abs(of_vectors(op, x)[0] - gold) / np.spacing(np.abs(gold).astype(np.float32))
    assert error.max() <= 2
    np.testing.assert_array_equal(of_vectors(op, np.array([*edges]))[0], np.float32([*edges.values()]))


def test_the_normal_distribution(ops):
    """Phi within what csrc/gelu.h says, its small values to digits of their own, and phi."""
    x = np.concatenate([np.linspace(-14, 14, 2**21), np.linspace(-1, 1, 2**20), [0, -0.0]]).astype(np.float32)
    wide = torch.from_numpy(x).double()
    gold_cdf, gold_pdf = torch.special.ndtr(wide).numpy(), (wide.square() / -2).exp().numpy() / np.sqrt(2 * np.pi)
    cdf, pdf = of_vectors(ops.vector_normal, x, 2)
    assert np.abs(cdf - gold_cdf).max() <= 2.1e-7
    assert np.abs(pdf - gold_pdf).max() <= 5e-8
    small = (x < 0) & (x > -5)
    assert np.abs(cdf[small] / gold_cdf[small] - 1).max() <= 8e-7
    cdf, pdf = of_vectors(ops.vector_normal, np.array([-np.inf, -1e30, -14, 14, 1e30, np.inf, np.nan]), 2)
    np.testing.assert_array_equal(cdf, [0, 0, 0, 1, 1, 1, np.nan])
    np.testing.assert_array_equal(pdf, [0, 0, 0, 0, 0, 0, np.nan])
