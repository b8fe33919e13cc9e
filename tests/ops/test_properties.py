"""Every op on the CPU at shapes, strides and storage offsets that nobody chose, by the rule of numerics.py.

Where its inputs and upstream gradients lie, or that one row of memory stands for all, changes no bit of what an op
gives; what it gives from contiguous ones is judged by the rule. The examples of numbers and the truth are those of each
op's own tests.
"""

import math

import pytest
import test_adamw
import test_attention
import test_attention_block
import test_discriminator_head
import test_dropout_add_layer_norm
import test_embedding
import test_ffn_block
import test_generator_head
import test_linear
import test_masking
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numerics import EPS, floats_of, judge, moved, run, surroundings
from torch import Tensor

from electra_fast import ops

SIZES = st.integers(1, 40) | st.sampled_from([63, 64, 65, 127, 128, 129, 133])
ROWS = st.just(0) | SIZES
WIDTHS = st.integers(8, 70)  # of a row that is normalised: of few columns, rounding alone may decide
LENGTHS = st.lists(ROWS, max_size=4)
DROPOUT = st.sampled_from([0.0, 0.1, 0.5, 1.0])
NORMS = st.sampled_from([0.1, 1.0, 1000.0])
SEEDS = st.integers(-(2**63), 2**63 - 1)


def linear(draw):
    return test_linear.example(draw(ROWS), draw(SIZES), draw(SIZES), draw(st.booleans()))


def attention(draw):
    lengths, others = draw(LENGTHS), draw(st.booleans())
    lengths_k = [draw(ROWS) for _ in lengths] if others else None
    sizes = draw(st.integers(1, 3)), draw(st.integers(1, 40))
    given = test_attention.example(lengths, *sizes, lengths_k, draw(DROPOUT), draw(SEEDS))
    return given | dict(causal=draw(st.booleans()))


def dropout_add_layer_norm(draw):
    return test_dropout_add_layer_norm.example(draw(ROWS), draw(WIDTHS), draw(DROPOUT), draw(SEEDS))


def attention_block(draw):
    lengths, heads = draw(LENGTHS), draw(st.integers(1, 3))
    asking = [draw(st.integers(0, length)) for length in lengths] if lengths and draw(st.booleans()) else None
    width, dropout = heads * draw(st.integers(8, 20)), (draw(DROPOUT), draw(DROPOUT))
    return test_attention_block.example(lengths, width, heads, asking, *dropout, draw(SEEDS))


def ffn_block(draw):
    return test_ffn_block.example(draw(ROWS), draw(WIDTHS), draw(SIZES), draw(DROPOUT), draw(SEEDS))


def embedding(draw):
    hidden = draw(st.none() | SIZES)
    return test_embedding.example(draw(ROWS), draw(WIDTHS), hidden, draw(DROPOUT), draw(SEEDS))


def generator_head(draw):
    return test_generator_head.example(draw(ROWS), draw(SIZES), draw(SIZES | st.integers(250, 400)), draw(SEEDS))


def discriminator_head(draw):
    return test_discriminator_head.example(draw(ROWS), draw(SIZES))


DIFFERENTIABLE = {
    linear: test_linear,
    attention: test_attention,
    dropout_add_layer_norm: test_dropout_add_layer_norm,
    attention_block: test_attention_block,
    ffn_block: test_ffn_block,
    embedding: test_embedding,
    generator_head: test_generator_head,
    discriminator_head: test_discriminator_head,
}


def placed(draw, value):
    """The same numbers elsewhere, among NaN: dimensions in any order, some with a step, and any offset."""
    if isinstance(value, list):
        return [placed(draw, part) for part in value]
    if not isinstance(value, Tensor):
        return value
    order = draw(st.permutations(range(value.dim())))
    steps = [draw(st.integers(1, 2)) for _ in order]
    offset = draw(st.integers(0, 5))
    spread = [value.shape[i] * step for i, step in zip(order, steps, strict=True)]
    room = surroundings(value, offset + math.prod(spread))[offset:].view(spread)
    view = room[tuple(slice(None, None, step) for step in steps)]
    return view.permute([order.index(i) for i in range(value.dim())]).copy_(value)


def upstream(draw, shape):
    """A gradient that lies anywhere, some of its dimensions one number for all: then positive, as the rule cannot judge
    a sum of which nothing is left."""
    alike = [draw(st.booleans()) for _ in shape]
    few = torch.randn([min(size, 1) if one else size for size, one in zip(shape, alike, strict=True)])
    return placed(draw, few.abs() if any(alike) else few).expand(shape)


def dense(t: Tensor) -> Tensor:
    return t.clone(memory_format=torch.contiguous_format)


def same_bits(one: Tensor, two: Tensor) -> bool:
    return torch.equal(dense(one).view(torch.int32), dense(two).view(torch.int32))


quick = settings(max_examples=25, deadline=None, derandomize=True)


@pytest.mark.parametrize("example", DIFFERENTIABLE, ids=lambda example: example.__name__)
@quick
@given(data=st.data())
def test_values_and_gradients(example, data):
    torch.manual_seed(data.draw(SEEDS))
    op, truth = getattr(ops, example.__name__), DIFFERENTIABLE[example].truth
    arguments = example(data.draw)
    exact = moved(arguments, torch.float64, "cpu")
    grads = [upstream(data.draw, output.shape) for output in floats_of(truth(**exact))]
    gold, rounded = run(truth, exact, [g.double() for g in grads]), run(truth, arguments, grads)
    contiguous = [dense(g) for g in grads]
    ours = run(op, arguments, contiguous)
    elsewhere = {name: placed(data.draw, value) for name, value in arguments.items()}
    for name, found in run(op, elsewhere, grads).items():
        judge(name, ours[name], rounded[name], gold[name])
        assert same_bits(found, ours[name]), f"{name} depends on where the arguments lie"
    for name, value in arguments.items():
        assert not isinstance(value, Tensor) or torch.equal(value, elsewhere[name]), f"{name} was modified"

    floats = [n for n, v in arguments.items() if isinstance(v, Tensor) and v.is_floating_point()]
    chosen = data.draw(st.sampled_from(floats))
    one_for_all = arguments[chosen][:1].expand_as(arguments[chosen])
    copied = run(op, arguments | {chosen: dense(one_for_all)}, contiguous)
    for name, found in run(op, elsewhere | {chosen: one_for_all}, grads).items():
        assert same_bits(found, copied[name]), f"{name} depends on whether {chosen} is one row for all"


@quick
@given(data=st.data())
def test_masking_and_corruption(data):
    torch.manual_seed(data.draw(SEEDS))
    faithful, seed, replace_prob = data.draw(st.booleans()), data.draw(SEEDS), data.draw(DROPOUT)
    vocabulary, mask_prob = data.draw(st.integers(4, 30)), data.draw(st.sampled_from([0.15, 0.6, 1.0]))
    arguments = test_masking.example(data.draw(LENGTHS), vocabulary, mask_prob)
    arguments |= dict(faithful=faithful, seed=seed, replace_prob=replace_prob)
    found = ops.masking(**{name: placed(data.draw, value) for name, value in arguments.items()})
    assert [t.tolist() for t in found[:4]] == list(test_masking.truth(**arguments))

    slots = dict(input_ids=arguments["input_ids"], positions=found.positions, labels=found.labels)
    slots |= dict(sampled_ids=torch.randint(vocabulary, found.labels.shape), faithful=faithful)
    if slots["input_ids"].numel():
        corrupted, replaced = ops.corrupt(**{name: placed(data.draw, value) for name, value in slots.items()})
        assert (corrupted.tolist(), replaced.tolist()) == test_masking.corrupt_truth(**slots)


@quick
@given(data=st.data())
def test_adamw_updates_what_it_is_given_and_nothing_beside(data):
    torch.manual_seed(data.draw(SEEDS))
    shapes = data.draw(st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=3), min_size=1, max_size=5))
    lists = {name: [torch.rand(shape) for shape in shapes] for name in "params grads exp_avgs exp_avg_sqs".split()}
    numbers = dict(lr_scales=[0.5] * len(shapes), weight_decays=[0.1] * len(shapes), max_grad_norm=data.draw(NORMS))
    arguments = test_adamw.example() | lists | numbers
    ours = {name: placed(data.draw, value) for name, value in arguments.items()}
    exact = arguments | {name: [t.double() for t in tensors] for name, tensors in lists.items()}
    rounded = test_adamw.copied(arguments)
    assert ops.adamw(**ours).item() == pytest.approx(test_adamw.truth(**exact), rel=EPS[torch.float32])
    test_adamw.truth(**rounded)
    for name in lists:
        for found, plain, gold in zip(ours[name], rounded[name], exact[name], strict=True):
            judge(f"output {name}", found, plain, gold)
            room = found._base
            assert room.isnan().sum() == room.numel() - found.numel(), f"{name}: something beside it was written"


MANY = 40_000
OF_MANY_ROWS = {
    linear: lambda: test_linear.example(MANY, 8, 9),
    dropout_add_layer_norm: lambda: test_dropout_add_layer_norm.example(MANY, 20),
    attention_block: lambda: test_attention_block.example([100] * (MANY // 200), 18, 2),
    ffn_block: lambda: test_ffn_block.example(MANY, 18, 20),
    embedding: lambda: test_embedding.example(MANY, 18, 5),
    generator_head: lambda: test_generator_head.example(MANY, 8, 30),
    discriminator_head: lambda: test_discriminator_head.example(MANY, 18),
}


@pytest.mark.parametrize("of_a_sum", [False, True])
@pytest.mark.parametrize("op", OF_MANY_ROWS, ids=lambda op: op.__name__)
def test_a_sum_over_many_rows_keeps_its_digits(op, of_a_sum):
    """Where one chain of additions through all rows would lose more of them than PyTorch's tree."""
    arguments, truth = OF_MANY_ROWS[op](), DIFFERENTIABLE[op].truth
    exact = moved(arguments, torch.float64, "cpu")
    shapes = [output.shape for output in floats_of(truth(**exact))]
    grads = [torch.ones(()).expand(shape) if of_a_sum else torch.randn(shape) for shape in shapes]
    gold, rounded = run(truth, exact, [g.double() for g in grads]), run(truth, arguments, grads)
    for name, found in run(getattr(ops, op.__name__), arguments, grads).items():
        judge(name, found, rounded[name], gold[name])
