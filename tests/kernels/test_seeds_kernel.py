"""The Triton kernel of derive_seeds in the interpreter, against the reference."""

import pytest
import torch
from test_philox import SEEDS, one

from electra_fast.kernels.seeds import derive_seeds_fwd
from electra_fast.ops._library import backends
from electra_fast.ops._philox import DeriveSeedsArguments, derive_seeds_reference

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU test_philox.py runs the kernel")


@pytest.mark.parametrize("seed", SEEDS)
def test_seeds_are_the_references_to_the_bit(seed: int) -> None:
    for step, first, n in ((0, 0, 1), (5, 1, 3), (2**32 + 1, 1 << 16, 25), (2**62, 2 << 16, 64), (7, 3, 0)):
        args = DeriveSeedsArguments(one(seed), one(step), first, n)
        assert torch.equal(derive_seeds_fwd(args), derive_seeds_reference(args))


def test_cuda_goes_to_triton() -> None:
    assert torch._C._dispatch_has_kernel_for_dispatch_key("electra_fast::derive_seeds", "CUDA")
    assert backends["derive_seeds"]["cuda"] == "Triton"
