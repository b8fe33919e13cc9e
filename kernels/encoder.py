"""encoder on the GPU: the launches of attention_block and ffn_block, layer by layer; no rows between them are saved.

For each layer it saves both norms' inputs z (T, D) with their statistics, and the projection (T, 3 D) with the scores'
log-sum-exps: 5 T D. The backward computes again: the rows between blocks, LayerNorm(z), in the launch that takes a
block's rows through its own norm (layer_norm.py); attention's output, beside the scores (attention.py); and the inside
of the FFN, as ever (ffn_block.py). Saved, too, is what cannot be computed there: attention's output if a sequence has
more keys than one block; h and the GELU's slope if the FFN is not one launch; and the last layer's input if only some
rows are queries. There are no other launches; the costs are in the blocks' docstrings.

ELECTRA-Small, T = 16384, D = 256, bf16, a layer: 42 MB saved, 23 % of eager PyTorch's 185; the blocks alone save 59
with their inputs. In return the backward writes 17 MB more, 4 us at 4.3 TB/s, and computes 1.1 GF more, 1.4 us at
790 TFLOP/s.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from .attention_block import attention_block_fwd
from .attention_block_bwd import attention_block_bwd
from .ffn_block import ffn_block_bwd, ffn_block_fwd
from .parts.layer_norm import Normed

Layers = Sequence[Any]  # each has .attention and .ffn, the NamedTuples of the arguments of its two blocks


class Saved(NamedTuple):
    """What the forward of one layer saves. Each list begins with z, mean and 1 / deviation of its block's norm."""

    attention: list[Tensor]
    x: Tensor | None  # the layer's input, if only some of its rows are queries and the layer is not the first
    ffn: list[Tensor]

    @property
    def tensors(self) -> list[Tensor]:
        return [*self.attention, *([] if self.x is None else [self.x]), *self.ffn]


def encoder_fwd(x: Tensor, layers: Layers) -> tuple[Tensor, list[Saved]]:
    """-> out (R, D), and what each layer saves."""
    saved = []
    for i, (attention, ffn) in enumerate(layers):
        between, of_attention = attention_block_fwd(attention._replace(x=x), ids=ffn.row_ids)
        rows = x if i and attention.rows is not None else None
        x, of_ffn = ffn_block_fwd(ffn._replace(x=between))
        saved.append(Saved(of_attention, rows, of_ffn))
    return x, saved


def encoder_bwd(grads: list[Tensor], x: Tensor, layers: Layers, out: Tensor, saved: list[Saved]) -> list[Tensor]:
    """grads [dout] -> dx and a gradient for each tensor of each layer."""
    (gradient,) = grads
    gradients: list[Tensor] = []
    for i, ((attention, ffn), kept) in reversed(list(enumerate(zip(layers, saved, strict=True)))):
        rows: Tensor | Normed = x
        if kept.x is not None:
            rows = kept.x
        elif i:
            rows = _norm_of(layers[i - 1].ffn, saved[i - 1].ffn)
        between = _norm_of(attention, kept.attention)
        gradient, *of_ffn = ffn_block_bwd([gradient], ffn._replace(x=between), [out, *kept.ffn])
        block = attention._replace(x=rows)
        gradient, *of_attention = attention_block_bwd([gradient], block, [out, *kept.attention], ids=ffn.row_ids)
        gradients = [*of_attention, *of_ffn, *gradients]
    return [gradient, *gradients]


def _norm_of(block: Any, kept: list[Tensor]) -> Normed:
    """The output of a block, as the Normed of what the block saved."""
    z, mean, rstd, *_ = kept
    return Normed(z, mean, rstd, block.norm_weight, block.norm_bias)
