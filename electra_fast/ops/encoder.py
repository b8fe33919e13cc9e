"""encoder: the layers of a network one after the other, each an attention_block and an ffn_block.

x (T, D) and twelve tensors a layer -> (T, D). With `rows` (R,) the last layer's queries come from these rows alone, and
the result is (R, D). One op for all layers: at ELECTRA-Small's size what happens between two blocks, in Python and
PyTorch, costs the CPU a twentieth of a step; and on CUDA the rows between two blocks need not be kept, as the backward
makes them again from what went into the norm before. Elsewhere it is its blocks, each with its own gradient.
Cost: that of the blocks.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from electra_fast.ops._check import (
    check_asking,
    check_devices,
    check_floats,
    check_integers,
    check_matrix,
    check_probability,
    check_shape,
)
from electra_fast.ops._core import core
from electra_fast.ops._library import LIBRARY, Backend, DifferentiableOp, backends, launcher, refuse_transforms
from electra_fast.ops._philox import dropout_threshold
from electra_fast.ops.attention_block import _attention_block, attention_block_reference
from electra_fast.ops.attention_block import _saves_cuda as _attention_saves
from electra_fast.ops.ffn_block import _ffn_block, ffn_block_reference
from electra_fast.ops.ffn_block import _saves_cuda as _ffn_saves

ATTENTION = ("qkv_weight", "qkv_bias", "out_weight", "out_bias", "attention_norm_weight", "attention_norm_bias")
FFN = ("up_weight", "up_bias", "down_weight", "down_bias", "ffn_norm_weight", "ffn_norm_bias")
INNER = 7  # where `_kept` has the GELU's argument


def encoder(
    x: Tensor,
    layers: Sequence[Sequence[Tensor]],
    cu_seqlens: Tensor,
    max_seqlen: int,
    row_ids: Tensor,
    num_heads: int,
    rows: Tensor | None = None,
    cu_rows: Tensor | None = None,
    max_rows: int | None = None,
    eps: float = 1e-12,
    attention_dropout_p: float = 0.0,
    dropout_p: float = 0.0,
    seeds: Tensor | None = None,
) -> Tensor:
    """x (T, D), of each layer the tensors that ATTENTION and FFN name, row_ids (T,) int64 -> (T, D).

    A layer is qkv (3 D, D) and (3 D,), out (D, D) and (D,), norm (D,) twice, up (F, D) and (F,), down (D, F) and (D,),
    norm (D,) twice. rows (R,) int64, cu_rows (N + 1,) int32 and max_rows are as attention_block takes them, for the
    last layer -> (R, D). seeds (2 L,) int64: of each layer, its attention_block's and its ffn_block's; 0 if not given.
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
    inner = layers[0][6].shape[0] if layers[0][6].dim() else 0
    for i, layer in enumerate(layers):
        shapes = [(3 * width, width), (3 * width,), (width, width), *[(width,)] * 3]
        shapes += [(inner, width), (inner,), (width, inner), *[(width,)] * 3]
        for label, tensor, shape in zip(ATTENTION + FFN, layer, shapes, strict=True):
            check_shape(name, f"layers[{i}] {label}", tensor, *shape)
    check_shape(name, "seeds", seeds, 2 * len(layers))
    check_asking(name, x, cu_seqlens, max_seqlen, row_ids, num_heads, rows, cu_rows, max_rows)
    refuse_transforms(name, (x, flat))
    return torch.ops.electra_fast.encoder(
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


def blocks(
    layers: Sequence[Tensor],
    cu_seqlens: Tensor,
    max_seqlen: int,
    row_ids: Tensor,
    num_heads: int,
    rows: Tensor | None,
    cu_rows: Tensor | None,
    max_rows: int,
    seeds: Tensor,
    eps: float,
    attention_dropout_p: float,
    dropout_p: float,
) -> Iterator[tuple[tuple[Any, ...], tuple[Any, ...]]]:
    """Of each layer, what its attention_block and its ffn_block are given besides the rows."""
    width, keys = len(ATTENTION + FFN), seeds.split(1)
    for at in range(0, len(layers), width):
        asking: tuple[Any, ...] = (None, None, 0)
        ids = row_ids
        if rows is not None and at + width == len(layers):
            asking, ids = (rows, cu_rows, max_rows), row_ids[rows]
        layer, (first, second) = layers[at : at + width], keys[2 * (at // width) :][:2]
        numbers = (eps, attention_dropout_p, dropout_p)
        yield (
            (*layer[:6], cu_seqlens, max_seqlen, row_ids, num_heads, *asking, first, *numbers),
            (*layer[6:], ids, second, eps, dropout_p),
        )


def encoder_reference(x: Tensor, *arguments: Any) -> Tensor:
    for attention, ffn in blocks(*arguments):
        x = ffn_block_reference(attention_block_reference(x, *attention), *ffn)
    return x


def _fake(x: Tensor, *args: Any) -> tuple[Tensor]:
    rows = args[5]
    return (x.new_empty((x if rows is None else rows).shape[0], x.shape[1]),)


def _kept(x: Tensor, layers: Sequence[Tensor], num_heads: int, asking: int) -> list[Tensor]:
    """What a layer makes when `asking` rows ask: the rows between its blocks; queries, keys and values, what was read,
    its log-sum-exps, rows normalised and what each was divided by, inverted; the same of the FFN after the GELU's
    argument; the rows that come out."""
    total, width = x.shape
    wide = (asking, width)
    attention = wide, wide, (total, 2 * width), wide, (asking, num_heads), wide, (asking,)
    ffn = (asking, layers[6].shape[0]), wide, (asking,), wide
    return [x.new_empty(shape) for shape in (*attention, *ffn)]


def _saves(x: Tensor, layers: Sequence[Tensor], *arguments: Any) -> list[Tensor]:
    """What each layer makes, but for what comes out of the last: that is the output."""
    num_heads, rows = arguments[3], arguments[4]
    count = len(layers) // len(ATTENTION + FFN)
    whole = [t for _ in range(count - 1) for t in _kept(x, layers, num_heads, x.shape[0])]
    return [*whole, *_kept(x, layers, num_heads, (x if rows is None else rows).shape[0])[:-1]]


def _addresses(tensors: Sequence[Tensor | None]) -> array[int]:
    return array("q", [0 if t is None else t.data_ptr() for t in tensors])


def _shared(
    x: Tensor,
    layers: Sequence[Tensor],
    cu_seqlens: Tensor,
    max_seqlen: int,
    row_ids: Tensor,
    num_heads: int,
    rows: Tensor | None,
    cu_rows: Tensor | None,
    max_rows: int,
    seeds: Tensor,
) -> tuple[list[Tensor | None], list[int]]:
    """What the core's forward and backward are given alike: tensors, then sizes."""
    fewer = (None, None, None) if rows is None else (rows, cu_rows, row_ids[rows])
    tensors = [t if t is None else t.contiguous() for t in (cu_seqlens, row_ids, *fewer, seeds)]
    sizes = [len(layers) // len(ATTENTION + FFN), cu_seqlens.numel() - 1, (x if rows is None else rows).shape[0]]
    return tensors, [*sizes, x.shape[0], num_heads, x.shape[1], layers[6].shape[0]]


def _run(kept: Sequence[Tensor | None], *args: Any) -> None:
    """The core's forward, into what is kept."""
    x, layers, *arguments, eps, attention_dropout_p, dropout_p = args
    tensors, sizes = _shared(x, layers, *arguments)
    rows, held = x.contiguous(), [t.contiguous() for t in layers]
    arrays = _addresses(held), _addresses(kept)
    core.encoder_fwd(
        rows.data_ptr(),
        *(numbers.buffer_info()[0] for numbers in arrays),
        *_addresses(tensors),
        *sizes,
        eps,
        dropout_threshold(attention_dropout_p),
        dropout_threshold(dropout_p),
        torch.get_num_threads(),
    )


def _forward_cpu(*args: Any) -> tuple[Tensor, list[Tensor]]:
    out, saved = _fake(*args)[0], _saves(*args)
    _run([*saved, out], *args)
    return out, saved


def _infer_cpu(*args: Any) -> Tensor:
    """In the memory of one layer, but that what comes out of one goes into the next."""
    x, layers, num_heads = args[0], args[1], args[5]
    *made, even = _kept(x, layers, num_heads, x.shape[0])
    odd, out = torch.empty_like(even), _fake(*args)[0]
    depth = len(layers) // len(ATTENTION + FFN)
    whole = [t for i in range(depth) for t in (*made[:INNER], None, *made[INNER + 1 :], (even, odd)[i % 2])]
    _run([*whole[:-1], out], *args)
    return out


def _backward_cpu(grads: list[Tensor], *args: Any) -> list[Tensor]:
    x, layers, *arguments, _eps, attention_dropout_p, dropout_p, (out, *saved) = args
    tensors, sizes = _shared(x, layers, *arguments)
    rows, held = x.contiguous(), [t.contiguous() for t in layers]
    dx, found = x.new_empty(x.shape), [torch.empty_like(t) for t in held]
    arrays = _addresses(held), _addresses([*saved, out]), _addresses(found)
    core.encoder_bwd(
        grads[0].data_ptr(),
        rows.data_ptr(),
        *(numbers.buffer_info()[0] for numbers in arrays),
        *_addresses(tensors),
        *sizes,
        dropout_threshold(attention_dropout_p),
        dropout_threshold(dropout_p),
        dx.data_ptr(),
        torch.get_num_threads(),
    )
    return [dx, *found]


def _forward_cuda(x: Tensor, *arguments: Any) -> tuple[Tensor, list[Tensor]]:
    return launcher("encoder", "encoder_fwd")(x, list(blocks(*arguments)))


def _backward_cuda(grads: list[Tensor], x: Tensor, *rest: Any) -> list[Tensor]:
    *arguments, saved = rest
    return launcher("encoder", "encoder_bwd")(grads, x, list(blocks(*arguments)), saved)


def _infer_cuda(x: Tensor, *arguments: Any) -> Tensor:
    """In the memory of one layer."""
    for attention, ffn in blocks(*arguments):
        x, _ = launcher("attention_block", "attention_block_fwd")(x, *attention)
        x, _ = launcher("ffn_block", "ffn_block_fwd")(x, *ffn)
    return x


def _saves_cuda(x: Tensor, *arguments: Any) -> list[Tensor]:
    """What the blocks save; of the last layer, where only some rows ask, its x too if that is not the encoder's."""
    saved: list[Tensor] = []
    for attention, ffn in blocks(*arguments):
        kept = _attention_saves(x, *attention)
        saved += kept if not saved or attention[10] is None else [*kept, x]
        x = kept[0]
        saved += _ffn_saves(x, *ffn)
    return saved


def _composed(x: Tensor, *arguments: Any) -> Tensor:
    for attention, ffn in blocks(*arguments):
        x = _ffn_block(_attention_block(x, *attention), *ffn)
    return x


def _on_cuda(*args: Any) -> Tensor:
    """In one where the kernels take it; else a block that they take is one still."""
    return (_encoder if _encoder._on_triton(args) else _composed)(*args)


SCHEMA = (
    "Tensor x, Tensor[] layers, Tensor cu_seqlens, SymInt max_seqlen, Tensor row_ids, int num_heads, Tensor? rows, "
    "Tensor? cu_rows, SymInt max_rows, Tensor seeds, float eps, float attention_dropout_p, float dropout_p"
)
_encoder = DifferentiableOp(
    "encoder",
    SCHEMA,
    outputs=("out",),
    differentiable=("x", "layers"),
    reference=encoder_reference,
    fake=_fake,
    cpu=Backend(_forward_cpu, _backward_cpu, _saves, infer=_infer_cpu),
    cuda=Backend(
        _forward_cuda,
        _backward_cuda,
        saves=_saves_cuda,
        infer=_infer_cuda,
        takes=lambda x, *args: x.shape[1] <= min(4096, 128 * args[4]),
        limit="rows up to 4096 wide and heads up to 128",
    ),
)
LIBRARY.define(f"encoder({SCHEMA}) -> Tensor")
LIBRARY.impl("encoder", _composed, "CompositeImplicitAutograd")
for key in ("CPU", "AutogradCPU"):
    LIBRARY.impl("encoder", _encoder, key)
for key in ("CUDA", "AutogradCUDA", "AutogradMeta"):  # meta tensors are counted as CUDA's
    LIBRARY.impl("encoder", _on_cuda, key)
said = backends["encoder_fwd"]
backends["encoder"] = said | dict(cuda=said["cuda"].replace("the reference", "its blocks"))
