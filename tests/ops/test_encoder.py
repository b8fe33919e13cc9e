"""encoder: attention_block and ffn_block, layer after layer, against the formulas of both."""

import re
import sys

import pytest
import test_attention_block
import test_ffn_block
import torch
from numerics import DEVICES, check, check_threads, moved, offsets

from electra_fast import ops
from electra_fast.ops._core import core
from electra_fast.ops._library import HAS_TRITON
from electra_fast.ops.encoder import ATTENTION, FFN


@pytest.fixture(params=core.isas() if core else [])
def isa(request, monkeypatch):
    """Each instruction set in turn is what the op runs."""
    monkeypatch.setattr(sys.modules["electra_fast.ops._encoder_cpu"], "core", getattr(core, request.param))


def example(lengths=(5, 1, 9), width=16, heads=2, inner=20, depth=3, asking=None, p=0.1):
    """The tensors of layer 2 are named 2_qkv_weight and so on."""
    given = test_attention_block.example(lengths, width, heads, asking, p, p)
    given["seeds"] = torch.arange(7, 7 + 2 * depth)
    norms = ("norm_weight", "norm_bias")
    for layer in range(depth):
        attention, ffn = test_attention_block.example(width=width), test_ffn_block.example(1, width, inner)
        for block, names in ((attention, ATTENTION), (ffn, FFN)):
            given |= {
                f"{layer}_{name}": block[name.split("_", 1)[1] if name.endswith(norms) else name] for name in names
            }
    for name in (*ATTENTION[:4], *norms, "seed"):
        del given[name]
    return given


def named(seeds, **given):
    """ops.encoder, the tensors of each layer arguments of their own."""
    depth = sum(name.endswith(ATTENTION[0]) for name in given)
    layers = [[given.pop(f"{i}_{name}") for name in ATTENTION + FFN] for i in range(depth)]
    return ops.encoder(layers=layers, seeds=seeds, **given)


def label(argument):
    """What errors call it, as a pattern."""
    return re.sub(r"^(\d)_", r"layers\\[\1\\] ", argument)


def blocks(attention_block, ffn_block):
    """The encoder of these blocks."""

    def encoder(
        x,
        cu_seqlens,
        max_seqlen,
        row_ids,
        num_heads,
        eps,
        attention_dropout_p,
        dropout_p,
        seeds,
        rows=None,
        cu_rows=None,
        max_rows=None,
        **layers,
    ):
        depth = len(seeds) // 2
        for i in range(depth):
            first, second = ([layers[f"{i}_{name}"] for name in names] for names in (ATTENTION, FFN))
            fewer, ids = {}, row_ids
            if i == depth - 1 and rows is not None:
                fewer, ids = dict(rows=rows, cu_rows=cu_rows, max_rows=max_rows), row_ids[rows]
            numbers = dict(eps=eps, attention_dropout_p=attention_dropout_p, dropout_p=dropout_p)
            keys = seeds[2 * i : 2 * i + 2].tolist()
            rest = dict(num_heads=num_heads, **numbers, seed=keys[0], **fewer)
            x = attention_block(x, *first, cu_seqlens, max_seqlen, row_ids, **rest)
            x = ffn_block(x, *second, ids, eps=eps, dropout_p=dropout_p, seed=keys[1])
        return x

    return encoder


truth = blocks(test_attention_block.truth, test_ffn_block.truth)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("p", [0.0, 0.1])
@pytest.mark.parametrize("lengths", [[1], [127, 2], [0, 5, 0, 3, 0]], ids=str)
def test_values_and_gradients(lengths, p, device):
    check(named, truth, example(lengths, p=p), device=device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("asking", [[1, 1, 2], [5, 0, 3], [0, 0, 0]], ids=str)
def test_only_some_rows_ask_in_the_last_layer(asking, layers, device):
    check(named, truth, example(asking=asking, depth=layers), device=device)


def test_every_instruction_set(isa):
    check(named, truth, example((130, 33), 33, 3, 21, 2))
    check(named, truth, example((130, 33), 33, 3, 21, 2, asking=(40, 5)))


def test_threads_change_no_bit(isa):
    check_threads(named, example((130, 7, 300), 33, 3, 65, 2), "x")


@pytest.mark.parametrize("asking", [None, (2, 1, 3)], ids=str)
def test_bits_are_those_of_the_blocks(asking):
    """In the output; and in every gradient, but where rows that ask were summed in another order."""
    given = example(asking=asking)
    floats = {n: t.requires_grad_() for n, t in given.items() if isinstance(t, torch.Tensor) and t.is_floating_point()}
    ours, theirs = named(**given), blocks(ops.attention_block, ops.ffn_block)(**given)
    assert torch.equal(ours, theirs)
    upstream = torch.randn_like(ours)
    for a, b in zip(*(torch.autograd.grad(y, floats.values(), upstream) for y in (ours, theirs)), strict=True):
        assert torch.equal(a, b)


def test_rows_asked_for_twice_add_up():
    given = example(asking=(2, 1, 3))
    given |= dict(rows=torch.tensor([1, 1, 5, 8, 6, 8]))
    check(named, truth, given)


def test_float64_is_exact():
    check(named, truth, example(), torch.float64)
    check(named, truth, example(asking=[2, 1, 4]), torch.float64)


def test_where_the_kernels_do_not_take_it_it_is_its_blocks(monkeypatch):
    """As in float64 on CUDA, for which meta tensors stand."""
    module, seen = sys.modules["electra_fast.ops.encoder"], []
    for block in (module._attention_block, module._ffn_block):
        counted = lambda args, block=block: seen.append(block.name) or block(args)  # noqa: E731
        monkeypatch.setattr(module, f"_{block.name}", counted)
    given = example(depth=2, asking=(1, 0, 2))
    for dtype, blocks_seen in ((torch.float64, 2 * ["attention_block", "ffn_block"]), (torch.float32, [])):
        seen.clear()
        assert named(**moved(given, dtype, "meta")).shape == (3, 16)
        assert seen == (blocks_seen if HAS_TRITON else 2 * ["attention_block", "ffn_block"])
    composed = module._composed
    monkeypatch.setattr(torch.ops.electra_fast, "encoder", composed)
    assert torch.equal(named(**given), blocks(ops.attention_block, ops.ffn_block)(**given))


def test_without_gradients_one_layers_memory_serves_all(monkeypatch):
    given = example((40, 30), depth=5)
    seen = []
    real = torch.Tensor.new_empty
    monkeypatch.setattr(torch.Tensor, "new_empty", lambda *a, **k: seen.append(1) or real(*a, **k))
    for t in given.values():
        if isinstance(t, torch.Tensor) and t.is_floating_point():
            t.requires_grad_()
    with torch.no_grad():
        named(**given)
    assert len(seen) < 2 * 11, "as many tensors as two layers make, however many there are"


@pytest.mark.parametrize(
    "wrong, error, message",
    [
        (dict(layers=[]), ValueError, r"layers of \[\] tensors; give one layer at least, each of 12: qkv_weight, "),
        (dict(layers=[[torch.ones(1)]]), ValueError, r"layers of \[1\] tensors"),
        (dict(num_heads=3), ValueError, "width 16 is not a multiple of num_heads 3"),
        (dict(rows=torch.arange(3)), ValueError, "rows, cu_rows and max_rows come together"),
        (dict(seeds=torch.arange(5)), ValueError, r"seeds has shape \(5,\); \(6,\) is needed"),
        (dict(seeds=torch.arange(6.0)), TypeError, "seeds is torch.float32; torch.int64 is allowed"),
        (dict(row_ids=torch.arange(14)), ValueError, "row_ids has shape"),
        (dict(max_seqlen=8), ValueError, "holds a sequence of 9 rows"),
        (dict(dropout_p=2.0), ValueError, "dropout_p is 2.0; a probability"),
        (
            dict(rows=torch.tensor([0, 15]), cu_rows=offsets(1, 0, 1), max_rows=1),
            IndexError,
            r"rows\[1\] is 15, outside the batch of 15",
        ),
    ],
)
def test_what_does_not_fit_is_rejected(wrong, error, message):
    given = example()
    layers = [[given.pop(f"{i}_{name}") for name in ATTENTION + FFN] for i in range(3)]
    with pytest.raises(error, match=f"encoder: .*{message}"):
        ops.encoder(**dict(layers=layers) | given | wrong)


@pytest.mark.parametrize("name", ATTENTION + FFN)
def test_a_tensor_that_does_not_fit_is_named(name):
    given = example()
    shape = given[f"1_{name}"].shape
    with pytest.raises(ValueError, match=rf"encoder: layers\[1\] {name} has shape"):
        named(**given | {f"1_{name}": torch.ones(*shape[:-1], shape[-1] + 1)})
    with pytest.raises(TypeError, match=rf"layers\[1\] {name} is torch.float64"):
        named(**given | {f"1_{name}": torch.ones(shape, dtype=torch.float64)})


def test_layers_of_two_inner_widths_are_rejected():
    given, other = example(), example(inner=24)
    given |= {name: other[name] for name in ("1_up_weight", "1_up_bias", "1_down_weight")}
    with pytest.raises(ValueError, match=r"encoder: layers\[1\] up_weight has shape \(24, 16\); \(20, 16\) is needed"):
        named(**given)


def test_gradcheck():
    given = example((2, 3), 4, 2, 6, 2, asking=(1, 2))
    floats = {n: t.double() for n, t in given.items() if isinstance(t, torch.Tensor) and t.is_floating_point()}
    rest = {n: v for n, v in given.items() if n not in floats}
    leaves = [t.requires_grad_() for t in floats.values()]
    assert torch.autograd.gradcheck(lambda *args: named(**dict(zip(floats, args, strict=True)), **rest), leaves)
