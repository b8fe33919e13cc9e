"""register_attention(): this package's attention for any transformers encoder, under the name "electra_fast".

transformers keeps two tables, of attentions and of masks; a name that stands in the first alone is given no mask and
attends to padding without a word. Ours stands in both, and asks for the padding mask (B, Sk) and nothing else.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import bidirectional_mask_function

from electra_fast import ops
from electra_fast.ops.sequences import cu_seqlens_of

NAME = "electra_fast"
UNUSED = ("position_bias", "softcap", "sliding_window", "s_aux", "cu_seq_lens_q", "output_attentions")


def register_attention() -> None:
    """Make attn_implementation="electra_fast" known to transformers.

    For models whose attention goes through its interface: `model.set_attn_implementation("electra_fast")`, or the
    argument of from_pretrained. Padding is left out of the keys, dropout's seed comes from torch's generator. What is
    not bidirectional attention under a padding mask (causal, windows, biases, attention weights as an output) raises
    NotImplementedError at the call. To call it twice changes nothing.
    """
    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, padding_mask)


@torch.compiler.disable
def padding_mask(
    q_length: int,
    kv_length: int,
    mask_function: Any = bidirectional_mask_function,
    attention_mask: Tensor | None = None,
    **kwargs: Any,
) -> Tensor | None:
    """transformers' (B, Sk) mask as bool, None without padding. Raises NotImplementedError on any other pattern."""
    if mask_function is not bidirectional_mask_function:
        raise NotImplementedError(
            f"{NAME} attends both ways within a padding mask; this model asks for another pattern (causal, a window, "
            f"or several sequences in a row): use sdpa for it"
        )
    if attention_mask is None:
        return None
    keep = attention_mask != 0
    if keep.shape[-1] < kv_length:
        raise NotImplementedError(
            f"{NAME}: attention_mask has {keep.shape[-1]} columns, the keys {kv_length}; give one shape"
        )
    keep = keep[:, :kv_length]
    return None if bool(keep.all()) else keep


@torch.compiler.disable
def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """softmax(scaling Q K^T) V: query (B, H, S, D), key and value (B, Hk, Sk, D), mask (B, Sk) -> (B, S, H, D), None.

    Raises NotImplementedError in one sentence on what is not computed here, TypeError on half precision on the CPU.
    """
    if asked := [name for name in UNUSED if kwargs.get(name) is not None and kwargs[name] is not False]:
        raise NotImplementedError(f"{NAME}: {', '.join(asked)} asked for, which it does not compute; use eager or sdpa")
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if causal and attention_mask is None and query.shape[2] > 1:
        raise NotImplementedError(f"{NAME}: causal attention asked for by {type(module).__name__}; use sdpa for it")
    if attention_mask is not None and (attention_mask.dim() != 2 or attention_mask.dtype != torch.bool):
        raise NotImplementedError(
            f"{NAME}: attention_mask is {attention_mask.dtype} of shape {tuple(attention_mask.shape)}; a padding mask "
            f"of (sequences, columns) is taken: give the tokenizer's, or use sdpa"
        )
    sequences, heads, columns, _ = query.shape
    if key.shape[1] != heads:  # grouped queries
        key, value = (t.repeat_interleave(heads // key.shape[1], 1) for t in (key, value))
    q, k, v = (t.transpose(1, 2).flatten(0, 1) for t in (query, key, value))
    steps = torch.arange(sequences + 1, dtype=torch.int32, device=query.device)
    offsets, longest = steps * key.shape[2], key.shape[2]
    if attention_mask is not None:
        lengths = attention_mask.sum(1)
        rows = attention_mask.flatten().nonzero().squeeze(1)
        k, v, longest = k[rows], v[rows], int(lengths.max())
        offsets = cu_seqlens_of(lengths)
    seed = torch.randint(2**62, (1,)).to(query.device) if dropout else 0
    read = ops.attention(
        q, k, v, steps * columns, columns, offsets, longest, softmax_scale=scaling, dropout_p=dropout, seed=seed
    )
    return read.unflatten(0, (sequences, columns)), None
