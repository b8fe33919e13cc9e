"""The k most likely words of each row and their log-probabilities, as a step of a beam search needs them.

    python benches top_k_words --device cpu --models small base --shapes 4x8 64x8

shape: rows x k. flops: 2 M V E. bytes: the weight and the bias, read once. Rivals:

    eager        F.linear, log_softmax and topk, which store the logits
    compiled     the same under torch.compile (CPU: if named)
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

SHAPES = {"cpu": ("1x1", "4x8", "64x8", "256x8"), "cuda": ("64x8", "256x8")}


@dataclass
class Case:
    """The inputs that all contestants share."""

    hidden: Tensor  # (M, E)
    weight: Tensor  # (V, E)
    bias: Tensor  # (V,)
    k: int

    @classmethod
    def make(cls, model: str, shape: str, device: str) -> Case:
        config: ElectraConfig = getattr(ElectraConfig, model)()
        rows, k = (int(n) for n in shape.split("x"))
        width, words = config.embedding_size, config.vocab_size
        g = torch.Generator().manual_seed(0)
        kind = dict(device=device, dtype=torch.bfloat16 if device == "cuda" else torch.float32)
        floats = torch.randn(rows, width, generator=g), 0.1 * torch.randn(words, width, generator=g), torch.zeros(words)
        return cls(*(t.to(**kind) for t in floats), k)


def ours(case: Case) -> Step:
    return lambda: ops.top_k_words(case.hidden, case.weight, case.bias, case.k)


def top_k(case: Case) -> tuple[Tensor, Tensor]:
    return torch.log_softmax(F.linear(case.hidden, case.weight, case.bias), 1).topk(case.k)


def eager(case: Case) -> Step:
    return lambda: top_k(case)


def compiled(case: Case) -> Step:
    torch.compiler.reset()
    quick = torch.compile(top_k, dynamic=False)
    return lambda: quick(case)


def right(case: Case) -> Callable[[Step], str]:
    """Compare with float64; of words whose logits are nearly equal, either may be named."""
    truth = torch.log_softmax(F.linear(case.hidden.double(), case.weight.double(), case.bias.double()), 1)
    gold = truth.topk(case.k).values
    bound = 2e-1 if case.hidden.dtype == torch.bfloat16 else 1e-4

    def check(step: Step) -> str:
        found: Any = step()
        log_probs, ids = found
        error = max(float((t.double() - gold).abs().max()) for t in (log_probs, truth.gather(1, ids)))
        return "" if error < bound else f"a log-probability is off by {error:.2g}, {bound:.2g} is allowed"

    return check


def races(options: Options) -> Iterator[Race]:
    builders = dict(ours=ours, eager=eager)
    if options.device == "cuda" or options.providers:
        builders["compiled"] = compiled
    for model in options.models or ("small", "base"):
        for shape in options.shapes or SHAPES[options.device]:
            case = Case.make(model, shape, options.device)
            (rows, width), words = case.hidden.shape, len(case.weight)
            yield Race(
                bench="top_k_words",
                model=model,
                shape=f"{shape} ({rows}x{words}x{width})",
                contestants={name: (lambda build=build, case=case: build(case)) for name, build in builders.items()},
                check=right(case),
                dtype=str(case.hidden.dtype).removeprefix("torch."),
                tokens=rows,
                flops=2.0 * rows * words * width,
                bytes=float(case.weight.nbytes + case.bias.nbytes),
            )


def bench_top_k_words(benchmark: Any) -> None:
    """Measure our own time with pytest-benchmark, to compare from commit to commit."""
    case = Case.make("small", "64x8", "cpu")
    assert not right(case)(ours(case))
    benchmark(ours(case))
