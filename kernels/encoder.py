"""encoder on the GPU: its blocks' launches layer by layer, and of the rows between the blocks nothing kept.

Of a layer it keeps what went into either norm, z (T, D) each, with statistics, and the projection (3 T D) with the
scores' log-sum-exps: 5 T D. In the backward the rows between blocks, LayerNorm(z), are made again by the launch that
takes a block's rows through its own norm (layer_norm.py), what was read beside the scores (attention.py), and the FFN's
inside as ever (ffn_block.py). What does not fit there is kept beside: what was read where a sequence has more keys than
one block; h and the GELU's slope where the FFN is in pieces; where only some rows ask, all rows of that last layer.
No launch is added to those of the blocks, which add up what they cost.

ELECTRA-Small, T = 16384, D = 256, bf16, a layer: 42 MB kept, 23 % of eager PyTorch's 185, where its blocks alone keep
59 with their inputs; 17 MB more are written backward, 4 us at 4.3 TB/s, and 1.1 GF more computed, 1.4 us at 790
TFLOP/s.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor

from .attention_block import attention_block_fwd
from .attention_block_bwd import attention_block_bwd
from .ffn_block import ffn_block_bwd, ffn_block_fwd
from .parts.layer_norm import Normed

Layers = Sequence[tuple[Any, Any]]  # what both blocks of each are given besides their rows
# There: a norm's weight and bias; attention's rows that ask; their ids, which the FFN is given.
NORM, ROWS, IDS = slice(4, 6), 10, 6


def encoder_fwd(x: Tensor, layers: Layers) -> tuple[Tensor, list[Tensor]]:
    """-> out (R, D), [what either block of each layer keeps]; after the last attention's, if it is given rows that ask
    and is not the first, its x."""
    saved: list[Tensor] = []
    for i, (attention, ffn) in enumerate(layers):
        between, kept = attention_block_fwd(x, *attention, ids=ffn[IDS])
        saved += kept if i == 0 or attention[ROWS] is None else [*kept, x]
        x, kept = ffn_block_fwd(between, *ffn)
        saved += kept
    return x, saved


def encoder_bwd(grads: list[Tensor], x: Tensor, layers: Layers, saved: list[Tensor]) -> list[Tensor]:
    """grads [dout], saved [out, ...] -> dx and a gradient for each tensor of each layer."""
    (gradient,), (out, *kept) = grads, saved
    found: list[Tensor] = []
    # What a block keeps begins with its norm's z, mean and 1 / deviation; nothing else has one dimension.
    starts = [i - 1 for i, t in enumerate(kept) if t.dim() == 1][::2]
    parts = [kept[start:end] for start, end in pairwise([*starts, len(kept)])]
    for i, (attention, ffn) in reversed(list(enumerate(layers))):
        rows: Tensor | Normed = x
        if i and attention[ROWS] is None:
            rows = Normed(*parts[2 * i - 1][:3], *layers[i - 1][1][NORM])
        elif i:
            rows = parts[2 * i].pop()
        between = Normed(*parts[2 * i][:3], *attention[NORM])
        gradient, *of_ffn = ffn_block_bwd([gradient], between, *ffn, [out, *parts[2 * i + 1]])
        kept = [out, *parts[2 * i]]
        gradient, *of_attention = attention_block_bwd([gradient], rows, *attention, kept, ids=ffn[IDS])
        found = [*of_attention, *of_ffn, *found]
    return [gradient, *found]
