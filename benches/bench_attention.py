"""attention: forward and backward, and forward alone, with dropout 0.1 and without, on packed tokens; also causal
attention, and cross attention of a quarter as many queries as keys.

    python benches attention --device cpu --models small base --shapes 16x128 4x512

flops: 4 H D sum(queries x keys) forward, 3.5 times that with the backward, which computes the scores anew; half of both
where attention is causal. bytes: each tensor moved once, queries and output, keys and values, and twice that more in
the backward. Lengths below the longest (--ragged) are padded for the
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
KINDS = [(*way, kind) for kind in ("", "causal", "cross") for way in WAYS]


@dataclass
class Case:
    """The inputs that all contestants share: views of one projection, packed for us, padded for the rivals."""

    q: Tensor  # (T, H, D), as k and v
    k: Tensor
    v: Tensor
    upstream: Tensor
    there: Tensor  # (N, S) bool: which places of the padded form are keys
    asking: Tensor  # (N, Sq) bool: which are queries
    p: float
    backward: bool
    causal: bool = False

    @classmethod
    def make(
        cls, heads: int, width: int, shape: str, options: Options, p: float, backward: bool, what: str = ""
    ) -> Case:
        """what: "causal", "cross", or "" for neither."""
        rows, columns = (int(n) for n in shape.split("x"))
        g = torch.Generator().manual_seed(0)
        lengths = torch.randint(columns // 8, columns + 1, (rows,), generator=g)
        if not options.ragged:
            lengths.fill_(columns)
        lengths[0] = columns
        there = (torch.arange(columns) < lengths[:, None]).to(options.device)
        kind = dict(device=options.device, dtype=torch.bfloat16 if options.device == "cuda" else torch.float32)
        asking = there
        q, k, v = torch.randn(int(lengths.sum()), 3, heads, width, **kind).unbind(1)
        if what == "cross":
            fewer = lengths // 4
            asking = (torch.arange(int(fewer.max())) < fewer[:, None]).to(options.device)
            q = torch.randn(int(fewer.sum()), heads, width, **kind)
        return cls(q, k, v, torch.randn_like(q), there, asking, p, backward, what == "causal")

    @property
    def sequences(self) -> tuple[Tensor, int, Tensor, int]:
        """Offsets and longest sequence, of the queries and of the keys."""
        queries, keys = (F.pad(t.sum(1).cumsum(0), (1, 0)).to(torch.int32) for t in (self.asking, self.there))
        return queries, self.asking.shape[1], keys, self.there.shape[1]

    @property
    def flops(self) -> float:
        _, heads, width = self.q.shape
        scores = float((self.asking.sum(1) * self.there.sum(1)).sum()) / (2 if self.causal else 1)
        return 4 * heads * width * scores * (3.5 if self.backward else 1)

    @property
    def bytes(self) -> float:
        return 2 * (self.q.nbytes + self.k.numel() * self.k.element_size()) * (3 if self.backward else 1)

    def padded(self, x: Tensor, there: Tensor) -> Tensor:
        """(T, H, D) -> (N, H, S, D)"""
        if there.all():
            return x.unflatten(0, there.shape).transpose(1, 2)
        return x.new_zeros(*there.shape, *x.shape[1:]).index_put((there,), x).transpose(1, 2)

    def step(self, op: Callable[[Tensor, Tensor, Tensor], Tensor], inputs: list[Tensor], upstream: Tensor) -> Step:
        """A call that returns the output and the three gradients."""
        leaves = [t.detach().requires_grad_(self.backward) for t in inputs]

        def step() -> list[Tensor]:
            out = op(*leaves)
            return [out, *torch.autograd.grad(out, leaves, upstream)] if self.backward else [out]

        return step


def ours(case: Case) -> Step:
    sequences, rows = case.sequences, torch.arange(len(case.q), device=case.q.device)

    def op(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        options = dict(dropout_p=case.p, causal=case.causal)
        return ops.attention(q, k, v, *sequences, seed=SEED, row_ids=rows, **options)

    return case.step(op, [case.q, case.k, case.v], case.upstream)


def reference(case: Case, dtype: torch.dtype | None = None, p: float | None = None) -> Step:
    sequences, rows = case.sequences, torch.arange(len(case.q), device=case.q.device)
    seed, scale = torch.tensor([SEED], device=case.q.device), 1 / math.sqrt(case.q.shape[2])

    def op(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        dropout_p = case.p if p is None else p
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

    inputs = [case.padded(case.q, case.asking), *(case.padded(t, case.there) for t in (case.k, case.v))]
    return case.step(op, inputs, case.padded(case.upstream, case.asking))


def agrees(case: Case) -> Callable[[Step], str]:
    """Compare with the formula in float64; with torch's own dropout, the mean of many calls with it without dropout."""

    def run(step: Step) -> list[Tensor]:
        found: Any = step()
        places = (case.asking, case.asking, case.there, case.there)  # of the output and of the three gradients
        packed = [t.transpose(1, 2)[p] if t.dim() == 4 else t for t, p in zip(found, places, strict=False)]
        return [t.detach().double() for t in packed]

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
            for p, backward, kind in KINDS:
                case = Case.make(heads, width, shape, options, p, backward, kind)
                way = "forward+backward" if backward else "forward"
                said = f"{shape} {heads}x{width} p={p:g} {way} {kind}".rstrip()
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
