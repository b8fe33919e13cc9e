"""LayerNorm(x + dropout(W2 gelu(W1 x + b1) + b2)): the second half of a layer.

    python benches ffn_block --device cpu --models small base --shapes 16x128

flops: 4 T D F forward, three times that with the backward. bytes and dropout: see racing/case.py. Rivals:

    eager        the layer of transformers: F.linear, F.gelu, F.linear, F.dropout, add, F.layer_norm
    compiled     the same under torch.compile (CPU: if named)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch.nn.functional as F
from racing.case import EPS, Case, Op, Setting, guard, race, settings
from racing.race import Options, Race
from torch import Tensor

from electra_fast.ops import ffn_block
from electra_fast.ops.ffn_block import FfnBlockArguments, ffn_block_reference


def ours(setting: Setting) -> Op:
    rows, seed = setting.row_ids, setting.seed
    return lambda *given: ffn_block(*given, rows, eps=EPS, dropout_p=setting.p, seed=seed)


def formula(setting: Setting, p: float) -> Op:
    rows, seed = setting.row_ids, setting.seed
    return lambda *given: ffn_block_reference(FfnBlockArguments(*given, rows, seed, EPS, p))


def eager(setting: Setting) -> Op:
    p = setting.p

    def block(
        x: Tensor,
        up_weight: Tensor,
        up_bias: Tensor,
        down_weight: Tensor,
        down_bias: Tensor,
        norm_weight: Tensor,
        norm_bias: Tensor,
    ) -> Tensor:
        added = F.linear(F.gelu(F.linear(x, up_weight, up_bias)), down_weight, down_bias)
        return F.layer_norm(x + F.dropout(added, p), norm_weight.shape, norm_weight, norm_bias, EPS)

    return block


def races(options: Options) -> Iterator[Race]:
    for setting in settings(options):
        rows, width, inner = setting.tokens, setting.network.hidden_size, setting.network.intermediate_size
        shapes = [(rows, width), (inner, width), (inner,), (width, inner), (width,), (width,), (width,)]
        yield race(
            "ffn_block",
            setting,
            Case.make(setting, shapes, (rows, width)),
            flops=4 * rows * width * inner * (3 if setting.backward else 1),
            ours=ours(setting),
            eager=eager(setting),
            formula=lambda p, setting=setting: formula(setting, p),
        )


def bench_ffn_block(benchmark: Any) -> None:
    guard(benchmark, races)
