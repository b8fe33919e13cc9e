"""All layers of a network, each the blocks of bench_attention_block and bench_ffn_block, on sequences of one length.

    python benches encoder --device cpu --models small base --shapes 16x128

flops: those of the blocks. bytes and dropout: see racing/case.py. Rivals:

    eager        the layers of transformers, as in the benches of the blocks
    compiled     the same under torch.compile (CPU: if named)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import bench_attention_block
import bench_ffn_block
import torch
from racing.case import EPS, SEED, Case, Op, Setting, guard, race, settings
from racing.race import Options, Race
from torch import Tensor

from electra_fast.ops import encoder
from electra_fast.ops.encoder import ATTENTION, FFN, EncoderArguments, encoder_reference


def by_layer(flat: Sequence[Tensor]) -> list[Sequence[Tensor]]:
    width = len(ATTENTION + FFN)
    return [flat[at : at + width] for at in range(0, len(flat), width)]


def seeds(setting: Setting) -> Tensor:
    return SEED + torch.arange(2 * setting.network.num_hidden_layers, device=setting.device)


def ours(setting: Setting) -> Op:
    *sequences, heads = bench_attention_block.packed(setting)
    numbers: dict[str, Any] = dict(num_heads=heads, attention_dropout_p=setting.p, dropout_p=setting.p)
    keys = seeds(setting)
    return lambda x, *flat: encoder(x, by_layer(flat), *sequences, eps=EPS, seeds=keys, **numbers)


def formula(setting: Setting, p: float) -> Op:
    sequences, keys = bench_attention_block.packed(setting), seeds(setting)
    last = (*sequences, None, None, 0, keys, EPS, p, p)
    return lambda x, *flat: encoder_reference(EncoderArguments(x, list(flat), *last))


def eager(setting: Setting) -> Op:
    attention, ffn = bench_attention_block.eager(setting), bench_ffn_block.eager(setting)

    def layers(x: Tensor, *flat: Tensor) -> Tensor:
        for layer in by_layer(flat):
            x = ffn(attention(x, *layer[: len(ATTENTION)]), *layer[len(ATTENTION) :])
        return x

    return layers


def races(options: Options) -> Iterator[Race]:
    for setting in settings(options):
        rows, width, inner = setting.tokens, setting.network.hidden_size, setting.network.intermediate_size
        layer: list[tuple[int, ...]] = [(3 * width, width), (3 * width,), (width, width), *[(width,)] * 3]
        layer += [(inner, width), (inner,), (width, inner), *[(width,)] * 3]
        products, scores = 8 * rows * width * width + 4 * rows * width * inner, 4 * width * rows * setting.length
        depth = setting.network.num_hidden_layers
        yield race(
            "encoder",
            setting,
            Case.make(setting, [(rows, width), *depth * layer], (rows, width)),
            flops=depth * (3 * products + 3.5 * scores if setting.backward else products + scores),
            ours=ours(setting),
            eager=eager(setting),
            formula=lambda p, setting=setting: formula(setting, p),
        )


def bench_encoder(benchmark: Any) -> None:
    guard(benchmark, races)
