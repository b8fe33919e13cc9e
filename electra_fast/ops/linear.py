"""linear: y = f(x W^T + b), where f is the identity or the erf GELU. The blocks of a layer are composed of it."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from electra_fast.ops._backend import Backend, triton_backend
from electra_fast.ops._check import check_devices, check_floats, check_matrix, check_shape
from electra_fast.ops._core import core
from electra_fast.ops._differentiable import DifferentiableOp
from electra_fast.ops._structs import Affine, Rows


class LinearArguments(NamedTuple):
    """The arguments of `linear`, in the order of the dispatcher op."""

    x: Tensor
    weight: Tensor
    bias: Tensor
    gelu: bool


def linear(x: Tensor, weight: Tensor, bias: Tensor, *, gelu: bool = False) -> Tensor:
    """A linear layer with an optional GELU: f(x W^T + b), with f(a) = a or GELU(a) = a (1 + erf(a / sqrt 2)) / 2.

    x: (T, K), of a floating-point dtype that all three tensors have.
    weight: (N, K), the matrix W.
    bias: (N,), the vector b.
    gelu: whether f is the GELU.

    Returns (T, N).

    Raises TypeError if the dtypes differ, ValueError if a shape does not fit, RuntimeError if the tensors are on
    several devices.

    Cost: 2 T N K flops forward and twice that backward.

    Source: Hendrycks & Gimpel, 2016 (the GELU).
    """
    check_devices("linear", x=x, weight=weight, bias=bias)
    check_floats("linear", x=x, weight=weight, bias=bias)
    check_matrix("linear", x=x, weight=weight)
    check_shape("linear", "x", x, x.shape[0], weight.shape[1])
    check_shape("linear", "bias", bias, weight.shape[0])
    return _linear(LinearArguments(x, weight, bias, gelu))


def linear_reference(args: LinearArguments) -> Tensor:
    y = F.linear(args.x, args.weight, args.bias)
    return F.gelu(y) if args.gelu else y


def _forward_cpu(args: LinearArguments) -> tuple[Tensor, list[Tensor]]:
    out = _fake(args)[0]
    inner = torch.empty_like(out) if args.gelu else None
    linear = Affine.of(args.weight, args.bias)
    core.linear_fwd(Rows.of(args.x), linear, out.shape[1], inner, out, torch.get_num_threads())
    return out, [] if inner is None else [inner]


def _backward_cpu(grads: list[Tensor], args: LinearArguments, saved: list[Tensor]) -> list[Tensor]:
    dout, x, weight = grads[0], Rows.of(args.x), args.weight.contiguous()
    dx, *gradients = [t.new_empty(t.shape) for t in (args.x, args.weight, args.bias)]
    inner = saved[-1] if args.gelu else None
    threads = torch.get_num_threads()
    core.linear_bwd(dout, x, weight, weight.shape[0], inner, False, dx, Affine(*gradients), threads)
    return [dx, *gradients]


def _fake(args: LinearArguments) -> tuple[Tensor]:
    return (args.x.new_empty(args.x.shape[0], args.weight.shape[0]),)


def _saves(args: LinearArguments) -> tuple[Tensor, ...]:
    """With the GELU one tensor (T, N): C++ saves the GELU's argument, Triton its slope there."""
    return _fake(args) if args.gelu else ()


linear_cpu = Backend(_forward_cpu, _backward_cpu, _saves)
_linear = DifferentiableOp(
    "linear",
    LinearArguments,
    outputs=("out",),
    differentiable=("x", "weight", "bias"),
    reference=linear_reference,
    fake=_fake,
    cpu=linear_cpu,
    cuda=triton_backend(("linear", "linear_fwd"), ("linear_weight", "linear_bwd"), _saves),
)
