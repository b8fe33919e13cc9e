"""ffn_block: y = LayerNorm(x + dropout(W2 gelu(W1 x + b1) + b2)), the second half of a transformer layer.

There is no dropout after the GELU. The random bytes of dropout are keyed by row_ids (_philox.py, plane 0).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
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
from electra_fast.ops._structs import Affine, Dropout, FfnKept, FfnWeights, Normed, Rows
from electra_fast.ops.dropout_add_layer_norm import DropoutAddLayerNormArguments, dropout_add_layer_norm_reference
from electra_fast.ops.linear import LinearArguments, linear_reference


class FfnBlockArguments(NamedTuple):
    """The arguments of `ffn_block`, in the order of the dispatcher op."""

    x: Tensor
    up_weight: Tensor
    up_bias: Tensor
    down_weight: Tensor
    down_bias: Tensor
    norm_weight: Tensor
    norm_bias: Tensor
    row_ids: Tensor
    seed: Tensor
    eps: float
    dropout_p: float


def ffn_block(
    x: Tensor,
    up_weight: Tensor,
    up_bias: Tensor,
    down_weight: Tensor,
    down_bias: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor,
    row_ids: Tensor,
    *,
    eps: float = 1e-12,
    dropout_p: float = 0.0,
    seed: int | Tensor = 0,
) -> Tensor:
    """The feed-forward block of a post-LN transformer layer: LayerNorm(x + dropout(W2 gelu(W1 x + b1) + b2)).

    x: (T, D), of a floating-point dtype that all weights have.
    up_weight, up_bias: (F, D) and (F,), the first linear layer.
    down_weight, down_bias: (D, F) and (D,), the second one.
    norm_weight, norm_bias: (D,), those of the LayerNorm.
    row_ids: (T,) int64, the ids of the rows, by which dropout's random numbers are keyed.
    eps: the number that the LayerNorm adds to the variance.
    dropout_p: the probability with which an element of the second layer's result is set to 0, rounded to 1/256.
    seed: of dropout, an int of 64 bits or a one-element int64 tensor.

    Returns (T, D).

    Raises TypeError if the dtypes differ, ValueError if a shape does not fit or dropout_p lies outside [0, 1],
    RuntimeError if the tensors are on several devices.

    Cost: 4 T D F flops forward and twice that backward; the intermediate (T, F) need never leave the cache.

    Source: Vaswani et al., NeurIPS 2017 (the post-LN transformer); Hendrycks & Gimpel, 2016 (the GELU).
    """
    weights: dict[str, Any] = dict(up_weight=up_weight, up_bias=up_bias, down_weight=down_weight, down_bias=down_bias)
    norms: dict[str, Any] = dict(norm_weight=norm_weight, norm_bias=norm_bias)
    check_devices("ffn_block", x=x, **weights, **norms, row_ids=row_ids)
    check_floats("ffn_block", x=x, **weights, **norms)
    check_integers("ffn_block", torch.int64, row_ids=row_ids)
    check_matrix("ffn_block", x=x, up_weight=up_weight)
    rows, width, inner = x.shape[0], x.shape[1], up_weight.shape[0]
    check_shape("ffn_block", "up_weight", up_weight, inner, width)
    check_shape("ffn_block", "up_bias", up_bias, inner)
    check_shape("ffn_block", "down_weight", down_weight, width, inner)
    for name, tensor in dict(down_bias=down_bias, **norms).items():
        check_shape("ffn_block", name, tensor, width)
    check_shape("ffn_block", "row_ids", row_ids, rows)
    p = check_probability("ffn_block", "dropout_p", dropout_p)
    seed = seed_tensor("ffn_block", seed, x.device)
    return _ffn_block(FfnBlockArguments(x, **weights, **norms, row_ids=row_ids, seed=seed, eps=float(eps), dropout_p=p))


def ffn_block_reference(args: FfnBlockArguments) -> Tensor:
    inner = linear_reference(LinearArguments(args.x, args.up_weight, args.up_bias, gelu=True))
    down = linear_reference(LinearArguments(inner, args.down_weight, args.down_bias, gelu=False))
    norm = (args.norm_weight, args.norm_bias, args.row_ids, args.seed, args.eps, args.dropout_p)
    return dropout_add_layer_norm_reference(DropoutAddLayerNormArguments(down, args.x, *norm))


def _weights(args: FfnBlockArguments) -> FfnWeights:
    return FfnWeights(
        Affine.of(args.up_weight, args.up_bias),
        Affine.of(args.down_weight, args.down_bias),
        Affine.of(args.norm_weight, args.norm_bias),
    )


def _run(args: FfnBlockArguments, out: Tensor, kept: FfnKept) -> None:
    """Run the core's forward, which writes out and kept. kept.norm.xhat may be out itself, if no backward follows."""
    rule = (args.eps, Dropout.of(args.row_ids, args.seed, args.dropout_p))
    inner = args.up_weight.shape[0]
    core.ffn_block_fwd(Rows.of(args.x), _weights(args), inner, *rule, out, kept, torch.get_num_threads())


def _forward_cpu(args: FfnBlockArguments) -> tuple[Tensor, list[Tensor]]:
    out, saved = args.x.new_empty(args.x.shape), _saves(args)
    inner, *norm = saved
    _run(args, out, FfnKept(inner, Normed(*norm)))
    return out, saved


def _infer_cpu(args: FfnBlockArguments) -> Tensor:
    out = args.x.new_empty(args.x.shape)
    _run(args, out, FfnKept(None, Normed(out, args.x.new_empty(args.x.shape[0]))))
    return out


def _backward_cpu(grads: list[Tensor], args: FfnBlockArguments, saved: list[Tensor]) -> list[Tensor]:
    _out, inner, *norm = (t.contiguous() for t in saved)
    dropout = Dropout.of(args.row_ids, args.seed, args.dropout_p)
    weights, dx = _weights(args), args.x.new_empty(args.x.shape)
    gradients = [Affine(*(t.new_empty(t.shape) for t in layer)) for layer in weights]
    read = (grads[0].contiguous(), Rows.of(args.x), weights, inner.shape[1], dropout, FfnKept(inner, Normed(*norm)))
    core.ffn_block_bwd(*read, dx, FfnWeights(*gradients), torch.get_num_threads())
    return [dx, *(t for layer in gradients for t in layer)]


def _saves(args: FfnBlockArguments) -> list[Tensor]:
    """The GELU's argument (T, F), the normalised rows (T, D), and 1 / standard deviation of each row (T,)."""
    rows = args.x.shape[0]
    return [args.x.new_empty(rows, args.up_weight.shape[0]), args.x.new_empty(args.x.shape), args.x.new_empty(rows)]


def in_one_launch(args: FfnBlockArguments) -> bool:
    """Whether one Triton kernel computes the whole block for its rows."""
    from electra_fast.kernels.ffn_block import in_one_launch  # which imports triton

    return in_one_launch(args.x, args.up_weight)


def saves_cuda(args: FfnBlockArguments) -> list[Tensor]:
    """What the Triton forward saves: the LayerNorm's input (T, D), its mean and 1 / standard deviation (T,), and unless
    the block is one launch, the GELU's value and slope (T, F)."""
    x, rows, inner = args.x, args.x.shape[0], args.up_weight.shape[0]
    saved = [x.new_empty(x.shape), *(x.new_empty(rows, dtype=torch.float32) for _ in range(2))]
    return saved if in_one_launch(args) else saved + [x.new_empty(rows, inner) for _ in range(2)]


_ffn_block = DifferentiableOp(
    "ffn_block",
    FfnBlockArguments,
    outputs=("out",),
    differentiable=("x", "up_weight", "up_bias", "down_weight", "down_bias", "norm_weight", "norm_bias"),
    reference=ffn_block_reference,
    fake=lambda args: (torch.empty_like(args.x, memory_format=torch.contiguous_format),),
    cpu=Backend(_forward_cpu, _backward_cpu, _saves, infer=_infer_cpu),
    cuda=triton_backend(
        ("ffn_block", "ffn_block_fwd"),
        ("ffn_block", "ffn_block_bwd"),
        saves=saves_cuda,
        takes=lambda args: args.x.shape[1] <= 4096,
        limit="rows up to 4096 wide",
    ),
)
