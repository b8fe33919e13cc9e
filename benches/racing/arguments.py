"""The arguments of each op, as its NamedTuple, at the shapes it has in a model's training.

The numbers are random and the same each time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from electra_fast.config import ElectraConfig, NetworkConfig
from electra_fast.ops.adamw import AdamWArguments
from electra_fast.ops.attention import AttentionArguments
from electra_fast.ops.attention_block import AttentionBlockArguments
from electra_fast.ops.corrupt import CorruptArguments
from electra_fast.ops.discriminator_head import DiscriminatorHeadArguments
from electra_fast.ops.dropout_add_layer_norm import DropoutAddLayerNormArguments
from electra_fast.ops.embedding import EmbeddingArguments
from electra_fast.ops.ffn_block import FfnBlockArguments
from electra_fast.ops.generator_head import GeneratorHeadArguments
from electra_fast.ops.linear import LinearArguments
from electra_fast.ops.masking import MaskingArguments, count_slots

EPS, P = 1e-12, 0.1
LIMIT = 0xD9999999  # masking hides a token where 32 random bits are below this: 85 of 100


@dataclass
class Inputs:
    """Makes the tensors of an op that is part of a model. On the meta device they have shapes and no memory."""

    model: str
    part: str  # generator or discriminator
    shape: str  # sequences x tokens
    dtype: torch.dtype
    device: str
    source: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))

    @property
    def config(self) -> ElectraConfig:
        return getattr(ElectraConfig, self.model)()

    @property
    def network(self) -> NetworkConfig:
        return getattr(self.config, self.part)

    @property
    def sequences(self) -> int:
        return int(self.shape.split("x")[0])

    @property
    def length(self) -> int:
        return int(self.shape.split("x")[1])

    @property
    def tokens(self) -> int:
        return self.sequences * self.length

    def floats(self, *shapes: tuple[int, ...], dtype: torch.dtype | None = None) -> list[Tensor]:
        """Normally distributed tensors; every matrix but the first is scaled, so that products are near 1."""
        kind = dict(device=self.device, dtype=dtype or self.dtype)
        if self.device == "meta":
            return [torch.empty(shape, **kind) for shape in shapes]
        tensors = (torch.randn(shape, generator=self.source) for shape in shapes)
        return [(t / t.shape[1] ** 0.5 if i and t.dim() == 2 else t).to(**kind) for i, t in enumerate(tensors)]

    def integers(self, high: int, count: int) -> Tensor:
        if self.device == "meta":
            return torch.empty(count, dtype=torch.int64, device="meta")
        return torch.randint(high, (count,), generator=self.source).to(self.device)

    def offsets(self, length: int) -> Tensor:
        """(N + 1,) int32: where each of N sequences of this length begins, and where the last ends."""
        return (torch.arange(self.sequences + 1, dtype=torch.int32) * length).to(self.device)

    @property
    def seed(self) -> Tensor:
        return torch.full((1,), 3, dtype=torch.int64, device=self.device)

    @property
    def row_ids(self) -> Tensor:
        return torch.arange(self.tokens, device=self.device)

    @property
    def slots(self) -> int:
        """The number of masked positions in a sequence."""
        return int(count_slots(torch.tensor([self.length]), self.config.mask_prob)[1])

    @property
    def masked(self) -> int:
        return self.sequences * self.slots


def linear(inputs: Inputs) -> Iterator[LinearArguments]:
    width, inner, embedded = inputs.network.hidden_size, inputs.network.intermediate_size, inputs.network.embedding_size
    shapes = [(width, 3 * width, False), (width, width, False), (width, inner, True), (inner, width, False)]
    for k, n, gelu in [*shapes, (embedded, width, False), (width, embedded, True)]:
        yield LinearArguments(*inputs.floats((inputs.tokens, k), (n, k), (n,)), gelu)


def attention(inputs: Inputs) -> Iterator[AttentionArguments]:
    """Every token is a query; for the generator also the masked positions alone, as in its last layer."""
    network, cu = inputs.network, inputs.offsets(inputs.length)
    heads = network.num_attention_heads, network.head_dim
    q, packed, queries = inputs.floats((inputs.tokens, *heads), (inputs.tokens, 2, *heads), (inputs.masked, *heads))
    k, v, rest = *packed.unbind(1), (inputs.seed, network.head_dim**-0.5, P, False)
    yield AttentionArguments(q, k, v, cu, inputs.length, cu, inputs.length, inputs.row_ids, *rest)
    if inputs.part == "generator":
        ids = inputs.row_ids[: inputs.masked]
        offsets = (inputs.offsets(inputs.slots), inputs.slots, cu, inputs.length)
        yield AttentionArguments(queries, k, v, *offsets, ids, *rest)


def attention_block(inputs: Inputs) -> Iterator[AttentionBlockArguments]:
    width, heads = inputs.network.hidden_size, inputs.network.num_attention_heads
    shapes = (inputs.tokens, width), (3 * width, width), (3 * width,), (width, width), (width,), (width,), (width,)
    sequences = (inputs.offsets(inputs.length), inputs.length)
    every_row = (inputs.row_ids, heads, None, None, 0, inputs.seed)  # each row is a query
    yield AttentionBlockArguments(*inputs.floats(*shapes), *sequences, *every_row, EPS, P, P)


def ffn_block(inputs: Inputs) -> Iterator[FfnBlockArguments]:
    width, inner = inputs.network.hidden_size, inputs.network.intermediate_size
    shapes = (inputs.tokens, width), (inner, width), (inner,), (width, inner), (width,), (width,), (width,)
    yield FfnBlockArguments(*inputs.floats(*shapes), inputs.row_ids, inputs.seed, EPS, P)


def dropout_add_layer_norm(inputs: Inputs) -> Iterator[DropoutAddLayerNormArguments]:
    width = inputs.network.hidden_size
    rows, x, weight, bias = inputs.floats((inputs.tokens, width), (inputs.tokens, width), (width,), (width,))
    yield DropoutAddLayerNormArguments(x, rows, weight, bias, inputs.row_ids, inputs.seed, EPS, P)


def embedding(inputs: Inputs) -> Iterator[EmbeddingArguments]:
    network = inputs.network
    width, outer, longest = network.embedding_size, network.hidden_size, network.max_position_embeddings
    tables = inputs.floats((network.vocab_size, width), (longest, width), (2, width), (width,), (width,))
    projection = [None, None] if width == outer else inputs.floats((outer, width), (outer,))
    ids, types = (inputs.integers(high, inputs.tokens) for high in (network.vocab_size, 2))
    places = inputs.row_ids % inputs.length
    yield EmbeddingArguments(ids, types, places, *tables, *projection, inputs.row_ids, inputs.seed, EPS, P)


def generator_head(inputs: Inputs) -> Iterator[GeneratorHeadArguments]:
    rows, words, width = inputs.masked, inputs.network.vocab_size, inputs.network.embedding_size
    if inputs.part == "generator":
        labels, ids = inputs.integers(words, rows), inputs.row_ids[:rows]
        floats = inputs.floats((rows, width), (words, width), (words,))
        yield GeneratorHeadArguments(*floats, labels, ids, inputs.seed, 1.0, False, 0.0)


def discriminator_head(inputs: Inputs) -> Iterator[DiscriminatorHeadArguments]:
    width = inputs.network.hidden_size
    if inputs.part == "discriminator":
        floats = inputs.floats((inputs.tokens, width), (width, width), (width,), (1, width), (1,))
        yield DiscriminatorHeadArguments(*floats, inputs.integers(2, inputs.tokens).bool())


def masking(inputs: Inputs) -> Iterator[MaskingArguments]:
    if inputs.part == "generator":
        ids, cu, special = (
            inputs.integers(inputs.config.vocab_size, inputs.tokens),
            inputs.offsets(inputs.length),
            [0, 101],
        )
        slots, count = inputs.offsets(inputs.slots), inputs.masked
        rule = (special, 103, LIMIT, inputs.config.faithful, inputs.seed)
        yield MaskingArguments(ids, cu, slots, count, inputs.row_ids, *rule)


def corrupt(inputs: Inputs) -> Iterator[CorruptArguments]:
    if inputs.part == "generator":
        words, count = inputs.config.vocab_size, inputs.masked
        positions = inputs.row_ids[:: max(1, inputs.tokens // count)][:count]
        ids, labels, sampled = (inputs.integers(words, n) for n in (inputs.tokens, count, count))
        yield CorruptArguments(ids, positions, labels, sampled, inputs.config.faithful)


def adamw(inputs: Inputs) -> Iterator[AdamWArguments]:
    network = inputs.network
    width, inner = network.hidden_size, network.intermediate_size
    layer = (3 * width, width), (3 * width,), (width, width), (width,), (inner, width), (inner,), (width, inner)
    shapes = [(network.vocab_size, network.embedding_size), *(network.num_hidden_layers * layer)]
    params, grads, averages = (inputs.floats(*shapes) for _ in range(3))
    (one,) = inputs.floats((1,), dtype=torch.float32)
    lists = params, grads, averages, [t * t for t in averages]
    numbers = [1.0] * len(shapes), [0.01] * len(shapes)
    yield AdamWArguments(*lists, one.abs() * 1e-3, *numbers, 0.9, 0.999, 1e-6, 1.0, one, [])


OPS: dict[str, Callable[[Inputs], Iterator[Any]]] = {
    op.__name__: op
    for op in (
        attention,
        attention_block,
        adamw,
        corrupt,
        discriminator_head,
        dropout_add_layer_norm,
        embedding,
        ffn_block,
        generator_head,
        linear,
        masking,
    )
}
