"""decoder_step: a step of decoding through all layers of a decoder, one row for each target.

    x = LayerNorm(x + out(self_attention(qkv(x))))             over the keys and values of the target so far
    x = LayerNorm(x + cross_out(attention(cross_query(x))))    over those of its source
    x = LayerNorm(x + down(gelu(up(x))))

for each layer. Both kinds of keys and values lie in pages, as decode_attention reads them. A layer has eighteen
tensors, each a weight and then its bias: qkv, out and norm of the self-attention; query, out and norm of the
cross-attention; up, down and norm of the FFN.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from electra_fast.ops._check import check_devices, check_floats, check_ids, check_integers, check_matrix, check_shape
from electra_fast.ops._core import core
from electra_fast.ops._library import Written, define
from electra_fast.ops._structs import DecoderStep, PagedLayers, Rows, addresses
from electra_fast.ops.decode_attention import decode_attention
from electra_fast.ops.dropout_add_layer_norm import dropout_add_layer_norm
from electra_fast.ops.ffn_block import ffn_block
from electra_fast.ops.linear import linear

TENSORS = 18  # of a layer


class DecoderStepArguments(NamedTuple):
    """The arguments of `decoder_step`, in the order of the dispatcher op."""

    x: Tensor
    layers: list[Tensor]
    target_pool: Written
    target_table: Tensor
    target_lengths: Tensor
    source_pool: Tensor
    source_table: Tensor
    source_lengths: Tensor
    eps: float


class Paged(NamedTuple):
    """Keys and values of all layers of a decoder, in pages that rows may share."""

    pool: Tensor
    """(L, P, 2, H, page, D / H): for each layer and page the keys of each head, then the values. Where it is not
    contiguous, the CPU copies it at each step."""

    table: Tensor
    """(R, B) int32, the pages of each row in order. Every entry names a page; those beyond a row's length are not
    read."""

    lengths: Tensor
    """(R,) int32, how many keys each row has, from 1 to B * page."""


def decoder_step(x: Tensor, layers: Sequence[Sequence[Tensor]], target: Paged, source: Paged, *, eps: float) -> Tensor:
    """Feed one token of each target through all layers of a decoder, without dropout (formula: decoder_step.py).

    x: (R, D), the embedded tokens, of the dtype of all other floating-point tensors.
    layers: the eighteen tensors of each layer, in the order above.
    target: keys and values of the targets. The lengths count the new tokens, whose keys and values are written here; no
        other row may have the page that a row writes to.
    source: those of each row's source.
    eps: the number that each LayerNorm adds to the variance.

    Returns (R, D).

    Raises RuntimeError if a gradient is asked for or the tensors are on several devices, TypeError if dtypes differ,
    ValueError if a shape does not fit, and on the CPU IndexError for a page that is not there and ValueError for a
    length outside 1 to B * page.

    Cost: for few rows the time to read all weights, keys and values once.

    Source: Vaswani et al., NeurIPS 2017, section 3 (the layers); Kwon et al., SOSP 2023 (the pages).
    """
    flat = [t for layer in layers for t in layer]
    named = dict(x=x, target_pool=target.pool, source_pool=source.pool)
    numbers = dict(target_table=target.table, target_lengths=target.lengths)
    numbers |= dict(source_table=source.table, source_lengths=source.lengths)
    check_devices("decoder_step", **named, **numbers, **{f"w{i}": t for i, t in enumerate(flat)})
    if torch.is_grad_enabled() and any(t.requires_grad for t in (x, *flat)):
        raise RuntimeError("decoder_step: it has no gradients; call it under torch.inference_mode() or torch.no_grad()")
    args = DecoderStepArguments(x, flat, *target, *source, float(eps))
    _check_shapes(args)
    return _decoder_step(*args)


def _check_shapes(args: DecoderStepArguments) -> None:
    name, x = "decoder_step", args.x
    check_matrix(name, x=x)
    check_floats(name, x=x, target_pool=args.target_pool, source_pool=args.source_pool)
    rows, width = x.shape
    depth, left = divmod(len(args.layers), TENSORS)
    if left:
        raise ValueError(f"{name}: there are {len(args.layers)} tensors of layers; {TENSORS} are needed for each layer")
    for kind, pool, table, lengths in (
        ("target", args.target_pool, args.target_table, args.target_lengths),
        ("source", args.source_pool, args.source_table, args.source_lengths),
    ):
        if pool.dim() != 6 or 0 in pool.shape[3:]:
            raise ValueError(
                f"{name}: {kind}_pool has shape {tuple(pool.shape)}; (layers, pages, 2, heads, tokens, head dim) is "
                f"needed"
            )
        heads, _, head_dim = pool.shape[3:]
        check_shape(name, f"{kind}_pool", pool, depth, pool.shape[1], 2, heads, args.target_pool.shape[4], head_dim)
        if heads * head_dim != width:
            raise ValueError(f"{name}: {kind}_pool has {heads} heads of {head_dim}, and x is {width} wide")
        if table.dim() != 2:
            raise ValueError(f"{name}: {kind}_table has shape {tuple(table.shape)}; (rows, blocks) is needed")
        check_integers(name, torch.int32, **{f"{kind}_table": table, f"{kind}_lengths": lengths})
        check_shape(name, f"{kind}_table", table, rows, table.shape[1])
        check_shape(name, f"{kind}_lengths", lengths, rows)
    check_shape(name, "source_pool", args.source_pool, *args.target_pool.shape[:1], *args.source_pool.shape[1:3],
                *args.target_pool.shape[3:])  # fmt: skip
    for i in range(depth):
        tensors = args.layers[TENSORS * i : TENSORS * (i + 1)]
        check_floats(name, x=x, **{f"layers[{i}][{j}]": t for j, t in enumerate(tensors)})
        inner = tensors[12].shape[0]
        square, vector = (width, width), (width,)
        attention = [(3 * width, width), (3 * width,), square, vector, vector, vector]
        cross = [square, vector, square, vector, vector, vector]
        ffn = [(inner, width), (inner,), (width, inner), vector, vector, vector]
        for j, (tensor, shape) in enumerate(zip(tensors, (*attention, *cross, *ffn), strict=True)):
            if tensor.shape != shape:
                check_shape(name, f"layers[{i}][{j}]", tensor, *shape)


def _check(args: DecoderStepArguments) -> None:
    """Raises on a page or a length from which the core would compute a wrong address."""
    _check_shapes(args)
    for kind, pool, table, lengths in (
        ("target", args.target_pool, args.target_table, args.target_lengths),
        ("source", args.source_pool, args.source_table, args.source_lengths),
    ):
        check_ids("decoder_step", f"{kind}_table", table.flatten(), pool.shape[1], "cache", "it has no such page")
        counts, room = lengths.tolist(), table.shape[1] * pool.shape[4]
        if counts and not (min(counts) >= 1 and max(counts) <= room):
            at = next(i for i, count in enumerate(counts) if not 1 <= count <= room)
            raise ValueError(
                f"decoder_step: {kind}_lengths[{at}] is {counts[at]}; 1 to {room} is allowed, the tokens of "
                f"{table.shape[1]} pages of {pool.shape[4]}"
            )


def decoder_step_reference(args: DecoderStepArguments) -> Tensor:
    """The formula by the ops of its parts, which on CUDA are Triton's."""
    x, (_, _, _, heads, page, width) = args.x, args.target_pool.shape
    rows = torch.arange(x.shape[0], device=x.device)
    place = args.target_lengths.long() - 1
    at, slot = args.target_table.long().gather(1, (place // page)[:, None])[:, 0], place % page

    def attend(query: Tensor, pages: Tensor, table: Tensor, lengths: Tensor) -> Tensor:
        keys, values = (pages[:, i].transpose(1, 2) for i in (0, 1))
        return decode_attention(query, keys, values, table, lengths).flatten(1)

    def close(read: Tensor, weights: list[Tensor], x: Tensor) -> Tensor:
        return dropout_add_layer_norm(linear(read, *weights[:2]), x, *weights[2:], eps=args.eps)

    for i in range(len(args.layers) // TENSORS):
        tensors = args.layers[TENSORS * i : TENSORS * (i + 1)]
        qkv = linear(x, *tensors[:2]).unflatten(1, (3, heads, width))
        pages = args.target_pool[i]
        pages[at, :, :, slot] = qkv[:, 1:]
        read = attend(qkv[:, 0], pages, args.target_table, args.target_lengths)
        x = close(read, tensors[2:6], x)
        query = linear(x, *tensors[6:8]).unflatten(1, (heads, width))
        read = attend(query, args.source_pool[i], args.source_table, args.source_lengths)
        x = close(read, tensors[8:12], x)
        up, up_bias, down, down_bias, norm, norm_bias = tensors[12:]
        x = ffn_block(x, up, up_bias, down, down_bias, norm, norm_bias, rows, eps=args.eps)
    return x.clone() if x is args.x else x


def _on_cpu(args: DecoderStepArguments) -> Tensor:
    out = args.x.contiguous().clone() if not args.layers else torch.empty_like(args.x.contiguous())
    weights = [t.contiguous() for t in args.layers]
    target, source = args.target_pool.contiguous(), args.source_pool.contiguous()
    depth, _, _, heads, page, _ = target.shape
    if args.x.shape[0] and depth:
        step = DecoderStep(
            Rows.of(args.x),
            torch.arange(args.x.shape[0]),
            PagedLayers.of(target, args.target_table, args.target_lengths),
            PagedLayers.of(source, args.source_table, args.source_lengths),
            depth,
            heads,
            weights[12].shape[0],
            page,
            args.eps,
        )
        core.decoder_step(step, addresses(weights), out, torch.get_num_threads())
        if target is not args.target_pool:
            args.target_pool.copy_(target)
    return out


_decoder_step = define(
    "decoder_step",
    DecoderStepArguments,
    "Tensor",
    reference=decoder_step_reference,
    fake=lambda args: torch.empty_like(args.x, memory_format=torch.contiguous_format),
    cpu=_on_cpu,
    cuda=decoder_step_reference,
    check=_check,
)
