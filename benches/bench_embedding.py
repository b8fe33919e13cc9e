"""Three embeddings summed, LayerNorm and dropout, forward and backward into whole tables; without the projection.

    python benches embedding --device cpu --models small --shapes 16x128

shape: sequences x tokens (and the word table). bytes: five times the rows, which are gathered, written
normalised and dropped out, and read back with the upstream gradient; and the tables' gradients, written once. Rivals:

    eager        F.embedding three times, F.layer_norm, F.dropout
    compiled     the same under torch.compile
    reference    embedding_reference: the formula, with our masks
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
from electra_fast.ops.embedding import EmbeddingArguments, embedding_reference

SHAPES = {"cpu": ("16x128", "128x128"), "cuda": ("128x128", "256x512")}
EPS, P, SEED = 1e-12, 0.1, 3
Op = Callable[..., Tensor]  # word, position, token_type, norm_weight, norm_bias -> out


@dataclass
class Case:
    """The inputs that all contestants share."""

    ids: list[Tensor]  # of words, token types, positions, (T,) each
    leaves: list[Tensor]  # word, position, token_type, norm_weight, norm_bias
    upstream: Tensor  # (T, E)

    @classmethod
    def make(cls, model: str, shape: str, device: str) -> Case:
        config: ElectraConfig = getattr(ElectraConfig, model)()
        network, (rows, columns) = config.discriminator, (int(n) for n in shape.split("x"))
        width, words, places = config.embedding_size, config.vocab_size, network.max_position_embeddings
        place = torch.arange(columns).repeat(rows)
        ids = [torch.randint(0, words, place.shape), (place >= columns // 2).long(), place]
        kind = dict(device=device, dtype=torch.bfloat16 if device == "cuda" else torch.float32)
        sizes = ((words, width), (places, width), (2, width), (width,), (width,), (len(place), width))
        *leaves, upstream = (torch.randn(size, **kind) for size in sizes)
        return cls([t.to(device) for t in ids], [t.requires_grad_() for t in leaves], upstream)

    @property
    def bytes(self) -> int:
        return 5 * self.upstream.nbytes + sum(t.nbytes for t in self.leaves)

    def step(self, op: Op) -> Step:
        """A call that returns the output and the five gradients."""

        def step() -> list[Tensor]:
            out = op(*self.leaves)
            return [out.detach(), *torch.autograd.grad(out, self.leaves, self.upstream)]

        return step


def ours(case: Case) -> Step:
    rows = torch.arange(len(case.upstream), device=case.upstream.device)
    last = dict(row_ids=rows, eps=EPS, dropout_p=P, seed=SEED)
    return case.step(lambda *leaves: ops.embedding(*case.ids, *leaves, **last))


def reference(case: Case) -> Step:
    device = case.upstream.device
    last = (None, None, torch.arange(len(case.upstream), device=device), torch.tensor([SEED], device=device), EPS, P)
    return case.step(lambda *leaves: embedding_reference(EmbeddingArguments(*case.ids, *leaves, *last)))


def normalised(case: Case, word: Tensor, position: Tensor, token_type: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    words, types, places = case.ids
    x = F.embedding(words, word) + F.embedding(places, position) + F.embedding(types, token_type)
    return F.layer_norm(x, weight.shape, weight, bias, EPS)


def eager(case: Case) -> Op:
    return lambda *leaves: F.dropout(normalised(case, *leaves), P)


def right(case: Case) -> Callable[[Step], str]:
    """Read the dropout mask from the output, and compare all results with the formula in float64 under that mask."""

    def check(step: Step) -> str:
        result: Any = step()
        found = [t.double() for t in result]
        kept = found[0] != 0
        share = kept.double().mean().item()
        if abs(share - (1 - P)) > 0.01:
            return f"{share:.1%} were kept, {1 - P:.1%} should be"
        leaves = [t.detach().double().requires_grad_() for t in case.leaves]
        whole = normalised(case, *leaves)
        out = whole * kept * (found[0].abs().sum() / (kept * whole).abs().sum()).item()
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
        for shape in options.shapes or SHAPES[options.device]:
            case = Case.make(model, shape, options.device)
            yield Race(
                bench="embedding",
                model=model,
                shape=f"{shape} ({'x'.join(str(n) for n in case.leaves[0].shape)})",
                contestants={name: partial(build, case) for name, build in CONTESTANTS.items()},
                check=right(case),
                dtype=str(case.upstream.dtype).removeprefix("torch."),
                tokens=len(case.upstream),
                bytes=case.bytes,
            )


def bench_embedding(benchmark: Any) -> None:
    """Measure our own time with pytest-benchmark, to compare from commit to commit."""
    case = Case.make("small", "16x128", "cpu")
    step = ours(case)
    assert not right(case)(step)
    benchmark(step)
