"""linear: y = f(x W^T + b), f the identity or the erf GELU.

x (T, K), weight (N, K), bias (N,) -> (T, N). GELU(a) = a (1 + erf(a / sqrt 2)) / 2
(Hendrycks & Gimpel, 2016).
Cost: 2 T N K flops forward, twice that backward. A piece that blocks are made of.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from electra_fast.ops._check import check_devices, check_floats, check_matrix, check_shape
from electra_fast.ops._library import DifferentiableOp


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


_linear = DifferentiableOp(
    "linear",
    "Tensor x, Tensor weight, Tensor bias, bool gelu",
    outputs=("out",),
    differentiable=("x", "weight", "bias"),
    reference=linear_reference,
    fake=lambda x, weight, bias, gelu: (x.new_empty(x.shape[0], weight.shape[0]),),
)
