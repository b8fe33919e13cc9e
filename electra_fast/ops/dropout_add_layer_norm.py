"""dropout_add_layer_norm: y = LayerNorm(residual + dropout(x)), the end of each half of a post-LN layer.

x, residual (T, D), weight, bias (D,) -> (T, D); mean and variance over D, variance biased (Ba et al., 2016).
Dropout is keyed by row_ids (_philox.py, plane 0). Cost: about 8 T D flops; 3 T D elements moved forward. The C++
saves what its backward reads in place of x and residual, the normalised rows xhat (T, D) and 1 / deviation rstd (T,).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from electra_fast.ops._check import (
    check_devices,
    check_floats,
    check_integers,
    check_matrix,
    check_probability,
    check_shape,
    seed_tensor,
)
from electra_fast.ops._core import core
from electra_fast.ops._library import Backend, DifferentiableOp, launcher
from electra_fast.ops._philox import dropout_reference, dropout_threshold


def dropout_add_layer_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    row_ids: Tensor | None = None,
    eps: float = 1e-12,
    dropout_p: float = 0.0,
    seed: int | Tensor = 0,
) -> Tensor:
    """LayerNorm(residual + dropout(x)): x, residual (T, D), weight, bias (D,), row_ids (T,) int64 -> (T, D).

    row_ids key the dropout; without them the rows count from 0. Raises TypeError on mixed dtypes, ValueError on shapes
    or a dropout_p outside [0, 1], RuntimeError on mixed devices.
    """
    name = "dropout_add_layer_norm"
    check_matrix(name, x=x)
    row_ids = torch.arange(x.shape[0], device=x.device) if row_ids is None else row_ids
    check_devices(name, x=x, residual=residual, weight=weight, bias=bias, row_ids=row_ids)
    check_floats(name, x=x, residual=residual, weight=weight, bias=bias)
    check_integers(name, torch.int64, row_ids=row_ids)
    check_shape(name, "residual", residual, *x.shape)
    for label, tensor, size in (("weight", weight, 1), ("bias", bias, 1), ("row_ids", row_ids, 0)):
        check_shape(name, label, tensor, x.shape[size])
    p = check_probability(name, "dropout_p", dropout_p)
    return _dropout_add_layer_norm(x, residual, weight, bias, row_ids, seed_tensor(name, seed, x.device), eps, p)


def dropout_add_layer_norm_reference(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    row_ids: Tensor,
    seed: Tensor,
    eps: float,
    dropout_p: float,
) -> Tensor:
    return F.layer_norm(residual + dropout_reference(x, dropout_p, seed, row_ids), weight.shape, weight, bias, eps)


def _run(out: Tensor, xhat: Tensor, rstd: Tensor, *args: Any) -> None:
    """The core's forward; xhat may be out."""
    *tensors, seed, eps, dropout_p = args
    given = [t.contiguous() for t in tensors]
    core.dropout_add_layer_norm_fwd(
        *(t.data_ptr() for t in given),
        *out.shape,
        seed.item(),
        eps,
        dropout_threshold(dropout_p),
        *(t.data_ptr() for t in (out, xhat, rstd)),
        torch.get_num_threads(),
    )


def _forward_cpu(x: Tensor, *args: Any) -> tuple[Tensor, list[Tensor]]:
    out, saved = x.new_empty(x.shape), _saved(x)
    _run(out, *saved, x, *args)
    return out, saved


def _infer_cpu(x: Tensor, *args: Any) -> Tensor:
    out = x.new_empty(x.shape)
    _run(out, out, x.new_empty(x.shape[0]), x, *args)
    return out


def _backward_cpu(
    grads: list[Tensor],
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    row_ids: Tensor,
    seed: Tensor,
    eps: float,
    dropout_p: float,
    saved: list[Tensor],
) -> list[Tensor]:
    _, xhat, rstd = saved
    given = [t.contiguous() for t in (grads[0], xhat, rstd, weight, row_ids)]
    found = [t.new_empty(t.shape) for t in (x, residual, weight, bias)]
    core.dropout_add_layer_norm_bwd(
        *(t.data_ptr() for t in given),
        *x.shape,
        seed.item(),
        dropout_threshold(dropout_p),
        *(t.data_ptr() for t in found),
        torch.get_num_threads(),
    )
    return found


def _saved(x: Tensor, *_: object) -> list[Tensor]:
    """Room for xhat and rstd."""
    return [x.new_empty(x.shape), x.new_empty(x.shape[0])]


_dropout_add_layer_norm = DifferentiableOp(
    "dropout_add_layer_norm",
    "Tensor x, Tensor residual, Tensor weight, Tensor bias, Tensor row_ids, Tensor seed, float eps, float dropout_p",
    outputs=("out",),
    differentiable=("x", "residual", "weight", "bias"),
    reference=dropout_add_layer_norm_reference,
    fake=lambda x, *_: (torch.empty_like(x, memory_format=torch.contiguous_format),),
    cpu=Backend(_forward_cpu, _backward_cpu, _saved, infer=_infer_cpu),
    cuda=Backend(
        launcher("dropout_add_layer_norm", "dropout_add_layer_norm_fwd"),
        launcher("dropout_add_layer_norm", "dropout_add_layer_norm_bwd"),
        saves=lambda x, *_: [x.new_empty(x.shape[0], dtype=torch.float32) for _ in range(2)],
        takes=lambda x, *_: x.shape[1] <= 4096,
        limit="rows up to 4096 wide",
    ),
)
