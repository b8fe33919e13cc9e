"""The forward of a transformers ElectraModel on this package's ops, with the parameters of its own modules.

If the model's head does not read the hidden states at padding, only the real tokens are computed, packed, and the
hidden states at padding are 0. Otherwise every column is computed, as in transformers: padding attends to the real
tokens, and no token attends to padding.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_outputs import BaseModelOutputWithPastAndCrossAttentions

from electra_fast import ops
from electra_fast.data.batch import Batch
from electra_fast.ops._cu_seqlens import cu_seqlens_of
from electra_fast.ops._philox import derive_seeds


@dataclass
class Keys:
    """The real tokens, whose keys and values all columns attend to, padding included."""

    rows: Tensor  # (K,) int64: indices into the batch's rows
    cu_seqlens: Tensor  # (N + 1,) int32
    max_seqlen: int

    @classmethod
    def of(cls, keep: Tensor) -> Keys:
        """The keys of a batch in which keep (B, S) is True at real tokens."""
        lengths = keep.sum(1)
        cu_seqlens = cu_seqlens_of(lengths)
        return cls(keep.flatten().nonzero().squeeze(1), cu_seqlens, int(lengths.max()))


def encode(model: Any, arguments: dict[str, Any], reads_padding: bool) -> Any:
    """Compute what ElectraModel.forward returns: last_hidden_state (B, S, D), and hidden_states if they are asked for.

    model: the accelerated ElectraModel.
    arguments: the arguments of its forward by name.
    reads_padding: whether the model's head reads the hidden states at padding.

    Raises ValueError if there are more columns than positions, and on the CPU IndexError for an id outside its table.
    """
    config, ids, mask = model.config, arguments["input_ids"], arguments.get("attention_mask")
    wants_states = arguments.get("output_hidden_states", getattr(config, "output_hidden_states", False))
    limit = model.embeddings.position_embeddings.num_embeddings
    if arguments.get("position_ids") is None and ids.shape[1] > limit:
        raise ValueError(f"input_ids have {ids.shape[1]} columns, the model has {limit} positions; cut them to {limit}")
    keep = None if mask is None else mask != 0
    if keep is not None and bool(keep.all()):
        keep = None
    packed = keep is not None and not reads_padding and not wants_states
    batch = Batch.from_padded(ids, keep if packed else None, arguments.get("token_type_ids"))
    seeds = _seeds(model, ids.device)
    x = _embedded(model, batch, arguments.get("position_ids"), keep if packed else None, seeds)
    if model.embeddings.word_embeddings._forward_hooks and torch.is_grad_enabled() and not x.requires_grad:
        x.requires_grad_()  # enable_input_require_grads: reentrant checkpoints over frozen embeddings need it
    keys = None if keep is None or packed else Keys.of(keep)
    states = [x]
    if keys is None and not wants_states and (numbers := _alike(model)) is not None:
        layers = [_tensors(layer) for layer in model.encoder.layer]
        offsets, heads = (batch.cu_seqlens, batch.max_seqlen, batch.row_ids), config.num_attention_heads
        states.append(ops.encoder(x, layers, *offsets, num_heads=heads, **numbers, seeds=seeds[1:]))
    else:
        for i, layer in enumerate(model.encoder.layer):
            function = partial(_layer, layer, batch, keys, seeds[1 + 2 * i : 3 + 2 * i])
            if _checkpoints(layer):
                function = partial(layer._gradient_checkpointing_func, function)
            states.append(function(states[-1]))
    shape = *ids.shape, config.hidden_size
    output = BaseModelOutputWithPastAndCrossAttentions(
        last_hidden_state=batch.pad(states[-1]) if packed else states[-1].view(shape),
        hidden_states=tuple(state.view(shape) for state in states) if wants_states else None,
    )
    return output if arguments.get("return_dict", getattr(config, "return_dict", True)) else output.to_tuple()


def _embedded(model: Any, batch: Batch, places: Tensor | None, keep: Tensor | None, seeds: Tensor) -> Tensor:
    """The packed embeddings (T, D) of a batch.

    places: position_ids of the call, (1, S) or (B, S); by default each token's column.
    keep: (B, S) bool, the tokens that the batch was packed of, or None for all.
    seeds: the first of them is that of the dropout.
    """
    tables, projection = model.embeddings, getattr(model, "embeddings_project", None)
    if places is None:
        positions = batch.position_ids
    else:
        every = places.expand(len(batch), batch.width)
        positions = (every.flatten() if keep is None else every[keep]).long()
    words = tables.word_embeddings
    word, frozen = words.weight, words.padding_idx
    if frozen is not None and torch.is_grad_enabled() and bool((batch.input_ids == frozen).any()):
        word = _WithoutRow.apply(word, frozen)
    return ops.embedding(
        batch.input_ids,
        batch.token_type_ids,
        positions,
        word,
        tables.position_embeddings.weight,
        tables.token_type_embeddings.weight,
        tables.LayerNorm.weight,
        tables.LayerNorm.bias,
        None if projection is None else projection.weight,
        None if projection is None else projection.bias,
        row_ids=batch.row_ids,
        eps=tables.LayerNorm.eps,
        dropout_p=_p(tables.dropout),
        seed=seeds[0:1],
    )


class _WithoutRow(torch.autograd.Function):
    """The table itself, but with a gradient of 0 for row `index`, as nn.Embedding has for its padding_idx."""

    @staticmethod
    def forward(ctx: Any, table: Tensor, index: int) -> Tensor:
        ctx.index = index
        return table.view_as(table)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        return grads[0].index_fill(0, torch.tensor([ctx.index], device=grads[0].device), 0.0), None


def _layer(layer: Any, batch: Batch, keys: Keys | None, seeds: Tensor, x: Tensor) -> Tensor:
    """One layer, composed of linear, attention, dropout_add_layer_norm and ffn_block.

    layer: an ElectraLayer.
    keys: the rows that all others attend to; all rows of their sequence if None.
    seeds: (2,) int64, for the attention block and the FFN block.
    x: (T, D).

    Returns (T, D).
    """
    qkv, qkv_bias, out, out_bias, _, _, up, up_bias, down, down_bias, weight, bias = _tensors(layer)
    attention = layer.attention
    projected = ops.linear(x, qkv, qkv_bias).unflatten(1, (3, attention.self.num_attention_heads, -1))
    q, k, v = projected.unbind(1)
    first, second = seeds.split(1)
    offsets: dict[str, Any] = dict(cu_seqlens=batch.cu_seqlens, max_seqlen=batch.max_seqlen)
    if keys is not None:
        k, v = k[keys.rows], v[keys.rows]
        offsets |= dict(cu_seqlens_k=keys.cu_seqlens, max_seqlen_k=keys.max_seqlen)
    read = ops.attention(q, k, v, **offsets, dropout_p=_attention_p(layer), seed=first, row_ids=batch.row_ids)
    norm, rows = attention.output.LayerNorm, batch.row_ids
    projected = ops.linear(read.flatten(1), out, out_bias)
    numbers: dict[str, Any] = dict(eps=norm.eps, dropout_p=_p(attention.output.dropout), seed=first)
    x = ops.dropout_add_layer_norm(projected, x, norm.weight, norm.bias, rows, **numbers)
    numbers = dict(eps=layer.output.LayerNorm.eps, dropout_p=_p(layer.output.dropout), seed=second)
    return ops.ffn_block(x, up, up_bias, down, down_bias, weight, bias, rows, **numbers)


def _tensors(layer: Any) -> list[Tensor]:
    """The twelve tensors of a layer as ops.encoder takes them.

    To join the query, key and value projections, and to split their gradients, takes 1.4 of the 670 ms that a step of
    ELECTRA-Small takes on 16 x 128 tokens on two cores.
    """
    projections = [getattr(layer.attention.self, name) for name in ("query", "key", "value")]
    ends = (layer.attention.output.dense, layer.attention.output.LayerNorm)
    ffn = (layer.intermediate.dense, layer.output.dense, layer.output.LayerNorm)
    joined = [torch.cat([m.weight for m in projections]), torch.cat([m.bias for m in projections])]
    return joined + [t for m in (*ends, *ffn) for t in (m.weight, m.bias)]


def _alike(model: Any) -> dict[str, Any] | None:
    """The numbers that ops.encoder takes for all layers, or None if the layers differ in one, or are checkpointed."""
    layers = model.encoder.layer
    if not len(layers) or any(_checkpoints(layer) for layer in layers):
        return None
    eps = {norm.eps for layer in layers for norm in (layer.attention.output.LayerNorm, layer.output.LayerNorm)}
    hidden = {_p(end.dropout) for layer in layers for end in (layer.attention.output, layer.output)}
    attention = {_attention_p(layer) for layer in layers}
    if any(len(values) > 1 for values in (eps, hidden, attention)):
        return None
    return dict(eps=eps.pop(), attention_dropout_p=attention.pop(), dropout_p=hidden.pop())


def _checkpoints(layer: Any) -> bool:
    """Whether transformers computes the layer again in the backward, to save memory (gradient checkpointing)."""
    return layer.gradient_checkpointing and layer.training and torch.is_grad_enabled()


def _p(dropout: nn.Dropout) -> float:
    """The probability with which the module drops an element now: 0 in evaluation mode."""
    return dropout.p if dropout.training else 0.0


def _attention_p(layer: Any) -> float:
    attention = layer.attention.self
    return attention.dropout.p if attention.training else 0.0


def _seeds(model: Any, device: torch.device) -> Tensor:
    """Seeds (1 + 2 L,) int64, all derived from one number of torch's generator. In evaluation mode none is drawn."""
    drawn = torch.randint(2**62, (1,)) if model.training else torch.zeros(1, dtype=torch.int64)
    seed = drawn.to(device)
    return derive_seeds(seed, torch.zeros_like(seed), 0, 1 + 2 * len(model.encoder.layer))
