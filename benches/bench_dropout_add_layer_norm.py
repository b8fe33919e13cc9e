"""LayerNorm(residual + dropout(x)), forward and backward, with dropout 0.1 and without.

    python benches dropout_add_layer_norm --device cpu --models small base --shapes 16x128

shape: sequences x tokens. bytes: what has to move if the parts are not in a cache: x, residual, the output and the
normalised rows forward; these, the upstream gradient and two more backward. Rivals:

    eager        F.layer_norm(residual + F.dropout(x))
    compiled     the same under torch.compile
    reference    dropout_add_layer_norm_reference: the formula, with our masks
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from racing.clock import Step
from racing.race import Options, Race
from torch import Tensor

from electra_fast import ops
from electra_fast.config import ElectraConfig
from electra_fast.ops.dropout_add_layer_norm import DropoutAddLayerNormArguments, dropout_add_layer_norm_reference

SHAPES = {"cpu": ("16x128", "128x128"), "cuda": ("128x128", "256x512")}
EPS, SEED = 1e-12, 3
Op = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]  # x, residual, weight, bias -> out


@dataclass
class Case:
    """The inputs that all contestants share."""

    leaves: list[Tensor]  # x, residual (T, D), weight, bias (D,)
    upstream: Tensor  # (T, D)
    row_ids: Tensor
    p: float

    @classmethod
    def make(cls, width: int, shape: str, device: str, p: float) -> Case:
        rows, columns = (int(n) for n in shape.split("x"))
        kind = dict(device=device, dtype=torch.bfloat16 if device == "cuda" else torch.float32)
        tokens = rows * columns
        upstream, *leaves = (torch.randn(size, **kind) for size in [(tokens, width)] * 3 + [(width,)] * 2)
        return cls([t.requires_grad_() for t in leaves], upstream, torch.arange(tokens, device=device), p)

    @property
    def bytes(self) -> int:
        return 8 * self.upstream.nbytes

    def step(self, op: Op) -> Step:
        """A call that returns the output and the four gradients."""

        def step() -> list[Tensor]:
            out = op(*self.leaves)
            return [out.detach(), *torch.autograd.grad(out, self.leaves, self.upstream)]

        return step


def ours(case: Case) -> Step:
    numbers: dict[str, Any] = dict(eps=EPS, dropout_p=case.p, seed=SEED)
    return case.step(lambda *leaves: ops.dropout_add_layer_norm(*leaves, case.row_ids, **numbers))


def reference(case: Case) -> Step:
    seed = torch.tensor([SEED], device=case.row_ids.device)
    last = (case.row_ids, seed, EPS, case.p)
    return case.step(lambda *leaves: dropout_add_layer_norm_reference(DropoutAddLayerNormArguments(*leaves, *last)))


def eager(case: Case) -> Op:
    def op(x: Tensor, residual: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return F.layer_norm(residual + F.dropout(x, case.p), weight.shape, weight, bias, EPS)

    return op


def right(case: Case) -> Callable[[Step], str]:
    """Read the dropout mask from the gradient of x; compare all results with the formula in float64 under it."""

    def check(step: Step) -> str:
        result: Any = step()
        found = [t.double() for t in result]
        _, dx, dresidual, *_ = found
        kept = (dx != 0) | (dresidual == 0)
        share = kept.double().mean().item()
        if abs(share - (1 - case.p)) > 0.01:
            return f"{share:.1%} of x were kept, {1 - case.p:.1%} should be"
        factors = kept * (dx.abs().sum() / (kept * dresidual).abs().sum()).item()
        leaves = [t.detach().double().requires_grad_() for t in case.leaves]
        x, residual, weight, bias = leaves
        out = F.layer_norm(residual + x * factors, weight.shape, weight, bias, EPS)
        wanted = [out, *torch.autograd.grad(out, leaves, case.upstream.double())]
        error = max(float((a - b).detach().norm() / b.detach().norm()) for a, b in zip(found, wanted, strict=True))
        bound = 2e-2 if case.upstream.dtype == torch.bfloat16 else 1e-5
        return "" if error < bound else f"relative error {error:.2g}, {bound:.2g} is allowed"

    return check


CONTESTANTS: dict[str, Callable[[Case], Step]] = {
    "ours": ours,
    "eager": lambda case: case.step(eager(case)),
    "compiled": lambda case: case.step(torch.compile(eager(case), dynamic=False)),
    "reference": reference,
}


def races(options: Options) -> Iterator[Race]:
    for model in options.models or ("small", "base"):
        width = getattr(ElectraConfig, model)().discriminator.hidden_size
        for shape in options.shapes or SHAPES[options.device]:
            for p in (0.1, 0.0):
                case = Case.make(width, shape, options.device, p)
                yield Race(
                    bench="dropout_add_layer_norm",
                    model=model,
                    shape=f"{shape} ({'x'.join(str(n) for n in case.upstream.shape)}) p={p:g}",
                    contestants={name: partial(build, case) for name, build in CONTESTANTS.items()},
                    check=right(case),
                    dtype=str(case.upstream.dtype).removeprefix("torch."),
                    tokens=len(case.upstream),
                    bytes=case.bytes,
                )


def bench_dropout_add_layer_norm(benchmark: Any) -> None:
    """Measure our own time with pytest-benchmark, to compare from commit to commit."""
    case = Case.make(256, "16x128", "cpu", 0.1)
    step = ours(case)
    assert not right(case)(step)
    benchmark(step)
