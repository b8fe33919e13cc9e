"""decode_attention: one query a sequence over a paged cache, against a loop over the sequences."""

import math
import sys

import pytest
import torch
from numerics import DEVICES, EPS, LAYOUTS, laid_out, moved, poisoned_memory

from electra_fast.ops import attention, decode_attention
from electra_fast.ops._core import core


def example(lengths=(5, 33, 0, 16), heads=2, width=8, page=16, spare=1):
    """Each sequence has pages of its own, in no order, and `spare` entries more than it needs, which name page 0."""
    counts = [-(-n // page) for n in lengths]
    order = (torch.randperm(sum(counts)) + 1).to(torch.int32).split(counts)
    pages = torch.zeros(len(lengths), max(counts, default=0) + spare, dtype=torch.int32)
    for row, own in zip(pages, order, strict=False):
        row[: len(own)] = own
    shape = (sum(counts) + 1, page, heads, width)
    cache = dict(k_pages=torch.randn(shape), v_pages=torch.randn(shape), pages=pages)
    return dict(q=torch.randn(len(lengths), heads, width), **cache, lengths=torch.tensor(lengths, dtype=torch.int32))


def truth(q, k_pages, v_pages, pages, lengths, softmax_scale=None):
    scale = 1 / math.sqrt(max(1, q.shape[2])) if softmax_scale is None else softmax_scale
    outs = []
    for n, length in enumerate(lengths.tolist()):
        k, v = (t[pages[n].long()].flatten(0, 1)[:length] for t in (k_pages, v_pages))
        outs.append(torch.einsum("hk,khd->hd", torch.einsum("hd,khd->hk", q[n] * scale, k).softmax(1), v))
    return torch.stack(outs) if outs else torch.zeros_like(q)


def judge(given, dtype=torch.float32, device="cpu", **options):
    gold = truth(**moved(moved(given, dtype, "cpu"), torch.float64, "cpu"), **options)
    rounded = truth(**moved(given, dtype, "cpu"), **options)
    for layout in LAYOUTS:
        ours = {n: laid_out(t, layout) for n, t in moved(given, dtype, device).items()}
        found = decode_attention(**ours, **options)
        assert found.shape == gold.shape and found.dtype == dtype
        error = (found.cpu() - gold).abs().max() if gold.numel() else 0.0
        bound = 2 * (rounded - gold).abs().max() + EPS[dtype] * gold.abs().max() if gold.numel() else 0.0
        assert error <= bound, layout
    with poisoned_memory():
        assert torch.equal(decode_attention(**ours, **options), found)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("page", [1, 16, 32])
@pytest.mark.parametrize("lengths", [(1,), (63, 64, 65), (5, 33, 0, 16), (300, 1), (0, 0), ()], ids=str)
def test_values(lengths, page, device):
    judge(example(lengths, page=page), device=device)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("heads, width", [(1, 1), (3, 24), (4, 64), (2, 80), (1, 257), (0, 8), (2, 0)])
def test_heads_and_their_width(heads, width, device):
    judge(example(heads=heads, width=width), device=device)


def test_float64_is_exact():
    judge(example(), torch.float64)


def test_another_scale():
    judge(example(), softmax_scale=0.3)


@pytest.mark.skipif(core is None, reason="no C++ core")
@pytest.mark.parametrize("isa", core.isas() if core else [])
@pytest.mark.parametrize("width", [1, 33, 64, 130])
def test_every_instruction_set(isa, width, monkeypatch):
    monkeypatch.setattr(sys.modules["electra_fast.ops.decode_attention"], "core", getattr(core, isa))
    judge(example((70, 3, 0, 133), width=width))


@pytest.mark.parametrize("device", DEVICES)
def test_it_is_the_last_row_of_causal_attention(device):
    """Step by step, with each key and value written to its page, it gives every row of attention over the sequence."""
    lengths, page = (40, 17), 16
    q, k, v = torch.randn(3, sum(lengths), 2, 24, device=device)
    cu = torch.tensor([0, 40, 57], dtype=torch.int32, device=device)
    whole = attention(q, k, v, cu, 40, causal=True)
    pages = torch.tensor([[4, 1, 3], [0, 2, 0]], dtype=torch.int32, device=device)
    k_pages, v_pages = torch.full((2, 5, page, 2, 24), math.nan, device=device)
    for step in range(40):
        rows = [start + step for start, length in zip((0, 40), lengths, strict=True) if step < length]
        table = pages[: len(rows)]
        for cache, new in ((k_pages, k), (v_pages, v)):
            cache[table[:, step // page].long(), step % page] = new[rows]
        found = decode_attention(q[rows], k_pages, v_pages, table, torch.full_like(table[:, 0], step + 1))
        torch.testing.assert_close(found, whole[rows], rtol=1e-4, atol=1e-5)


def test_beams_that_share_pages_give_what_they_give_with_copies():
    given = example((40, 45, 33), page=16)
    given["pages"][1:, :2] = given["pages"][0, :2]
    copies = {n: torch.cat([t[:1], t[given["pages"].flatten().long()]]) for n, t in given.items() if "_" in n}
    own = torch.arange(1, 1 + given["pages"].numel(), dtype=torch.int32).view_as(given["pages"])
    assert torch.equal(decode_attention(**given), decode_attention(**given | copies | dict(pages=own)))


def test_neither_threads_nor_other_sequences_change_a_bit():
    given = example((300, 0, 70, 129, 5), 3, 64)
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            found.append(decode_attention(**given))
    finally:
        torch.set_num_threads(before)
    alone = decode_attention(**given | {n: given[n][3:4] for n in ("q", "pages", "lengths")})
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2]) and torch.equal(alone, found[0][3:4])


def test_nan_beyond_a_sequence_is_not_read():
    given = example((5, 33, 0, 16))
    clean = decode_attention(**given)
    for name in ("k_pages", "v_pages"):
        given[name][0] = math.nan
        given[name][given["pages"][0, 0].long(), 5:] = math.nan
    assert torch.equal(decode_attention(**given), clean)


def test_large_scores_are_finite():
    given = example()
    given["q"] *= 1e4
    assert decode_attention(**given).isfinite().all()


def test_gradients_are_refused():
    given = example()
    given["q"].requires_grad_()
    with pytest.raises(RuntimeError, match="decode_attention: it has no gradients; call it under torch.inference_mode"):
        decode_attention(**given)
    with torch.no_grad():
        decode_attention(**given)


def put(name, at, value):
    torch.manual_seed(0)
    tensor = example()[name]
    tensor[at] = value
    return {name: tensor}


@pytest.mark.parametrize(
    "wrong, error, message",
    [
        (dict(q=torch.randn(4, 16)), ValueError, r"q has shape \(4, 16\); \(sequences, heads, head dim\)"),
        (dict(k_pages=torch.randn(9, 2, 8)), ValueError, r"k_pages has shape \(9, 2, 8\); \(pages, tokens, heads"),
        (dict(k_pages=torch.randn(9, 0, 2, 8)), ValueError, r"k_pages has shape \(9, 0, 2, 8\); \(pages, tokens"),
        (dict(k_pages=torch.randn(9, 16, 2, 7)), ValueError, "k_pages has shape"),
        (dict(v_pages=torch.randn(9, 16, 2, 7)), ValueError, "v_pages has shape"),
        (dict(pages=torch.zeros(4, dtype=torch.int32)), ValueError, r"pages has shape \(4,\); \(sequences, blocks\)"),
        (dict(pages=torch.zeros(3, 4, dtype=torch.int32)), ValueError, "pages has shape"),
        (dict(pages=torch.zeros(4, 4, dtype=torch.int64)), TypeError, "pages is torch.int64; torch.int32 is allowed"),
        (dict(lengths=torch.zeros(3, dtype=torch.int32)), ValueError, "lengths has shape"),
        (dict(lengths=torch.zeros(4)), TypeError, "lengths is torch.float32; torch.int32 is allowed"),
        (put("pages", (1, 1), 7), IndexError, r"pages\[5\] is 7, outside the cache of 6"),
        (put("pages", (0, 0), -1), IndexError, r"pages\[0\] is -1, outside the cache of 6"),
        (put("lengths", 2, 65), ValueError, r"lengths\[2\] is 65; 0 to 64 is allowed, the tokens of 4 pages of 16"),
        (put("lengths", 0, -1), ValueError, r"lengths\[0\] is -1; 0 to 64 is allowed"),
        (dict(q=torch.randn(4, 2, 8).double()), TypeError, "one floating-point dtype is allowed"),
    ],
)
def test_what_does_not_fit_is_rejected(wrong, error, message):
    torch.manual_seed(0)
    with pytest.raises(error, match=f"decode_attention: .*{message}"):
        decode_attention(**example() | wrong)
