"""mask_units: the first row of each token's unit, a whole word or a span of words, by which masking chooses.

    python benches mask_units --device cpu --shapes 16x128

bytes: ids, row ids and the starts of words read, a row id of each token written. No flops. Rival: mask_units_reference,
a dozen operations of PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from bench_masking import SEED, SHAPES, Case, packed_inputs
from racing.clock import Step
from racing.race import Options, Race

from electra_fast.config import ElectraConfig
from electra_fast.ops.mask_units import MaskUnitsArguments, mask_units, mask_units_reference

STARTS_WORD = 0.7  # share of the tokens


def arguments(case: Case, spans: bool) -> MaskUnitsArguments:
    ids, rows, cu_seqlens, _ = packed_inputs(case)
    starts = (torch.rand(len(ids), generator=torch.Generator().manual_seed(0)) < STARTS_WORD).to(ids.device)
    seed = torch.tensor([SEED], device=ids.device)
    return MaskUnitsArguments(ids, cu_seqlens, rows, starts, case.special_ids.tolist(), spans, seed)


def right(args: MaskUnitsArguments) -> Callable[[Step], str]:
    """Check every row against the reference."""

    def check(step: Step) -> str:
        found: Any = step()
        wrong = int((found != mask_units_reference(args)).sum())
        return f"{wrong} of {len(args.input_ids)} tokens are in another unit" if wrong else ""

    return check


def races(options: Options) -> Iterator[Race]:
    for shape in options.shapes or SHAPES:
        case = Case.make(ElectraConfig.small(), shape, options)
        for spans in (False, True):
            args = arguments(case, spans)
            yield Race(
                bench="mask_units",
                model="spans" if spans else "words",
                shape=f"{shape} ragged" if options.ragged else shape,
                contestants={
                    "ours": lambda args=args: partial(mask_units, *args),
                    "reference": lambda args=args: partial(mask_units_reference, args),
                },
                check=right(args),
                dtype="int64",
                tokens=case.tokens,
                bytes=(3 * 8 + 1) * case.tokens,
            )


def bench_mask_units(benchmark: Any) -> None:
    """Measure our own time with pytest-benchmark, to compare from commit to commit."""
    args = arguments(Case.make(ElectraConfig.small(), "16x128", Options()), spans=True)
    assert not right(args)(partial(mask_units, *args))
    benchmark(partial(mask_units, *args))
