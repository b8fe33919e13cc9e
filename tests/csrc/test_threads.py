"""Threads of the core, and threads of Python that call it, share no buffer that one of them writes: the same call
has the same bits every time, and with more threads than cores, which interrupts them anywhere."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import test_attention
import test_discriminator_head
import test_dropout_add_layer_norm
import test_embedding
import test_ffn_block
import test_generator_head
import test_linear
import torch
from numerics import floats_of, run

from electra_fast import ops
from electra_fast.ops._core import core, why

pytestmark = pytest.mark.skipif(core is None, reason=why)
THREADS, RUNS = 5, 40
CASES = {  # several parts, each of several blocks of rows
    "linear": lambda: test_linear.example(3000, 65, 130),
    "ffn_block": lambda: test_ffn_block.example(3000, 48, 130),
    "discriminator_head": lambda: test_discriminator_head.example(3000, 65),
    "dropout_add_layer_norm": lambda: test_dropout_add_layer_norm.example(3000, 65),
    "embedding": lambda: test_embedding.example(3000, 48, 65),
    "attention": lambda: test_attention.example([130, 70, 33, 90] * 5, 3, 40),
    "generator_head": lambda: test_generator_head.example(700, 48, 1500),
}


@pytest.mark.parametrize("name", CASES)
def test_many_runs_have_the_same_bits(name: str) -> None:
    torch.manual_seed(0)
    op, given = getattr(ops, name), CASES[name]()
    upstream = [torch.randn_like(output) for output in floats_of(op(**given))]
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = run(op, given, upstream)
        torch.set_num_threads(THREADS)
        first, *others = (run(op, given, upstream) for _ in range(RUNS))
    finally:
        torch.set_num_threads(before)
    for label, value in first.items():
        torch.testing.assert_close(value, alone[label], rtol=0, atol=1e-5 * alone[label].abs().max().item(), msg=label)
        assert all(torch.equal(value, other[label]) for other in others), label


@pytest.mark.parametrize("name", CASES)
def test_python_threads_at_once_give_the_bits_of_one(name: str) -> None:
    """Forward and backward; the core releases Python's lock."""
    torch.manual_seed(0)
    op, given = getattr(ops, name), CASES[name]()
    upstream = [torch.randn_like(output) for output in floats_of(op(**given))]

    def of_one_thread(_: int) -> dict[str, torch.Tensor]:
        torch.set_num_threads(2)  # of the calling thread, and of those that start later
        return run(op, given, upstream)

    before = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(1) as one, ThreadPoolExecutor(3) as several:
            (alone,) = one.map(of_one_thread, range(1))
            for together in several.map(of_one_thread, range(12)):
                assert all(torch.equal(value, alone[label]) for label, value in together.items())
    finally:
        torch.set_num_threads(before)  # the number of threads that are new, too
