"""masking, corrupt and count_slots, against the rules restated in plain Python on Philox in numpy."""

import math
import sys

import numpy as np
import pytest
import torch
from numerics import DEVICES, chi_squared, laid_out, offsets, philox

from electra_fast import Electra, ElectraConfig
from electra_fast.ops import corrupt, masking
from electra_fast.ops._cu_seqlens import cu_seqlens_of
from electra_fast.ops.corrupt import CorruptArguments
from electra_fast.ops.masking import MaskingArguments, count_slots

PAD, UNK, CLS, SEP, MASK = range(5)
SPECIAL = [PAD, CLS, SEP, MASK]


@pytest.fixture(autouse=True, params=["dispatched", "reference"])
def implementation(request, monkeypatch):
    """Every test runs on what the dispatcher picks, and on the reference."""
    if request.param == "reference":
        for name, arguments in (("masking", MaskingArguments), ("corrupt", CorruptArguments)):
            module = sys.modules[f"electra_fast.ops.{name}"]
            reference, check = getattr(module, f"{name}_reference"), getattr(module, f"_check_{name}")
            positional = lambda *values, f=reference, check=check, make=arguments: (  # noqa: E731
                check(make(*values)) or f(make(*values))
            )
            monkeypatch.setattr(module, f"_{name}", positional)


def example(lengths=(12, 1, 40, 7), vocabulary=12, mask_prob=0.15, **options):
    total = sum(lengths)
    slots = count_slots(torch.tensor(lengths, dtype=torch.int64), mask_prob)
    return dict(
        input_ids=torch.randint(0, vocabulary, (total,)),
        cu_seqlens=offsets(*lengths),
        slots=slots,
        num_slots=int(slots[-1]),
        max_slots=max(slots.diff().tolist(), default=0),
        row_ids=torch.randint(0, 2**62, (total,)),
        special_ids=SPECIAL,
        mask_id=MASK,
    ) | dict(seed=3, **options)


def truth(
    input_ids,
    cu_seqlens,
    slots,
    num_slots,
    max_slots,
    row_ids,
    special_ids,
    mask_id,
    seed,
    replace_prob=0.85,
    faithful=False,
):
    ids, rows, threshold = input_ids.tolist(), row_ids.tolist(), round(replace_prob * 2**32)
    words = philox(seed, row_ids.numpy()).tolist()
    masked, positions, labels, sample_rows = list(ids), [], [], []
    for start, end, first, last in zip(cu_seqlens[:-1], cu_seqlens[1:], slots[:-1], slots[1:], strict=True):
        candidates = [i for i in range(start, end) if ids[i] not in special_ids]
        count = int(last - first)
        if faithful:
            draws = philox(seed, rows[start] + np.arange(count)).tolist() if count else []
            chosen = [candidates[w2 * len(candidates) >> 32] for _, _, w2, _ in draws if candidates]
            hidden = [w3 < threshold for _, _, _, w3 in draws]
            keys = [rows[start] + j for j in range(len(chosen))]
        else:
            chosen = sorted(sorted(candidates, key=lambda i: (words[i][0], i))[:count])
            hidden = [words[i][1] < threshold for i in chosen]
            keys = [rows[i] for i in chosen]
        for i, hide in zip(chosen, hidden, strict=False):
            masked[i] = mask_id if hide else masked[i]
        unused = count - len(chosen)
        positions += chosen + unused * [int(start)]
        labels += [ids[i] for i in chosen] + unused * [-100]
        sample_rows += keys + unused * [rows[start]] if count else []
    return masked, positions, labels, sample_rows


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", ["contiguous", "transposed"])
@pytest.mark.parametrize("faithful", [False, True])
@pytest.mark.parametrize(
    "lengths",
    [(12, 1, 40, 7), (1,), (128, 127, 129), (0, 5, 0, 0, 9, 0), (0, 0), (), (3, 2, 4, 1, 3, 2, 1)],
    ids=lambda lengths: str(lengths),
)
def test_the_rules(lengths, faithful, layout, device):
    for mask_prob, vocabulary in ((0.15, 12), (0.6, 7), (1.0, 5)):
        given = example(lengths, vocabulary, mask_prob, faithful=faithful)
        expected = truth(**given)
        placed = {n: laid_out(v.to(device), layout) if isinstance(v, torch.Tensor) else v for n, v in given.items()}
        ours = masking(**placed)
        assert [t.tolist() for t in ours[:4]] == list(expected)
        assert torch.equal(ours.slots, placed["slots"]) and ours.max_slots == given["max_slots"]
        assert torch.equal(placed["input_ids"].cpu(), given["input_ids"]), "the input was modified"


@pytest.mark.parametrize(
    "length, mask_prob, count",
    [
        (10, 0.15, 2),
        (30, 0.15, 4),
        (50, 0.15, 8),
        (128, 0.15, 19),
        (1, 0.15, 1),
        (2, 0.15, 1),
        (3, 0.15, 1),
        (0, 0.15, 0),
    ],
)
def test_counts_round_half_to_even_and_are_at_least_one(length, mask_prob, count):
    assert count_slots(torch.tensor([length]), mask_prob).tolist() == [0, count]
    assert length == 0 or count == max(1, round(mask_prob * length))


def test_counts_stop_at_max_predictions():
    slots = count_slots(torch.tensor([128, 5, 0, 512]), 0.15, max_predictions=19)
    assert slots.tolist() == [0, 19, 20, 20, 39] and slots.dtype == torch.int32


def test_special_tokens_are_never_chosen_and_unk_may_be():
    given = example((3000,), vocabulary=6, mask_prob=0.9)
    labels = masking(**given).labels
    assert set(labels.tolist()) == {UNK, 5, -100}


def test_a_configuration_s_special_ids_leave_unk_out():
    cfg = ElectraConfig.tiny()
    assert Electra(cfg).special_ids == [0, 101, 102, 103] and cfg.unk_token_id == 100


@pytest.mark.parametrize("faithful", [False, True])
def test_a_sequence_without_candidates_has_unused_slots_alone(faithful):
    given = example((4, 6), faithful=faithful, mask_prob=0.5) | dict(input_ids=torch.tensor([CLS] * 4 + [7] * 6))
    ours = masking(**given)
    assert ours.positions[:2].tolist() == [0, 0] and ours.labels[:2].tolist() == [-100, -100]
    assert (ours.labels[2:] == 7).all() and torch.equal(ours.masked_ids[:4], given["input_ids"][:4])


@pytest.mark.parametrize("faithful", [False, True])
def test_positions_are_uniform_and_85_in_100_are_hidden(faithful):
    given = example((10,) * 2000, faithful=faithful, mask_prob=0.3)
    given["input_ids"] = torch.full((20_000,), 9)
    ours = masking(**given)
    counts = np.bincount(ours.positions.numpy() % 10, minlength=10)
    assert abs(chi_squared(counts, np.ones(10))) < 4
    if not faithful:
        assert len(ours.positions.unique()) == len(ours.positions)
        hidden = (ours.masked_ids == MASK).sum().item() / len(ours.positions)
        assert abs(hidden - 0.85) < 4 * math.sqrt(0.85 * 0.15 / len(ours.positions))


@pytest.mark.parametrize("replace_prob", [0.0, 1.0])
def test_none_or_all_are_hidden(replace_prob):
    given = example(replace_prob=replace_prob) | dict(input_ids=torch.full((60,), 9))
    ours = masking(**given)
    assert (ours.masked_ids == MASK).sum() == replace_prob * given["num_slots"]


@pytest.mark.parametrize("mask_prob", [0.15, 0.6])
@pytest.mark.parametrize("kinds", [1, 3, 2**62])
@pytest.mark.parametrize("length", [200, 5000])
def test_words_that_begin_alike_or_are_equal_are_taken_in_order(length, kinds, mask_prob):
    given = example((length, 60), 12, mask_prob) | dict(row_ids=torch.randint(0, kinds, (length + 60,)))
    assert [t.tolist() for t in masking(**given)[:4]] == list(truth(**given))


def test_masks_follow_the_row_ids_wherever_the_sequence_is():
    given = example((12, 20, 40))
    whole = masking(**given)
    first, last = given["slots"][1:3].tolist()
    alone = {name: given[name][12:32] for name in ("input_ids", "row_ids")}
    alone |= dict(cu_seqlens=offsets(20), slots=offsets(last - first), num_slots=last - first, max_slots=last - first)
    ours = masking(**given | alone)
    assert torch.equal(ours.masked_ids, whole.masked_ids[12:32])
    for name, shift in (("positions", 12), ("labels", 0), ("sample_rows", 0)):
        assert torch.equal(getattr(ours, name) + shift, getattr(whole, name)[first:last])


def test_same_seed_same_masks_other_seed_others():
    given = example((200,))
    masks = [masking(**given | dict(seed=seed)).masked_ids for seed in (5, 5, torch.tensor([5]), 6, 5 + 2**32)]
    assert torch.equal(masks[0], masks[1]) and torch.equal(masks[0], masks[2])
    assert not torch.equal(masks[0], masks[3]) and not torch.equal(masks[0], masks[4])


@pytest.mark.parametrize(
    "wrong, kind, message",
    [
        (
            dict(input_ids=torch.zeros(60, dtype=torch.int32)),
            TypeError,
            "input_ids is torch.int32; torch.int64 is allowed",
        ),
        (dict(row_ids=torch.zeros(60)), TypeError, "row_ids is torch.float32; torch.int64 is allowed"),
        (dict(row_ids=torch.arange(59)), ValueError, "row_ids has shape"),
        (dict(slots=offsets(1, 1)), ValueError, r"slots has shape \(3,\); \(5,\) is needed"),
        (dict(num_slots=3), ValueError, "slots begins with .* end at 3, the number"),
        (dict(max_slots=1), ValueError, "slots holds a sequence of 6 rows"),
        (dict(cu_seqlens=offsets(12, 1, 40, 6)), ValueError, "cu_seqlens begins with .* end at 60, the number"),
        (dict(replace_prob=1.5), ValueError, "replace_prob is 1.5; a probability lies between 0 and 1"),
        (dict(replace_prob=math.nan), ValueError, "replace_prob is nan"),
    ],
)
def test_what_does_not_fit_is_rejected(wrong, kind, message):
    with pytest.raises(kind, match=f"masking: {message}"):
        masking(**example() | wrong)


def corrupt_truth(input_ids, positions, labels, sampled_ids, faithful=False):
    ids, given = input_ids.tolist(), {}
    for at, label, word in zip(positions.tolist(), labels.tolist(), sampled_ids.tolist(), strict=True):
        if label != -100:
            given.setdefault(at, []).append(word)
    corrupted = [sum(given[i]) // len(given[i]) if i in given else word for i, word in enumerate(ids)]
    return corrupted, [a != b for a, b in zip(corrupted, ids, strict=True)]


def slots_example(total=20, slots=9, faithful=False):
    positions = torch.randint(0, total // 2, (slots,)) if faithful else torch.randperm(total)[:slots]
    input_ids = torch.randint(5, 9, (total,))
    labels = torch.where(torch.arange(slots) % 4 == 3, -100, input_ids[positions])
    return dict(input_ids=input_ids, positions=positions, labels=labels, sampled_ids=torch.randint(5, 9, (slots,)))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layout", ["contiguous", "transposed"])
@pytest.mark.parametrize("faithful", [False, True])
@pytest.mark.parametrize("total, slots", [(20, 9), (1, 1), (20, 0), (0, 0), (500, 100)])
def test_corrupt(total, slots, faithful, layout, device):
    given = slots_example(total, slots, faithful and total > 1)
    corrupted, replaced = corrupt(**{n: laid_out(t.to(device), layout) for n, t in given.items()}, faithful=faithful)
    assert (corrupted.tolist(), replaced.tolist()) == corrupt_truth(**given, faithful=faithful)
    assert replaced.dtype == torch.bool


def test_a_sample_equal_to_the_original_is_original():
    ids = torch.tensor([7, 8, 9])
    at, labels = torch.tensor([0, 2]), torch.tensor([7, 9])
    corrupted, replaced = corrupt(ids, at, labels, torch.tensor([7, 5]))
    assert corrupted.tolist() == [7, 8, 5] and replaced.tolist() == [False, False, True]


def test_unused_slots_change_nothing_whatever_they_hold():
    ids = torch.tensor([7, 8, 9])
    unused = torch.full((3,), -100)
    for faithful in (False, True):
        corrupted, replaced = corrupt(
            ids, torch.zeros(3).long(), unused, torch.tensor([2**40, -5, 3]), faithful=faithful
        )
        assert torch.equal(corrupted, ids) and not replaced.any()


def test_duplicates_are_averaged_and_rounded_down():
    ids, at = torch.tensor([7, 8, 9]), torch.tensor([1, 1, 1, 2, 2])
    corrupted, replaced = corrupt(ids, at, ids[at], torch.tensor([10, 20, 21, 9, 10]), faithful=True)
    assert corrupted.tolist() == [7, 17, 9] and replaced.tolist() == [False, True, False]


@pytest.mark.parametrize("position", [-1, 20, 2**40])
def test_a_position_that_is_not_there_is_named(position):
    given = slots_example()
    given["positions"][3] = position
    with pytest.raises(IndexError, match=rf"corrupt: positions\[3\] is {position}"):
        corrupt(**given)


@pytest.mark.parametrize("name", ["input_ids", "positions", "labels", "sampled_ids"])
def test_corrupt_takes_int64_alone(name):
    given = slots_example()
    with pytest.raises(TypeError, match=f"corrupt: {name} is torch.int32; torch.int64 is allowed"):
        corrupt(**given | {name: given[name].int()})


@pytest.mark.parametrize("name", ["labels", "sampled_ids"])
def test_corrupt_rejects_shapes_that_disagree(name):
    given = slots_example()
    with pytest.raises(ValueError, match=f"corrupt: {name} has shape"):
        corrupt(**given | {name: given[name][:-1]})


@pytest.mark.parametrize("lengths, expected", [([5, 0, 3], [0, 5, 5, 8]), ([], [0])])
def test_offsets_of_lengths(lengths: list[int], expected: list[int]) -> None:
    found = cu_seqlens_of(torch.tensor(lengths, dtype=torch.int64))
    assert found.tolist() == expected and found.dtype == torch.int32
