"""A step of decoding: one query a sequence over its cached keys and values, in inference.

    python benches decode_attention --device cpu --models small base --shapes 4x64 64x128

shape: sequences (or beams) x keys of each. bytes: the keys and values, read once. flops: 4 H D for each key. Ours reads
pages of 16 tokens in random order, each with one head after the other. Rivals:

    sdpa         scaled_dot_product_attention over a cache (N, H, S, D) without pages, as transformers keeps it
    gathered     the pages copied into such a cache first, then sdpa
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from racing.clock import Step
from racing.race import Options, Race
from torch import Tensor

from electra_fast import ops
from electra_fast.config import ElectraConfig

SHAPES = {"cpu": ("4x64", "64x64", "64x512"), "cuda": ("64x128", "256x512")}
PAGE = 16


@dataclass
class Case:
    """The inputs that all contestants share."""

    q: Tensor  # (N, H, D)
    k_pages: Tensor  # (P, PAGE, H, D)
    v_pages: Tensor
    pages: Tensor  # (N, B) int32
    lengths: Tensor  # (N,) int32

    @classmethod
    def make(cls, heads: int, width: int, shape: str, device: str) -> Case:
        count, keys = (int(n) for n in shape.split("x"))
        g = torch.Generator().manual_seed(0)
        blocks = -(-keys // PAGE)
        kind = dict(device=device, dtype=torch.bfloat16 if device == "cuda" else torch.float32)
        sizes = (count, heads, width), *[(count * blocks, PAGE, heads, width)] * 2
        q, k, v = (torch.randn(size, generator=g).to(**kind) for size in sizes)
        k, v = (t.transpose(1, 2).contiguous().transpose(1, 2) for t in (k, v))
        pages = torch.randperm(count * blocks, generator=g).view(count, blocks).to(device, torch.int32)
        return cls(q, k, v, pages, torch.full((count,), keys, dtype=torch.int32, device=device))

    @property
    def keys(self) -> int:
        return int(self.lengths.sum())

    def cache(self) -> tuple[Tensor, Tensor]:
        """Keys and values (N, H, S, D) without pages."""
        table, length = self.pages.long(), int(self.lengths[0])
        k, v = (t[table].flatten(1, 2)[:, :length].transpose(1, 2) for t in (self.k_pages, self.v_pages))
        return k, v


def ours(case: Case) -> Step:
    return lambda: ops.decode_attention(case.q, case.k_pages, case.v_pages, case.pages, case.lengths)


def sdpa(case: Case) -> Step:
    k, v = (t.contiguous() for t in case.cache())
    return lambda: F.scaled_dot_product_attention(case.q[:, :, None], k, v)[:, :, 0]


def gathered(case: Case) -> Step:
    return lambda: F.scaled_dot_product_attention(case.q[:, :, None], *case.cache())[:, :, 0]


def right(case: Case) -> Callable[[Step], str]:
    """Compare with the formula in float64."""
    k, v = (t.double() for t in case.cache())
    gold = F.scaled_dot_product_attention(case.q.double()[:, :, None], k, v)[:, :, 0]
    bound = 2e-2 if case.q.dtype == torch.bfloat16 else 1e-5

    def check(step: Step) -> str:
        out: Any = step()
        error = float((out.double() - gold).norm() / gold.norm())
        return "" if error < bound else f"relative error {error:.2g}, {bound:.2g} is allowed"

    return check


def races(options: Options) -> Iterator[Race]:
    for model in options.models or ("small", "base"):
        network = getattr(ElectraConfig, model)().discriminator
        heads, width = network.num_attention_heads, network.head_dim
        for shape in options.shapes or SHAPES[options.device]:
            case = Case.make(heads, width, shape, options.device)
            builders = dict(ours=ours, sdpa=sdpa, gathered=gathered)
            yield Race(
                bench="decode_attention",
                model=model,
                shape=f"{shape} {heads}x{width}",
                contestants={name: (lambda build=build, case=case: build(case)) for name, build in builders.items()},
                check=right(case),
                dtype=str(case.q.dtype).removeprefix("torch."),
                tokens=len(case.q),
                flops=4.0 * heads * width * case.keys,
                bytes=2.0 * heads * width * case.keys * case.q.element_size(),
            )


def bench_decode_attention(benchmark: Any) -> None:
    """Measure our own time with pytest-benchmark, to compare from commit to commit."""
    case = Case.make(4, 64, "64x64", "cpu")
    assert not right(case)(ours(case))
    benchmark(ours(case))
