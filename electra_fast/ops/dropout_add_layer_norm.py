"""dropout_add_layer_norm: y = LayerNorm(residual + dropout(x)), the last operation of both blocks of a post-LN layer.

Mean and variance are taken over D; the variance is the biased one. The random bytes of dropout are keyed by row_ids
(_philox.py, plane 0). C++ saves the normalised rows xhat (T, D) and 1 / standard deviation rstd (T,), which its
backward reads in place of x and residual.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from electra_fast.ops._backend import Backend, triton_backend
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
from electra_fast.ops._differentiable import DifferentiableOp
from electra_fast.ops._philox import dropout_reference
from electra_fast.ops._structs import Affine, Dropout, Normed, Rows


class DropoutAddLayerNormArguments(NamedTuple):
    """The arguments of `dropout_add_layer_norm`, in the order of the dispatcher op."""

    x: Tensor
    residual: Tensor
    weight: Tensor
    bias: Tensor
    row_ids: Tensor
    seed: Tensor
    eps: float
    dropout_p: float


def dropout_add_layer_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    bias: Tensor,
    row_ids: Tensor | None = None,
    *,
    eps: float = 1e-12,
    dropout_p: float = 0.0,
    seed: int | Tensor = 0,
) -> Tensor:
    """Dropout, residual connection and LayerNorm of rows: LayerNorm(residual + dropout(x)).

    x, residual: (T, D), of a floating-point dtype that all four tensors have.
    weight, bias: (D,), those of the LayerNorm.
    row_ids: (T,) int64, the ids of the rows, by which dropout's random numbers are keyed; 0 to T - 1 by default.
    eps: the number added to the variance.
    dropout_p: the probability with which an element of x is set to 0, rounded to 1/256.
    seed: of dropout, an int of 64 bits or a one-element int64 tensor.

    Returns (T, D).

    Raises TypeError if the dtypes differ, ValueError if a shape does not fit or dropout_p lies outside [0, 1],
    RuntimeError if the tensors are on several devices.

    Cost: about 8 T D flops; the forward moves 3 T D elements.

    Source: Ba et al., 2016 (layer normalisation); Srivastava et al., JMLR 2014 (dropout).
    """
    name = "dropout_add_layer_norm"
    check_matrix(name, x=x)
    row_ids = torch.arange(x.shape[0], device=x.device) if row_ids is None else row_ids
    check_devices(name, x=x, residual=residual, weight=weight, bias=bias, row_ids=row_ids)
    check_floats(name, x=x, residual=residual, weight=weight, bias=bias)
    check_integers(name, torch.int64, row_ids=row_ids)
    rows, width = x.shape
    check_shape(name, "residual", residual, rows, width)
    for label, tensor, size in (("weight", weight, width), ("bias", bias, width), ("row_ids", row_ids, rows)):
        check_shape(name, label, tensor, size)
    p = check_probability(name, "dropout_p", dropout_p)
    seed = seed_tensor(name, seed, x.device)
    return _dropout_add_layer_norm(DropoutAddLayerNormArguments(x, residual, weight, bias, row_ids, seed, eps, p))


def dropout_add_layer_norm_reference(args: DropoutAddLayerNormArguments) -> Tensor:
    summed = args.residual + dropout_reference(args.x, args.dropout_p, args.seed, args.row_ids)
    return F.layer_norm(summed, args.weight.shape, args.weight, args.bias, args.eps)


def _run(args: DropoutAddLayerNormArguments, out: Tensor, kept: Normed) -> None:
    """Run the core's forward, which writes out and kept. kept.xhat may be out itself, if no backward follows."""
    dropout = Dropout.of(args.row_ids, args.seed, args.dropout_p)
    x, residual, norm = Rows.of(args.x), args.residual.contiguous(), Affine.of(args.weight, args.bias)
    core.dropout_add_layer_norm_fwd(x, residual, norm, args.eps, dropout, out, kept, torch.get_num_threads())


def _forward_cpu(args: DropoutAddLayerNormArguments) -> tuple[Tensor, list[Tensor]]:
    out, saved = args.x.new_empty(args.x.shape), _saves(args)
    _run(args, out, saved)
    return out, list(saved)


def _infer_cpu(args: DropoutAddLayerNormArguments) -> Tensor:
    out = args.x.new_empty(args.x.shape)
    _run(args, out, Normed(out, args.x.new_empty(args.x.shape[0])))
    return out


def _backward_cpu(grads: list[Tensor], args: DropoutAddLayerNormArguments, saved: list[Tensor]) -> list[Tensor]:
    _out, *kept = (t.contiguous() for t in saved)
    dropout = Dropout.of(args.row_ids, args.seed, args.dropout_p)
    dx, dresidual, *dnorm = [t.new_empty(t.shape) for t in (args.x, args.residual, args.weight, args.bias)]
    read = (Rows.of(grads[0]), args.weight.contiguous(), dropout, Normed(*kept))
    core.dropout_add_layer_norm_bwd(*read, dx, dresidual, Affine(*dnorm), torch.get_num_threads())
    return [dx, dresidual, *dnorm]


def _saves(args: DropoutAddLayerNormArguments) -> Normed:
    return Normed(args.x.new_empty(args.x.shape), args.x.new_empty(args.x.shape[0]))


_dropout_add_layer_norm = DifferentiableOp(
    "dropout_add_layer_norm",
    DropoutAddLayerNormArguments,
    outputs=("out",),
    differentiable=("x", "residual", "weight", "bias"),
    reference=dropout_add_layer_norm_reference,
    fake=lambda args: (torch.empty_like(args.x, memory_format=torch.contiguous_format),),
    cpu=Backend(_forward_cpu, _backward_cpu, _saves, infer=_infer_cpu),
    cuda=triton_backend(
        ("dropout_add_layer_norm", "dropout_add_layer_norm_fwd"),
        ("dropout_add_layer_norm", "dropout_add_layer_norm_bwd"),
        saves=lambda args: [args.x.new_empty(args.x.shape[0], dtype=torch.float32) for _ in range(2)],
        takes=lambda args: args.x.shape[1] <= 4096,
        limit="rows up to 4096 wide",
    ),
)
