"""LayerNorm(x + dropout(Wo attention(Wqkv x + bqkv) + bo)): the first half of a layer, on sequences of one length.

    python benches attention_block --device cpu --models small base --shapes 16x128

flops: 8 T D D + 4 D sum(S^2) forward; with the backward three times the products and 3.5 times the attention, which
computes its scores anew. bytes and dropout: see racing/case.py. Rivals:

    eager        the layer of transformers, Q, K and V in one F.linear: scaled_dot_product_attention with dropout,
                 F.linear, F.dropout, add, F.layer_norm
    compiled     the same under torch.compile (CPU: if named)
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from racing.case import EPS, Case, Op, Setting, guard, race, settings
from racing.race import Options, Race
from torch import Tensor

from electra_fast.ops import attention_block
from electra_fast.ops.attention_block import AttentionBlockArguments, attention_block_reference


def packed(setting: Setting) -> tuple[Tensor, int, Tensor, int]:
    """cu_seqlens, max_seqlen, row_ids, num_heads."""
    cu_seqlens = torch.arange(setting.sequences + 1, dtype=torch.int32, device=setting.device) * setting.length
    return cu_seqlens, setting.length, setting.row_ids, setting.network.num_attention_heads


def ours(setting: Setting) -> Op:
    *sequences, heads = packed(setting)
    numbers = dict(eps=EPS, attention_dropout_p=setting.p, dropout_p=setting.p)
    return lambda *given: attention_block(*given, *sequences, num_heads=heads, seed=setting.seed, **numbers)


def formula(setting: Setting, p: float) -> Op:
    last = (*packed(setting), None, None, 0, setting.seed, EPS, p, p)
    return lambda *given: attention_block_reference(AttentionBlockArguments(*given, *last))


def eager(setting: Setting) -> Op:
    p, sequences, heads = setting.p, setting.sequences, setting.network.num_attention_heads

    def block(
        x: Tensor,
        qkv_weight: Tensor,
        qkv_bias: Tensor,
        out_weight: Tensor,
        out_bias: Tensor,
        norm_weight: Tensor,
        norm_bias: Tensor,
    ) -> Tensor:
        projected = F.linear(x, qkv_weight, qkv_bias).view(sequences, -1, 3, heads, x.shape[1] // heads)
        q, k, v = projected.permute(2, 0, 3, 1, 4).unbind(0)
        read = F.scaled_dot_product_attention(q, k, v, dropout_p=p).transpose(1, 2).reshape(x.shape)
        added = F.dropout(F.linear(read, out_weight, out_bias), p)
        return F.layer_norm(x + added, norm_weight.shape, norm_weight, norm_bias, EPS)

    return block


def races(options: Options) -> Iterator[Race]:
    for setting in settings(options):
        rows, width = setting.tokens, setting.network.hidden_size
        shapes = [(rows, width), (3 * width, width), (3 * width,), (width, width), (width,), (width,), (width,)]
        products, scores = 8 * rows * width * width, 4 * width * rows * setting.length
        yield race(
            "attention_block",
            setting,
            Case.make(setting, shapes, (rows, width)),
            flops=3 * products + 3.5 * scores if setting.backward else products + scores,
            ours=ours(setting),
            eager=eager(setting),
            formula=lambda p, setting=setting: formula(setting, p),
        )


def bench_attention_block(benchmark: Any) -> None:
    guard(benchmark, races)
