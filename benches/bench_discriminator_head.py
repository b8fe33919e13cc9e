"""One logit a token and its cross-entropy: w . gelu(W h + b) + c, of which the loss is followed backward.

    python benches discriminator_head --device cpu --models small base --shapes 16x128

flops: 2 T D D forward, three times that with the backward. bytes: see racing/case.py; there is no dropout. Rivals:

    eager        F.linear, F.gelu, F.linear, F.binary_cross_entropy_with_logits
    compiled     the same under torch.compile (CPU: if named)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from racing.case import Case, Op, Setting, guard, race, settings
from racing.race import Options, Race
from torch import Tensor

from electra_fast.ops import discriminator_head
from electra_fast.ops.discriminator_head import DiscriminatorHeadArguments, discriminator_head_reference


def labels(setting: Setting) -> Tensor:
    """One token in seven was replaced."""
    return torch.arange(setting.tokens, device=setting.device) % 7 == 0


def eager(setting: Setting) -> Op:
    replaced = labels(setting)

    def head(
        hidden: Tensor, dense_weight: Tensor, dense_bias: Tensor, out_weight: Tensor, out_bias: Tensor
    ) -> tuple[Tensor, Tensor]:
        logits = F.linear(F.gelu(F.linear(hidden, dense_weight, dense_bias)), out_weight, out_bias).squeeze(1)
        return F.binary_cross_entropy_with_logits(logits, replaced.to(logits.dtype), reduction="none"), logits

    return head


def races(options: Options) -> Iterator[Race]:
    for setting in settings(options, parts=("discriminator",)):
        rows, width, replaced = setting.tokens, setting.network.hidden_size, labels(setting)
        yield race(
            "discriminator_head",
            setting,
            Case.make(setting, [(rows, width), (width, width), (width,), (1, width), (1,)], (rows,)),
            flops=2 * rows * width * width * (3 if setting.backward else 1),
            ours=lambda *given, replaced=replaced: discriminator_head(*given, replaced),
            eager=eager(setting),
            formula=lambda p, replaced=replaced: (
                lambda *given: discriminator_head_reference(DiscriminatorHeadArguments(*given, replaced))
            ),
        )


def bench_discriminator_head(benchmark: Any) -> None:
    guard(benchmark, races)
