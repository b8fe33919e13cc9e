"""decoder_step: one token of each target through all layers, against the formula over each target's own keys."""

import math
import sys

import pytest
import torch
import torch.nn.functional as F
from numerics import DEVICES, EPS, laid_out, moved, poisoned_memory

from electra_fast import ops
from electra_fast.ops._core import core
from electra_fast.ops.decoder_step import TENSORS, Paged

SMALL = 1e-6  # eps


def paged(lengths, page, heads, width, depth, spare=1):
    """Pages of random keys and values: each row has pages of its own, in no order, and one entry more than it needs."""
    counts = [-(-n // page) for n in lengths]
    order = torch.randperm(sum(counts)).to(torch.int32).split(counts)
    table = torch.zeros(len(lengths), max(counts, default=0) + spare, dtype=torch.int32)
    for row, own in zip(table, order, strict=False):
        row[: len(own)] = own
    pool = torch.randn(depth, max(1, sum(counts)), 2, heads, page, width)
    return dict(pool=pool, table=table, lengths=torch.tensor(lengths, dtype=torch.int32))


def example(lengths=(5, 33, 1, 16), sources=(3, 20, 17, 1), heads=2, width=8, page=16, depth=2, inner=24):
    D = heads * width
    square, vector = (D, D), (D,)
    shapes = [(3 * D, D), (3 * D,), square, vector, vector, vector, square, vector, square, vector, vector, vector]
    shapes += [(inner, D), (inner,), (D, inner), vector, vector, vector]
    layers = [
        torch.randn(shape) / (shape[-1] ** 0.5 if len(shape) == 2 else 1) for _ in range(depth) for shape in shapes
    ]
    parts = {"target": paged(lengths, page, heads, width, depth), "source": paged(sources, page, heads, width, depth)}
    flat = {f"{side}_{name}": t for side, part in parts.items() for name, t in part.items()}
    return dict(x=torch.randn(len(lengths), D)) | flat | {f"w{i}": t for i, t in enumerate(layers)}


def named(**given):
    """The op, with the tensors of its lists as arguments of their own."""
    weights = [given[f"w{i}"] for i in range(sum(name[0] == "w" for name in given))]
    layers = [weights[i : i + TENSORS] for i in range(0, len(weights), TENSORS)]
    target, source = (Paged(*(given[f"{s}_{n}"] for n in Paged._fields)) for s in ("target", "source"))
    return ops.decoder_step(given["x"], layers, target, source, eps=SMALL)


def truth(**given):
    """The output, and the target's keys and values of the new tokens for each layer."""
    x, pool = given["x"], given["target_pool"].clone()
    depth, _, _, heads, page, width = pool.shape
    D = heads * width

    def attend(q, pages, side):
        out = []
        for row, table, n in zip(q, given[f"{side}_table"].long(), given[f"{side}_lengths"].tolist(), strict=True):
            k, v = pages[table].permute(1, 2, 0, 3, 4).flatten(2, 3)[:, :, :n]  # (H, n, width)
            scores = torch.einsum("hd,hkd->hk", row.view(heads, width), k) / math.sqrt(width)
            out.append(torch.einsum("hk,hkd->hd", scores.softmax(1), v).flatten())
        return torch.stack(out) if out else q

    for i in range(depth):
        w = [given[f"w{i * TENSORS + j}"] for j in range(TENSORS)]
        qkv = F.linear(x, w[0], w[1])
        for row, table, n in zip(qkv, given["target_table"].tolist(), given["target_lengths"].tolist(), strict=True):
            pool[i, table[(n - 1) // page], :, :, (n - 1) % page] = row[D:].view(2, heads, width)
        x = F.layer_norm(x + F.linear(attend(qkv[:, :D], pool[i], "target"), w[2], w[3]), (D,), w[4], w[5], SMALL)
        read = attend(F.linear(x, w[6], w[7]), given["source_pool"][i], "source")
        x = F.layer_norm(x + F.linear(read, w[8], w[9]), (D,), w[10], w[11], SMALL)
        x = F.layer_norm(x + F.linear(F.gelu(F.linear(x, w[12], w[13])), w[14], w[15]), (D,), w[16], w[17], SMALL)
    return x, pool


def judge(given, dtype=torch.float32, device="cpu"):
    gold, pool = truth(**moved(moved(given, dtype, "cpu"), torch.float64, "cpu"))
    rounded, rounded_pool = truth(**moved(given, dtype, "cpu"))
    for layout in ("contiguous", "transposed"):
        ours = {name: laid_out(t, layout) for name, t in moved(given, dtype, device).items()}
        before = ours["target_pool"].clone()
        out = named(**ours)
        assert out.shape == gold.shape and out.dtype == dtype
        for found, exact, plain in ((out, gold, rounded), (ours["target_pool"], pool, rounded_pool)):
            if exact.numel():
                error, bound = (found.cpu() - exact).abs().max(), 2 * (plain - exact).abs().max()
                assert error <= bound + EPS[dtype] * exact.abs().max(), layout
    with poisoned_memory():
        assert torch.equal(named(**ours | dict(target_pool=before)), out)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "changes",
    [
        dict(),
        dict(lengths=(16, 17), sources=(16, 33)),
        dict(lengths=(1,), sources=(1,), page=1),
        dict(lengths=(), sources=()),
        dict(depth=0),
        dict(heads=3, width=20, inner=7, page=4),
        dict(lengths=(40,) * 70, sources=(9,) * 70, heads=1, width=16),
    ],
    ids=str,
)
def test_values(changes, device):
    judge(example(**changes), device=device)


def test_float64_is_exact():
    judge(example(), torch.float64)


@pytest.mark.skipif(core is None, reason="no C++ core")
@pytest.mark.parametrize("isa", core.isas() if core else [])
def test_every_instruction_set(isa, monkeypatch):
    monkeypatch.setattr(sys.modules["electra_fast.ops.decoder_step"], "core", getattr(core, isa))
    judge(example(width=33))


def test_threads_and_other_rows_do_not_change_a_bit():
    given = example((40, 7, 33), (20, 60, 5), 4, 64)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(named(**given))
    finally:
        torch.set_num_threads(before)
    of_rows = [name for name in given if name == "x" or name.endswith(("table", "lengths"))]
    alone = named(**given | {name: given[name][1:2] for name in of_rows})
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2]) and torch.equal(alone, found[0][1:2])


def test_gradients_are_refused():
    given = example()
    given["w3"].requires_grad_()
    with pytest.raises(RuntimeError, match="decoder_step: it has no gradients; call it under torch.inference_mode"):
        named(**given)
    with torch.no_grad():
        named(**given)


def put(name, at, value):
    torch.manual_seed(0)
    tensor = example()[name]
    tensor[at] = value
    return {name: tensor}


@pytest.mark.parametrize(
    "wrong, error, message",
    [
        (dict(x=torch.randn(4, 15)), ValueError, "target_pool has 2 heads of 8, and x is 15 wide"),
        (dict(x=torch.randn(4, 16).double()), TypeError, "one floating-point dtype is allowed"),
        (dict(w6=torch.randn(16, 17)), ValueError, r"layers\[0\]\[6\] has shape \(16, 17\); \(16, 16\) is needed"),
        (dict(w35=torch.randn(16).double()), TypeError, r"layers\[1\]\[17\] is torch.float64"),
        (dict(w36=torch.randn(1)), ValueError, "there are 37 tensors of layers; 18 are needed for each layer"),
        (dict(target_pool=torch.randn(3, 9, 2, 2, 16, 8)), ValueError, "target_pool has shape"),
        (dict(source_pool=torch.randn(2, 9, 2, 2, 8, 8)), ValueError, "source_pool has shape"),
        (
            dict(source_pool=torch.randn(2, 9, 2, 2, 0, 8)),
            ValueError,
            r"\(layers, pages, 2, heads, tokens, head dim\) is",
        ),
        (dict(target_table=torch.zeros(4, dtype=torch.int32)), ValueError, r"target_table has shape \(4,\)"),
        (dict(source_table=torch.zeros(3, 4, dtype=torch.int32)), ValueError, "source_table has shape"),
        (dict(source_lengths=torch.ones(4)), TypeError, "source_lengths is torch.float32; torch.int32 is allowed"),
        (put("target_table", (1, 1), 6), IndexError, r"target_table\[5\] is 6, outside the cache of 6"),
        (put("source_table", (0, 0), -1), IndexError, r"source_table\[0\] is -1, outside the cache of 6"),
        (put("target_lengths", 2, 65), ValueError, r"target_lengths\[2\] is 65; 1 to 64 is allowed"),
        (put("source_lengths", 0, 0), ValueError, r"source_lengths\[0\] is 0; 1 to 48 is allowed"),
    ],
)
def test_what_does_not_fit_is_rejected(wrong, error, message):
    torch.manual_seed(0)
    with pytest.raises(error, match=f"decoder_step: .*{message}"):
        named(**example() | wrong)
