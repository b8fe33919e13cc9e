"""register_attention(): this package's attention for any encoder of transformers, under the name "electra_fast".

transformers has two tables, one of attention functions and one of mask functions. A name that is only in the first gets
no mask, and then attends to padding without an error. Ours is in both, and takes the padding mask (B, Sk).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import bidirectional_mask_function

from electra_fast import ops
from electra_fast.ops._cu_seqlens import cu_seqlens_of

NAME = "electra_fast"
NOT_COMPUTED = ("position_bias", "softcap", "sliding_window", "s_aux", "cu_seq_lens_q", "output_attentions")


def register_attention() -> None:
    """Make attn_implementation="electra_fast" known to transformers, for encoders of any kind.

        softmax(scaling Q K^T) V over the keys that are not padding

    Afterwards choose it by `model.set_attn_implementation("electra_fast")`, or by the argument attn_implementation of
    from_pretrained, for any model whose attention goes through transformers' AttentionInterface. The seed of dropout is
    drawn from torch's generator. A second call changes nothing.

    Returns None.

    Raises nothing itself. A model that is called afterwards raises NotImplementedError if it needs more than
    bidirectional attention under a padding mask, such as causal attention, windows, biases, or attention weights as an
    output, and TypeError for 16-bit types on the CPU.

    Cost: padding is left out of keys and values, so attention takes 4 H D sum(S S_k) flops forward over the real keys.

    Source: Dao et al., NeurIPS 2022 (FlashAttention), for the algorithm.
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
    """The padding mask of a batch, in the form that `attend` takes; transformers calls it with these arguments.

    q_length, kv_length: columns of the queries and of the keys.
    mask_function: the pattern that the model asks for, which must be transformers' bidirectional one.
    attention_mask: (B, Sk), 0 at padding, or None.

    Returns (B, Sk) bool, or None if there is no padding. Raises NotImplementedError for another pattern.
    """
    if mask_function is not bidirectional_mask_function:
        raise NotImplementedError(
            f"{NAME} computes bidirectional attention under a padding mask; this model asks for another pattern "
            f"(causal, a window, or several sequences in a row): use sdpa for it"
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
    """softmax(scaling Q K^T) V over the keys that are not padding; transformers calls it with these arguments.

    module: the attention module, which may have a field is_causal.
    query: (B, H, S, D).
    key, value: (B, Hk, Sk, D), where Hk divides H: with fewer heads than queries, each serves H / Hk of them.
    attention_mask: (B, Sk) bool, False at padding, or None.
    dropout: the probability with which an attention probability is set to 0.
    scaling: 1 / sqrt(D) by default.
    is_causal: whether causal attention is asked for; by default as the module says.

    Returns (B, S, H, D), and None in place of the attention weights. Raises NotImplementedError for anything else than
    bidirectional attention under a padding mask, TypeError for 16-bit types on the CPU.
    """
    beyond = [name for name in NOT_COMPUTED if kwargs.get(name) is not None and kwargs[name] is not False]
    if beyond:
        raise NotImplementedError(f"{NAME} does not compute {', '.join(beyond)}; use eager or sdpa for this model")
    causal = getattr(module, "is_causal", True) if is_causal is None else is_causal
    if causal and attention_mask is None and query.shape[2] > 1:
        raise NotImplementedError(f"{NAME}: {type(module).__name__} asks for causal attention; use sdpa for it")
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
