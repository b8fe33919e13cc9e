"""Words and spans as units of masking: by hand in three languages, against plain Python, and by chi-squared."""

import math
import sys

import numpy as np
import pytest
import torch
from numerics import DEVICES, chi_squared, offsets, philox

from electra_fast.ops import masking
from electra_fast.ops.mask_units import MaskUnitsArguments, mask_units_reference
from electra_fast.ops.masking import count_slots

CLS, SEP, MASK = 2, 3, 4
SPECIAL = [0, CLS, SEP, MASK]


@pytest.fixture(autouse=True, params=["dispatched", "reference"])
def implementation(request, monkeypatch):
    """Every test runs on what the dispatcher picks, and on the reference."""
    if request.param == "reference":
        plain = lambda *values: mask_units_reference(MaskUnitsArguments(*values))  # noqa: E731
        monkeypatch.setattr(sys.modules["electra_fast.ops.masking"], "mask_units", plain)


def example(lengths, unit, share=0.6, mask_prob=0.3, seed=3):
    """Random text in which `share` of the tokens start a word."""
    generator, total = torch.Generator().manual_seed(len(lengths)), sum(lengths)
    slots = count_slots(torch.tensor(lengths, dtype=torch.int64), mask_prob)
    return dict(
        input_ids=torch.randint(0, 40, (total,), generator=generator),
        cu_seqlens=offsets(*lengths),
        slots=slots,
        num_slots=int(slots[-1]),
        max_slots=max(slots.diff().tolist(), default=0),
        row_ids=torch.randint(0, 2**62, (total,), generator=generator),
        special_ids=SPECIAL,
        mask_id=MASK,
        seed=seed,
        unit=unit,
        starts_word=torch.rand(total, generator=generator) < share,
    )


def units_of(ids, rows, starts_word, seed, spans):
    """The units of one sequence, each a list of places: the rule in plain Python."""
    units, words = [], 0
    for i, token in enumerate(ids):
        if token in SPECIAL:
            continue
        leads = i == 0 or ids[i - 1] in SPECIAL
        if leads or starts_word[i]:
            opens = leads or int(philox(seed, np.array([rows[i]]))[0][2]) < 2**32 / 5
            words = 0 if opens else words + 1
            if not spans or words % 10 == 0:
                units.append([])
        units[-1].append(i)
    return units


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("unit", ["word", "span"])
@pytest.mark.parametrize("lengths", [(12, 1, 40, 7), (700, 3), (0, 5, 0), ()], ids=str)
def test_the_rules(lengths, unit, device):
    given = example(lengths, unit)
    placed = {name: v.to(device) if isinstance(v, torch.Tensor) else v for name, v in given.items()}
    ours = masking(**placed)
    words, ids = philox(3, given["row_ids"].numpy()), given["input_ids"].tolist()
    for n, length in enumerate(lengths):
        start = int(given["cu_seqlens"][n])
        part, rows = ids[start : start + length], given["row_ids"][start : start + length].tolist()
        units = units_of(part, rows, given["starts_word"][start : start + length].tolist(), 3, unit == "span")
        units.sort(key=lambda places: (int(words[start + places[0]][0]), places[0]))
        first, last = given["slots"][n : n + 2].tolist()
        keys = {i: places[0] for places in units for i in places}
        chosen = sorted([i for places in units for i in places][: last - first])
        used = first + len(chosen)
        assert ours.positions[first:used].tolist() == [start + i for i in chosen]
        assert ours.labels[first:used].tolist() == [part[i] for i in chosen]
        assert ours.sample_rows[first:used].tolist() == [rows[i] for i in chosen]
        assert (ours.labels[used:last] == -100).all()
        for i in range(length):
            hides = i in chosen and int(words[start + keys[i]][1]) < round(0.85 * 2**32)
            assert int(ours.masked_ids[start + i]) == (MASK if hides else part[i])


@pytest.mark.parametrize(
    ("pieces", "words"),
    [
        ("[CLS] un ##believ ##able news [SEP]", [[1, 2, 3], [4]]),
        ("[CLS] Donau ##dampf ##schiff fährt [SEP] ##er kam [SEP]", [[1, 2, 3], [4], [6], [7]]),
        ("[CLS] 今 ##天 是 好 ##天 [SEP]", [[1, 2], [3], [4, 5]]),
    ],
)
def test_whole_words_by_hand(pieces, words):
    """With slots for all tokens but one, one unit is cut, and every other is whole; over seeds each comes first."""
    pieces = pieces.split()
    vocabulary = {"[PAD]": 0, "[CLS]": CLS, "[SEP]": SEP, "[MASK]": MASK}
    ids = torch.tensor([vocabulary.setdefault(piece, len(vocabulary) + 4) for piece in pieces])
    starts = torch.tensor([not piece.startswith("##") for piece in pieces])
    seen = set()
    for seed in range(60):
        slots = max(len(word) for word in words)
        found = masking(
            ids, offsets(len(ids)), offsets(slots), slots, slots, torch.arange(len(ids)), special_ids=SPECIAL,
            mask_id=MASK, replace_prob=1.0, seed=seed, unit="word", starts_word=starts,
        )  # fmt: skip
        chosen = found.positions.tolist()
        hidden = (found.masked_ids == MASK).nonzero().flatten().tolist()
        assert hidden == chosen
        whole = [word for word in words if set(word) <= set(chosen)]
        cut = [word for word in words if 0 < len(set(word) & set(chosen)) < len(word)]
        assert whole and len(cut) <= 1 and all(word[: len(set(word) & set(chosen))] == sorted(set(word) & set(chosen))
                                               for word in cut)  # fmt: skip
        seen |= {tuple(word) for word in whole}
    assert seen == {tuple(word) for word in words}


def test_words_are_chosen_alike_and_spans_are_as_long_as_they_should_be():
    """Chi-squared over which word comes first, and over the lengths of 20,000 spans: min(Geometric(1/5), 10)."""
    count = 3000
    given = example((8,) * count, "word") | dict(input_ids=torch.full((8 * count,), 9))
    given |= dict(starts_word=torch.tensor([True, False, True, True, False, False, True, True] * count))
    given |= dict(slots=torch.arange(count + 1, dtype=torch.int32), num_slots=count, max_slots=1)
    first = masking(**given).positions.numpy() % 8
    assert set(first) == {0, 2, 3, 6, 7}
    assert abs(chi_squared(np.bincount(first, minlength=8)[[0, 2, 3, 6, 7]], np.ones(5))) < 4

    total = 90_000
    unit_rows = sys.modules["electra_fast.ops.masking"].mask_units(
        torch.full((total,), 9), offsets(total), torch.arange(total), torch.ones(total, dtype=torch.bool), SPECIAL,
        True, torch.tensor([5]),
    )  # fmt: skip
    lengths = np.unique(unit_rows.numpy(), return_counts=True)[1][:-1]
    expected = np.array([0.2 * 0.8 ** (k - 1) for k in range(1, 10)] + [0.8**9])
    assert abs(chi_squared(np.bincount(lengths, minlength=11)[1:], expected)) < 4
    assert lengths.max() == 10 and abs(lengths.mean() - (1 - 0.8**10) / 0.2) < 4 * 3.4 / math.sqrt(len(lengths))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (dict(unit="letter"), "unit is 'letter'; allowed: token, word, span"),
        (dict(faithful=True), "unit is word and faithful is True"),
        (dict(starts_word=None), "unit is word and starts_word is None; words and spans need starts_word"),
        (dict(starts_word=torch.ones(3, dtype=torch.bool)), "starts_word has shape"),
    ],
)
def test_what_does_not_fit_is_rejected(wrong, message):
    with pytest.raises(ValueError, match=f"masking: {message}"):
        masking(**example((12, 5), "word") | wrong)
