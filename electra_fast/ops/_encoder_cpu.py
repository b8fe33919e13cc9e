"""The encoder on the CPU: the buffers that each layer fills, and the calls of the core (csrc/encoder.cpp)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from electra_fast.ops import _structs as structs
from electra_fast.ops._backend import Backend
from electra_fast.ops._core import core
from electra_fast.ops._encoder_layers import ATTENTION, EncoderArguments, count_queries, depth_of, empty_output
from electra_fast.ops._structs import Rows, addresses, dropout_threshold


class Kept(NamedTuple):
    """The buffers, all float32, that the forward of one layer fills for its backward, for R queries.

    csrc/encoder.cpp has them in the same order.
    """

    between: Tensor  # (R, D): the attention block's output
    queries: Tensor  # (R, D)
    keys_values: Tensor  # (T, 2 D)
    read: Tensor  # (R, D): the output of attention before the output projection
    lse: Tensor  # (R, H): the log-sum-exp of each query's scores
    attention_xhat: Tensor  # (R, D): the rows that the attention block's LayerNorm has normalised
    attention_rstd: Tensor  # (R,): 1 / standard deviation of each row
    inner: Tensor | None  # (R, F): the GELU's argument; None if no backward follows
    ffn_xhat: Tensor  # (R, D)
    ffn_rstd: Tensor  # (R,)
    out: Tensor  # (R, D): the layer's output


def _inner_width(args: EncoderArguments) -> int:
    """F, the width between the two linear layers of an FFN block."""
    return args.layers[len(ATTENTION)].shape[0]


def _kept(args: EncoderArguments, count: int) -> Kept:
    """New buffers of one layer in which `count` rows are queries."""
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
    """The buffers of all layers, but for the last layer's output, which is the op's own."""
    whole = [t for _ in range(depth_of(args) - 1) for t in _kept(args, args.x.shape[0])]
    *last, _out = _kept(args, count_queries(args))
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
    """Run the core's forward, which fills the buffers `kept`: those of the first layer, of the second, and so on."""
    weights = [t.contiguous() for t in args.layers]
    core.encoder_fwd(_struct(args), addresses(weights), addresses(kept), torch.get_num_threads())


def _forward_cpu(args: EncoderArguments) -> tuple[Tensor, list[Tensor]]:
    out, saved = empty_output(args), _saves(args)
    _run(args, [*saved, out])
    return out, saved


def _infer_cpu(args: EncoderArguments) -> Tensor:
    """The forward in the memory of one layer: all layers use the same buffers, and two outputs take turns, since the
    output of one layer is the input of the next."""
    buffers, out = _kept(args, args.x.shape[0]), empty_output(args)
    turns = buffers.out, torch.empty_like(buffers.out)
    layers = [buffers._replace(inner=None, out=turns[i % 2]) for i in range(depth_of(args) - 1)]
    layers.append(buffers._replace(inner=None, out=out))
    _run(args, [t for layer in layers for t in layer])
    return out


def _backward_cpu(grads: list[Tensor], args: EncoderArguments, saved: list[Tensor]) -> list[Tensor]:
    (out, *kept), weights = saved, [t.contiguous() for t in args.layers]
    dx, gradients = args.x.new_empty(args.x.shape), [torch.empty_like(t) for t in weights]
    layers = (addresses(weights), addresses([*kept, out]), addresses(gradients))
    core.encoder_bwd(grads[0].contiguous(), _struct(args), *layers, dx, torch.get_num_threads())
    return [dx, *gradients]


encoder_cpu = Backend(_forward_cpu, _backward_cpu, _saves, infer=_infer_cpu)
