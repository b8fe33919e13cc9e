"""Forward and backward of transformers' ElectraForPreTraining, before and after electra_fast.accelerate(model).

    python benches accelerate --device cpu

Training mode, dropout 0.1, float32, the loss of random labels; "ragged" has lengths drawn from 1 to the width, about
half the positions padding. All have the same weights, and none is timed unless its logits without dropout are within
1e-5 of the largest of the float64 model's, wherever there is a token. Rivals:

    hf             transformers with scaled_dot_product_attention
    hf-compiled    the same under torch.compile (CPU: if named, it takes minutes)

flops: the products over all tokens, none over padding.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from bench_inference import Case as Weights
from bench_inference import Theirs
from racing.clock import Step
from racing.race import Options, Race
from torch import Tensor

import electra_fast

SHAPES = ("16x128", "16x128 ragged")  # sequences x columns
BOUND = 1e-5


@dataclass
class Training:
    """A step: the loss and its gradients."""

    model: Any
    given: dict[str, Tensor]
    forward: Callable[..., Any]

    def __call__(self) -> Tensor:
        self.model.zero_grad(set_to_none=True)
        loss = self.forward(**self.given).loss
        loss.backward()
        return loss.detach()


@dataclass
class Case:
    """The inputs and the model that all contestants copy."""

    model: Any
    given: dict[str, Tensor]
    lengths: list[int]
    flops: float

    @classmethod
    def make(cls, model: str, shape: str, device: str) -> Case:
        weights = Weights.make(model, shape, device)
        theirs = Theirs(weights).model.requires_grad_(True).train()
        given = dict(input_ids=weights.input_ids, labels=(weights.input_ids % 7 == 0).long())
        if weights.attention_mask is not None:
            given["attention_mask"] = weights.attention_mask
        return cls(theirs, given, weights.lengths, 3 * weights.flops)

    def hf(self) -> Training:
        model = copy.deepcopy(self.model)
        return Training(model, self.given, model)

    def ours(self) -> Training:
        step = self.hf()
        electra_fast.accelerate(step.model)
        return step

    def hf_compiled(self) -> Training:
        torch.compiler.reset()  # what another race compiled must not make this one's shapes dynamic
        step = self.hf()
        step.forward = torch.compile(step.model, dynamic=False)
        return step


def right(case: Case) -> Callable[[Step], str]:
    mask = case.given.get("attention_mask", torch.ones_like(case.given["input_ids"])).bool()

    def logits(model: Any) -> Tensor:
        with torch.no_grad():
            found = model.eval()(**case.given).logits[mask]
        model.train()
        return found.double()

    wanted = logits(copy.deepcopy(case.model).double())

    def check(step: Any) -> str:
        error = float((logits(step.model) - wanted).abs().max() / wanted.abs().max())
        return "" if error < BOUND else f"a logit is off by {error:.2g} of the largest, {BOUND:.2g} is allowed"

    return check


def races(options: Options) -> Iterator[Race]:
    asked = options.shapes or (SHAPES[:1] if options.ragged else SHAPES)
    for model in options.models or ("small",):
        for shape in (f"{size} ragged" if options.ragged else size for size in asked):
            case = Case.make(model, shape, options.device)
            contestants: dict[str, Callable[[], Step]] = dict(ours=case.ours, hf=case.hf)
            if options.wants("hf-compiled", by_default=options.device == "cuda"):
                contestants["hf-compiled"] = case.hf_compiled
            yield Race(
                bench="accelerate",
                model=model,
                shape=shape,
                contestants=contestants,
                check=right(case),
                tokens=sum(case.lengths),
                flops=case.flops,
            )


def bench_accelerate_small(benchmark: Any) -> None:
    """Measure our own time with pytest-benchmark, to compare from commit to commit."""
    case = Case.make("small", SHAPES[0], "cuda" if torch.cuda.is_available() else "cpu")
    step = case.ours()
    assert not right(case)(step)
    benchmark(step)
