"""embedding: dropout(LayerNorm(word + position + token type)), projected, against PyTorch's modules."""

import math
import sys

import pytest
import torch
from numerics import DEVICES, check, dropout_factors
from torch import nn

from electra_fast.ops import embedding
from electra_fast.ops._core import core

TABLES = dict(word=30, position=9, token_type=2)


def example(rows=11, width=12, hidden=20, p=0.1, seed=3):
    """hidden: the projection's width, or None for no projection."""
    ids = dict(zip(("input_ids", "position_ids", "token_type_ids"), TABLES.values(), strict=True))
    given = {name: torch.randint(0, size, (rows,)) for name, size in ids.items()}
    given |= {name: torch.randn(size, width) for name, size in TABLES.items()}
    given |= dict(norm_weight=torch.randn(width), norm_bias=torch.randn(width))
    projected = hidden is not None
    given["projection_weight"] = torch.randn(hidden, width) if projected else None
    given["projection_bias"] = torch.randn(hidden) if projected else None
    return given | dict(row_ids=torch.randint(0, 2**62, (rows,)), eps=1e-12, dropout_p=p, seed=seed)


def truth(
    input_ids,
    token_type_ids,
    position_ids,
    word,
    position,
    token_type,
    norm_weight,
    norm_bias,
    projection_weight,
    projection_bias,
    row_ids,
    eps,
    dropout_p,
    seed,
):
    x = word[input_ids] + position[position_ids] + token_type[token_type_ids]
    centred = x - x.mean(1, keepdim=True)
    x = centred / (centred.square().mean(1, keepdim=True) + eps).sqrt() * norm_weight + norm_bias
    x = x * dropout_factors(seed, row_ids, x.shape[1], dropout_p).to(x.dtype)
    return x if projection_weight is None else x @ projection_weight.T + projection_bias


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("p", [0.0, 0.1])
@pytest.mark.parametrize("rows, width, hidden", [(1, 3, None), (11, 12, 20), (129, 64, None), (63, 17, 5)])
def test_values_and_gradients(rows, width, hidden, p, device):
    check(embedding, truth, example(rows, width, hidden, p), device=device)


@pytest.fixture(params=core.isas() if core else [])
def isa(request, monkeypatch):
    """Each instruction set in turn is what the op runs."""
    monkeypatch.setattr(sys.modules["electra_fast.ops.embedding"], "core", getattr(core, request.param))


@pytest.mark.parametrize("p", [0.0, 0.1])
@pytest.mark.parametrize(
    "rows, width, hidden, words",
    [
        (0, 64, None, 30),
        (1, 1, None, 30),
        (63, 64, 5, 700),
        (127, 33, None, 30),
        (128, 128, 256, 3000),
        (129, 768, None, 50),
        (512, 20, None, 1),
    ],
)
def test_every_instruction_set(isa, rows, width, hidden, words, p):
    tables = dict(word=torch.randn(words, width), input_ids=torch.randint(0, words, (rows,)))
    check(embedding, truth, example(rows, width, hidden, p) | tables)


def test_a_token_alone_is_the_token_among_others(isa):
    given = example(rows=23, width=150, hidden=None)
    whole = embedding(**given)
    names = ("input_ids", "token_type_ids", "position_ids", "row_ids")
    for rows in (slice(0, 1), slice(5, 11), slice(9, 23)):
        assert torch.equal(embedding(**given | {name: given[name][rows] for name in names}), whole[rows])


def test_threads_change_no_bit(isa):
    given = example(rows=700, width=128, hidden=None)
    given |= dict(
        word=torch.randn(5000, 128), input_ids=torch.randint(0, 5000, (700,)) // torch.randint(1, 100, (700,))
    )
    leaves = [given[name].requires_grad_() for name in (*TABLES, "norm_weight", "norm_bias")]
    before, found, upstream = torch.get_num_threads(), [], torch.randn(700, 128)
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            out = embedding(**given)
            found.append([out, *torch.autograd.grad(out, leaves, upstream)])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


def test_every_instruction_set_drops_the_same_elements(isa):
    for width, p in ((64, 0.1), (256, 0.5), (300, 0.9)):
        given = example(33, width, None, p, seed=-7)
        assert torch.equal(embedding(**given) != 0, dropout_factors(-7, given["row_ids"], width, p) != 0)


def test_float64_is_exact():
    check(embedding, truth, example(), torch.float64)


def test_it_is_the_modules_of_pytorch():
    given = example(p=0.0)
    tables = {name: nn.Embedding.from_pretrained(given[name]) for name in TABLES}
    norm, projection = nn.LayerNorm(12, eps=1e-12), nn.Linear(12, 20)
    norm.weight.data, norm.bias.data = given["norm_weight"], given["norm_bias"]
    projection.weight.data, projection.bias.data = given["projection_weight"], given["projection_bias"]
    ids = dict(word="input_ids", position="position_ids", token_type="token_type_ids")
    summed = sum(tables[name](given[of]) for name, of in ids.items())
    torch.testing.assert_close(embedding(**given), projection(norm(summed)))


def test_a_word_seen_often_gathers_every_gradient():
    given = example(rows=4, p=0.0) | dict(input_ids=torch.tensor([7, 7, 2, 7]))
    given["word"].requires_grad_()
    embedding(**given).sum().backward()
    assert given["word"].grad[[7, 2]].any(1).all()
    given["word"].grad[[7, 2]] = 0
    assert not given["word"].grad.any()


def test_the_mask_follows_the_row_ids_wherever_the_rows_are():
    given = example(rows=33, hidden=None, p=0.5)
    whole = embedding(**given)
    order = torch.randperm(33)[:20]
    names = ("input_ids", "token_type_ids", "position_ids", "row_ids")
    assert torch.equal(embedding(**given | {name: given[name][order] for name in names}), whole[order])
    assert torch.equal(whole == 0, dropout_factors(3, given["row_ids"], 12, 0.5) == 0)


def test_probability_one_leaves_the_projection_s_bias():
    given = example(p=1.0)
    assert torch.equal(embedding(**given), given["projection_bias"].expand(11, 20))


@pytest.mark.parametrize("p", [-0.1, 2, math.nan])
def test_other_probabilities_are_rejected(p):
    with pytest.raises(ValueError, match=f"embedding: dropout_p is {p}; a probability lies between 0 and 1"):
        embedding(**example(p=p))


def test_no_tokens():
    given = example(rows=0)
    given["word"].requires_grad_()
    y = embedding(**given)
    y.sum().backward()
    assert y.shape == (0, 20) and not given["word"].grad.any()


@pytest.mark.parametrize("name, size", [("input_ids", 30), ("position_ids", 9), ("token_type_ids", 2)])
def test_an_id_outside_its_table_is_named(name, size):
    for wrong in (-1, size, 2**40):
        given = example()
        given[name][4] = wrong
        with pytest.raises(
            IndexError, match=rf"embedding: {name}\[4\] is {wrong}, outside .* {size} \(0 to {size - 1}\)"
        ):
            embedding(**given)


def test_ids_of_another_integer_type_are_rejected():
    given = example()
    with pytest.raises(TypeError, match="input_ids is torch.int32; torch.int64 is allowed"):
        embedding(**given | dict(input_ids=given["input_ids"].int()))


@pytest.mark.parametrize(
    "wrong",
    [
        dict(input_ids=torch.zeros(3, 4, dtype=torch.int64)),
        dict(position_ids=torch.zeros(10, dtype=torch.int64)),
        dict(row_ids=torch.zeros(10, dtype=torch.int64)),
        dict(position=torch.randn(9, 11)),
        dict(token_type=torch.randn(2, 11)),
        dict(norm_weight=torch.randn(11)),
        dict(norm_bias=torch.randn(11)),
        dict(projection_weight=torch.randn(20, 11)),
        dict(projection_bias=torch.randn(19)),
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_shapes_that_disagree_are_rejected(wrong):
    with pytest.raises(ValueError, match=r"embedding: .* has shape .* is needed"):
        embedding(**example() | wrong)


@pytest.mark.parametrize("name", ["projection_weight", "projection_bias"])
def test_half_a_projection_is_rejected(name):
    with pytest.raises(ValueError, match="projection_weight and projection_bias come together"):
        embedding(**example() | {name: None})


def test_gradcheck():
    given = example(5, 4, 3)
    names = [name for name, value in given.items() if isinstance(value, torch.Tensor) and value.is_floating_point()]
    floats = [given.pop(name).double().requires_grad_() for name in names]
    assert torch.autograd.gradcheck(lambda *a: embedding(**dict(zip(names, a, strict=True)), **given), floats)
