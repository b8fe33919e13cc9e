"""linear: y = f(x W^T + b), f the identity or the erf GELU.

x (T, K), weight (N, K), bias (N,) -> (T, N). GELU(a) = a (1 + erf(a / sqrt 2)) / 2
(Hendrycks & Gimpel, 2016).
Cost: 2 T N K flops forward, twice that backward. A piece that blocks are made of.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from electra_fast.ops._check import check_devices, check_floats, check_matrix, check_shape
from electra_fast.ops._core import core
from electra_fast.ops._library import Backend, DifferentiableOp, launcher


def linear(x: Tensor, weight: Tensor, bias: Tensor, gelu: bool = False) -> Tensor:
    """f(x W^T + b): x (T, K), weight (N, K), bias (N,) of one floating-point dtype -> (T, N).

    Raises TypeError on mixed dtypes, ValueError on shapes, RuntimeError on mixed devices.
    """
    check_devices("linear", x=x, weight=weight, bias=bias)
    check_floats("linear", x=x, weight=weight, bias=bias)
    check_matrix("linear", x=x, weight=weight)
    check_shape("linear", "x", x, x.shape[0], weight.shape[1])
    check_shape("linear", "bias", bias, weight.shape[0])
    return _linear(x, weight, bias, gelu)


def linear_reference(x: Tensor, weight: Tensor, bias: Tensor, gelu: bool = False) -> Tensor:
    y = F.linear(x, weight, bias)
    return F.gelu(y) if gelu else y


def _forward_cpu(x: Tensor, weight: Tensor, bias: Tensor, gelu: bool) -> tuple[Tensor, list[Tensor]]:
    x, weight, bias = x.contiguous(), weight.contiguous(), bias.contiguous()
    out = x.new_empty(x.shape[0], weight.shape[0])
    inner = [torch.empty_like(out)] if gelu else []
    core.linear_fwd(
        *(t.data_ptr() for t in (x, weight, bias)),
        *x.shape,
        weight.shape[0],
        inner[0].data_ptr() if gelu else 0,
        out.data_ptr(),
        torch.get_num_threads(),
    )
    return out, inner


def _backward_cpu(
    grads: list[Tensor], x: Tensor, weight: Tensor, bias: Tensor, gelu: bool, saved: list[Tensor]
) -> list[Tensor]:
    dout, x, weight = grads[0].contiguous(), x.contiguous(), weight.contiguous()
    found = [t.new_empty(t.shape) for t in (x, weight, bias)]
    core.linear_bwd(
        *(t.data_ptr() for t in (dout, x, weight)),
        saved[1].data_ptr() if gelu else 0,
        *x.shape,
        weight.shape[0],
        False,
        *(t.data_ptr() for t in found),
        torch.get_num_threads(),
    )
    return found


def _fake(x: Tensor, weight: Tensor, bias: Tensor, gelu: bool) -> tuple[Tensor]:
    return (x.new_empty(x.shape[0], weight.shape[0]),)


def _saves(*args: Any) -> list[Tensor]:
    """With the GELU one tensor (T, N): its argument in C++, its slope there in Triton."""
    return list(_fake(*args)) if args[3] else []


linear_cpu = Backend(_forward_cpu, _backward_cpu, _saves)
_linear = DifferentiableOp(
    "linear",
    "Tensor x, Tensor weight, Tensor bias, bool gelu",
    outputs=("out",),
    differentiable=("x", "weight", "bias"),
    reference=linear_reference,
    fake=_fake,
    cpu=linear_cpu,
    cuda=Backend(launcher("linear", "linear_fwd"), launcher("linear_weight", "linear_bwd"), _saves),
)
