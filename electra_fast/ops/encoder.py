"""encoder: the layers of a network one after the other, each an attention_block and an ffn_block.

With `rows` (R,) only these rows are queries in the last layer, and the result is (R, D). All layers are one op for two
reasons. On the CPU, at ELECTRA-Small's size, the Python and PyTorch code between two blocks would take a twentieth of a
step. On CUDA, the rows between two blocks need not be kept: the backward computes them again from the input of the
LayerNorm before them. If no backend has the whole encoder, the op runs its blocks, each with its own gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from electra_fast.ops._check import (
    check_devices,
    check_floats,
    check_integers,
    check_matrix,
    check_probability,
    check_queries,
    check_query_values,
    check_shape,
)
from electra_fast.ops._differentiable import DifferentiableOp, refuse_transforms
from electra_fast.ops._encoder_cpu import encoder_cpu
from electra_fast.ops._encoder_cuda import encoder_cuda
from electra_fast.ops._encoder_layers import ATTENTION, FFN, EncoderArguments, empty_output, layers_of
from electra_fast.ops._library import LIBRARY, backends, maker, schema_of
from electra_fast.ops.attention_block import _attention_block, attention_block_reference
from electra_fast.ops.ffn_block import _ffn_block, ffn_block_reference


def encoder(
    x: Tensor,
    layers: Sequence[Sequence[Tensor]],
    cu_seqlens: Tensor,
    max_seqlen: int,
    row_ids: Tensor,
    *,
    num_heads: int,
    rows: Tensor | None = None,
    cu_rows: Tensor | None = None,
    max_rows: int | None = None,
    eps: float = 1e-12,
    attention_dropout_p: float = 0.0,
    dropout_p: float = 0.0,
    seeds: Tensor | None = None,
) -> Tensor:
    """The layers of a post-LN transformer: x = ffn_block(attention_block(x)) for each layer in turn.

    x: (T, D), packed rows, of a floating-point dtype that all weights have.
    layers: for each layer twelve tensors: the attention block's qkv (3 D, D) and (3 D,), out (D, D) and (D,), norm (D,)
        and (D,); the FFN block's up (F, D) and (F,), down (D, F) and (D,), norm (D,) and (D,). Each pair is a weight
        and a bias.
    cu_seqlens: (N + 1,) int32, the row where each sequence begins, and at the end T.
    max_seqlen: the length of the longest sequence, or more.
    row_ids: (T,) int64, the ids of the rows, by which the dropouts' random numbers are keyed.
    num_heads: H, which divides D.
    rows: (R,) int64, the rows of x that are queries in the last layer, in the order of the sequences; all by default.
    cu_rows: (N + 1,) int32, the element of `rows` where each sequence begins, and at the end R.
    max_rows: the number of `rows` of the sequence that has most, or more.
    eps: the number that each LayerNorm adds to the variance.
    attention_dropout_p, dropout_p: the probabilities with which an attention probability, and an element that a block
        adds to its input, are set to 0, rounded to 1/256.
    seeds: (2 L,) int64, for each layer the seed of its attention block and that of its FFN block; all 0 by default.

    Returns (T, D), or (R, D) with rows.

    Raises TypeError if the dtypes differ, ValueError if shapes or offsets do not fit, heads do not divide D, or a
    probability lies outside [0, 1], RuntimeError if the tensors are on several devices, and on the CPU IndexError if
    `rows` names a row that is not in x.

    Cost: that of its L attention blocks and L FFN blocks.

    Source: Vaswani et al., NeurIPS 2017 (the post-LN transformer); Clark et al., ICLR 2020 (ELECTRA).
    """
    name = "encoder"
    check_matrix(name, x=x)
    width, flat = x.shape[1], [t for layer in layers for t in layer]
    if not layers or any(len(layer) != len(ATTENTION + FFN) for layer in layers):
        raise ValueError(
            f"{name}: layers of {[len(layer) for layer in layers]} tensors; give one layer at least, each of "
            f"{len(ATTENTION + FFN)}: {', '.join(ATTENTION + FFN)}"
        )
    seeds = torch.zeros(2 * len(layers), dtype=torch.int64, device=x.device) if seeds is None else seeds
    named = {
        f"layers[{i}] {label}": t for i, at in enumerate(layers) for label, t in zip(ATTENTION + FFN, at, strict=True)
    }
    check_devices(name, x=x, cu_seqlens=cu_seqlens, row_ids=row_ids, rows=rows, cu_rows=cu_rows, seeds=seeds, **named)
    check_floats(name, x=x, **named)
    check_integers(name, torch.int64, row_ids=row_ids, rows=rows, seeds=seeds)
    up_weight = named["layers[0] up_weight"]
    inner = up_weight.shape[0] if up_weight.dim() else 0
    shapes = [(3 * width, width), (3 * width,), (width, width), *[(width,)] * 3]
    shapes += [(inner, width), (inner,), (width, inner), *[(width,)] * 3]
    for (label, tensor), shape in zip(named.items(), len(layers) * shapes, strict=True):
        check_shape(name, label, tensor, *shape)
    check_shape(name, "seeds", seeds, 2 * len(layers))
    args = EncoderArguments(
        x,
        flat,
        cu_seqlens,
        max_seqlen,
        row_ids,
        num_heads,
        rows,
        cu_rows,
        max_rows or 0,
        seeds,
        float(eps),
        check_probability(name, "attention_dropout_p", attention_dropout_p),
        check_probability(name, "dropout_p", dropout_p),
    )
    check_queries(name, args, max_rows)
    refuse_transforms(name, args)
    return torch.ops.electra_fast.encoder(*args)


def encoder_reference(args: EncoderArguments) -> Tensor:
    x = args.x
    for layer in layers_of(args):
        x = attention_block_reference(layer.attention._replace(x=x))
        x = ffn_block_reference(layer.ffn._replace(x=x))
    return x


def _composed(*values: Any) -> Tensor:
    """The op as a sequence of its blocks, each with its own gradient."""
    args = maker(EncoderArguments)(values)
    x = args.x
    for layer in layers_of(args):
        x = _attention_block(layer.attention._replace(x=x))
        x = _ffn_block(layer.ffn._replace(x=x))
    return x


def _on_cuda(*values: Any) -> Tensor:
    """The Triton encoder if it takes these arguments; else the blocks, each of which may still run in Triton."""
    args = maker(EncoderArguments)(values)
    return _encoder(args) if _encoder.on_triton(args) else _composed(*args)


_encoder = DifferentiableOp(
    "encoder",
    EncoderArguments,
    outputs=("out",),
    differentiable=("x", "layers"),
    reference=encoder_reference,
    fake=lambda args: (empty_output(args),),
    cpu=encoder_cpu,
    cuda=encoder_cuda,
    check=lambda args: check_query_values("encoder", args),
)
LIBRARY.define(f"encoder({schema_of(EncoderArguments)}) -> Tensor")
LIBRARY.impl("encoder", _composed, "CompositeImplicitAutograd")
for key in ("CPU", "AutogradCPU"):
    LIBRARY.impl("encoder", lambda *values: _encoder(maker(EncoderArguments)(values)), key)
for key in ("CUDA", "AutogradCUDA", "AutogradMeta"):  # tensors on the meta device go the way of CUDA's
    LIBRARY.impl("encoder", _on_cuda, key)
forward_backends = backends["encoder_fwd"]
backends["encoder"] = forward_backends | dict(cuda=forward_backends["cuda"].replace("the reference", "its blocks"))
