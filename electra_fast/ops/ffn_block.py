"""ffn_block: y = LayerNorm(x + dropout(W2 gelu(W1 x + b1) + b2)), the second half of a layer.

x (T, D), W1 (F, D), b1 (F,), W2 (D, F), b2 (D,), LayerNorm weight and bias (D,) -> (T, D); no dropout after the GELU.
Cost: 4 T D F flops forward, twice that backward; the intermediate (T, F) need never leave the cache.
"""

from __future__ import annotations

from typing import Any

import torch
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
from electra_fast.ops._philox import dropout_threshold
from electra_fast.ops.dropout_add_layer_norm import dropout_add_layer_norm_reference
from electra_fast.ops.linear import linear_reference


def ffn_block(
    x: Tensor,
    up_weight: Tensor,
    up_bias: Tensor,
    down_weight: Tensor,
    down_bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    row_ids: Tensor,
    eps: float = 1e-12,
    dropout_p: float = 0.0,
    seed: int | Tensor = 0,
) -> Tensor:
    """x (T, D), up (F, D) and (F,), down (D, F) and (D,), norm (D,) twice, row_ids (T,) int64 -> (T, D).

    Raises TypeError on mixed dtypes, ValueError on shapes or a dropout_p outside [0, 1], RuntimeError on mixed devices.
    """
    weights = dict(up_weight=up_weight, up_bias=up_bias, down_weight=down_weight, down_bias=down_bias)
    check_devices("ffn_block", x=x, **weights, norm_weight=norm_weight, norm_bias=norm_bias, row_ids=row_ids)
    check_floats("ffn_block", x=x, **weights, norm_weight=norm_weight, norm_bias=norm_bias)
    check_integers("ffn_block", torch.int64, row_ids=row_ids)
    check_matrix("ffn_block", x=x, up_weight=up_weight)
    rows, width, inner = x.shape[0], x.shape[1], up_weight.shape[0]
    check_shape("ffn_block", "up_weight", up_weight, inner, width)
    check_shape("ffn_block", "up_bias", up_bias, inner)
    check_shape("ffn_block", "down_weight", down_weight, width, inner)
    for name, tensor in (("down_bias", down_bias), ("norm_weight", norm_weight), ("norm_bias", norm_bias)):
        check_shape("ffn_block", name, tensor, width)
    check_shape("ffn_block", "row_ids", row_ids, rows)
    p = check_probability("ffn_block", "dropout_p", dropout_p)
    seed = seed_tensor("ffn_block", seed, x.device)
    return _ffn_block(
        x, up_weight, up_bias, down_weight, down_bias, norm_weight, norm_bias, row_ids, seed, float(eps), p
    )


def ffn_block_reference(
    x: Tensor,
    up_weight: Tensor,
    up_bias: Tensor,
    down_weight: Tensor,
    down_bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    row_ids: Tensor,
    seed: Tensor,
    eps: float,
    dropout_p: float,
) -> Tensor:
    down = linear_reference(linear_reference(x, up_weight, up_bias, gelu=True), down_weight, down_bias)
    return dropout_add_layer_norm_reference(down, x, norm_weight, norm_bias, row_ids, seed, eps, dropout_p)


def _run(out: Tensor, inner: Tensor | None, xhat: Tensor, rstd: Tensor, *args: Any) -> None:
    """The core's forward; inner may be None, and xhat out."""
    *tensors, seed, eps, dropout_p = args
    given = [t.contiguous() for t in tensors]
    core.ffn_block_fwd(
        *(t.data_ptr() for t in given),
        *out.shape,
        args[1].shape[0],
        seed.item(),
        eps,
        dropout_threshold(dropout_p),
        *(0 if t is None else t.data_ptr() for t in (out, inner, xhat, rstd)),
        torch.get_num_threads(),
    )


def _forward_cpu(x: Tensor, up_weight: Tensor, *args: Any) -> tuple[Tensor, list[Tensor]]:
    out, saved = x.new_empty(x.shape), _saves(x, up_weight)
    _run(out, *saved, x, up_weight, *args)
    return out, saved


def _infer_cpu(x: Tensor, *args: Any) -> Tensor:
    out = x.new_empty(x.shape)
    _run(out, None, out, x.new_empty(x.shape[0]), x, *args)
    return out


def _backward_cpu(grads: list[Tensor], *args: Any) -> list[Tensor]:
    *tensors, row_ids, seed, _eps, dropout_p, saved = args
    x, up_weight, _, down_weight, _, norm_weight, _ = given = [t.contiguous() for t in tensors]
    read = [t.contiguous() for t in (grads[0], x, up_weight, down_weight, norm_weight, row_ids, *saved[1:])]
    found = [torch.empty_like(t) for t in given]
    core.ffn_block_bwd(
        *(t.data_ptr() for t in read),
        *x.shape,
        up_weight.shape[0],
        seed.item(),
        dropout_threshold(dropout_p),
        *(t.data_ptr() for t in found),
        torch.get_num_threads(),
    )
    return found


def _saves(x: Tensor, up_weight: Tensor, *_: Any) -> list[Tensor]:
    """The GELU's argument (T, F), the normalised rows (T, D) and what each was divided by, inverted (T,)."""
    rows = x.shape[0]
    return [x.new_empty(rows, up_weight.shape[0]), x.new_empty(x.shape), x.new_empty(rows)]


def _saves_cuda(x: Tensor, up_weight: Tensor, *_: Any) -> list[Tensor]:
    """What goes into the norm (T, D), its mean and 1 / deviation (T,); unless a row's whole way is one
    launch, the intermediate and the GELU's slope (T, F) too."""
    from electra_fast.kernels.ffn_block import in_one_launch  # which imports triton

    rows, inner = x.shape[0], up_weight.shape[0]
    saved = [x.new_empty(x.shape), *(x.new_empty(rows, dtype=torch.float32) for _ in range(2))]
    return saved if in_one_launch(x, up_weight) else saved + [x.new_empty(rows, inner) for _ in range(2)]


_ffn_block = DifferentiableOp(
    "ffn_block",
    "Tensor x, Tensor up_weight, Tensor up_bias, Tensor down_weight, Tensor down_bias, Tensor norm_weight, "
    "Tensor norm_bias, Tensor row_ids, Tensor seed, float eps, float dropout_p",
    outputs=("out",),
    differentiable=("x", "up_weight", "up_bias", "down_weight", "down_bias", "norm_weight", "norm_bias"),
    reference=ffn_block_reference,
    fake=lambda x, *_: (torch.empty_like(x, memory_format=torch.contiguous_format),),
    cpu=Backend(_forward_cpu, _backward_cpu, _saves, infer=_infer_cpu),
    cuda=Backend(
        launcher("ffn_block", "ffn_block_fwd"),
        launcher("ffn_block", "ffn_block_bwd"),
        saves=_saves_cuda,
        takes=lambda x, *_: x.shape[1] <= 4096,
        limit="rows up to 4096 wide",
    ),
)
