"""What the machine can do at most, measured: the copy's bandwidth and the matrix product's arithmetic.

Random data throughout: on zeros a GPU's product runs 13 % faster than on anything it will be given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from racing.race import Options, Race, Roofs, Step, run
from racing.results import Writer


def races(options: Options) -> Iterator[Race]:
    """A copy far beyond the caches, and square products in the types that are trained in."""
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
    """Race the roofs and read them from the rows; best of the fast fifths, since a ceiling is what can be reached."""
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
