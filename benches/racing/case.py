"""What the benches of the blocks share: the settings they race in, a contestant's step, and its check.

Forward and backward together run with dropout 0.1, as in training; the forward alone runs without dropout, as in
inference. `bytes` of a call counts the inputs read and the outputs written; with the backward also the inputs read
again, their gradients written and the output's gradient read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from electra_fast.config import ElectraConfig, NetworkConfig
from racing.clock import Step
from racing.race import Options, Race

SHAPES = {"cpu": ("16x128",), "cuda": ("128x128",)}  # sequences x tokens
EPS, SEED = 1e-12, 3
CALLS = 16  # calls with random dropout whose mean must approach the result without dropout
Op = Callable[..., Any]  # takes the inputs that need gradients; of several outputs, the first one is checked


@dataclass
class Setting:
    """Which block is raced: of which model and network, on which batch shape, with or without the backward."""

    model: str
    part: str
    network: NetworkConfig
    shape: str
    backward: bool
    device: str
    compiled: bool  # whether torch.compile is among the contestants; on the CPU it takes long

    @property
    def sequences(self) -> int:
        return int(self.shape.split("x")[0])

    @property
    def length(self) -> int:
        return int(self.shape.split("x")[1])

    @property
    def tokens(self) -> int:
        return self.sequences * self.length

    @property
    def p(self) -> float:
        return 0.1 if self.backward else 0.0

    @property
    def row_ids(self) -> Tensor:
        return torch.arange(self.tokens, device=self.device)

    @property
    def seed(self) -> Tensor:
        return torch.tensor([SEED], device=self.device)


def settings(options: Options, parts: tuple[str, ...] = ("discriminator", "generator")) -> Iterator[Setting]:
    compiled = options.device == "cuda" or bool(options.providers)
    for model in options.models or ("small", "base"):
        for part in parts:
            network = getattr(getattr(ElectraConfig, model)(), part)
            for shape in options.shapes or SHAPES[options.device]:
                for backward in (True, False):
                    yield Setting(model, part, network, shape, backward, options.device, compiled)


@dataclass
class Case:
    """The inputs that all contestants share."""

    inputs: list[Tensor]  # rows (T, D), weights and biases
    upstream: Tensor  # the output's gradient
    backward: bool

    @classmethod
    def make(cls, setting: Setting, inputs: list[tuple[int, ...]], output: tuple[int, ...]) -> Case:
        """Random inputs of these shapes, the rows first. Weights are scaled so that outputs are near 1."""
        g = torch.Generator().manual_seed(0)
        rows, *weights, upstream = (torch.randn(shape, generator=g) for shape in (*inputs, output))
        weights = [w / w.shape[1] ** 0.5 if w.dim() == 2 else w for w in weights]
        kind = dict(device=setting.device, dtype=torch.bfloat16 if setting.device == "cuda" else torch.float32)
        return cls([t.to(**kind) for t in (rows, *weights)], upstream.to(**kind), setting.backward)

    @property
    def bytes(self) -> int:
        inputs, output = sum(t.nbytes for t in self.inputs), self.upstream.nbytes
        return 3 * inputs + 2 * output if self.backward else inputs + output

    def step(self, op: Op, dtype: torch.dtype | None = None) -> Step:
        """Returns a function that runs the op, and returns its output and, with the backward, all gradients."""
        leaves = [t.to(dtype).detach().requires_grad_(self.backward) for t in self.inputs]
        upstream = self.upstream.to(dtype)

        def call() -> list[Tensor]:
            outputs = op(*leaves)
            out = outputs[0] if isinstance(outputs, tuple) else outputs
            return [out, *torch.autograd.grad(out, leaves, upstream)] if self.backward else [out]

        return call


def race(
    bench: str, setting: Setting, case: Case, flops: float, ours: Op, eager: Op, formula: Callable[[float], Op]
) -> Race:
    """The race of our op against PyTorch. formula(p): the reference with dropout p. flops: of one call."""

    def compiled() -> Step:
        torch.compiler.reset()  # what another race compiled must not make this one's shapes dynamic
        return case.step(torch.compile(eager, dynamic=False))

    contestants = dict(ours=lambda: case.step(ours), eager=lambda: case.step(eager))
    if setting.compiled:
        contestants["compiled"] = compiled
    width = "x".join(str(n) for n in case.inputs[1].shape)
    return Race(
        bench=bench,
        model=setting.model,
        shape=f"{setting.shape} {setting.part} {width} {'forward+backward' if setting.backward else 'forward'}",
        contestants=contestants,
        check=right(case, formula, setting.p),
        dtype=str(case.upstream.dtype).removeprefix("torch."),
        tokens=setting.tokens,
        flops=flops,
        bytes=case.bytes,
    )


def right(case: Case, formula: Callable[[float], Op], p: float) -> Callable[[Step], str]:
    """Returns a check of a contestant's step, against the formula in float64.

    A contestant with torch's own dropout has other masks than the formula; the mean of its calls must then approach the
    formula without dropout.
    """
    bound = 2e-2 if case.upstream.dtype == torch.bfloat16 else 1e-5

    @cache
    def gold(p: float) -> list[Tensor]:
        return results(case.step(formula(p), torch.float64))

    def check(step: Step) -> str:
        once = results(step)
        error = distance(once, gold(p))
        if error < bound:
            return ""
        if p == 0:
            return f"relative error {error:.2g}, {bound:.2g} is allowed"
        total = once
        for _ in range(CALLS - 1):
            total = [a + b for a, b in zip(total, results(step), strict=True)]
        first, mean = distance(once, gold(0.0)), distance([t / CALLS for t in total], gold(0.0))
        return "" if mean < first / 2 < 1 else f"{first:.2g} from no dropout in one call, {mean:.2g} in {CALLS}"

    return check


def results(step: Step) -> list[Tensor]:
    tensors: Any = step()
    return [t.detach().double() for t in tensors]


def distance(results: list[Tensor], expected: list[Tensor]) -> float:
    """The largest relative error of a tensor, in the 2-norm."""
    return max(float((a - b).norm() / b.norm()) for a, b in zip(results, expected, strict=True))


def guard(benchmark: Any, races: Callable[[Options], Iterator[Race]]) -> None:
    """Measure our own time in the first race with pytest-benchmark, to compare from commit to commit."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    first = next(races(Options(device=device, models=("small",))))
    step = first.contestants["ours"]()
    assert not first.check(step)
    benchmark(step)
