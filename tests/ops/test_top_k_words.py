"""top_k_words: the most likely words and their log-probabilities without a (M, V) tensor, against sorted logits."""

import math
import sys

import pytest
import torch
from numerics import DEVICES, EPS, LAYOUTS, laid_out, moved, poisoned_memory

from electra_fast.ops import generator_head, top_k_words
from electra_fast.ops._core import core


def example(rows=9, width=8, vocabulary=300, k=5):
    floats = dict(hidden=torch.randn(rows, width), weight=torch.randn(vocabulary, width), bias=torch.randn(vocabulary))
    return floats | dict(k=k)


def whole_numbers(rows=40, width=3, vocabulary=5000, k=20):
    """Logits that every backend computes exactly, with many ties."""
    return {n: t.round() if n != "k" else t for n, t in example(rows, width, vocabulary, k).items()}


def truth(hidden, weight, bias, k):
    logits = hidden @ weight.T + bias
    return logits.log_softmax(1).sort(dim=1, descending=True, stable=True)


def judge(given, dtype=torch.float32, device="cpu"):
    """The log-probabilities lie within rounding of the true ones, and so do those of the words that are named."""
    given, k = moved(given, dtype, "cpu"), given["k"]
    gold, rounded = (truth(**moved(given, kind, "cpu")) for kind in (torch.float64, torch.float32))
    by_word = gold[0].gather(1, gold[1].argsort(1))
    error = (rounded[0] - gold[0]).abs().max() if gold[0].numel() else 0.0
    bound = 2 * error + EPS[dtype] * (gold[0].abs().max() if gold[0].numel() else 0.0)
    for layout in LAYOUTS:
        ours = {n: laid_out(t, layout) if n != "k" else t for n, t in moved(given, dtype, device).items()}
        log_probs, ids = top_k_words(**ours)
        assert log_probs.shape == ids.shape == (len(given["hidden"]), k)
        assert log_probs.dtype == dtype and ids.dtype == torch.int64
        log_probs, words = log_probs.double().cpu(), ids.cpu()
        assert ((log_probs - gold[0][:, :k]).abs() <= bound).all(), layout
        assert ((by_word.gather(1, words) - gold[0][:, :k]).abs() <= 2 * bound).all(), layout
        assert all(len(set(row)) == k for row in words.tolist())
    with poisoned_memory():
        again = top_k_words(**ours)
        assert torch.equal(again[0].double().cpu(), log_probs) and torch.equal(again[1], ids)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "rows, width, vocabulary, k",
    [(1, 1, 1, 1), (9, 8, 30, 30), (17, 16, 129, 4), (33, 17, 5000, 64), (0, 8, 30, 2), (2, 700, 300, 1)],
)
def test_values(rows, width, vocabulary, k, device):
    judge(example(rows, width, vocabulary, k), device=device)


def test_float64_is_exact():
    judge(example(), torch.float64)


@pytest.mark.skipif(core is None, reason="no C++ core")
@pytest.mark.parametrize("isa", core.isas() if core else [])
def test_every_instruction_set(isa, monkeypatch):
    monkeypatch.setattr(sys.modules["electra_fast.ops.top_k_words"], "core", getattr(core, isa))
    judge(example(35, 33, 4500, 9))


@pytest.mark.parametrize("device", DEVICES)
def test_of_equal_words_the_lower_id_comes_first(device):
    given = whole_numbers()
    assert torch.equal(top_k_words(**moved(given, torch.float32, device))[1].cpu(), truth(**given)[1][:, :20])


def test_one_word_is_generator_head_s_at_temperature_0():
    given = example(50, vocabulary=700, k=1)
    floats = {n: t for n, t in given.items() if n != "k"}
    _, words = generator_head(**floats, labels=torch.zeros(50, dtype=torch.int64), temperature=0)
    log_probs, ids = top_k_words(**given)
    assert torch.equal(ids[:, 0], words)
    torch.testing.assert_close(log_probs[:, 0], -generator_head(**floats, labels=words)[0])


def test_neither_threads_nor_other_rows_change_a_bit():
    given = example(40, 24, 9000, 8)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(top_k_words(**given))
    finally:
        torch.set_num_threads(before)
    found.append(top_k_words(**given | dict(hidden=torch.cat([torch.randn(19, 24), given["hidden"]]))))
    alone = [top_k_words(**given | dict(hidden=rows)) for rows in given["hidden"].split((1, 5, 6, 28))]
    found.append([torch.cat(parts) for parts in zip(*alone, strict=True)])
    for log_probs, ids in found:
        assert torch.equal(log_probs[-40:], found[0][0]) and torch.equal(ids[-40:], found[0][1])


def test_words_of_probability_0_come_last_and_once():
    given = example(4, vocabulary=200, k=10)
    given["bias"][3:] = -math.inf
    log_probs, ids = top_k_words(**given)
    assert (ids[:, :3].sort(1).values == torch.arange(3)).all() and (ids[:, 3:] == torch.arange(3, 10)).all()
    assert log_probs[:, :3].isfinite().all() and (log_probs[:, 3:] == -math.inf).all()


def test_nan_shows_and_stays_in_its_row():
    given = example(4)
    clean = top_k_words(**given)
    given["hidden"][1] = math.nan
    log_probs, ids = top_k_words(**given)
    assert log_probs[1].isnan().all() and ((ids >= 0) & (ids < 300)).all()
    assert torch.equal(log_probs[[0, 2, 3]], clean[0][[0, 2, 3]]) and torch.equal(ids[[0, 2, 3]], clean[1][[0, 2, 3]])


def test_large_logits_are_finite():
    given = example()
    given["bias"] *= 1e4
    assert top_k_words(**given)[0].isfinite().all()


def test_gradients_are_refused():
    given = example()
    given["weight"].requires_grad_()
    with pytest.raises(RuntimeError, match="top_k_words: it has no gradients; call it under torch.inference_mode"):
        top_k_words(**given)


@pytest.mark.parametrize(
    "wrong, error, message",
    [
        (dict(hidden=torch.randn(9, 7)), ValueError, r"hidden has shape \(9, 7\); \(9, 8\) is needed"),
        (dict(hidden=torch.randn(9)), ValueError, "hidden has shape"),
        (dict(bias=torch.randn(299)), ValueError, "bias has shape"),
        (dict(k=0), ValueError, "k is 0; 1 to 128 is allowed"),
        (dict(k=129), ValueError, "k is 129; 1 to 128 is allowed"),
        (dict(weight=torch.randn(4, 8), bias=torch.randn(4)), ValueError, "k is 5; 1 to 4 is allowed"),
        (dict(bias=torch.randn(300).double()), TypeError, "one floating-point dtype is allowed"),
    ],
)
def test_what_does_not_fit_is_rejected(wrong, error, message):
    with pytest.raises(error, match=f"top_k_words: .*{message}"):
        top_k_words(**example() | wrong)
