"""Triton's kernels: interpreted here, against each op's reference and truth; compiled ahead of time in a subprocess.

The interpreter runs float32 and float16 (its bfloat16 products are wrong). The public op is what is called: the
dispatcher alone is left out, since without a GPU it would choose the CPU.
"""

import math
import os
import subprocess
import sys
from pathlib import Path

import numerics
import pytest
import test_attention
import test_generator_head
import test_mask_units
import test_masking
import torch
from interpreted import FEW_LAYOUTS, in_two_dtypes, of_values, one_layout, repeats, through_triton
from numerics import check, dropout_factors, laid_out, offsets
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import electra_fast.ops  # noqa: F401
from electra_fast.kernels import attention as attention_kernels
from electra_fast.kernels import generator_head as generator_head_kernels
from electra_fast.kernels import generator_head_chunked as chunked_kernels
from electra_fast.kernels import mask_units as mask_units_kernels
from electra_fast.kernels import masking as masking_kernels
from electra_fast.ops._library import backends

OPS = {name: sys.modules[f"electra_fast.ops.{name}"] for name in ("attention", "generator_head", "masking", "corrupt")}
pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU every op's own tests run the kernels")


@pytest.fixture(autouse=True)
def on_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """The public ops call the launchers; one upstream gradient, not contiguous, and one layout of the inputs do."""
    for name in ("attention", "generator_head"):
        monkeypatch.setattr(OPS[name], f"_{name}", through_triton(getattr(OPS[name], f"_{name}")))
    for name, arguments in (("masking", "MaskingArguments"), ("corrupt", "CorruptArguments")):
        launch = of_values(getattr(masking_kernels, f"{name}_fwd"), getattr(OPS[name], arguments))
        monkeypatch.setattr(OPS[name], f"_{name}", launch)
    units = of_values(mask_units_kernels.mask_units_fwd, test_mask_units.MaskUnitsArguments)
    monkeypatch.setattr(OPS["masking"], "mask_units", units)
    monkeypatch.setattr(numerics, "UPSTREAMS", {"strided": numerics.UPSTREAMS["strided"]})
    for table in (attention_kernels.FWD, attention_kernels.BWD):  # large blocks: the interpreter pays by the block
        for key in [key for key in table if key[0] == 4]:
            monkeypatch.setitem(table, key, dict(BLOCK_M=128, BLOCK_N=128, num_warps=4, num_stages=1))
    for table in (generator_head_kernels.FWD, generator_head_kernels.BWD_HIDDEN, generator_head_kernels.BWD_WEIGHT):
        for key in [key for key in table if key[0] == 4]:
            monkeypatch.setitem(table, key, dict(BLOCK_M=64, BLOCK_N=128, num_warps=4, num_stages=1))


@pytest.mark.parametrize(
    "lengths, dtype",
    in_two_dtypes(
        *[(lengths,) for lengths in ((63, 0), (129,), (5, 0, 33, 16), (0, 0), ())],
        half=((5, 0, 33, 16),),
        slow=[(lengths,) for lengths in ((1,), (128,), (127, 5), (300,))],
    ),
    ids=str,
)
def test_attention_by_the_rule(lengths: tuple, dtype: torch.dtype) -> None:
    check(OPS["attention"].attention, test_attention.truth, test_attention.example(lengths, width=64), dtype)


@pytest.mark.parametrize(
    "lengths, lengths_k, dtype",
    in_two_dtypes(
        ((63, 0), None),
        ((300,), None),
        ((2, 130, 3), (5, 260, 1)),
        ((3, 2, 5, 200), (0, 4, 2, 150)),
        half=((5, 129), None),
        slow=[((5, 129), None), ((0, 0), None), ((), None), ((20,), (300,))],
    ),
    ids=str,
)
def test_causal_attention_by_the_rule(lengths: tuple, lengths_k: tuple | None, dtype: torch.dtype) -> None:
    given = test_attention.example(lengths, heads=1, width=32, lengths_k=lengths_k) | dict(causal=True)
    check(OPS["attention"].attention, test_attention.truth, given, dtype)


@pytest.mark.parametrize("tile", [dict(BLOCK_M=32, BLOCK_N=16), dict(BLOCK_M=16, BLOCK_N=32)], ids=str)
def test_causal_attention_skips_what_no_query_sees(tile: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    for table in (attention_kernels.FWD, attention_kernels.BWD):
        for key in [key for key in table if key[0] == 4]:
            monkeypatch.setitem(table, key, tile)
    given = test_attention.example((70,), heads=1, width=16, lengths_k=(90,)) | dict(causal=True)
    check(OPS["attention"].attention, test_attention.truth, given)
    given["k"][64:], given["v"][64:] = math.nan, math.nan  # what queries 0 to 31 see ends in the block before
    out = OPS["attention"].attention(**given)
    assert out[:32].isfinite().all() and out[44:].isnan().all()


@pytest.mark.parametrize(
    "lengths, lengths_k, dtype",
    in_two_dtypes(
        ((20, 200), (300, 1)),
        half=((1, 3), (0, 256)),
        slow=[((1, 3), (0, 256)), ((300, 0, 1, 129), None), ((512, 63), None)],
    ),
    ids=str,
)
def test_attention_of_up_to_512_keys_on_chip(
    lengths: tuple, lengths_k: tuple | None, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched = []
    for table, row in ((attention_kernels.FWD, (128, 64)), (attention_kernels.BWD, (64, 128))):
        chosen = dict(zip(("BLOCK_M", "BLOCK_N"), row, strict=True), num_warps=8, num_stages=1)
        monkeypatch.setitem(table, (4, 32, "512"), chosen)
    tile = attention_kernels.tile
    monkeypatch.setattr(attention_kernels, "tile", lambda *given: launched.append(tile(*given)) or launched[-1])
    given = test_attention.example(lengths, heads=1, width=32, lengths_k=lengths_k)
    check(OPS["attention"].attention, test_attention.truth, given, dtype)
    assert all("LENGTH" in chosen for chosen in launched) and len(launched) == 4


@pytest.mark.parametrize("layout", [*FEW_LAYOUTS, "no dropout"])
def test_attention_whatever_the_layout(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    given = test_attention.example((70, 20), p=0.0 if layout == "no dropout" else 0.1)
    one_layout(layout, monkeypatch)
    check(OPS["attention"].attention, test_attention.truth, given)


@pytest.mark.parametrize("heads, width", [(3, 24), (1, 128), *repeats((1, 1), (2, 80))])
def test_attention_of_other_widths(heads: int, width: int) -> None:
    check(OPS["attention"].attention, test_attention.truth, test_attention.example(heads=heads, width=width))


@pytest.mark.parametrize("dtype", [torch.float32, *repeats(torch.float16)], ids=str)
@pytest.mark.parametrize(
    "lengths, lengths_k",
    [([2, 1, 3], [5, 1, 9]), ([4, 40], [1, 130]), ([3, 2, 0], [0, 4, 6]), ([2, 3], [0, 0]), ([0, 0], [3, 4])],
    ids=str,
)
def test_attention_to_other_keys(lengths: list, lengths_k: list, dtype: torch.dtype) -> None:
    given = test_attention.example(lengths, width=32, lengths_k=lengths_k)
    check(OPS["attention"].attention, test_attention.truth, given, dtype)


@pytest.mark.parametrize("tile", [None, *repeats(dict(BLOCK_M=32, BLOCK_N=64), dict(BLOCK_M=64, BLOCK_N=16))], ids=str)
@pytest.mark.parametrize("seed", [-7, 2**62 + 5])
def test_attention_drops_the_very_bytes(seed: int, tile: dict | None, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in attention_kernels.FWD:
        if tile is not None:
            monkeypatch.setitem(attention_kernels.FWD, key, tile)
    rows = torch.randint(0, 2**62, (100,))
    found = test_attention.kept_probabilities(0.1, seed, rows, (100,)) != 0
    for head in range(2):
        assert torch.equal(found[:, head], dropout_factors(seed, rows, 100, 0.1, 1 + head) != 0)


def test_attention_keeps_nan_in_its_sequence() -> None:
    for there in (slice(0, 6), slice(6, 15), slice(15, 19)):
        test_attention.test_nan_in_one_sequence_does_not_reach_another(there)


def test_attention_with_probability_one_or_large_scores() -> None:
    test_attention.test_probability_one_gives_zeros()
    test_attention.test_large_scores_are_finite()


def test_a_sequence_alone_is_itself_among_others_to_the_bit() -> None:
    lengths = (5, 64, 1, 40)
    given = test_attention.example(lengths)
    whole = OPS["attention"].attention(**given)
    for n, (a, b) in enumerate(zip(given["cu_seqlens"][:-1], given["cu_seqlens"][1:], strict=True)):
        own = {name: given[name][a:b] for name in ("q", "k", "v", "row_ids")}
        alone = OPS["attention"].attention(**given | own | dict(cu_seqlens=offsets(lengths[n])))
        assert torch.equal(alone, whole[a:b])


@pytest.mark.parametrize(
    "rows, width, vocabulary, dtype",
    in_two_dtypes((1, 1, 1), (9, 8, 30), (20, 128, 300), (0, 8, 30), half=(9, 8, 30), slow=[(40, 16, 129)]),
    ids=str,
)
def test_generator_head_by_the_rule(rows: int, width: int, vocabulary: int, dtype: torch.dtype) -> None:
    given = test_generator_head.example(rows, width, vocabulary)
    check(OPS["generator_head"].generator_head, test_generator_head.truth, given, dtype)


@pytest.mark.parametrize("width", [16, 300])
def test_generator_head_with_smoothed_labels(width: int) -> None:
    given = test_generator_head.example(9, width, 200, label_smoothing=0.1)
    check(OPS["generator_head"].generator_head, test_generator_head.truth, given)


@pytest.mark.parametrize(
    "rows, width, vocabulary, dtype",
    in_two_dtypes((1, 260, 1), (20, 513, 700), (0, 300, 30), half=(9, 300, 30), slow=[(9, 300, 30)]),
    ids=str,
)
def test_generator_head_in_chunks(
    rows: int, width: int, vocabulary: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chunked_kernels, "CHUNK", 17 * vocabulary * dtype.itemsize)
    monkeypatch.setattr(chunked_kernels, "SHARE", 2)
    given = test_generator_head.example(rows, width, vocabulary)
    check(OPS["generator_head"].generator_head, test_generator_head.truth, given, dtype)


@pytest.mark.parametrize(
    "options",
    [{}, dict(temperature=3.0, disallow_correct=True), *repeats(dict(temperature=0.5), dict(temperature=0))],
    ids=str,
)
def test_generator_head_in_chunks_samples_as_it_does_whole(options: dict, monkeypatch: pytest.MonkeyPatch) -> None:
    given = test_generator_head.example(12, vocabulary=700)
    given["labels"][3] = -100
    given["hidden"][3] = math.nan
    whole = numerics.run(
        lambda **kind: OPS["generator_head"].generator_head(**kind, **options)[0], given, [torch.ones(12)]
    )
    words = OPS["generator_head"].generator_head(**given, **options)[1]
    monkeypatch.setattr(chunked_kernels, "CHUNK", 5 * 700 * 4)
    monkeypatch.setattr(generator_head_kernels, "in_chunks", lambda hidden: True)
    assert torch.equal(OPS["generator_head"].generator_head(**given, **options)[1], words)
    found = numerics.run(
        lambda **kind: OPS["generator_head"].generator_head(**kind, **options)[0], given, [torch.ones(12)]
    )
    for name, value in whole.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5)


def test_generator_head_with_shares_of_the_vocabulary_and_odd_layouts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generator_head_kernels, "PROGRAMS", 6)
    monkeypatch.setattr(numerics, "LAYOUTS", ["transposed", "unaligned"])
    monkeypatch.setattr(numerics, "UPSTREAMS", {"contiguous": lambda shape, **kind: torch.randn(shape, **kind)})
    given = test_generator_head.example(9, 17, 700)
    check(OPS["generator_head"].generator_head, test_generator_head.truth, given)


@pytest.mark.parametrize(
    "options", [{}, dict(temperature=0.5), dict(temperature=3.0), dict(disallow_correct=True)], ids=str
)
@pytest.mark.parametrize("vocabulary", [129, *repeats(1, 700)])
def test_generator_head_samples_the_words_that_the_random_words_say(vocabulary: int, options: dict) -> None:
    given = test_generator_head.example(20, vocabulary=vocabulary)
    found = OPS["generator_head"].generator_head(**given, **options)[1]
    assert torch.equal(found, test_generator_head.sampled(**given, **options))


@pytest.mark.parametrize("disallow_correct", [False, True])
def test_generator_head_at_temperature_0_takes_the_most_likely_word(disallow_correct: bool) -> None:
    given = test_generator_head.example(50, vocabulary=300)
    logits = given["hidden"] @ given["weight"].T + given["bias"]
    first, second = logits.topk(2).indices.unbind(1)
    given["labels"][::2] = first[::2]
    options = dict(temperature=0, disallow_correct=disallow_correct)
    expected = torch.where((given["labels"] == first) & disallow_correct, second, first)
    assert torch.equal(OPS["generator_head"].generator_head(**given, **options)[1], expected)


def test_generator_head_at_its_edges() -> None:
    test_generator_head.test_rows_left_out_have_no_loss_and_no_gradient()
    test_generator_head.test_when_all_are_left_out_nothing_is_nan()
    test_generator_head.test_nan_in_a_row_left_out_does_not_leak()
    for value in (0.0, 1.0):
        test_generator_head.test_nan_logits_show_in_the_loss_and_give_a_word_that_exists(value)
    for value in (1e4, -1e4):
        test_generator_head.test_large_logits_are_finite(value)
    given = test_generator_head.example()
    given["bias"] = (given["bias"] + 200).requires_grad_()
    OPS["generator_head"].generator_head(**given)[0].sum().backward()
    assert given["bias"].grad.isfinite().all(), "places beyond the last row count"


@pytest.mark.parametrize("block", [32, 512])
@pytest.mark.parametrize("faithful", [False, True])
@pytest.mark.parametrize(
    "lengths", [(12, 1, 40, 7), (0, 5, 0, 0, 9, 0), (), (600, 3), *repeats(((128, 127),), ((0, 0),))], ids=str
)
def test_masking_by_the_rule(lengths: tuple, faithful: bool, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    if block == 32 and sum(lengths) > 100:
        pytest.skip("too many blocks for the interpreter")
    monkeypatch.setitem(masking_kernels.MASKING, "BLOCK", block)
    for mask_prob, vocabulary, layout in ((0.15, 12, "contiguous"), (0.6, 7, "transposed"), (1.0, 5, "sliced")):
        given = test_masking.example(lengths, vocabulary, mask_prob, faithful=faithful) | dict(seed=-3)
        placed = {n: laid_out(v, layout) if isinstance(v, Tensor) else v for n, v in given.items()}
        with numerics.poisoned_memory():
            ours = OPS["masking"].masking(**placed)
        assert [t.tolist() for t in ours[:4]] == list(test_masking.truth(**given))


@pytest.mark.parametrize("unit", ["word", "span"])
@pytest.mark.parametrize("block", [32, 128])
def test_mask_units_by_the_rule(unit: str, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(mask_units_kernels.OPTIONS, "BLOCK", block)
    for lengths in ((), (0, 70, 0, 9)):
        with numerics.poisoned_memory():
            test_mask_units.test_the_rules(lengths, unit, "cpu")


def test_masking_breaks_ties_by_place_and_hides_none_or_all() -> None:
    for replace_prob in (0.0, 1.0):
        given = test_masking.example((30, 9), mask_prob=0.3, replace_prob=replace_prob)
        given["row_ids"] = torch.arange(39) // 8  # eight tokens have the same words
        ours = OPS["masking"].masking(**given)
        assert [t.tolist() for t in ours[:4]] == list(test_masking.truth(**given))


@pytest.mark.parametrize("faithful", [False, True])
@pytest.mark.parametrize("total, slots", [(20, 9), (1, 1), (20, 0), (0, 0), (5000, 1000)])
def test_corrupt_by_the_rule(total: int, slots: int, faithful: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(masking_kernels, "PROGRAMS", 2)
    given = test_masking.slots_example(total, slots, faithful and total > 1)
    with numerics.poisoned_memory():
        corrupted, replaced = OPS["corrupt"].corrupt(**given, faithful=faithful)
    assert (corrupted.tolist(), replaced.tolist()) == test_masking.corrupt_truth(**given, faithful=faithful)
    assert replaced.dtype == torch.bool
    test_masking.test_unused_slots_change_nothing_whatever_they_hold()


def test_cuda_goes_to_triton_and_to_the_reference_where_it_cannot() -> None:
    differentiable = [f"{name}_{way}" for name in ("attention", "generator_head") for way in ("fwd", "bwd")]
    for name in (*differentiable, "decode_attention", "top_k_words", "masking", "mask_units", "corrupt"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"electra_fast::{name}", "CUDA")
        assert backends[name]["cuda"].startswith("Triton")
    with FakeTensorMode():
        for dtype, width, expected in ((torch.bfloat16, 64, 1), (torch.bfloat16, 129, 0), (torch.float64, 64, 0)):
            q = torch.empty(10, 2, width, dtype=dtype, device="cuda")
            cu, rows, seed = (torch.empty(n, dtype=torch.int64, device="cuda") for n in (3, 10, 1))
            out, saved = torch.ops.electra_fast.attention_fwd(q, q, q, cu, 9, cu, 9, rows, seed, 0.1, 0.1, False)
            assert out.shape == q.shape and len(saved) == expected
        for dtype, width, expected in ((torch.bfloat16, 256, 1), (torch.float32, 256, 1), (torch.float64, 128, 0)):
            hidden, weight, bias = (torch.empty(n, dtype=dtype, device="cuda") for n in ((9, width), (30, width), 30))
            labels, seed = (torch.empty(n, dtype=torch.int64, device="cuda") for n in (9, 1))
            arguments = (hidden, weight, bias, labels, labels, seed, 1.0, False, 0.0)
            assert len(torch.ops.electra_fast.generator_head_fwd(*arguments)[-1]) == expected


@pytest.mark.parametrize("rows", ["some", pytest.param("all", marks=pytest.mark.slow)])
def test_compiled_ahead_of_time(rows: str, tmp_path: Path) -> None:
    """aot.py checks the rows; here only its exit status is checked."""
    environment = {n: v for n, v in os.environ.items() if n != "TRITON_INTERPRET"}
    environment |= dict(TRITON_CACHE_DIR=str(tmp_path))
    command = [sys.executable, str(Path(__file__).parent / "aot.py"), rows]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
