"""x W^T + b: with GELU, as a layer widens its rows, and without, as it makes queries, keys and values.

    python benches linear --device cpu --models small base --shapes 16x128

flops: 2 T N K forward, three times that with the backward. bytes and dropout: see racing/case.py (there is none here).
Rivals:

    eager        F.gelu(F.linear(x)), or F.linear(x)
    compiled     the same under torch.compile (CPU: if named)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch.nn.functional as F
from racing.case import Case, guard, race, settings
from racing.race import Options, Race
from torch import Tensor

from electra_fast.ops import linear
from electra_fast.ops.linear import LinearArguments, linear_reference


def eager(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.linear(x, weight, bias)


def eager_gelu(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return F.gelu(F.linear(x, weight, bias))


def races(options: Options) -> Iterator[Race]:
    for setting in settings(options):
        rows, width = setting.tokens, setting.network.hidden_size
        for gelu, wide in ((True, setting.network.intermediate_size), (False, 3 * width)):
            case = Case.make(setting, [(rows, width), (wide, width), (wide,)], (rows, wide))
            found = race(
                "linear",
                setting,
                case,
                flops=2 * rows * wide * width * (3 if setting.backward else 1),
                ours=partial(linear, gelu=gelu),
                eager=eager_gelu if gelu else eager,
                formula=lambda p, gelu=gelu: lambda *given: linear_reference(LinearArguments(*given, gelu)),
            )
            yield replace(found, shape=f"{found.shape}{' gelu' * gelu}")


def bench_linear(benchmark: Any) -> None:
    guard(benchmark, races)
