"""The Triton kernels of embedding in the interpreter, against the reference and the truth of its test."""

import math
import sys
from collections.abc import Callable

import numerics
import pytest
import test_embedding as plain
import torch
from interpreted import FEW_LAYOUTS, in_two_dtypes, one_layout, repeats, through_triton
from numerics import check, dropout_factors
from torch._subclasses.fake_tensor import FakeTensorMode

from electra_fast.kernels import dropout_add_layer_norm
from electra_fast.kernels import embedding as kernels
from electra_fast.kernels import embedding_tables as tables
from electra_fast.ops import embedding
from electra_fast.ops._library import backends

OP = sys.modules["electra_fast.ops.embedding"]
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU the op's own tests run the kernels")


@pytest.fixture(autouse=True)
def on_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """The public op calls the launchers; words have several parts, programs several blocks, the product shares."""
    monkeypatch.setattr(OP, "_embedding", through_triton(OP._embedding))
    monkeypatch.setattr(kernels, "PROGRAMS", 3)
    monkeypatch.setattr(tables, "RUN", 4)
    monkeypatch.setattr(tables, "SHARES", 3)
    monkeypatch.setitem(tables.POSITION, (4,), tables.POSITION[4,] | dict(BLOCK_P=16, BLOCK_T=16))
    monkeypatch.setattr(numerics, "UPSTREAMS", {"strided": numerics.UPSTREAMS["strided"]})


@pytest.mark.parametrize(
    "rows, width, hidden, words, dtype",
    in_two_dtypes(
        (0, 20, 5, 30),
        (1, 1, None, 30),
        (63, 17, 5, 40000),
        (129, 12, None, 1),
        (5, 300, None, 30),
        half=(5, 300, None, 30),
        slow=[(127, 33, None, 30), (128, 64, 30, 3000)],
    ),
    ids=str,
)
def test_by_the_rule(rows: int, width: int, hidden: int | None, words: int, dtype: torch.dtype) -> None:
    given = plain.example(rows, width, hidden) | dict(eps=1e-12 if dtype == torch.float32 else 1e-3)
    given |= dict(word=torch.randn(words, width), input_ids=torch.randint(0, words, (rows,)))
    check(embedding, plain.truth, given, dtype)


@pytest.mark.parametrize("layout", [*FEW_LAYOUTS, "no dropout", "all dropped"])
def test_whatever_the_layout(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    one_layout(layout, monkeypatch)
    p = {"no dropout": 0.0, "all dropped": 1.0}.get(layout, 0.1)
    check(embedding, plain.truth, plain.example(33, 40, None if p else 20, p))


@pytest.mark.parametrize("words", [1, 2, 9, 300])
@pytest.mark.parametrize("rows", [1, 4, 5, 64, *repeats(9, 130)])
def test_words_in_runs_of_every_length(rows: int, words: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums of small whole numbers, which no order rounds; the longest has more parts than are joined at once."""
    monkeypatch.setattr(tables, "RUN", 2)
    ids = torch.randint(0, words, (rows,)) // torch.randint(1, 4, (rows,))
    dz = torch.randint(-8, 8, (rows, 3)).float()
    found, expected = torch.full((words, 3), math.nan), torch.zeros(words, 3)
    tables.sum_words(dz, ids, found)
    assert torch.equal(found, expected.index_add_(0, ids, dz))


def test_words_do_not_meet() -> None:
    """A word of one token has its row to the bit, and a NaN stays in its word."""
    dz, ids = torch.randn(20, 8), torch.randint(0, 9, (20,))
    found = torch.empty(9, 8)
    tables.sum_words(dz, ids, found)
    for word in ids.unique():
        if (ids == word).sum() == 1:
            assert torch.equal(found[word], dz[ids == word][0])
    dz[ids == ids[0]] = math.nan
    other = torch.empty(9, 8)
    tables.sum_words(dz, ids, other)
    rest = [word for word in range(9) if word != ids[0]]
    assert other[ids[0]].isnan().all() and torch.equal(other[rest], found[rest])


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_positions_do_not_meet(dtype: torch.dtype, value: float) -> None:
    """What is not finite in a token's gradient reaches its position, its type and its column, and no other."""
    dz, places, types = torch.randn(40, 8).to(dtype), torch.randint(0, 9, (40,)), torch.randint(0, 2, (40,))
    clean, found = ([torch.empty(9, 8, dtype=dtype), torch.empty(2, 8, dtype=dtype)] for _ in range(2))
    tables.sum_positions(dz, places, types, *clean)
    dz[17, 3] = value
    tables.sum_positions(dz, places, types, *found)
    for ours, before, at in zip(found, clean, (places[17], types[17]), strict=True):
        assert not ours[at, 3].isfinite()
        ours[at, 3] = before[at, 3]
        assert torch.equal(ours, before)


@pytest.mark.parametrize("seed", [-7, 2**62 + 5])
@pytest.mark.parametrize("block", [8, *repeats(1)])
def test_drops_the_very_bytes(seed: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for width, p in ((64, 0.1), (300, 0.9)):
        given = plain.example(33, width, None, p, seed)
        monkeypatch.setitem(dropout_add_layer_norm.TILES, kernels.tile(width)["BLOCK_D"], dict(BLOCK_M=block))
        assert torch.equal(embedding(**given) != 0, dropout_factors(seed, given["row_ids"], width, p) != 0)


@pytest.mark.parametrize(
    "test",
    [
        lambda: plain.test_a_token_alone_is_the_token_among_others(None),
        plain.test_a_word_seen_often_gathers_every_gradient,
        plain.test_probability_one_leaves_the_projection_s_bias,
        plain.test_no_tokens,
    ],
)
def test_what_holds_in_the_core_holds_here(test: Callable) -> None:
    test()


def test_nan_stays_in_its_row_forward_and_in_its_word_backward() -> None:
    given = plain.example(23, 20, None)
    given["word"].requires_grad_()
    clean = embedding(**given)
    upstream = torch.randn(23, 20)
    (before,) = torch.autograd.grad(clean, given["word"], upstream)
    with torch.no_grad():
        given["word"][given["input_ids"][4]] = math.nan
    out = embedding(**given)
    (after,) = torch.autograd.grad(out, given["word"], upstream)
    others = given["input_ids"] != given["input_ids"][4]
    assert torch.equal(out[others], clean[others]) and out[~others].isnan().any()
    words = torch.arange(len(before)) != given["input_ids"][4]
    assert torch.equal(after[words], before[words])


def test_cuda_goes_to_triton_and_to_the_reference_where_it_cannot() -> None:
    for name in ("embedding_fwd", "embedding_bwd"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"electra_fast::{name}", "CUDA")
        assert backends[name]["cuda"].startswith("Triton")
    with FakeTensorMode():
        for dtype, width, expected in ((torch.bfloat16, 128, 3), (torch.float32, 4097, 0), (torch.float64, 128, 0)):
            ids, seed = (torch.empty(n, dtype=torch.int64, device="cuda") for n in (9, 1))
            table, norm, bias = (torch.empty(n, dtype=dtype, device="cuda") for n in ((30, width), width, 5))
            projection = torch.empty(5, width, dtype=dtype, device="cuda")
            arguments = (ids, ids, ids, table, table, table, norm, norm, projection, bias, ids, seed, 1e-12, 0.1)
            out, saved = torch.ops.electra_fast.embedding_fwd(*arguments)
            assert out.shape == (9, 5) and len(saved) == expected
