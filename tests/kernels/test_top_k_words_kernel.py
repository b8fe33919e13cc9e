"""top_k_words' Triton kernels, interpreted, by the tests of the op; whole and in chunks of stored logits."""

import sys

import pytest
import test_top_k_words
import torch
from interpreted import of_values, repeats

from electra_fast.kernels import generator_head, generator_head_chunked
from electra_fast.kernels import top_k_words as kernels

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU test_top_k_words.py runs the kernels")


@pytest.fixture(autouse=True)
def on_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules["electra_fast.ops.top_k_words"]
    monkeypatch.setattr(module, "_top_k_words", of_values(kernels.top_k_words, module.TopKWordsArguments))
    monkeypatch.setattr(test_top_k_words, "LAYOUTS", ["contiguous", "transposed"])
    for key in [key for key in generator_head.FWD if key[0] == 4]:  # large blocks: the interpreter pays by the block
        monkeypatch.setitem(generator_head.FWD, key, dict(BLOCK_M=64, BLOCK_N=128, num_warps=4, num_stages=1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(
    "rows, width, vocabulary, k",
    [(5, 8, 30, 30), (3, 17, 700, 4), (0, 8, 30, 2), *repeats((1, 1, 1, 1), (3, 16, 1300, 64))],
)
def test_values(rows: int, width: int, vocabulary: int, k: int, dtype: torch.dtype) -> None:
    test_top_k_words.judge(test_top_k_words.example(rows, width, vocabulary, k), dtype)


@pytest.mark.parametrize("rows, width, vocabulary, k", [(5, 300, 700, 4), (0, 300, 30, 2)])
def test_values_in_chunks(rows: int, width: int, vocabulary: int, k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generator_head_chunked, "CHUNK", 2 * vocabulary * 4)
    monkeypatch.setattr(generator_head_chunked, "SHARE", 2)
    test_top_k_words.judge(test_top_k_words.example(rows, width, vocabulary, k))


def test_of_equal_words_the_lower_id_comes_first() -> None:
    given = test_top_k_words.whole_numbers(5, vocabulary=700)
    assert torch.equal(
        sys.modules["electra_fast.ops.top_k_words"].top_k_words(**given)[1], test_top_k_words.truth(**given)[1][:, :20]
    )


def test_the_edges() -> None:
    test_top_k_words.test_words_of_probability_0_come_last_and_once()
    test_top_k_words.test_nan_shows_and_stays_in_its_row()
    test_top_k_words.test_large_logits_are_finite()
