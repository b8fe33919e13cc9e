"""generator_head: cross-entropy and exact samples without a (M, V) tensor, against the formula, and chi-squared."""

import math
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numerics import DEVICES, check, chi_squared, laid_out, philox

from electra_fast.ops import generator_head
from electra_fast.ops._core import core, why
from electra_fast.ops._structs import Affine, Rows, Sampling
from electra_fast.ops.generator_head import GeneratorHeadArguments, generator_head_reference

in_every_isa = pytest.mark.parametrize(
    "isa", core.isas() if core else [pytest.param("none", marks=pytest.mark.skip(reason=why))]
)


def example(rows=9, width=8, vocabulary=30, seed=3, **more):
    labels = torch.randint(0, vocabulary, (rows,))
    labels[2::5] = -100
    floats = dict(hidden=torch.randn(rows, width), weight=torch.randn(vocabulary, width), bias=torch.randn(vocabulary))
    return floats | dict(labels=labels, seed=seed, row_ids=torch.randint(0, 2**62, (rows,))) | more


def truth(hidden, weight, bias, labels, seed, row_ids, label_smoothing=0.0):
    logits = hidden @ weight.T + bias
    target = (1 - label_smoothing) * logits.gather(1, labels.clamp(min=0)[:, None])[:, 0]
    loss = logits.logsumexp(1) - target - label_smoothing * logits.mean(1)
    return loss * (labels != -100)


def sampled(hidden, weight, bias, labels, seed, row_ids, temperature=1.0, disallow_correct=False):
    """The word at u1 of the tile at u0, in float64."""
    logits = (hidden.double() @ weight.double().T + bias).numpy() / temperature
    found = []
    for row, (w0, w1, _, _) in enumerate(philox(seed, row_ids.numpy()).astype(np.float64)):
        scores = logits[row] - 1000 * (disallow_correct & (np.arange(len(bias)) == int(labels[row])))
        weights = np.exp(scores - scores.max())
        tiles = [weights[i : i + 128] for i in range(0, len(weights), 128)]
        tile = inverse_cdf(np.array([t.sum() for t in tiles]), (w0 + 0.5) / 2**32)
        found.append(128 * tile + inverse_cdf(tiles[tile], (w1 + 0.5) / 2**32))
    return torch.tensor(found)


def inverse_cdf(weights, u):
    return int((weights.cumsum() <= u * weights.sum()).sum())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "rows, width, vocabulary", [(1, 1, 1), (9, 8, 30), (129, 16, 129), (63, 17, 300), (260, 4, 128)]
)
def test_values_and_gradients(rows, width, vocabulary, device):
    check(generator_head, truth, example(rows, width, vocabulary), device=device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("label_smoothing", [0.1, 1.0])
@pytest.mark.parametrize("rows, width, vocabulary", [(1, 1, 2), (9, 8, 30), (129, 16, 300), (0, 8, 30)])
def test_smoothed_values_and_gradients(rows, width, vocabulary, label_smoothing, device):
    given = example(rows, width, vocabulary, label_smoothing=label_smoothing)
    check(generator_head, truth, given, device=device)


def test_smoothed_it_is_pytorch_s_cross_entropy_and_has_the_same_samples():
    given, logits_of = example(), ("hidden", "weight", "bias")
    theirs = F.cross_entropy(
        F.linear(*(given[n] for n in logits_of)), given["labels"], reduction="none", label_smoothing=0.3
    )
    ours, words = generator_head(**given, label_smoothing=0.3)
    torch.testing.assert_close(ours, theirs)
    assert torch.equal(words, generator_head(**given)[1])


@pytest.mark.parametrize("label_smoothing", [-0.1, 2, math.nan])
def test_other_smoothing_is_rejected(label_smoothing):
    with pytest.raises(ValueError, match=f"generator_head: label_smoothing is {label_smoothing}; a probability lies"):
        generator_head(**example(), label_smoothing=label_smoothing)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_float64_is_exact(label_smoothing):
    check(generator_head, truth, example(label_smoothing=label_smoothing), torch.float64)


def test_the_loss_is_pytorch_s_cross_entropy():
    given = example()
    theirs = F.cross_entropy(
        F.linear(given["hidden"], given["weight"], given["bias"]), given["labels"], reduction="none"
    )
    torch.testing.assert_close(generator_head(**given)[0], theirs)


@pytest.mark.parametrize("layout", ["contiguous", "transposed", "unaligned"])
@pytest.mark.parametrize(
    "options", [{}, dict(temperature=0.5), dict(temperature=3.0), dict(disallow_correct=True)], ids=str
)
@pytest.mark.parametrize("vocabulary", [1, 100, 128, 129, 700])
def test_samples_are_the_words_that_the_random_words_say(vocabulary, options, layout):
    given = example(300, vocabulary=vocabulary)
    ours = {n: laid_out(v, layout) if isinstance(v, torch.Tensor) else v for n, v in given.items()}
    different = (generator_head(**ours, **options)[1] != sampled(**given, **options)).sum()
    assert different <= 1, "more than rounding at a boundary explains"


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_samples_follow_the_distribution(temperature):
    rows = 20_000
    given = example(rows, 1, 200) | dict(hidden=torch.zeros(rows, 1), bias=2 * torch.randn(200))
    counts = np.bincount(generator_head(**given, temperature=temperature)[1].numpy(), minlength=200)
    assert abs(chi_squared(counts, (given["bias"].double() / temperature).softmax(0).numpy())) < 4


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_samples_follow_the_distribution_over_30522_words(temperature):
    rows, vocabulary = 3000, 30522
    given = example(rows, 1, vocabulary) | dict(hidden=torch.zeros(rows, 1))
    likely = [0, 127, 128, 15000, 30463, 30464, vocabulary - 1]  # the ends, and both sides of tiles' edges
    given["bias"][likely] = 9.0 * temperature
    counts = np.bincount(generator_head(**given, temperature=temperature)[1].numpy(), minlength=vocabulary)
    probabilities = (given["bias"].double() / temperature).softmax(0).numpy()
    assert abs(chi_squared(counts, probabilities)) < 4
    tiles = [np.add.reduceat(x, range(0, vocabulary, 128)) for x in (counts, probabilities)]
    assert abs(chi_squared(*tiles)) < 4


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, dict(temperature=0.5, disallow_correct=True)], ids=str)
def test_samples_over_30522_words_are_the_reference_s_but_for_rounding(options):
    rows = 10_000
    given = (
        example(rows, 16, 30522)
        | dict(seed=torch.tensor([3]), temperature=1.0, disallow_correct=False, label_smoothing=0.0)
        | options
    )
    given["hidden"] *= 0.5
    _, expected = generator_head_reference(GeneratorHeadArguments(**given))
    assert (generator_head(**given)[1] != expected).sum() <= 1e-4 * rows


def test_temperature_0_takes_the_most_likely_word():
    given = example(200, vocabulary=300)
    logits = given["hidden"] @ given["weight"].T + given["bias"]
    assert torch.equal(generator_head(**given, temperature=0)[1], logits.argmax(1))
    given["labels"] = logits.argmax(1)
    second = logits.topk(2).indices[:, 1]
    assert torch.equal(generator_head(**given, temperature=0, disallow_correct=True)[1], second)


def test_a_low_temperature_comes_near_the_most_likely_word():
    given = example(200, vocabulary=300)
    assert torch.equal(generator_head(**given, temperature=1e-6)[1], generator_head(**given, temperature=0)[1])


@pytest.mark.parametrize("temperature", [-1.0, math.nan, math.inf])
def test_other_temperatures_are_rejected(temperature):
    with pytest.raises(
        ValueError, match=f"generator_head: temperature is {temperature}; 0 .* or a finite number above"
    ):
        generator_head(**example(), temperature=temperature)


def test_disallow_correct_never_gives_the_label_and_leaves_the_loss():
    given = example(2000, vocabulary=3)
    loss, words = generator_head(**given)
    other_loss, others = generator_head(**given, disallow_correct=True)
    assert (words == given["labels"]).any() and not (others == given["labels"]).any()
    assert torch.equal(loss, other_loss)


def test_neither_temperature_nor_the_label_of_a_left_out_row_changes_more_than_samples():
    given = example(50)
    assert torch.equal(generator_head(**given, temperature=0.5)[0], generator_head(**given)[0])
    left_out = given["labels"] == -100
    same = generator_head(**given, disallow_correct=True)[1] == generator_head(**given)[1]
    assert same[left_out].all()


def test_samples_follow_the_row_ids_wherever_the_rows_are():
    given = example(300, vocabulary=300)
    whole = generator_head(**given)[1]
    order = torch.randperm(300)[:150]
    some = generator_head(**given | {name: given[name][order] for name in ("hidden", "labels", "row_ids")})[1]
    assert (some != whole[order]).sum() <= 1


def test_same_seed_same_samples_other_seed_others():
    given = example(300, vocabulary=300)
    words = [generator_head(**given | dict(seed=seed))[1] for seed in (5, 5, torch.tensor([5]), 6, 5 + 2**32)]
    assert torch.equal(words[0], words[1]) and torch.equal(words[0], words[2])
    assert (words[0] != words[3]).any() and (words[0] != words[4]).any()


def test_without_row_ids_rows_count_from_0():
    given = example() | dict(row_ids=torch.arange(9))
    counted = generator_head(**{n: v for n, v in given.items() if n != "row_ids"})
    assert torch.equal(generator_head(**given)[1], counted[1])


def test_rows_left_out_have_no_loss_and_no_gradient():
    given = example(20)
    left_out = given["labels"] == -100
    leaves = [given[name].requires_grad_() for name in ("hidden", "weight", "bias")]
    loss, words = generator_head(**given)
    assert not loss[left_out].any() and ((words >= 0) & (words < 30)).all()
    hidden, weight, bias = torch.autograd.grad(loss.sum(), leaves)
    assert not hidden[left_out].any() and hidden[~left_out].any(1).all()
    only = {name: given[name][~left_out] for name in ("hidden", "labels", "row_ids")}
    again = torch.autograd.grad(generator_head(**given | only)[0].sum(), leaves)
    torch.testing.assert_close((weight, bias), again[1:])


def test_when_all_are_left_out_nothing_is_nan():
    given = example() | dict(labels=torch.full((9,), -100))
    given["weight"].requires_grad_()
    loss = generator_head(**given)[0]
    loss.sum().backward()
    assert not loss.any() and not given["weight"].grad.any()


def test_nan_in_a_row_left_out_does_not_leak():
    given = example()
    given["hidden"][2] = math.nan
    leaves = [given[name].requires_grad_() for name in ("hidden", "weight", "bias")]
    loss = generator_head(**given)[0]
    assert loss.isfinite().all() and loss[2] == 0
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(loss.sum(), leaves))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nan_logits_show_in_the_loss_and_give_a_word_that_exists(temperature):
    given = example()
    clean = generator_head(**given, temperature=temperature)
    given["hidden"][1] = math.nan
    loss, words = generator_head(**given, temperature=temperature)
    assert loss[1].isnan() and 0 <= words[1] < 30
    rest = [0, *range(2, 9)]
    assert torch.equal(loss[rest], clean[0][rest]) and torch.equal(words[rest], clean[1][rest])


@pytest.mark.parametrize("scale", [1e4, -1e4])
def test_large_logits_are_finite(scale):
    given = example(50)
    given["bias"] = given["bias"] * scale
    loss, words = generator_head(**given)
    assert loss.isfinite().all()
    assert torch.equal(words, given["bias"].argmax().expand(50))


@pytest.mark.parametrize("label", [-1, -101, 30, 2**40])
def test_a_label_that_is_no_word_is_named(label):
    given = example()
    given["labels"][4] = label
    with pytest.raises(
        IndexError, match=rf"generator_head: labels\[4\] is {label}; 0 to 29, or -100 for a row to leave out"
    ):
        generator_head(**given)


def test_no_rows():
    given = example(rows=0)
    given["weight"].requires_grad_()
    loss, words = generator_head(**given)
    loss.sum().backward()
    assert loss.shape == words.shape == (0,) and words.dtype == torch.int64 and not given["weight"].grad.any()


@pytest.mark.parametrize(
    "wrong, message",
    [
        (dict(hidden=torch.randn(9, 7)), r"hidden has shape \(9, 7\); \(9, 8\) is needed"),
        (dict(bias=torch.randn(29)), "bias has shape"),
        (dict(labels=torch.zeros(8, dtype=torch.int64)), "labels has shape"),
        (dict(row_ids=torch.arange(8)), "row_ids has shape"),
        (dict(weight=torch.randn(0, 8), bias=torch.randn(0)), "weight has no rows"),
    ],
)
def test_what_does_not_fit_is_rejected(wrong, message):
    with pytest.raises(ValueError, match=f"generator_head: {message}"):
        generator_head(**example() | wrong)


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
def test_gradcheck(label_smoothing):
    given = example(4, 3, 5, label_smoothing=label_smoothing)
    floats = [given.pop(name).double().requires_grad_() for name in ("hidden", "weight", "bias")]
    assert torch.autograd.gradcheck(lambda *args: generator_head(*args, **given)[0], floats)


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_memory_stays_far_below_that_of_the_logits():
    program = """
import torch, electra_fast
def megabytes():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) / 1000
M, V, E = 4096, 30522, 4
hidden, weight, bias = (torch.randn(shape, requires_grad=True) for shape in ((M, E), (V, E), (V,)))
electra_fast.ops.generator_head(hidden[:300], weight, bias, torch.zeros(300).long())[0].sum().backward()
before = megabytes()
electra_fast.ops.generator_head(hidden, weight, bias, torch.zeros(M).long())[0].sum().backward()
print("grew by", megabytes() - before, "of", 4 * M * V / 1e6)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    grew, logits = map(float, re.search("grew by (.*) of (.*)", done.stdout).groups())
    assert grew < logits * (0.5 if core is None else 0.01)


def in_core(isa, given, grad, threads, **options):
    """Every output of the core's forward and backward, in memory that held NaN."""
    hidden, weight, bias, labels, row_ids = (
        given[n].contiguous() for n in ("hidden", "weight", "bias", "labels", "row_ids")
    )
    rows, vocabulary = len(hidden), len(bias)
    loss, lse = torch.full((2, rows), math.nan)
    found = torch.full((rows,), -7)
    dhidden, *dwords = gradients = [torch.full_like(t, math.nan) for t in (hidden, weight, bias)]
    ops, read = getattr(core, isa), (Rows.of(hidden), Affine(weight, bias), vocabulary, labels)
    options = (options.get("temperature", 1.0), options.get("disallow_correct", False))
    ops.generator_head_fwd(*read, Sampling(row_ids, given["seed"], *options), loss, found, lse, threads)
    ops.generator_head_bwd(grad, *read, 0.0, lse, dhidden, Affine(*dwords), threads)
    return dict(loss=loss, sampled=found, hidden=gradients[0], weight=gradients[1], bias=gradients[2])


@in_every_isa
@pytest.mark.parametrize("rows, width, vocabulary", [(1100, 33, 1000), (121, 300, 259), (7, 128, 5), (13, 1, 128)])
def test_the_core(isa, rows, width, vocabulary):
    """More rows than it takes at once, widths beyond what a product adds up at once, and remainders everywhere."""
    given, grad = example(rows, width, vocabulary), torch.randn(rows)
    given["weight"] /= width**0.5
    ours = in_core(isa, given, grad, 1)
    expected = {}
    for dtype in (torch.float64, torch.float32):
        leaves = {n: given[n].to(dtype, copy=True).requires_grad_() for n in ("hidden", "weight", "bias")}
        loss = truth(**given | leaves)
        grads = torch.autograd.grad(loss, list(leaves.values()), grad.to(dtype))
        expected[dtype] = dict(loss=loss.detach(), **dict(zip(leaves, grads, strict=True)))
    for name, gold in expected[torch.float64].items():
        allowed = (3 - (name == "loss")) * (expected[torch.float32][name] - gold).abs().max() + 2e-6 * gold.abs().max()
        assert (ours[name] - gold).abs().max() <= allowed, name
    for options in ({}, dict(temperature=0.5), dict(disallow_correct=True)):
        words = in_core(isa, given, grad, 1, **options)["sampled"]
        assert (words != sampled(**given, **options)).sum() <= 1, "more than rounding at a boundary explains"


@in_every_isa
def test_threads_change_no_bit_of_loss_and_samples(isa):
    given, grad = example(200, 65, 1000), torch.randn(200)
    given["labels"][0] = 500
    for options in ({}, dict(temperature=0.0), dict(temperature=2.0)):
        one, *others = (in_core(isa, given, grad, threads, **options) for threads in (1, 2, 3, 3))
        for other in others:
            for name in ("loss", "sampled", "weight", "bias"):
                assert torch.equal(one[name], other[name]), name
            torch.testing.assert_close(one["hidden"], other["hidden"])
        assert torch.equal(others[1]["hidden"], others[2]["hidden"])


@in_every_isa
@pytest.mark.parametrize("row_id", [20922799, 25266344], ids=["of the tile", "within the tile"])
@pytest.mark.parametrize("vocabulary", [5, 128, 300])
def test_a_random_number_that_rounds_to_1_takes_the_last_word(isa, row_id, vocabulary):
    """Words from 2**32 - 128 on are 1.0 in float32, a share of the whole that no running sum exceeds. With seed 7, the
    first word of one row and the second of the other are such. The vocabulary's last words have probability 0."""
    seed, likely, rows = 7, vocabulary - 2, 3
    words = philox(seed, np.array([row_id]))[0, :2]
    assert (words >= 2**32 - 128).any()
    given = example(rows, 1, vocabulary, seed) | dict(hidden=torch.zeros(rows, 1), row_ids=torch.full((rows,), row_id))
    given["bias"] = torch.where(torch.arange(vocabulary) < likely, 0.0, -1e4)
    found = in_core(isa, given, torch.ones(rows), 1)["sampled"]
    assert ((found >= 0) & (found < likely)).all()
    if words[0] >= 2**32 - 128:  # of the tiles, the last one that holds a likely word
        assert (found // 128 == (likely - 1) // 128).all()
    else:  # of its tile's words, the last likely one
        assert (found == torch.minimum((found // 128 + 1) * 128, torch.tensor(likely)) - 1).all()
