"""One optimiser step over all parameters of a model, clipped to a global norm.

    python benches adamw --device cpu --models small

shape: tensors x parameters. bytes: 32 per parameter, of which the norm reads 4 and the update moves 28. Each contestant
has parameters and moments of its own. Rivals clip and count the steps, which ELECTRA's formula does not:

    fused, foreach    torch.nn.utils.clip_grad_norm_ and torch.optim.AdamW
    reference         adamw_reference: the formula over lists of tensors
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from racing.clock import Step
from racing.race import Options, Race
from torch import Tensor, nn

from electra_fast import Electra, ops
from electra_fast.config import ElectraConfig
from electra_fast.ops.adamw import AdamWArguments, adamw_reference
from electra_fast.train.optimizer import decays

LR, BETA1, BETA2, EPS, NORM, DECAY = 5e-4, 0.9, 0.999, 1e-6, 1.0, 0.01


@dataclass
class Case:
    """What all contestants start from."""

    params: list[Tensor]
    grads: list[Tensor]
    weight_decays: list[float]

    @classmethod
    def make(cls, model: str, device: str) -> Case:
        named = dict(Electra(getattr(ElectraConfig, model)()).to(device).named_parameters())
        params = [p.detach() for p in named.values()]
        grads = [1e-3 * torch.randn_like(p) for p in params]
        return cls(params, grads, [DECAY if decays(name) else 0.0 for name in named])

    @property
    def numel(self) -> int:
        return sum(p.numel() for p in self.params)


def formula(op: Callable[..., Tensor], case: Case) -> Step:
    params, grads = [p.clone() for p in case.params], [g.clone() for g in case.grads]
    moments = [[torch.zeros_like(p) for p in params] for _ in range(2)]
    lr, guard = (torch.full((1,), number, device=params[0].device) for number in (LR, 1.0))
    lists = (params, grads, *moments, lr, [1.0] * len(params), case.weight_decays)
    numbers = dict(beta1=BETA1, beta2=BETA2, eps=EPS, max_grad_norm=NORM, guard=guard, copies=[])

    def step() -> list[Tensor]:
        op(*lists, **numbers)
        return params

    return step


@torch.no_grad()
def reference(*lists: Any, **numbers: Any) -> Tensor:
    return adamw_reference(AdamWArguments(*lists, **numbers))


def pytorch(which: str, case: Case) -> Step:
    params = [nn.Parameter(p.clone()) for p in case.params]
    for p, g in zip(params, case.grads, strict=True):
        p.grad = g.clone()
    groups: list[dict[str, Any]] = [
        dict(params=[p for p, d in zip(params, case.weight_decays, strict=True) if d == decay], weight_decay=decay)
        for decay in (0.0, DECAY)
    ]
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=(BETA1, BETA2), eps=EPS, **{which: True})  # type: ignore[arg-type]

    def step() -> list[Tensor]:
        nn.utils.clip_grad_norm_(params, NORM)
        optimizer.step()
        return [p.detach() for p in params]

    return step


def right(case: Case) -> Callable[[Step], str]:
    """Compare each parameter's first change with the formula in float64, or with AdamW, which corrects the bias."""
    norm = torch.stack([g.double().norm() for g in case.grads]).norm()
    clip = (NORM / norm).clamp(max=1)

    def change(p: Tensor, g: Tensor, decay: float, corrected: bool) -> Tensor:
        m, v = (1 - BETA1) * clip * g.double(), (1 - BETA2) * (clip * g.double()) ** 2
        if corrected:
            m, v = m / (1 - BETA1), v / (1 - BETA2)
        return -LR * (m / (v.sqrt() + EPS) + decay * p.double())

    def check(step: Step) -> str:
        found: Any = step()
        errors = []
        for corrected in (False, True):
            largest = 0.0
            for new, p, g, decay in zip(found, case.params, case.grads, case.weight_decays, strict=True):
                wanted = change(p, g, decay, corrected)
                largest = max(largest, float((new.double() - p.double() - wanted).norm() / wanted.norm()))
            errors.append(largest)
        return "" if min(errors) < 1e-3 else f"relative error of a change {min(errors):.2g}, 0.001 is allowed"

    return check


CONTESTANTS: dict[str, Callable[[Case], Step]] = {
    "ours": partial(formula, ops.adamw),
    "fused": partial(pytorch, "fused"),
    "foreach": partial(pytorch, "foreach"),
    "reference": partial(formula, reference),
}


def races(options: Options) -> Iterator[Race]:
    for model in options.models or ("small",):
        case = Case.make(model, options.device)
        yield Race(
            bench="adamw",
            model=model,
            shape=f"{len(case.params)}x{case.numel}",
            contestants={name: partial(build, case) for name, build in CONTESTANTS.items()},
            check=right(case),
            flops=14.0 * case.numel,
            bytes=32.0 * case.numel,
        )


def bench_adamw(benchmark: Any) -> None:
    """Measure our own time with pytest-benchmark, to compare from commit to commit."""
    case = Case.make("small", "cpu")
    step = formula(ops.adamw, case)
    assert not right(case)(step)
    benchmark(step)
