"""The arguments of each op in a model's training, as the op's NamedTuple: random, and the same each time."""

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
LIMIT = 0xD9999999  # of masking's words: 85 of 100 are hidden


@dataclass
class Given:
    """Where an op stands, and what makes its tensors; on the meta device they are shapes alone."""

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
        """Matrices that make rows near 1 of rows near 1."""
        kind = dict(device=self.device, dtype=dtype or self.dtype)
        if self.device == "meta":
            return [torch.empty(shape, **kind) for shape in shapes]
        made = (torch.randn(shape, generator=self.source) for shape in shapes)
        return [(t / t.shape[1] ** 0.5 if i and t.dim() == 2 else t).to(**kind) for i, t in enumerate(made)]

    def integers(self, high: int, count: int) -> Tensor:
        if self.device == "meta":
            return torch.empty(count, dtype=torch.int64, device="meta")
        return torch.randint(high, (count,), generator=self.source).to(self.device)

    def offsets(self, a_sequence: int) -> Tensor:
        return (torch.arange(self.sequences + 1, dtype=torch.int32) * a_sequence).to(self.device)

    @property
    def seed(self) -> Tensor:
        return torch.full((1,), 3, dtype=torch.int64, device=self.device)

    @property
    def row_ids(self) -> Tensor:
        return torch.arange(self.tokens, device=self.device)

    @property
    def slots(self) -> int:
        """Masked positions of a sequence."""
        return int(count_slots(torch.tensor([self.length]), self.config.mask_prob)[1])

    @property
    def masked(self) -> int:
        return self.sequences * self.slots


def linear(given: Given) -> Iterator[LinearArguments]:
    width, inner, embedded = given.network.hidden_size, given.network.intermediate_size, given.network.embedding_size
    shapes = [(width, 3 * width, False), (width, width, False), (width, inner, True), (inner, width, False)]
    for k, n, gelu in [*shapes, (embedded, width, False), (width, embedded, True)]:
        yield LinearArguments(*given.floats((given.tokens, k), (n, k), (n,)), gelu)


def attention(given: Given) -> Iterator[AttentionArguments]:
    """Every token is a query; for the generator also the masked positions alone, as in its last layer."""
    network, cu = given.network, given.offsets(given.length)
    heads = network.num_attention_heads, network.head_dim
    q, packed, asking = given.floats((given.tokens, *heads), (given.tokens, 2, *heads), (given.masked, *heads))
    k, v, rest = *packed.unbind(1), (given.seed, network.head_dim**-0.5, P)
    yield AttentionArguments(q, k, v, cu, given.length, cu, given.length, given.row_ids, *rest)
    if given.part == "generator":
        ids = given.row_ids[: given.masked]
        offsets = (given.offsets(given.slots), given.slots, cu, given.length)
        yield AttentionArguments(asking, k, v, *offsets, ids, *rest)


def attention_block(given: Given) -> Iterator[AttentionBlockArguments]:
    width, heads = given.network.hidden_size, given.network.num_attention_heads
    shapes = (given.tokens, width), (3 * width, width), (3 * width,), (width, width), (width,), (width,), (width,)
    asking = (given.row_ids, heads, None, None, 0, given.seed)
    sequences = (given.offsets(given.length), given.length)
    yield AttentionBlockArguments(*given.floats(*shapes), *sequences, *asking, EPS, P, P)


def ffn_block(given: Given) -> Iterator[FfnBlockArguments]:
    width, inner = given.network.hidden_size, given.network.intermediate_size
    shapes = (given.tokens, width), (inner, width), (inner,), (width, inner), (width,), (width,), (width,)
    yield FfnBlockArguments(*given.floats(*shapes), given.row_ids, given.seed, EPS, P)


def dropout_add_layer_norm(given: Given) -> Iterator[DropoutAddLayerNormArguments]:
    width = given.network.hidden_size
    rows, x, weight, bias = given.floats((given.tokens, width), (given.tokens, width), (width,), (width,))
    yield DropoutAddLayerNormArguments(x, rows, weight, bias, given.row_ids, given.seed, EPS, P)


def embedding(given: Given) -> Iterator[EmbeddingArguments]:
    network = given.network
    width, outer, longest = network.embedding_size, network.hidden_size, network.max_position_embeddings
    tables = given.floats((network.vocab_size, width), (longest, width), (2, width), (width,), (width,))
    projection = [None, None] if width == outer else given.floats((outer, width), (outer,))
    ids, types = (given.integers(high, given.tokens) for high in (network.vocab_size, 2))
    places = given.row_ids % given.length
    yield EmbeddingArguments(ids, types, places, *tables, *projection, given.row_ids, given.seed, EPS, P)


def generator_head(given: Given) -> Iterator[GeneratorHeadArguments]:
    rows, words, width = given.masked, given.network.vocab_size, given.network.embedding_size
    if given.part == "generator":
        labels, ids = given.integers(words, rows), given.row_ids[:rows]
        floats = given.floats((rows, width), (words, width), (words,))
        yield GeneratorHeadArguments(*floats, labels, ids, given.seed, 1.0, False)


def discriminator_head(given: Given) -> Iterator[DiscriminatorHeadArguments]:
    width = given.network.hidden_size
    if given.part == "discriminator":
        floats = given.floats((given.tokens, width), (width, width), (width,), (1, width), (1,))
        yield DiscriminatorHeadArguments(*floats, given.integers(2, given.tokens).bool())


def masking(given: Given) -> Iterator[MaskingArguments]:
    if given.part == "generator":
        ids, cu, special = given.integers(given.config.vocab_size, given.tokens), given.offsets(given.length), [0, 101]
        slots, count = given.offsets(given.slots), given.masked
        rule = (special, 103, LIMIT, given.config.faithful, given.seed)
        yield MaskingArguments(ids, cu, slots, count, given.row_ids, *rule)


def corrupt(given: Given) -> Iterator[CorruptArguments]:
    if given.part == "generator":
        words, count = given.config.vocab_size, given.masked
        positions = given.row_ids[:: max(1, given.tokens // count)][:count]
        ids, labels, sampled = (given.integers(words, n) for n in (given.tokens, count, count))
        yield CorruptArguments(ids, positions, labels, sampled, given.config.faithful)


def adamw(given: Given) -> Iterator[AdamWArguments]:
    network = given.network
    width, inner = network.hidden_size, network.intermediate_size
    layer = (3 * width, width), (3 * width,), (width, width), (width,), (inner, width), (inner,), (width, inner)
    shapes = [(network.vocab_size, network.embedding_size), *(network.num_hidden_layers * layer)]
    params, grads, averages = (given.floats(*shapes) for _ in range(3))
    (one,) = given.floats((1,), dtype=torch.float32)
    lists = params, grads, averages, [t * t for t in averages]
    numbers = [1.0] * len(shapes), [0.01] * len(shapes)
    yield AdamWArguments(*lists, one.abs() * 1e-3, *numbers, 0.9, 0.999, 1e-6, 1.0, one, [])


OPS: dict[str, Callable[[Given], Iterator[Any]]] = {
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
