"""embedding: y = P dropout(LayerNorm(word[id] + position[place] + token_type[type])), with P optional.

As in Google's code, dropout comes before the projection. Its random bytes are keyed by row_ids (_philox.py, plane 0).
C++ saves the normalised rows xhat (T, E), 1 / standard deviation rstd (T,) and, with a projection, its input (T, E).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from electra_fast.ops._backend import Backend, triton_backend
from electra_fast.ops._check import (
    check_devices,
    check_floats,
    check_ids,
    check_integers,
    check_matrix,
    check_probability,
    check_shape,
    seed_tensor,
)
from electra_fast.ops._core import core
from electra_fast.ops._differentiable import DifferentiableOp
from electra_fast.ops._philox import dropout_reference
from electra_fast.ops._structs import Affine, Dropout, Normed, Tables, Tokens
from electra_fast.ops.linear import LinearArguments, linear_cpu


class EmbeddingArguments(NamedTuple):
    """The arguments of `embedding`, in the order of the dispatcher op."""

    input_ids: Tensor
    token_type_ids: Tensor
    position_ids: Tensor
    word: Tensor
    position: Tensor
    token_type: Tensor
    norm_weight: Tensor
    norm_bias: Tensor
    projection_weight: Tensor | None
    projection_bias: Tensor | None
    row_ids: Tensor
    seed: Tensor
    eps: float
    dropout_p: float


def embedding(
    input_ids: Tensor,
    token_type_ids: Tensor,
    position_ids: Tensor,
    word: Tensor,
    position: Tensor,
    token_type: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    projection_weight: Tensor | None = None,
    projection_bias: Tensor | None = None,
    *,
    row_ids: Tensor,
    eps: float = 1e-12,
    dropout_p: float = 0.0,
    seed: int | Tensor = 0,
) -> Tensor:
    """The embeddings of tokens: the LayerNorm of the sum of three table rows, then dropout and an optional projection
    P.

        P dropout(LayerNorm(word[input_ids] + position[position_ids] + token_type[token_type_ids]))

    input_ids, token_type_ids, position_ids: (T,) int64, rows of the tables.
    word, position, token_type: (V, E), (P, E) and (types, E), of a floating-point dtype that all weights have.
    norm_weight, norm_bias: (E,), those of the LayerNorm.
    projection_weight, projection_bias: (D, E) and (D,), the linear layer P; both None for no projection.
    row_ids: (T,) int64, the ids of the rows, by which dropout's random numbers are keyed.
    eps: the number that the LayerNorm adds to the variance.
    dropout_p: the probability with which an element of a normalised row is set to 0, rounded to 1/256.
    seed: of dropout, an int of 64 bits or a one-element int64 tensor.

    Returns (T, D), or (T, E) without a projection.

    Raises TypeError if the dtypes differ, ValueError if a shape does not fit or dropout_p lies outside [0, 1],
    RuntimeError if the tensors are on several devices, and on the CPU IndexError for the first id outside its table. A
    GPU does not check ids, since that would wait for the device; the loader of a corpus does.

    Cost: 3 T E elements gathered, and 2 T E D flops with a projection.

    Source: Devlin et al., NAACL 2019 (BERT); google-research/electra, model/modeling.py.
    """
    name = "embedding"
    check_matrix(name, word=word)
    width = word.shape[1]
    ids: dict[str, Any] = dict(input_ids=input_ids, token_type_ids=token_type_ids, position_ids=position_ids)
    tables: dict[str, Any] = dict(word=word, position=position, token_type=token_type)
    vectors: dict[str, Any] = dict(norm_weight=norm_weight, norm_bias=norm_bias)
    projection: dict[str, Any] = dict(projection_weight=projection_weight, projection_bias=projection_bias)
    check_devices(name, **ids, **tables, **vectors, **projection, row_ids=row_ids)
    check_integers(name, torch.int64, **ids, row_ids=row_ids)
    floats = {label: t for label, t in {**tables, **vectors, **projection}.items() if t is not None}
    check_floats(name, **floats)
    for label, tensor in {**ids, "row_ids": row_ids}.items():
        check_shape(name, label, tensor, input_ids.numel())
    for label, tensor in tables.items():
        check_shape(name, label, tensor, tensor.shape[0], width)
    for label, tensor in vectors.items():
        check_shape(name, label, tensor, width)
    if (projection_weight is None) != (projection_bias is None):
        raise ValueError(f"{name}: projection_weight and projection_bias come together; give both or neither")
    if projection_weight is not None and projection_bias is not None:
        check_shape(name, "projection_weight", projection_weight, projection_bias.numel(), width)
        check_shape(name, "projection_bias", projection_bias, projection_bias.numel())
    p = check_probability(name, "dropout_p", dropout_p)
    seed = seed_tensor(name, seed, word.device)
    tensors = (*ids.values(), *tables.values(), *vectors.values(), *projection.values())
    return _embedding(EmbeddingArguments._make((*tensors, row_ids, seed, float(eps), p)))


def embedding_reference(args: EmbeddingArguments) -> Tensor:
    x = F.embedding(args.input_ids, args.word) + F.embedding(args.position_ids, args.position)
    x = x + F.embedding(args.token_type_ids, args.token_type)
    x = F.layer_norm(x, args.norm_weight.shape, args.norm_weight, args.norm_bias, args.eps)
    x = dropout_reference(x, args.dropout_p, args.seed, args.row_ids)
    return x if args.projection_weight is None else F.linear(x, args.projection_weight, args.projection_bias)


def _projection(args: EmbeddingArguments, x: Tensor) -> LinearArguments:
    """The linear layer that projects x (T, E)."""
    assert args.projection_weight is not None and args.projection_bias is not None
    return LinearArguments(x, args.projection_weight, args.projection_bias, gelu=False)


def _check(args: EmbeddingArguments) -> None:
    ids = dict(input_ids=args.input_ids, token_type_ids=args.token_type_ids, position_ids=args.position_ids)
    check_integers("embedding", torch.int64, **ids, row_ids=args.row_ids)
    for (name, tensor), table in zip(ids.items(), (args.word, args.token_type, args.position), strict=True):
        check_shape("embedding", name, tensor, *args.row_ids.shape)
        check_ids("embedding", name, tensor, table.shape[0])


def _tokens(args: EmbeddingArguments) -> Tokens:
    input_ids, token_type_ids = args.input_ids.contiguous(), args.token_type_ids.contiguous()
    return Tokens(input_ids, token_type_ids, args.position_ids.contiguous(), input_ids.shape[0])


def _forward_cpu(args: EmbeddingArguments) -> tuple[Tensor, list[Tensor]]:
    rows, width, new = args.input_ids.shape[0], args.word.shape[1], args.word.new_empty
    out, kept = new(rows, width), Normed(new(rows, width), new(rows))
    tables, norm = Tables.of(args.word, args.position, args.token_type), Affine.of(args.norm_weight, args.norm_bias)
    rule = (args.eps, Dropout.of(args.row_ids, args.seed, args.dropout_p))
    core.embedding_fwd(_tokens(args), tables, norm, *rule, out, kept, torch.get_num_threads())
    if args.projection_weight is None:
        return out, [*kept]
    return linear_cpu.fwd(_projection(args, out))[0], [*kept, out]


def _backward_cpu(grads: list[Tensor], args: EmbeddingArguments, saved: list[Tensor]) -> list[Tensor]:
    out, xhat, rstd, *projected = (t.contiguous() for t in saved)
    dout, dprojection = grads[0], []
    if projected:
        dout, *dprojection = linear_cpu.bwd(grads, _projection(args, *projected), [out])
    *tables, dweight, dbias = [
        t.new_empty(t.shape) for t in (args.word, args.position, args.token_type, args.norm_weight, args.norm_bias)
    ]
    dropout = Dropout.of(args.row_ids, args.seed, args.dropout_p)
    read = (dout.contiguous(), _tokens(args), args.norm_weight.contiguous(), dropout, Normed(xhat, rstd))
    core.embedding_bwd(*read, Tables.of(*tables), Affine(dweight, dbias), torch.get_num_threads())
    return [*tables, dweight, dbias, *dprojection]


def _saves(args: EmbeddingArguments) -> list[Tensor]:
    rows, width = args.input_ids.shape[0], args.word.shape[1]
    projected = [] if args.projection_weight is None else [args.word.new_empty(rows, width)]
    return [args.word.new_empty(rows, width), args.word.new_empty(rows), *projected]


def _saves_cuda(args: EmbeddingArguments) -> list[Tensor]:
    """The LayerNorm's mean and 1 / standard deviation (T,), and the input (T, E) of the projection, if there is one."""
    rows, width = args.input_ids.shape[0], args.word.shape[1]
    projected = [] if args.projection_weight is None else [args.word.new_empty(rows, width)]
    return [*(args.word.new_empty(rows, dtype=torch.float32) for _ in range(2)), *projected]


def _fake(args: EmbeddingArguments) -> tuple[Tensor]:
    width = args.word.shape[1] if args.projection_weight is None else args.projection_weight.shape[0]
    return (args.word.new_empty(args.input_ids.shape[0], width),)


_embedding = DifferentiableOp(
    "embedding",
    EmbeddingArguments,
    outputs=("out",),
    differentiable=(
        "word",
        "position",
        "token_type",
        "norm_weight",
        "norm_bias",
        "projection_weight",
        "projection_bias",
    ),
    reference=embedding_reference,
    fake=_fake,
    cpu=Backend(_forward_cpu, _backward_cpu, _saves),
    cuda=triton_backend(
        ("embedding", "embedding_fwd"),
        ("embedding", "embedding_bwd"),
        saves=_saves_cuda,
        takes=lambda args: args.word.shape[1] <= 4096,
        limit="rows up to 4096 wide",
    ),
    check=_check,
)
