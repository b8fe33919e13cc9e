"""The structs that the compiled core takes, field by field those of csrc/arguments.h, and how tensors become them.

A field that is an address there is a tensor here, or None for null. Such a tensor must be contiguous; the core keeps it
alive until it returns.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor


class Rows(NamedTuple):
    """x (length, width)."""

    data: Tensor
    length: int
    width: int

    @classmethod
    def of(cls, x: Tensor) -> Rows:
        x = x.contiguous()
        return cls(x, *x.shape)


class Affine(NamedTuple):
    """The parameters of x W^T + b, or a LayerNorm's weight and bias, or the gradients of either."""

    weight: Tensor
    bias: Tensor

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor) -> Affine:
        return cls(weight.contiguous(), bias.contiguous())


class Normed(NamedTuple):
    """What a LayerNorm keeps of its rows for its backward."""

    xhat: Tensor  # (rows, D): normalised
    rstd: Tensor  # (rows,): 1 / deviation


class Dropout(NamedTuple):
    """Elements whose byte lies below the threshold are dropped; 0 keeps all, 256 drops all."""

    row_ids: Tensor  # (rows,) int64
    seed: int
    threshold: int

    @classmethod
    def of(cls, row_ids: Tensor, seed: Tensor, p: float) -> Dropout:
        return cls(row_ids.contiguous(), seed.item(), dropout_threshold(p))  # type: ignore[arg-type]  # an integer


class Heads(NamedTuple):
    """(tokens, H, D), wherever it lies, as long as the numbers of one head lie side by side."""

    data: Tensor
    token: int  # the distance between tokens
    head: int  # the distance between heads

    @classmethod
    def of(cls, x: Tensor) -> Heads:
        x = x if x.stride(2) == 1 else x.contiguous()
        return cls(x, x.stride(0), x.stride(1))


class Sequences(NamedTuple):
    """Sequence n owns the queries queries[n] to queries[n + 1] and the keys keys[n] to keys[n + 1]."""

    queries: Tensor  # (N + 1,) int32
    keys: Tensor  # (N + 1,) int32
    N: int

    @classmethod
    def of(cls, queries: Tensor, keys: Tensor) -> Sequences:
        return cls(queries.contiguous(), keys.contiguous(), keys.shape[0] - 1)


class Attention(NamedTuple):
    q: Heads
    k: Heads
    v: Heads
    sequences: Sequences
    H: int
    D: int
    scale: float
    dropout: Dropout


class AttentionWeights(NamedTuple):
    """An attention block's parameters, or their gradients."""

    qkv: Affine  # (3 D, D) and (3 D,)
    out: Affine  # (D, D) and (D,)
    norm: Affine  # (D,) twice


class AttentionKept(NamedTuple):
    """What an attention block keeps for its backward."""

    queries: Tensor  # (R, D)
    keys_values: Tensor  # (T, 2 D): the keys and the values of a row side by side
    read: Tensor  # (R, D): what attention read, before the output projection
    lse: Tensor  # (R, H): the log-sum-exp of each query's scores
    norm: Normed


class AttentionBlock(NamedTuple):
    """The rows of an attention block. `dropout` is keyed by the queries' row ids, as is that of the probabilities."""

    x: Rows  # (T, D)
    queries: Rows  # (R, D): x itself or some of its rows
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
    """What an FFN block keeps for its backward."""

    inner: Tensor | None  # (T, F): the GELU's argument; None where no backward follows
    norm: Normed


class Queries(NamedTuple):
    """The rows that are queries in an encoder's last layer; where offsets is None, all."""

    rows: Tensor | None  # (R,) int64
    row_ids: Tensor | None  # (R,) int64
    offsets: Tensor | None  # (N + 1,) int32
    R: int


class Encoder(NamedTuple):
    """All rows and layers of an encoder."""

    x: Rows  # (T, D)
    cu_seqlens: Tensor
    row_ids: Tensor
    seeds: Tensor  # (2 L,) int64: of each layer its attention block's and its FFN block's
    last: Queries
    L: int
    N: int
    H: int
    F: int
    eps: float
    attention_threshold: int
    threshold: int


class Tokens(NamedTuple):
    """The ids of tokens, rows of the embedding tables."""

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
    """How the generator's head samples."""

    row_ids: Tensor  # (M,) int64
    seed: int
    temperature: float
    disallow_correct: bool


class Text(NamedTuple):
    """Packed text."""

    ids: Tensor  # (T,) int64
    row_ids: Tensor  # (T,) int64
    T: int
    cu_seqlens: Tensor  # (N + 1,) int32
    N: int


class MaskingRule(NamedTuple):
    """How tokens are chosen and hidden: never one of the special ids."""

    special_ids: Tensor  # (specials,) int64
    specials: int
    mask_id: int
    replace_threshold: int
    faithful: bool
    seed: int


class Masked(NamedTuple):
    """What masking writes."""

    ids: Tensor  # (T,) int64
    positions: Tensor  # (M,) int64, as the others
    labels: Tensor
    sample_rows: Tensor


class Slots(NamedTuple):
    """Prediction slots with the generator's samples."""

    positions: Tensor  # (M,) int64, as the others
    labels: Tensor
    sampled_ids: Tensor
    M: int


class AdamW(NamedTuple):
    beta1: float
    beta2: float
    eps: float
    max_grad_norm: float


def dropout_threshold(p: float) -> int:
    """The threshold of dropout with probability p: bytes below round(256 p) are dropped."""
    return round(256 * p)


def addresses(tensors: Sequence[Tensor | None]) -> array[int]:
    """An array of structs whose fields are all addresses, one tensor for each field; the caller keeps them alive."""
    return array("q", [0 if t is None else t.data_ptr() for t in tensors])
