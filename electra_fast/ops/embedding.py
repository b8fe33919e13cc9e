"""embedding: y = P dropout(LayerNorm(word[id] + position[place] + token_type[type])), P only where widths differ.

ids, types, places (T,) int64; word (V, E), position (P, E), token_type (2, E), LayerNorm weight and bias (E,),
projection (D, E) and (D,) or None -> (T, D), or (T, E). Dropout is keyed by row_ids (_philox.py, plane 0) and comes
before the projection, as in Google's code. Cost: 3 T E elements gathered, 2 T E D flops. The C++ saves
the normalised rows xhat (T, E), 1 / deviation rstd (T,) and, where there is a projection, its input (T, E).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

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
from electra_fast.ops._library import Backend, DifferentiableOp, launcher
from electra_fast.ops._philox import dropout_reference, dropout_threshold
from electra_fast.ops.linear import linear_cpu


def embedding(
    input_ids: Tensor,
    token_type_ids: Tensor,
    position_ids: Tensor,
    word: Tensor,
    position: Tensor,
    token_type: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    projection_weight: Tensor | None,
    projection_bias: Tensor | None,
    row_ids: Tensor,
    eps: float = 1e-12,
    dropout_p: float = 0.0,
    seed: int | Tensor = 0,
) -> Tensor:
    """ids (T,) int64 thrice, tables (V, E), (P, E), (types, E), norm (E,) twice, projection (D, E), (D,) -> (T, D).

    Raises IndexError naming the first id outside its table (on the CPU; on a GPU the loader checks), TypeError on mixed
    dtypes, ValueError on shapes or a dropout_p outside [0, 1], RuntimeError on mixed devices.
    """
    name = "embedding"
    check_matrix(name, word=word)
    width = word.shape[1]
    ids = dict(input_ids=input_ids, token_type_ids=token_type_ids, position_ids=position_ids)
    tables = dict(word=word, position=position, token_type=token_type)
    vectors = dict(norm_weight=norm_weight, norm_bias=norm_bias)
    projection = dict(projection_weight=projection_weight, projection_bias=projection_bias)
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
    for (label, tensor), table in zip(ids.items(), (word, token_type, position), strict=True):
        check_ids(name, label, tensor, table.shape[0])
    p = check_probability(name, "dropout_p", dropout_p)
    seed = seed_tensor(name, seed, word.device)
    arguments = (*ids.values(), *tables.values(), *vectors.values(), *projection.values())
    return _embedding(*arguments, row_ids, seed, float(eps), p)


def embedding_reference(
    input_ids: Tensor,
    token_type_ids: Tensor,
    position_ids: Tensor,
    word: Tensor,
    position: Tensor,
    token_type: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    projection_weight: Tensor | None,
    projection_bias: Tensor | None,
    row_ids: Tensor,
    seed: Tensor,
    eps: float,
    dropout_p: float,
) -> Tensor:
    x = F.embedding(input_ids, word) + F.embedding(position_ids, position) + F.embedding(token_type_ids, token_type)
    x = F.layer_norm(x, norm_weight.shape, norm_weight, norm_bias, eps)
    x = dropout_reference(x, dropout_p, seed, row_ids)
    return x if projection_weight is None else F.linear(x, projection_weight, projection_bias)


def _forward_cpu(
    input_ids: Tensor,
    token_type_ids: Tensor,
    position_ids: Tensor,
    word: Tensor,
    position: Tensor,
    token_type: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    projection_weight: Tensor | None,
    projection_bias: Tensor | None,
    row_ids: Tensor,
    seed: Tensor,
    eps: float,
    dropout_p: float,
) -> tuple[Tensor, list[Tensor]]:
    ids, tables = (input_ids, token_type_ids, position_ids), (word, position, token_type)
    given = [t.contiguous() for t in (*ids, *tables, norm_weight, norm_bias, row_ids)]
    rows, width = input_ids.shape[0], word.shape[1]
    out, xhat, rstd = word.new_empty(rows, width), word.new_empty(rows, width), word.new_empty(rows)
    core.embedding_fwd(
        *(t.data_ptr() for t in given),
        rows,
        width,
        seed.item(),
        eps,
        dropout_threshold(dropout_p),
        *(t.data_ptr() for t in (out, xhat, rstd)),
        torch.get_num_threads(),
    )
    if projection_weight is None:
        return out, [xhat, rstd]
    return linear_cpu.fwd(out, projection_weight, projection_bias, False)[0], [xhat, rstd, out]


def _backward_cpu(
    grads: list[Tensor],
    input_ids: Tensor,
    token_type_ids: Tensor,
    position_ids: Tensor,
    word: Tensor,
    position: Tensor,
    token_type: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    projection_weight: Tensor | None,
    projection_bias: Tensor | None,
    row_ids: Tensor,
    seed: Tensor,
    eps: float,
    dropout_p: float,
    saved: list[Tensor],
) -> list[Tensor]:
    dout, projected = grads[0], []
    if projection_weight is not None:
        dout, *projected = linear_cpu.bwd(grads, saved[-1], projection_weight, projection_bias, False, [])
    ids = (input_ids, token_type_ids, position_ids)
    given = [t.contiguous() for t in (dout, *saved[1:3], norm_weight, row_ids, *ids)]
    found = [t.new_empty(t.shape) for t in (word, position, token_type, norm_weight, norm_bias)]
    core.embedding_bwd(
        *(t.data_ptr() for t in given),
        *dout.shape,
        *(t.shape[0] for t in (word, position, token_type)),
        seed.item(),
        dropout_threshold(dropout_p),
        *(t.data_ptr() for t in found),
        torch.get_num_threads(),
    )
    return found + projected


def _saves(input_ids: Tensor, *args: Tensor) -> list[Tensor]:
    word, projection_weight, rows = args[2], args[7], input_ids.shape[0]
    xhat = word.new_empty(rows, word.shape[1])
    return [xhat, word.new_empty(rows)] + ([] if projection_weight is None else [torch.empty_like(xhat)])


def _saves_cuda(input_ids: Tensor, *args: Tensor) -> list[Tensor]:
    word, projection_weight, rows = args[2], args[7], input_ids.shape[0]
    statistics = [word.new_empty(rows, dtype=torch.float32) for _ in range(2)]
    return statistics + ([] if projection_weight is None else [word.new_empty(rows, word.shape[1])])


def _fake(input_ids: Tensor, *args: Tensor) -> tuple[Tensor]:
    word, projection_weight = args[2], args[7]
    width = word.shape[1] if projection_weight is None else projection_weight.shape[0]
    return (word.new_empty(input_ids.shape[0], width),)


_embedding = DifferentiableOp(
    "embedding",
    "Tensor input_ids, Tensor token_type_ids, Tensor position_ids, Tensor word, Tensor position, Tensor token_type, "
    "Tensor norm_weight, Tensor norm_bias, Tensor? projection_weight, Tensor? projection_bias, Tensor row_ids, "
    "Tensor seed, float eps, float dropout_p",
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
    cuda=Backend(
        launcher("embedding", "embedding_fwd"),
        launcher("embedding", "embedding_bwd"),
        saves=_saves_cuda,
        takes=lambda *args: args[3].shape[1] <= 4096,
        limit="rows up to 4096 wide",
    ),
)
