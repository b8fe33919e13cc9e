"""Measure what the machine can do at most: the bandwidth of a copy and the arithmetic of a matrix product.

The data are random, since a GPU multiplies zeros 13 % faster than any other numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from racing.race import Options, Race, Roofs, Step, run
from racing.results import Writer


def races(options: Options) -> Iterator[Race]:
    """A copy of far more bytes than the caches hold, and square products in the types that training uses."""
    on_cuda = options.device == "cuda"
    elements = (1 << 30) if on_cuda else (1 << 26)
    yield Race("roof", "copy", f"{elements}", {"torch": _copy(elements, options.device)}, bytes=2.0 * 4 * elements)
    size = 8192 if on_cuda else 2048
    for dtype in (torch.bfloat16, torch.float32) if on_cuda else (torch.float32,):
        name = str(dtype).removeprefix("torch.")
        build = {"torch": _product(size, dtype, options.device)}
        yield Race("roof", "product", f"{size}x{size}x{size}", build, dtype=name, flops=2.0 * size**3)


def _copy(elements: int, device: str) -> Callable[[], Step]:
    def build() -> Step:
        source = torch.rand(elements, device=device)
        target = torch.empty_like(source)
        return lambda: target.copy_(source)

    return build


def _product(size: int, dtype: torch.dtype, device: str) -> Callable[[], Step]:
    def build() -> Step:
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        out = torch.empty_like(a)
        return lambda: torch.mm(a, b, out=out)

    return build


def measure(options: Options, writer: Writer) -> Roofs:
    """Race the roofs. Each is the best 20th percentile of its rows, since a roof is what can be reached."""
    roofs = Roofs()
    plain = Options(device=options.device, rounds=max(5, options.rounds))
    for race in races(plain):
        for row in run(race, plain, writer):
            if not row.ms_p20:
                continue
            seconds = row.ms_p20 / 1e3
            if race.bytes:
                roofs.gbps = max(roofs.gbps or 0.0, race.bytes / seconds / 1e9)
            if race.flops:
                roofs.tflops[row.dtype] = max(roofs.tflops.get(row.dtype, 0.0), race.flops / seconds / 1e12)
    return roofs
