"""attention: softmax(scale Q K^T) V within each sequence, against a loop over the sequences."""

import math
import sys
from functools import partial
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from numerics import DEVICES, check, dropout_factors, moved, offsets
from torch.nn.attention.bias import causal_lower_right

from electra_fast.ops import attention
from electra_fast.ops._core import core

LENGTHS = {
    "one token": [1],
    "63": [63],
    "127": [127],
    "128": [128],
    "129": [129],
    "512": [512],
    "mixed": [5, 1, 33, 16, 17],
    "empty sequences": [0, 5, 0, 0, 3, 0],
    "only empty sequences": [0, 0],
    "no sequence": [],
}


def example(lengths=(5, 1, 9), heads=2, width=8, lengths_k=None, p=0.1, seed=3):
    """q, k, v are views of one packed projection where queries and keys are the same tokens."""
    total = sum(lengths)
    q, k, v = torch.randn(total, 3, heads, width).unbind(1)
    keys = {}
    if lengths_k is not None:
        k, v = torch.randn(sum(lengths_k), 2, heads, width).unbind(1)
        keys = dict(cu_seqlens_k=offsets(*lengths_k), max_seqlen_k=max(lengths_k, default=0))
    row_ids = torch.randint(0, 2**62, (total,))
    queries = dict(q=q, k=k, v=v, cu_seqlens=offsets(*lengths), max_seqlen=max(lengths, default=0))
    return queries | keys | dict(dropout_p=p, seed=seed, row_ids=row_ids)


def truth(
    q,
    k,
    v,
    cu_seqlens,
    max_seqlen,
    dropout_p,
    seed,
    row_ids,
    cu_seqlens_k=None,
    max_seqlen_k=None,
    softmax_scale=None,
    causal=False,
):
    cu_k = cu_seqlens if cu_seqlens_k is None else cu_seqlens_k
    scale = 1 / math.sqrt(q.shape[2]) if softmax_scale is None else softmax_scale
    outs = [q[:0] * (k.sum() + v.sum())]
    for a, b, c, d in zip(cu_seqlens[:-1], cu_seqlens[1:], cu_k[:-1], cu_k[1:], strict=True):
        hidden = torch.ones(b - a, d - c, dtype=torch.bool).triu(int(d - c - (b - a)) + 1) & causal
        scores = torch.einsum("qhd,khd->hqk", q[a:b], k[c:d]).mul(scale).masked_fill(hidden, -math.inf)
        probs = scores.softmax(-1).masked_fill(hidden, 0)
        factors = [dropout_factors(seed, row_ids[a:b], int(d - c), dropout_p, 1 + h) for h in range(q.shape[1])]
        outs.append(torch.einsum("hqk,khd->qhd", probs * torch.stack(factors).to(q.dtype), v[c:d]))
    return torch.cat(outs)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("p", [0.0, 0.1])
@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
def test_values_and_gradients(lengths, p, device):
    check(attention, truth, example(lengths, p=p), device=device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("heads, width", [(1, 1), (3, 24), (1, 64), (2, 80), (1, 257)])
def test_heads_and_their_width(heads, width, device):
    check(attention, truth, example(heads=heads, width=width), device=device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "lengths, lengths_k",
    [
        ([2, 1, 3], [5, 1, 9]),
        ([4, 4], [1, 130]),
        ([20], [5000]),
        ([3, 2, 0], [0, 4, 6]),
        ([2, 3], [0, 0]),
        ([0, 0], [3, 4]),
    ],
    ids=["fewer queries", "other lengths", "many keys", "no keys for some", "no keys at all", "no queries at all"],
)
def test_keys_of_another_sequence(lengths, lengths_k, device):
    check(attention, truth, example(lengths, lengths_k=lengths_k), device=device)


@pytest.mark.skipif(core is None, reason="no C++ core")
@pytest.mark.parametrize("isa", core.isas() if core else [])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("heads, width", [(1, 1), (2, 33), (2, 64), (1, 130)])
def test_every_instruction_set(isa, heads, width, causal, monkeypatch):
    monkeypatch.setattr(sys.modules["electra_fast.ops.attention"], "core", getattr(core, isa))  # the name is the op's
    given = example((5, 0, 70, 133, 1), heads, width)
    check(partial(attention, causal=causal), partial(truth, causal=causal), given)


@pytest.mark.skipif(core is None, reason="no C++ core")
@pytest.mark.parametrize("isa", core.isas() if core else [])
@pytest.mark.parametrize("width", [24, 64])
def test_the_core_writes_where_it_is_told(isa, width):
    """Output and gradients as views of one tensor, as of one projection's gradient, and nothing beside them."""
    module, total, heads = sys.modules["electra_fast.ops.attention"], 204, 2
    given = example((5, 0, 70, 129), heads, width)
    cu, longest, seed = given["cu_seqlens"], given["max_seqlen"], torch.tensor([given["seed"]])
    leaves, upstream = [given[n].detach().requires_grad_() for n in "qkv"], torch.randn(total, 5, heads, width)[:, 2]
    offsets = (cu, longest, cu, longest, given["row_ids"])
    struct = module._struct(module.AttentionArguments(*leaves, *offsets, seed, 0.3, given["dropout_p"], False))
    memory, lse = torch.full((total, 4, heads, width + 3), math.nan), torch.empty(total, heads)
    out, *grads = memory[..., :width].unbind(1)
    heads_of = module.Heads.of
    getattr(core, isa).attention_fwd(struct, heads_of(out), lse, 1)
    getattr(core, isa).attention_bwd(heads_of(upstream), struct, lse, *map(heads_of, grads), 1)
    plain = attention(**given | dict(zip("qkv", leaves, strict=True)), softmax_scale=0.3)
    for found, expected in zip((out, *grads), (plain, *torch.autograd.grad(plain, leaves, upstream)), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert memory[..., width:].isnan().all()


def test_threads_change_no_bit():
    given = example((130, 7, 0, 90, 1), 3, 64)
    leaves = {name: given[name].requires_grad_() for name in "qkv"}
    upstream = torch.randn(228, 3, 64)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            out = attention(**given)
            found.append([out, *torch.autograd.grad(out, list(leaves.values()), upstream)])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for other in found[1:] for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("device", DEVICES)
def test_one_row_may_stand_for_all_tokens_and_heads(device):
    given = example((5, 20), 2, 16)
    plain = {name: torch.randn(1, 1, 16).expand(25, 2, 16) for name in "qkv"}
    found = attention(**{n: t.to(device) if isinstance(t, torch.Tensor) else t for n, t in (given | plain).items()})
    torch.testing.assert_close(found.cpu(), truth(**given | plain))


def test_float64_is_exact():
    check(attention, truth, example(), torch.float64)


@pytest.mark.parametrize("scale", [None, 0.3])
def test_it_is_pytorch_s_attention_in_each_sequence(scale):
    given = {n: t.double() if n in "qkv" else t for n, t in example((7, 12), p=0.0).items()}
    ours = attention(**given, softmax_scale=scale)
    for a, b in ((0, 7), (7, 19)):
        q, k, v = (given[n][a:b].transpose(0, 1) for n in "qkv")
        theirs = F.scaled_dot_product_attention(q, k, v, scale=scale).transpose(0, 1)
        torch.testing.assert_close(ours[a:b], theirs)


def test_a_longer_max_seqlen_changes_nothing():
    given = example()
    torch.testing.assert_close(attention(**{**given, "max_seqlen": 40}), attention(**given))


def kept_probabilities(p, seed=0, row_ids=None, lengths=(64,), heads=2):
    """(T, H, S): S times the probabilities after dropout, all equal before it."""
    given = example(lengths, heads, max(lengths), p=p, seed=seed)
    given["q"].zero_()
    places = torch.cat([torch.eye(max(lengths))[:n] for n in lengths])
    given["v"] = (
        places[:, None].expand(-1, heads, -1)
        * torch.tensor(lengths).repeat_interleave(torch.tensor(lengths))[:, None, None]
    )
    return attention(**given if row_ids is None else {**given, "row_ids": row_ids})


def test_dropout_drops_the_bytes_below_the_threshold_and_keeps_the_mean():
    row_ids = torch.arange(64) * 2**30
    found = kept_probabilities(0.1, seed=-7, row_ids=row_ids)
    for head in range(2):
        factors = dropout_factors(-7, row_ids, 64, 0.1, plane=1 + head)
        torch.testing.assert_close(found[:, head].double(), factors, rtol=1e-5, atol=0)
    assert abs((found == 0).double().mean().item() - 26 / 256) < 4 * math.sqrt(26 / 256 / found.numel())


def test_same_seed_same_mask_other_seed_another():
    rows = torch.arange(64)
    masks = [kept_probabilities(0.1, seed, rows) == 0 for seed in (5, 5, torch.tensor([5]), 6, 5 + 2**32)]
    assert torch.equal(masks[0], masks[1]) and torch.equal(masks[0], masks[2])
    assert not torch.equal(masks[0], masks[3]) and not torch.equal(masks[0], masks[4])
    assert not torch.equal(masks[0][:, 0], masks[0][:, 1]), "two heads share a mask"


def test_probability_one_gives_zeros():
    given = example(p=1.0)
    for name in "qkv":
        given[name] = given[name].clone().requires_grad_()
    out = attention(**given)
    out.sum().backward()
    assert not out.any()
    assert not any(given[name].grad.any() for name in "qkv")


@pytest.mark.parametrize("p", [-0.1, 2, math.nan])
def test_other_probabilities_are_rejected(p):
    with pytest.raises(ValueError, match=f"attention: dropout_p is {p}; a probability lies between 0 and 1"):
        attention(**example(p=p))


def test_without_row_ids_queries_count_from_0():
    given = example() | dict(row_ids=torch.arange(15))
    assert torch.equal(attention(**given), attention(**{n: v for n, v in given.items() if n != "row_ids"}))


def test_a_sequence_alone_equals_itself_among_others():
    lengths = (5, 64, 1, 40)
    given = example(lengths)
    whole = attention(**given)
    bounds = given["cu_seqlens"].tolist()
    for n, (a, b) in enumerate(pairwise(bounds)):
        own = {name: given[name][a:b] for name in ("q", "k", "v", "row_ids")}
        alone = attention(**given | own | dict(cu_seqlens=offsets(lengths[n]), max_seqlen=lengths[n]))
        torch.testing.assert_close(alone, whole[a:b], rtol=1e-5, atol=1e-6)


def test_masks_do_not_depend_on_packing():
    rows = torch.randint(0, 2**62, (60,))
    packed = kept_probabilities(0.5, 1, rows, lengths=(20, 30, 10))
    for a, b in ((0, 20), (20, 50), (50, 60)):
        alone = kept_probabilities(0.5, 1, rows[a:b], lengths=(b - a,))
        assert torch.equal(alone == 0, packed[a:b, :, : b - a] == 0)


@pytest.mark.parametrize("there", [slice(0, 6), slice(6, 15), slice(15, 19)], ids=["first", "middle", "last"])
def test_nan_in_one_sequence_does_not_reach_another(there):
    given = example((6, 9, 4))
    elsewhere = [row for row in range(19) if row not in range(there.start, there.stop)]
    upstream = torch.randn(19, 2, 8)

    def rest():
        leaves = {name: given[name].clone().requires_grad_() for name in "qkv"}
        out = attention(**given | leaves)
        found = [out, *torch.autograd.grad(out, list(leaves.values()), upstream)]
        return [t[elsewhere] for t in found]

    clean = rest()
    for name in "qkv":
        given[name][there] = math.nan
    upstream[there] = math.nan
    for before, after in zip(clean, rest(), strict=True):
        assert torch.equal(before, after)


def test_large_scores_are_finite():
    given = example(p=0.0)
    given["q"] = given["q"] * 1e4
    leaves = {name: given[name].requires_grad_() for name in "qkv"}
    out = attention(**given | leaves)
    assert out.isfinite().all()
    assert all(grad.isfinite().all() for grad in torch.autograd.grad(out.sum(), list(leaves.values())))


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("p", [0.0, 0.5])
def test_nan_reaches_all_that_depends_on_it(p, sign):
    """A key that is NaN spoils every query of its sequence, and by them every gradient there, whatever is dropped."""
    given = example((40,), 1, 8, p=p)
    given["k"][7] = math.copysign(math.nan, sign)
    leaves = {name: given[name].requires_grad_() for name in "qkv"}
    out = attention(**given)
    grads = torch.autograd.grad(out, list(leaves.values()), torch.randn(40, 1, 8))
    assert all(t.isnan().all() for t in (out, *grads))


@pytest.mark.parametrize("lengths", [(2,), (1, 1)])
def test_rows_more_than_two_to_the_31_elements_apart(lengths):
    given = example(lengths)
    memory = torch.empty(2**31 + 64)
    far = {name: memory.as_strided((2, 2, 8), (2**31, 8, 1), 16 * i).copy_(given[name]) for i, name in enumerate("qkv")}
    torch.testing.assert_close(attention(**given | far), attention(**given))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "lengths, lengths_k",
    [
        *((lengths, None) for lengths in LENGTHS.values()),
        ([2, 1, 3], [5, 1, 9]),
        ([20, 130], [300, 131]),
        ([4, 3, 0], [0, 4, 6]),
        ([5, 70], [2, 1]),
        ([2, 3], [0, 0]),
    ],
    ids=[*LENGTHS, "fewer queries", "many keys", "no keys for some", "more queries", "no keys at all"],
)
def test_causal_values_and_gradients(lengths, lengths_k, device):
    check(
        partial(attention, causal=True),
        partial(truth, causal=True),
        example(lengths, lengths_k=lengths_k),
        device=device,
    )


def test_causal_is_pytorch_s_with_the_mask_at_the_end():
    given = {n: t.double() if n in "qkv" else t for n, t in example((7,), lengths_k=(12,), p=0.0).items()}
    q, k, v = (given[n].transpose(0, 1) for n in "qkv")
    theirs = F.scaled_dot_product_attention(q, k, v, attn_mask=causal_lower_right(7, 12)).transpose(0, 1)
    torch.testing.assert_close(attention(**given, causal=True), theirs)


@pytest.mark.skipif(core is None, reason="no C++ core")
def test_causal_blocks_above_the_diagonal_are_not_computed():
    """A block that is computed would multiply the values by probabilities of 0, and 0 times NaN is NaN."""
    given = {n: t.requires_grad_() if n in "qkv" else t for n, t in example((200,), p=0.0).items()}
    with torch.no_grad():
        given["k"][150:], given["v"][150:] = math.nan, math.nan
    out = attention(**given, causal=True)
    dq, _, _ = torch.autograd.grad(out, [given[n] for n in "qkv"], torch.randn_like(out))
    assert out[:100].isfinite().all() and dq[:100].isfinite().all() and out[150:].isnan().all()


@pytest.mark.parametrize("device", DEVICES)
def test_what_follows_changes_no_bit_of_a_causal_result(device):
    given = moved(example((70, 40)), torch.float32, device)
    before = attention(**given, causal=True)
    for name in "qkv":
        given[name][50:70] = 1e4
    after = attention(**given, causal=True)
    assert torch.equal(before[:50], after[:50]) and torch.equal(before[70:], after[70:])
    assert not torch.equal(before[50:70], after[50:70])


@pytest.mark.parametrize(
    "wrong, message",
    [
        (dict(q=torch.randn(15, 16)), r"q has shape \(15, 16\); packed \(tokens, heads, head dim\)"),
        (dict(k=torch.randn(15, 2, 7)), "k has shape"),
        (dict(v=torch.randn(14, 2, 8)), "v has shape"),
        (dict(row_ids=torch.arange(14)), "row_ids has shape"),
        (dict(cu_seqlens=torch.tensor([0, 5, 6, 15])), r"cu_seqlens is torch.int64 of shape \(4,\)"),
        (dict(cu_seqlens=torch.zeros(2, 2, dtype=torch.int32)), r"cu_seqlens is torch.int32 of shape \(2, 2\)"),
        (dict(cu_seqlens=torch.tensor([1, 5, 6, 15], dtype=torch.int32)), r"must start at 0, never fall"),
        (dict(cu_seqlens=torch.tensor([0, 6, 5, 15], dtype=torch.int32)), r"must start at 0, never fall"),
        (dict(cu_seqlens=torch.tensor([0, 5, 6, 14], dtype=torch.int32)), r"end at 15, the number of rows"),
        (dict(max_seqlen=8), "holds a sequence of 9 rows, max_seqlen is 8"),
        (dict(cu_seqlens_k=offsets(15), max_seqlen_k=15), r"cu_seqlens_k has shape \(2,\); \(4,\) is needed"),
        (dict(seed=2**63), "seed is 9223372036854775808; it must fit in 64 bits"),
        (dict(seed=torch.tensor([1, 2])), "seed is torch.int64 of 2 elements"),
        (dict(seed=torch.tensor(1.0)), "seed is torch.float32 of 1 elements"),
    ],
)
def test_what_does_not_fit_is_rejected(wrong, message):
    with pytest.raises(ValueError, match=f"attention: .*{message}"):
        attention(**example() | wrong)


def test_gradcheck():
    given = example((2, 0, 3), 2, 3, p=0.3)
    floats = [given.pop(name).double().requires_grad_() for name in "qkv"]
    assert torch.autograd.gradcheck(lambda *args: attention(*args, **given), floats)
