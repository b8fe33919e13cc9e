"""The structs that the compiled core takes: each has the fields of the struct of csrc/arguments.h, in the same order.

A pointer there is a tensor here, or None for a null pointer. The tensor must be contiguous, except in Heads. The core
keeps it alive until it returns.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor


class Rows(NamedTuple):
    """A matrix (length, width), row after row."""

    data: Tensor
    length: int
    width: int

    @classmethod
    def of(cls, x: Tensor) -> Rows:
        x = x.contiguous()
        return cls(x, *x.shape)


class Affine(NamedTuple):
    """The weight and bias of a linear layer or a LayerNorm, or their gradients."""

    weight: Tensor
    bias: Tensor

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor) -> Affine:
        return cls(weight.contiguous(), bias.contiguous())


class Normed(NamedTuple):
    """What a LayerNorm saves for its backward."""

    xhat: Tensor  # (rows, D): the normalised rows
    rstd: Tensor  # (rows,): 1 / standard deviation of each


class Dropout(NamedTuple):
    """A dropout: an element is set to 0 if its random byte lies below the threshold, of 0 (never) to 256 (always)."""

    row_ids: Tensor  # (rows,) int64
    seed: int
    threshold: int

    @classmethod
    def of(cls, row_ids: Tensor, seed: Tensor, p: float) -> Dropout:
        return cls(row_ids.contiguous(), seed.item(), dropout_threshold(p))  # type: ignore[arg-type]  # an integer


class Heads(NamedTuple):
    """A tensor (tokens, H, D) of any strides, except that the numbers of one head lie side by side."""

    data: Tensor
    token: int  # elements from one token to the next
    head: int  # elements from one head to the next

    @classmethod
    def of(cls, x: Tensor) -> Heads:
        x = x if x.stride(2) == 1 else x.contiguous()
        return cls(x, x.stride(0), x.stride(1))


class Sequences(NamedTuple):
    """Offsets: sequence n has the queries queries[n] to queries[n + 1], and the keys keys[n] to keys[n + 1]."""

    queries: Tensor  # (N + 1,) int32
    keys: Tensor  # (N + 1,) int32
    N: int

    @classmethod
    def of(cls, queries: Tensor, keys: Tensor) -> Sequences:
        return cls(queries.contiguous(), keys.contiguous(), keys.shape[0] - 1)


class Attention(NamedTuple):
    """The arguments of attention."""

    q: Heads
    k: Heads
    v: Heads
    sequences: Sequences
    H: int
    D: int
    scale: float
    dropout: Dropout
    causal: bool  # a sequence's last query sees all keys, each query before it one less than the next


class Pages(NamedTuple):
    """Keys or values in pages, (pages, tokens, H, D) of any strides, except that the numbers of one head lie side by
    side."""

    data: Tensor
    page: int  # elements from one page to the next
    token: int  # elements from one token to the next
    head: int  # elements from one head to the next

    @classmethod
    def of(cls, x: Tensor) -> Pages:
        x = x if x.stride(3) == 1 else x.contiguous()
        return cls(x, *x.stride()[:3])


class Cache(NamedTuple):
    """The keys and values of N sequences in pages."""

    k: Pages
    v: Pages
    table: Tensor  # (N, blocks) int32: the pages of each sequence in order
    lengths: Tensor  # (N,) int32: how many keys each has
    N: int
    blocks: int
    tokens: int  # of a page
    H: int
    D: int


class AttentionWeights(NamedTuple):
    """An attention block's parameters, or their gradients."""

    qkv: Affine  # (3 D, D) and (3 D,)
    out: Affine  # (D, D) and (D,)
    norm: Affine  # (D,) twice


class AttentionKept(NamedTuple):
    """What an attention block saves for its backward."""

    queries: Tensor  # (R, D)
    keys_values: Tensor  # (T, 2 D): in each row its keys, then its values
    read: Tensor  # (R, D): the output of attention, before the output projection
    lse: Tensor  # (R, H): the log-sum-exp of each query's scores
    norm: Normed


class AttentionBlock(NamedTuple):
    """The arguments of an attention block but its weights. Both dropouts are keyed by the queries' row ids."""

    x: Rows  # (T, D)
    queries: Rows  # (R, D): x itself, or some of its rows
    sequences: Sequences
    H: int
    dropout: Dropout
    attention_threshold: int


class FfnWeights(NamedTuple):
    """An FFN block's parameters, or their gradients."""

    up: Affine  # (F, D) and (F,)
    down: Affine  # (D, F) and (D,)
    norm: Affine  # (D,) twice


class FfnKept(NamedTuple):
    """What an FFN block saves for its backward."""

    inner: Tensor | None  # (T, F): the GELU's argument; None if no backward follows
    norm: Normed


class Queries(NamedTuple):
    """The rows that are queries in an encoder's last layer; all of them if offsets is None."""

    rows: Tensor | None  # (R,) int64
    row_ids: Tensor | None  # (R,) int64
    offsets: Tensor | None  # (N + 1,) int32
    R: int


class Encoder(NamedTuple):
    """The arguments of an encoder but its layers' weights."""

    x: Rows  # (T, D)
    cu_seqlens: Tensor
    row_ids: Tensor
    seeds: Tensor  # (2 L,) int64: for each layer that of its attention block and that of its FFN block
    last: Queries
    L: int
    N: int
    H: int
    F: int
    eps: float
    attention_threshold: int
    threshold: int


class PagedLayers(NamedTuple):
    """The keys and values of all layers in pages."""

    data: Tensor  # (L, pages, 2, H, tokens, D / H)
    pages: int
    table: Tensor  # (R, blocks) int32: the pages of each row in order
    lengths: Tensor  # (R,) int32: how many keys each has
    blocks: int

    @classmethod
    def of(cls, pool: Tensor, table: Tensor, lengths: Tensor) -> PagedLayers:
        return cls(pool, pool.shape[1], table.contiguous(), lengths.contiguous(), table.shape[1])


class DecoderStep(NamedTuple):
    """The arguments of a step of decoding but its layers' weights."""

    x: Rows  # (R, D)
    row_ids: Tensor  # (R,) int64, of a dropout that drops nothing
    target: PagedLayers  # with the new tokens' places, which the step fills
    source: PagedLayers
    L: int
    H: int
    F: int
    tokens: int  # of a page
    eps: float


class Tokens(NamedTuple):
    """The ids of tokens: for each token a row of each embedding table."""

    input_ids: Tensor  # (T,) int64, as the others
    token_type_ids: Tensor
    position_ids: Tensor
    T: int


class Tables(NamedTuple):
    """The embedding tables, or their gradients."""

    word: Tensor  # (V, E)
    position: Tensor  # (P, E)
    token_type: Tensor  # (types, E)
    V: int
    P: int
    types: int
    E: int

    @classmethod
    def of(cls, word: Tensor, position: Tensor, token_type: Tensor) -> Tables:
        tables = word.contiguous(), position.contiguous(), token_type.contiguous()
        return cls(*tables, word.shape[0], position.shape[0], token_type.shape[0], word.shape[1])


class DiscriminatorWeights(NamedTuple):
    """The discriminator head's parameters, or their gradients."""

    dense: Affine  # (D, D) and (D,)
    out: Affine  # (1, D) and (1,)


class Sampling(NamedTuple):
    """How the generator's head samples a word for each row."""

    row_ids: Tensor  # (M,) int64
    seed: int
    temperature: float
    disallow_correct: bool


class Text(NamedTuple):
    """The tokens of N packed sequences."""

    ids: Tensor  # (T,) int64
    row_ids: Tensor  # (T,) int64
    T: int
    cu_seqlens: Tensor  # (N + 1,) int32
    N: int


class MaskingRule(NamedTuple):
    """How tokens are chosen and hidden; those with a special id are never chosen."""

    special_ids: Tensor  # (specials,) int64
    specials: int
    mask_id: int
    replace_threshold: int
    faithful: bool
    seed: int


class Masked(NamedTuple):
    """The results of masking, which the core writes."""

    ids: Tensor  # (T,) int64
    positions: Tensor  # (M,) int64, as the others
    labels: Tensor
    sample_rows: Tensor


class Slots(NamedTuple):
    """Prediction slots, and the generator's sample in each."""

    positions: Tensor  # (M,) int64, as the others
    labels: Tensor
    sampled_ids: Tensor
    M: int


class AdamW(NamedTuple):
    """The settings of an optimiser step that all parameters share."""

    beta1: float
    beta2: float
    eps: float
    max_grad_norm: float


def dropout_threshold(p: float) -> int:
    """The threshold of a dropout with probability p: an element is dropped if its random byte is below round(256 p)."""
    return round(256 * p)


def addresses(tensors: Sequence[Tensor | None]) -> array[int]:
    """The addresses of tensors, which the core reads as an array of structs of pointers. The caller keeps the tensors
    alive; None becomes a null pointer."""
    return array("q", [0 if t is None else t.data_ptr() for t in tensors])
