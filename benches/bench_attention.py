"""attention: forward and backward, and forward alone, with dropout 0.1 and without, on packed tokens; causal, too.

    python benches attention --device cpu --models small base --shapes 16x128 4x512

flops: 4 H D sum(S^2) forward, 3.5 times that with the backward, which computes the scores anew; half of both where
attention is causal. bytes: each tensor
moved once, four of (T, H, D) forward and eight more backward. Lengths below the longest (--ragged) are padded for the
rivals, as they need it; flops and bytes count no padding. Rivals:

    sdpa         scaled_dot_product_attention on (N, H, S, D) views, with a mask where there is padding, or is_causal
    reference    attention_reference: the formula, with our masks
"""

from __future__ import annotations

import math
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
from electra_fast.ops.attention import AttentionArguments, attention_reference

SHAPES = {"cpu": ("16x128", "4x512"), "cuda": ("128x128", "64x512")}  # sequences x tokens
SEED = 3
WAYS = ((0.1, True), (0.0, True), (0.0, False))  # dropout, with the backward
KINDS = [(*way, causal) for causal in (False, True) for way in WAYS]


@dataclass
class Case:
    """The inputs that all contestants share: views of one projection, packed for us, padded for the rivals."""

    q: Tensor  # (T, H, D), as k and v
    k: Tensor
    v: Tensor
    upstream: Tensor
    there: Tensor  # (N, S) bool: which places of the padded form are tokens
    p: float
    backward: bool
    causal: bool = False

    @classmethod
    def make(
        cls, heads: int, width: int, shape: str, options: Options, p: float, backward: bool, causal: bool = False
    ) -> Case:
        rows, columns = (int(n) for n in shape.split("x"))
        g = torch.Generator().manual_seed(0)
        lengths = torch.randint(columns // 8, columns + 1, (rows,), generator=g)
        if not options.ragged:
            lengths.fill_(columns)
        lengths[0] = columns
        there = (torch.arange(columns) < lengths[:, None]).to(options.device)
        kind = dict(device=options.device, dtype=torch.bfloat16 if options.device == "cuda" else torch.float32)
        total = int(lengths.sum())
        q, k, v = torch.randn(total, 3, heads, width, **kind).unbind(1)
        return cls(q, k, v, torch.randn(total, heads, width, **kind), there, p, backward, causal)

    @property
    def cu_seqlens(self) -> Tensor:
        return F.pad(self.there.sum(1).cumsum(0), (1, 0)).to(torch.int32)

    @property
    def flops(self) -> float:
        _, heads, width = self.q.shape
        scores = float(self.there.sum(1).square().sum()) / (2 if self.causal else 1)
        return 4 * heads * width * scores * (3.5 if self.backward else 1)

    @property
    def bytes(self) -> float:
        return self.q.numel() * self.q.element_size() * (12 if self.backward else 4)

    def padded(self, x: Tensor) -> Tensor:
        """(T, H, D) -> (N, H, S, D)"""
        n, s = self.there.shape
        if self.there.all():
            return x.unflatten(0, (n, s)).transpose(1, 2)
        return x.new_zeros(n, s, *x.shape[1:]).index_put((self.there,), x).transpose(1, 2)

    def step(self, op: Callable[[Tensor, Tensor, Tensor], Tensor], inputs: list[Tensor], upstream: Tensor) -> Step:
        """A call that returns the output and the three gradients."""
        leaves = [t.detach().requires_grad_(self.backward) for t in inputs]

        def step() -> list[Tensor]:
            out = op(*leaves)
            return [out, *torch.autograd.grad(out, leaves, upstream)] if self.backward else [out]

        return step


def ours(case: Case) -> Step:
    cu_seqlens, longest, rows = case.cu_seqlens, case.there.shape[1], torch.arange(len(case.q), device=case.q.device)

    def op(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        options = dict(dropout_p=case.p, causal=case.causal)
        return ops.attention(q, k, v, cu_seqlens, longest, seed=SEED, row_ids=rows, **options)

    return case.step(op, [case.q, case.k, case.v], case.upstream)


def reference(case: Case, dtype: torch.dtype | None = None, p: float | None = None) -> Step:
    cu_seqlens, longest, rows = case.cu_seqlens, case.there.shape[1], torch.arange(len(case.q), device=case.q.device)
    seed, scale = torch.tensor([SEED], device=case.q.device), 1 / math.sqrt(case.q.shape[2])

    def op(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        dropout_p = case.p if p is None else p
        sequences = (cu_seqlens, longest, cu_seqlens, longest)
        numbers = (seed, scale, dropout_p, case.causal)
        return attention_reference(AttentionArguments(q, k, v, *sequences, rows, *numbers))

    return case.step(op, [t.to(dtype) for t in (case.q, case.k, case.v)], case.upstream.to(dtype))


def sdpa(case: Case) -> Step:
    mask = None if case.there.all() else case.there[:, None, None, :]
    if mask is not None and case.causal:
        mask = mask & torch.ones(mask.shape[3], mask.shape[3], dtype=torch.bool, device=mask.device).tril()
    causal = case.causal and mask is None

    def op(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=case.p, is_causal=causal)

    return case.step(op, [case.padded(t) for t in (case.q, case.k, case.v)], case.padded(case.upstream))


def agrees(case: Case) -> Callable[[Step], str]:
    """Compare with the formula in float64; with torch's own dropout, the mean of many calls with it without dropout."""

    def run(step: Step) -> list[Tensor]:
        found: Any = step()
        return [(t.transpose(1, 2)[case.there] if t.dim() == 4 else t).detach().double() for t in found]

    def distance(found: list[Tensor], wanted: list[Tensor]) -> float:
        return max(float((a - b).norm() / b.norm()) for a, b in zip(found, wanted, strict=True))

    def check(step: Step) -> str:
        first, bound = run(step), 2e-2 if case.q.dtype == torch.bfloat16 else 1e-5
        error = distance(first, run(reference(case, torch.float64)))
        if error < bound:
            return ""
        if case.p == 0:
            return f"relative error {error:.2g}, {bound:.2g} is allowed"
        plain, calls = run(reference(case, torch.float64, p=0.0)), 16
        mean = [sum(t) / calls for t in zip(*(run(step) for _ in range(calls)), strict=True)]
        once, often = distance(first, plain), distance(mean, plain)
        return "" if often < once / 2 < 1 else f"{once:.2g} from no dropout in one call, {often:.2g} in {calls}"

    return check


def races(options: Options) -> Iterator[Race]:
    for model in options.models or ("small", "base"):
        network = getattr(ElectraConfig, model)().discriminator
        heads, width = network.num_attention_heads, network.hidden_size // network.num_attention_heads
        for shape in options.shapes or SHAPES[options.device]:
            for p, backward, causal in KINDS:
                case = Case.make(heads, width, shape, options, p, backward, causal)
                way = "forward+backward" if backward else "forward"
                said = f"{shape} {heads}x{width} p={p:g} {way}{' causal' * causal}"
                yield Race(
                    bench="attention",
                    model=model,
                    shape=f"{said} ragged" if options.ragged else said,
                    contestants=dict(
                        ours=lambda case=case: ours(case),
                        sdpa=lambda case=case: sdpa(case),
                        reference=lambda case=case: reference(case),
                    ),
                    check=agrees(case),
                    dtype=str(case.q.dtype).removeprefix("torch."),
                    tokens=len(case.q),
                    flops=case.flops,
                    bytes=case.bytes,
                )


def bench_attention_small(benchmark: Any) -> None:
    """Measure our own time with pytest-benchmark, to compare from commit to commit."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    case = Case.make(4, 64, SHAPES[device][0], Options(device=device), 0.1, backward=True)
    step = ours(case)
    assert not agrees(case)(step)
    benchmark(step)
