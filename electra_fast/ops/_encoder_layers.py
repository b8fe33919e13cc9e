"""The arguments of `encoder`, and those of each layer's blocks."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any, NamedTuple

from torch import Tensor

from electra_fast.ops._library import Size
from electra_fast.ops.attention_block import AttentionBlockArguments
from electra_fast.ops.ffn_block import FfnBlockArguments

ATTENTION = ("qkv_weight", "qkv_bias", "out_weight", "out_bias", "attention_norm_weight", "attention_norm_bias")
FFN = ("up_weight", "up_bias", "down_weight", "down_bias", "ffn_norm_weight", "ffn_norm_bias")


class EncoderArguments(NamedTuple):
    """The arguments of `encoder`, in the order of the dispatcher op; max_rows is 0 without rows."""

    x: Tensor
    layers: list[Tensor]  # for each layer in turn the tensors that ATTENTION and FFN name
    cu_seqlens: Tensor
    max_seqlen: Size
    row_ids: Tensor
    num_heads: int
    rows: Tensor | None
    cu_rows: Tensor | None
    max_rows: Size
    seeds: Tensor
    eps: float
    attention_dropout_p: float
    dropout_p: float


class Layer(NamedTuple):
    """The arguments of one layer's two blocks. Callers replace their x by the layer's own input."""

    attention: AttentionBlockArguments
    ffn: FfnBlockArguments


def depth_of(args: EncoderArguments) -> int:
    """L, the number of layers."""
    return len(args.layers) // len(ATTENTION + FFN)


def count_queries(args: EncoderArguments) -> int:
    """R, the number of rows that are queries in the last layer."""
    return (args.x if args.rows is None else args.rows).shape[0]


def empty_output(args: EncoderArguments) -> Tensor:
    """A new tensor (R, D) for the result."""
    return args.x.new_empty(count_queries(args), args.x.shape[1])


def layers_of(args: EncoderArguments) -> Iterator[Layer]:
    """The arguments of each layer's blocks. In all layers but the last, every row is a query."""
    tensors, seeds, depth = iter(args.layers), iter(args.seeds.split(1)), depth_of(args)
    for i in range(depth):
        queries: tuple[Any, ...] = (None, None, 0)
        ids = args.row_ids
        if args.rows is not None and i == depth - 1:
            queries, ids = (args.rows, args.cu_rows, args.max_rows), args.row_ids[args.rows]
        sequences = (args.cu_seqlens, args.max_seqlen, args.row_ids, args.num_heads, *queries)
        numbers = (args.eps, args.attention_dropout_p, args.dropout_p)
        weights = [*islice(tensors, len(ATTENTION))]
        attention = AttentionBlockArguments._make([args.x, *weights, *sequences, next(seeds), *numbers])
        weights = [*islice(tensors, len(FFN))]
        ffn = FfnBlockArguments._make([args.x, *weights, ids, next(seeds), args.eps, args.dropout_p])
        yield Layer(attention, ffn)
