"""encoder: the layers of a network one after the other, each an attention_block and an ffn_block.

With `rows` (R,) only these rows are queries in the last layer, and the result is (R, D). All layers are one op: at
ELECTRA-Small's size what happens between two blocks, in Python and PyTorch, costs the CPU a twentieth of a step; and on
CUDA the rows between two blocks need not be kept, as the backward makes them again from what went into the norm before
them. Where no backend has the whole, the op is its blocks, each with its own gradient.
Cost: that of the blocks.
Source: Clark et al., ICLR 2020 (ELECTRA).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from electra_fast.ops import _structs as structs
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
from electra_fast.ops._core import core
from electra_fast.ops._differentiable import Backend, DifferentiableOp, refuse_transforms
from electra_fast.ops._encoder_cuda import encoder_cuda
from electra_fast.ops._encoder_layers import ATTENTION, FFN, EncoderArguments, depth_of, layers_of
from electra_fast.ops._library import LIBRARY, backends, maker, schema_of
from electra_fast.ops._structs import Rows, addresses, dropout_threshold
from electra_fast.ops.attention_block import (
    _attention_block,
    attention_block_reference,
)
from electra_fast.ops.ffn_block import _ffn_block, ffn_block_reference


class Kept(NamedTuple):
    """What one layer of the C++ forward makes for its backward, all float32, for R queries; csrc/encoder.cpp has the
    same order."""

    between: Tensor  # (R, D): what the attention block gives
    queries: Tensor  # (R, D)
    keys_values: Tensor  # (T, 2 D)
    read: Tensor  # (R, D): what attention read, before the output projection
    lse: Tensor  # (R, H): the log-sum-exp of each query's scores
    attention_xhat: Tensor  # (R, D): the rows that the attention block's norm normalised
    attention_rstd: Tensor  # (R,): 1 / deviation of each
    inner: Tensor | None  # (R, F): the GELU's argument; None where no backward follows
    ffn_xhat: Tensor  # (R, D)
    ffn_rstd: Tensor  # (R,)
    out: Tensor  # (R, D): what the layer gives


def encoder(
    x: Tensor,
    layers: Sequence[Sequence[Tensor]],
    cu_seqlens: Tensor,
    max_seqlen: int,
    row_ids: Tensor,
    num_heads: int,
    *,
    rows: Tensor | None = None,
    cu_rows: Tensor | None = None,
    max_rows: int | None = None,
    eps: float = 1e-12,
    attention_dropout_p: float = 0.0,
    dropout_p: float = 0.0,
    seeds: Tensor | None = None,
) -> Tensor:
    """The layers of a post-LN transformer: ffn_block(attention_block(x)) for each in turn.

    x: (T, D), packed rows, of the floating-point dtype of all weights.
    layers: for each layer the twelve tensors that ATTENTION and FFN name: qkv (3 D, D) and (3 D,), out (D, D) and (D,),
        norm (D,) twice, up (F, D) and (F,), down (D, F) and (D,), norm (D,) twice.
    cu_seqlens: (N + 1,) int32, the row where each sequence begins, and at the end T.
    max_seqlen: the length of the longest sequence, or more.
    row_ids: (T,) int64, the ids of the rows that key the dropouts.
    num_heads: H, which divides D.
    rows, cu_rows, max_rows: the rows that are queries in the last layer, as attention_block takes them; all by default.
    eps: what each LayerNorm adds to the variance.
    attention_dropout_p, dropout_p: the probabilities with which an attention probability, and an element that either
        block adds to its rows, are set to 0, rounded to 1/256.
    seeds: (2 L,) int64, for each layer the seed of its attention_block and that of its ffn_block; 0 by default.

    Returns (T, D), or (R, D) with rows.
    Raises IndexError on a row that is not in x (on the CPU), TypeError on mixed dtypes, ValueError on shapes, offsets,
    heads that do not divide D or probabilities outside [0, 1], RuntimeError on mixed devices.
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


def _fake(args: EncoderArguments) -> tuple[Tensor]:
    return (args.x.new_empty(_count(args), args.x.shape[1]),)


def _count(args: EncoderArguments) -> int:
    """R, the number of queries of the last layer."""
    return (args.x if args.rows is None else args.rows).shape[0]


def _inner_width(args: EncoderArguments) -> int:
    """F."""
    return args.layers[len(ATTENTION)].shape[0]


def _kept(args: EncoderArguments, count: int) -> Kept:
    """Memory for what a layer makes when `count` rows are queries."""
    new, (total, width) = args.x.new_empty, args.x.shape
    return Kept(
        between=new(count, width),
        queries=new(count, width),
        keys_values=new(total, 2 * width),
        read=new(count, width),
        lse=new(count, args.num_heads),
        attention_xhat=new(count, width),
        attention_rstd=new(count),
        inner=new(count, _inner_width(args)),
        ffn_xhat=new(count, width),
        ffn_rstd=new(count),
        out=new(count, width),
    )


def _saves(args: EncoderArguments) -> list[Tensor]:
    """What each layer makes, but for what the last one gives, which is the output."""
    whole = [t for _ in range(depth_of(args) - 1) for t in _kept(args, args.x.shape[0])]
    *last, _out = _kept(args, _count(args))
    return [t for t in (*whole, *last) if t is not None]


def _struct(args: EncoderArguments) -> structs.Encoder:
    last = structs.Queries(None, None, None, args.x.shape[0])
    if args.rows is not None and args.cu_rows is not None:
        rows, ids = args.rows.contiguous(), args.row_ids[args.rows]
        last = structs.Queries(rows, ids, args.cu_rows.contiguous(), rows.shape[0])
    return structs.Encoder(
        x=Rows.of(args.x),
        cu_seqlens=args.cu_seqlens.contiguous(),
        row_ids=args.row_ids.contiguous(),
        seeds=args.seeds.contiguous(),
        last=last,
        L=depth_of(args),
        N=args.cu_seqlens.shape[0] - 1,
        H=args.num_heads,
        F=_inner_width(args),
        eps=args.eps,
        attention_threshold=dropout_threshold(args.attention_dropout_p),
        threshold=dropout_threshold(args.dropout_p),
    )


def _run(args: EncoderArguments, kept: Sequence[Tensor | None]) -> None:
    """The core's forward, into what is kept."""
    weights = [t.contiguous() for t in args.layers]
    core.encoder_fwd(_struct(args), addresses(weights), addresses(kept), torch.get_num_threads())


def _forward_cpu(args: EncoderArguments) -> tuple[Tensor, list[Tensor]]:
    (out,), saved = _fake(args), _saves(args)
    _run(args, [*saved, out])
    return out, saved


def _infer_cpu(args: EncoderArguments) -> Tensor:
    """In the memory of one layer, but that what one layer gives is what goes into the next."""
    made, (out,) = _kept(args, args.x.shape[0]), _fake(args)
    turns = made.out, torch.empty_like(made.out)
    layers = [made._replace(inner=None, out=turns[i % 2]) for i in range(depth_of(args) - 1)]
    layers.append(made._replace(inner=None, out=out))
    _run(args, [t for layer in layers for t in layer])
    return out


def _backward_cpu(grads: list[Tensor], args: EncoderArguments, saved: list[Tensor]) -> list[Tensor]:
    (out, *kept), weights = saved, [t.contiguous() for t in args.layers]
    dx, gradients = args.x.new_empty(args.x.shape), [torch.empty_like(t) for t in weights]
    layers = (addresses(weights), addresses([*kept, out]), addresses(gradients))
    core.encoder_bwd(grads[0].contiguous(), _struct(args), *layers, dx, torch.get_num_threads())
    return [dx, *gradients]


def _composed(*values: Any) -> Tensor:
    """The op of its blocks, each with its own gradient."""
    args = maker(EncoderArguments)(values)
    x = args.x
    for layer in layers_of(args):
        x = _attention_block(layer.attention._replace(x=x))
        x = _ffn_block(layer.ffn._replace(x=x))
    return x


def _on_cuda(*values: Any) -> Tensor:
    """One op where the kernels take it; else its blocks, each of which may still be a kernel's."""
    args = maker(EncoderArguments)(values)
    return _encoder(args) if _encoder.on_triton(args) else _composed(*args)


_encoder = DifferentiableOp(
    "encoder",
    EncoderArguments,
    outputs=("out",),
    differentiable=("x", "layers"),
    reference=encoder_reference,
    fake=_fake,
    cpu=Backend(_forward_cpu, _backward_cpu, _saves, infer=_infer_cpu),
    cuda=encoder_cuda,
    check=lambda args: check_query_values("encoder", args),
)
LIBRARY.define(f"encoder({schema_of(EncoderArguments)}) -> Tensor")
LIBRARY.impl("encoder", _composed, "CompositeImplicitAutograd")
for key in ("CPU", "AutogradCPU"):
    LIBRARY.impl("encoder", lambda *values: _encoder(maker(EncoderArguments)(values)), key)
for key in ("CUDA", "AutogradCUDA", "AutogradMeta"):  # meta tensors are counted as CUDA's
    LIBRARY.impl("encoder", _on_cuda, key)
said = backends["encoder_fwd"]
backends["encoder"] = said | dict(cuda=said["cuda"].replace("the reference", "its blocks"))
