"""linear: y = f(x W^T + b), where f is the identity or the erf GELU, GELU(a) = a (1 + erf(a / sqrt 2)) / 2.

Blocks are made of it. Cost: 2 T N K flops forward and twice that backward.
Source: Hendrycks & Gimpel, 2016 (the GELU).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from electra_fast.ops._check import check_devices, check_floats, check_matrix, check_shape
from electra_fast.ops._core import core
from electra_fast.ops._differentiable import Backend, DifferentiableOp, triton_backend


class LinearArguments(NamedTuple):
    """The arguments of `linear`, in the order of the dispatcher op."""

    x: Tensor
    weight: Tensor
    bias: Tensor
    gelu: bool


def linear(x: Tensor, weight: Tensor, bias: Tensor, gelu: bool = False) -> Tensor:
    """f(x W^T + b), where f is the GELU or the identity.

    x: (T, K), of the floating-point dtype of all three tensors.
    weight: (N, K).
    bias: (N,).
    gelu: whether f is the GELU.

    Returns (T, N).
    Raises TypeError on mixed dtypes, ValueError on shapes, RuntimeError on mixed devices.
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
    x, weight, bias = args.x.contiguous(), args.weight.contiguous(), args.bias.contiguous()
    out = x.new_empty(x.shape[0], weight.shape[0])
    inner = [torch.empty_like(out)] if args.gelu else []
    core.linear_fwd(
        *(t.data_ptr() for t in (x, weight, bias)),
        *x.shape,
        weight.shape[0],
        inner[0].data_ptr() if args.gelu else 0,
        out.data_ptr(),
        torch.get_num_threads(),
    )
    return out, inner


def _backward_cpu(grads: list[Tensor], args: LinearArguments, saved: list[Tensor]) -> list[Tensor]:
    dout, x, weight = grads[0].contiguous(), args.x.contiguous(), args.weight.contiguous()
    gradients = [t.new_empty(t.shape) for t in (x, weight, args.bias)]
    _out, *inner = saved
    core.linear_bwd(
        *(t.data_ptr() for t in (dout, x, weight)),
        inner[0].data_ptr() if args.gelu else 0,
        *x.shape,
        weight.shape[0],
        False,
        *(t.data_ptr() for t in gradients),
        torch.get_num_threads(),
    )
    return gradients


def _fake(args: LinearArguments) -> tuple[Tensor]:
    return (args.x.new_empty(args.x.shape[0], args.weight.shape[0]),)


def _saves(args: LinearArguments) -> tuple[Tensor, ...]:
    """With the GELU one tensor (T, N): in C++ the GELU's argument, in Triton its slope there."""
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
