"""Cross-entropy of the masked tokens and one exact sample for each, forward and backward; with label smoothing, too.

    python benches generator_head --device cpu --models small

shape: sequences x tokens; the share mask_prob of them is predicted, one row each. flops of a call: eight times M V E,
what is needed where logits are computed again rather than kept. bytes: the weight read twice and its gradient written,
and the rows, read twice, and theirs. Rivals keep all logits:

    gumbel               F.cross_entropy, and the argmax of logits plus Gumbel noise
    inverse-cdf          log_softmax, and one uniform number a row looked up in its cumulative sums
    gumbel-compiled, inverse-cdf-compiled     the same under torch.compile
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

from electra_fast.config import ElectraConfig
from electra_fast.ops import generator_head

SHAPES = {"cpu": ("16x128", "128x128"), "cuda": ("128x128",)}
Head = Callable[[Tensor, Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]  # the op's arguments, smoothing last


@dataclass
class Case:
    """The inputs that all contestants share."""

    hidden: Tensor  # (M, E)
    weight: Tensor  # (V, E)
    bias: Tensor  # (V,)
    labels: Tensor  # (M,) int64
    smoothing: float = 0.0

    @classmethod
    def make(cls, model: str, shape: str, device: str, smoothing: float = 0.0) -> Case:
        config: ElectraConfig = getattr(ElectraConfig, model)()
        sequences, columns = (int(n) for n in shape.split("x"))
        rows, width, words = (
            sequences * max(1, round(config.mask_prob * columns)),
            config.embedding_size,
            config.vocab_size,
        )
        g = torch.Generator().manual_seed(0)
        floats = torch.randn(rows, width, generator=g), 0.1 * torch.randn(words, width, generator=g), torch.zeros(words)
        hidden, weight, bias = (t.to(device).requires_grad_() for t in floats)
        return cls(hidden, weight, bias, torch.randint(0, words, (rows,), generator=g).to(device), smoothing)

    @property
    def sizes(self) -> tuple[int, int, int]:
        return self.hidden.shape[0], *self.weight.shape

    @property
    def flops(self) -> int:
        rows, words, width = self.sizes
        return 8 * rows * words * width

    @property
    def bytes(self) -> int:
        return 3 * sum(t.nbytes for t in (self.hidden, self.weight, self.bias))

    def step(self, head: Head) -> Step:
        leaves = (self.hidden, self.weight, self.bias)

        def step() -> tuple[Tensor, ...]:
            loss, sampled = head(*leaves, self.labels, self.smoothing)
            return loss.detach(), sampled, *torch.autograd.grad(loss.mean(), leaves)

        return step


def ours(hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, smoothing: float = 0.0) -> tuple[Tensor, Tensor]:
    return generator_head(hidden, weight, bias, labels, seed=1, label_smoothing=smoothing)


def gumbel(
    hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    logits = F.linear(hidden, weight, bias)
    loss = F.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
    with torch.no_grad():
        return loss, (logits - torch.empty_like(logits).exponential_().log_()).argmax(-1)


def inverse_cdf(
    hidden: Tensor, weight: Tensor, bias: Tensor, labels: Tensor, smoothing: float = 0.0
) -> tuple[Tensor, Tensor]:
    log_p = torch.log_softmax(F.linear(hidden, weight, bias), -1)
    loss = (1 - smoothing) * F.nll_loss(log_p, labels, reduction="none") - smoothing * log_p.mean(-1)
    with torch.no_grad():
        u = torch.rand(len(log_p), 1, device=log_p.device)
        return loss, torch.searchsorted(log_p.exp().cumsum(-1), u).clamp_(max=log_p.shape[1] - 1)[:, 0]


CONTESTANTS: dict[str, Callable[[Case], Step]] = {
    "ours": lambda case: case.step(ours),
    "gumbel": lambda case: case.step(gumbel),
    "inverse-cdf": lambda case: case.step(inverse_cdf),
    "gumbel-compiled": lambda case: case.step(torch.compile(gumbel, dynamic=False)),
    "inverse-cdf-compiled": lambda case: case.step(torch.compile(inverse_cdf, dynamic=False)),
}


def right(case: Case) -> Callable[[Step], str]:
    """Compare loss and gradients with PyTorch's in float32; the likeliest words must be drawn as often as expected."""
    loss, _, *grads = result(case.step(gumbel))
    with torch.no_grad():
        probabilities = torch.softmax(F.linear(case.hidden, case.weight, case.bias), -1)
        # of falling among the hundred most likely words: mean and deviation over the rows
        likely, words = probabilities.topk(100)
        share = likely.sum(1)
    del probabilities
    expected, spread = share.sum(), (share * (1 - share)).sum() ** 0.5

    def check(step: Step) -> str:
        found, sampled, *found_grads = result(step)
        if not torch.allclose(found, loss, atol=1e-4, rtol=1e-4):
            return f"the loss differs by {(found - loss).abs().max():.1e}"
        for name, mine, theirs in zip(("hidden", "weight", "bias"), found_grads, grads, strict=True):
            if not torch.allclose(mine, theirs, atol=1e-5, rtol=1e-3):
                return f"the gradient of {name} differs by {(mine - theirs).abs().max():.1e}"
        count = (sampled[:, None] == words).any(1).sum()
        return "" if (count - expected).abs() < 5 * spread else f"{count} likely words drawn, {expected:.0f} expected"

    return check


def result(step: Step) -> tuple[Tensor, ...]:
    found: Any = step()
    return found


def races(options: Options) -> Iterator[Race]:
    for model in options.models or ("small",):
        for shape in options.shapes or SHAPES[options.device]:
            for smoothing in (0.0, 0.1):
                case = Case.make(model, shape, options.device, smoothing)
                smoothed = f" smoothing {smoothing:g}" if smoothing else ""
                yield Race(
                    bench="generator_head",
                    model=model,
                    shape=f"{shape} ({'x'.join(str(n) for n in case.sizes)}){smoothed}",
                    contestants={name: partial(build, case) for name, build in CONTESTANTS.items()},
                    check=right(case),
                    tokens=len(case.labels),
                    flops=case.flops,
                    bytes=case.bytes,
                )


def bench_generator_head(benchmark: Any) -> None:
    """Measure our own time with pytest-benchmark, to compare from commit to commit."""
    case = Case.make("small", "16x128", "cpu")
    step = case.step(ours)
    assert not right(case)(step)
    benchmark(step)
