"""derive_seeds on the GPU: seeds[i] = words 0 and 1 of Philox(seed, row=step, group=first + i), in one launch.

derive_seeds_fwd_kernel: one program of one warp computes all seeds. It reads seed and step and writes n seeds.

A step of ELECTRA calls it four times. The reference, in PyTorch, takes 174 launches a call, 696 a step, which would
take 0.9 ms inside a CUDA graph, at 1.3 us each. Cost: a Philox call and 8 bytes a seed, so the launch, 2 to 3 us, is
the limit. No products.
"""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from .parts.philox import philox


@triton.jit
def derive_seeds_fwd_kernel(seed_ptr, step_ptr, out_ptr, first, n, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    low, high, _, _ = philox(tl.load(seed_ptr), tl.load(step_ptr), first + offs, 0)
    tl.store(out_ptr + offs, low.to(tl.int64) | (high.to(tl.int64) << 32), mask=offs < n)


def derive_seeds_fwd(args: Any) -> Tensor:
    """-> (n,) int64, the seeds of the streams first to first + n - 1.

    args: a DeriveSeedsArguments (electra_fast/ops/_philox.py)
    """
    out, n = args.seed.new_empty(args.n), args.n
    if n:
        block = triton.next_power_of_2(n)
        derive_seeds_fwd_kernel[(1,)](args.seed, args.step, out, args.first, n, BLOCK=block, num_warps=1)
    return out
