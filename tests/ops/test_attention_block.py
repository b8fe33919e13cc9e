"""attention_block: LayerNorm(x + dropout(Wo attention(Wqkv x + bqkv) + bo)), against a loop over the sequences."""

import math
import sys

import pytest
import torch
import torch.nn.functional as F
from numerics import DEVICES, ROWS, check, check_threads, dropout_factors, offsets
from test_attention import truth as attention_truth

from electra_fast.ops import attention_block
from electra_fast.ops._core import core


@pytest.fixture(params=core.isas() if core else [])
def isa(request, monkeypatch):
    """Each instruction set in turn is what the op runs."""
    monkeypatch.setattr(sys.modules["electra_fast.ops.attention_block"], "core", getattr(core, request.param))


def example(lengths=(5, 1, 9), width=16, heads=2, asking=None, attention_p=0.1, p=0.1, seed=3):
    """asking: how many rows of each sequence ask; None: all, and no `rows`."""
    total = sum(lengths)
    names = "x qkv_weight qkv_bias out_weight out_bias norm_weight norm_bias".split()
    shapes = (total, width), (3 * width, width), (3 * width,), (width, width), (width,), (width,), (width,)
    floats = {name: torch.randn(shape) for name, shape in zip(names, shapes, strict=True)}
    for name in ("qkv_weight", "out_weight"):  # scores near 1: saturated, a softmax makes much of rounding
        floats[name] /= math.sqrt(width)
    fewer = {}
    if asking is not None:
        starts = offsets(*lengths).tolist()
        chosen = [s + torch.randperm(n)[:r].sort()[0] for s, n, r in zip(starts, lengths, asking, strict=False)]
        fewer = dict(rows=torch.cat(chosen), cu_rows=offsets(*asking), max_rows=max(asking))
    packed = dict(cu_seqlens=offsets(*lengths), max_seqlen=max(lengths, default=0))
    packed["row_ids"] = torch.randint(0, 2**62, (total,))
    numbers = dict(num_heads=heads, eps=1e-12, attention_dropout_p=attention_p, dropout_p=p, seed=seed)
    return floats | packed | fewer | numbers


def truth(
    x,
    qkv_weight,
    qkv_bias,
    out_weight,
    out_bias,
    norm_weight,
    norm_bias,
    cu_seqlens,
    max_seqlen,
    row_ids,
    num_heads,
    eps,
    attention_dropout_p,
    dropout_p,
    seed,
    rows=None,
    cu_rows=None,
    max_rows=None,
):
    rows = torch.arange(len(x)) if rows is None else rows
    cu_rows = cu_seqlens if cu_rows is None else cu_rows
    q, k, v = (x @ qkv_weight.T + qkv_bias).unflatten(1, (3, num_heads, -1)).unbind(1)
    read = attention_truth(q[rows], k, v, cu_rows, 0, attention_dropout_p, seed, row_ids[rows], cu_seqlens)
    projected = read.flatten(1) @ out_weight.T + out_bias
    factors = dropout_factors(seed, row_ids[rows], x.shape[1], dropout_p).to(x.dtype)
    return F.layer_norm(x[rows] + projected * factors, norm_weight.shape, norm_weight, norm_bias, eps)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("p", [0.0, 0.1])
@pytest.mark.parametrize(
    "lengths", [[1], [63], [127, 1], [128], [129, 2], [5, 1, 33], [0, 5, 0, 3, 0]], ids=lambda lengths: str(lengths)
)
def test_values_and_gradients(lengths, p, device):
    check(attention_block, truth, example(lengths, attention_p=p, p=p), device=device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("asking", [[1, 1, 2], [5, 0, 3], [0, 1, 0]], ids=lambda asking: str(asking))
def test_only_some_rows_ask(asking, device):
    check(attention_block, truth, example(asking=asking), device=device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("width, heads", [(64, 1), (24, 3), (6, 6)])
def test_heads_and_their_width(width, heads, device):
    check(attention_block, truth, example(width=width, heads=heads), device=device)


@pytest.mark.parametrize("rows", ROWS)
def test_every_instruction_set(isa, rows):
    check(attention_block, truth, example((rows // 2, rows - rows // 2), width=33, heads=3))


@pytest.mark.parametrize("rows", ROWS)
def test_every_instruction_set_where_some_rows_ask(isa, rows):
    check(attention_block, truth, example((130, 260), width=33, heads=3, asking=(rows // 3, rows - rows // 3)))


@pytest.mark.parametrize("asking", [None, (7, 0, 250)], ids=str)
def test_threads_change_no_bit(isa, asking):
    rows = "x" if asking is None else ""  # of x, some rows gather several gradients
    check_threads(attention_block, example((130, 7, 300), width=33, heads=3, asking=asking), rows)


def test_float64_is_exact():
    check(attention_block, truth, example(), torch.float64)
    check(attention_block, truth, example(asking=[2, 1, 4]), torch.float64)


def test_two_probabilities_are_two_dropouts():
    check(attention_block, truth, example(attention_p=0.5, p=0.0))
    check(attention_block, truth, example(attention_p=0.0, p=0.5))


def test_rows_give_the_same_rows_of_the_whole():
    given = example((20, 30), asking=(4, 7))
    whole = attention_block(**{n: v for n, v in given.items() if n not in ("rows", "cu_rows", "max_rows")})
    torch.testing.assert_close(attention_block(**given), whole[given["rows"]], rtol=1e-5, atol=1e-5)


def test_a_sequence_alone_equals_itself_among_others():
    given = example((5, 20, 9))
    alone = {"x": given["x"][5:25], "row_ids": given["row_ids"][5:25], "cu_seqlens": offsets(20)}
    torch.testing.assert_close(attention_block(**given | alone), attention_block(**given)[5:25], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("there", [slice(0, 6), slice(6, 15), slice(15, 19)], ids=["first", "middle", "last"])
def test_nan_in_one_sequence_does_not_reach_another(isa, there):
    given = example((6, 9, 4))
    elsewhere = [row for row in range(19) if row not in range(there.start, there.stop)]
    upstream = torch.randn(19, 16)

    def rest():
        x = given["x"].clone().requires_grad_()
        out = attention_block(**given | dict(x=x))
        if given["x"][there].isnan().all():
            assert out[there].isnan().all()
        return [t[elsewhere] for t in (out, *torch.autograd.grad(out, x, upstream))]

    clean = rest()
    given["x"][there] = math.nan
    upstream[there] = math.nan
    for before, after in zip(clean, rest(), strict=True):
        assert torch.equal(before, after)


def test_probability_one_leaves_the_residual():
    given = example(attention_p=1.0, p=1.0)
    whole = F.layer_norm(given["x"], (16,), given["norm_weight"], given["norm_bias"], 1e-12)
    torch.testing.assert_close(attention_block(**given), whole)


@pytest.mark.parametrize("name", ["attention_dropout_p", "dropout_p"])
@pytest.mark.parametrize("p", [-0.1, 2, math.nan])
def test_other_probabilities_are_rejected(name, p):
    with pytest.raises(ValueError, match=f"{name} is {p}; a probability lies between 0 and 1"):
        attention_block(**example() | {name: p})


@pytest.mark.parametrize(
    "wrong, message",
    [
        (dict(num_heads=3), "width 16 is not a multiple of num_heads 3"),
        (dict(rows=torch.arange(3)), "rows, cu_rows and max_rows come together"),
        (
            dict(rows=torch.arange(3), cu_rows=offsets(1, 1, 2), max_rows=2),
            "cu_rows begins with .* end at 3, the",
        ),
        (dict(rows=torch.arange(3), cu_rows=offsets(1, 0, 2), max_rows=1), "cu_rows holds a sequence of 2 rows"),
        (dict(rows=torch.arange(3), cu_rows=offsets(1, 2), max_rows=2), r"cu_rows has shape \(3,\)"),
        (dict(max_seqlen=8), "holds a sequence of 9 rows"),
        (dict(qkv_weight=torch.randn(47, 16)), "qkv_weight has shape"),
        (dict(qkv_bias=torch.randn(47)), "qkv_bias has shape"),
        (dict(out_weight=torch.randn(16, 15)), "out_weight has shape"),
        (dict(out_bias=torch.randn(15)), "out_bias has shape"),
        (dict(norm_weight=torch.randn(15)), "norm_weight has shape"),
        (dict(norm_bias=torch.randn(15)), "norm_bias has shape"),
        (dict(row_ids=torch.arange(14)), "row_ids has shape"),
    ],
)
def test_what_does_not_fit_is_rejected(wrong, message):
    with pytest.raises(ValueError, match=f"attention_block: .*{message}"):
        attention_block(**example() | wrong)


def test_a_row_that_is_not_there_is_rejected():
    for row in (-1, 15):
        with pytest.raises(IndexError, match=rf"rows\[1\] is {row}"):
            wrong = dict(rows=torch.tensor([0, row]), cu_rows=offsets(1, 0, 1), max_rows=1)
            attention_block(**example() | wrong)


def test_gradcheck():
    given = example((2, 3), 4, 2, asking=(1, 2))
    names = "x qkv_weight qkv_bias out_weight out_bias norm_weight norm_bias".split()
    floats = [given.pop(name).double().requires_grad_() for name in names]
    assert torch.autograd.gradcheck(lambda *args: attention_block(*args, **given), floats)
