"""discriminator_head: logit = w . gelu(W h + b) + c for each token, and its binary cross-entropy.

loss = max(x, 0) - x y + log(1 + exp(-|x|)) of the logit x, with y = 1 where the token was replaced. This head has no
LayerNorm and no dropout.
Cost: 2 T D D flops forward and twice that backward.
Source: Clark et al., ICLR 2020 (ELECTRA).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from electra_fast.ops._check import check_devices, check_floats, check_integers, check_matrix, check_shape
from electra_fast.ops._core import core
from electra_fast.ops._differentiable import Backend, DifferentiableOp, triton_backend
from electra_fast.ops.linear import LinearArguments, linear_reference


class DiscriminatorHeadArguments(NamedTuple):
    """The arguments of `discriminator_head`, in the order of the dispatcher op."""

    hidden: Tensor
    dense_weight: Tensor
    dense_bias: Tensor
    out_weight: Tensor
    out_bias: Tensor
    labels: Tensor


def discriminator_head(
    hidden: Tensor, dense_weight: Tensor, dense_bias: Tensor, out_weight: Tensor, out_bias: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """Scores each token as original or replaced: logits and their binary cross-entropy.

    hidden: (T, D), of the floating-point dtype of all but labels.
    dense_weight, dense_bias: (D, D) and (D,), before the GELU.
    out_weight, out_bias: (1, D) and (1,), after it.
    labels: (T,) bool, True where the token was replaced.

    Returns loss (T,) and logits (T,).
    Raises TypeError on mixed dtypes, ValueError on shapes, RuntimeError on mixed devices.
    """
    name = "discriminator_head"
    check_matrix(name, hidden=hidden)
    rows, width = hidden.shape
    args = DiscriminatorHeadArguments(hidden, dense_weight, dense_bias, out_weight, out_bias, labels)
    floats = args._asdict()
    check_devices(name, **floats)
    check_integers(name, torch.bool, labels=floats.pop("labels"))
    check_floats(name, **floats)
    check_shape(name, "dense_weight", dense_weight, width, width)
    check_shape(name, "dense_bias", dense_bias, width)
    check_shape(name, "out_weight", out_weight, 1, width)
    check_shape(name, "out_bias", out_bias, 1)
    check_shape(name, "labels", labels, rows)
    return _discriminator_head(args)


def discriminator_head_reference(args: DiscriminatorHeadArguments) -> tuple[Tensor, Tensor]:
    dense = linear_reference(LinearArguments(args.hidden, args.dense_weight, args.dense_bias, gelu=True))
    logits = F.linear(dense, args.out_weight, args.out_bias).squeeze(1)
    return F.binary_cross_entropy_with_logits(logits, args.labels.to(logits.dtype), reduction="none"), logits


def _forward_cpu(args: DiscriminatorHeadArguments) -> tuple[Tensor, Tensor, list[Tensor]]:
    dense = [t.contiguous() for t in args]
    hidden = args.hidden
    loss, logits, inner = hidden.new_empty(len(hidden)), hidden.new_empty(len(hidden)), hidden.new_empty(hidden.shape)
    pointers = [t.data_ptr() for t in dense]
    results = [t.data_ptr() for t in (loss, logits, inner)]
    core.discriminator_head_fwd(*pointers, *hidden.shape, *results, torch.get_num_threads())
    return loss, logits, [inner]


def _backward_cpu(grads: list[Tensor], args: DiscriminatorHeadArguments, saved: list[Tensor]) -> list[Tensor]:
    _loss, logits, inner = saved
    read = (*grads, args.hidden, args.dense_weight, args.out_weight, args.labels, logits, inner)
    dense = [t.contiguous() for t in read]
    floats = (args.hidden, args.dense_weight, args.dense_bias, args.out_weight, args.out_bias)
    gradients = [t.new_empty(t.shape) for t in floats]
    pointers, results = ([t.data_ptr() for t in tensors] for tensors in (dense, gradients))
    core.discriminator_head_bwd(*pointers, *args.hidden.shape, *results, torch.get_num_threads())
    return gradients


def _fake(args: DiscriminatorHeadArguments) -> tuple[Tensor, Tensor]:
    return args.hidden.new_empty(args.hidden.shape[0]), args.hidden.new_empty(args.hidden.shape[0])


_discriminator_head = DifferentiableOp(
    "discriminator_head",
    DiscriminatorHeadArguments,
    outputs=("loss", "logits"),
    differentiable=("hidden", "dense_weight", "dense_bias", "out_weight", "out_bias"),
    reference=discriminator_head_reference,
    fake=_fake,
    cpu=Backend(_forward_cpu, _backward_cpu, lambda args: [args.hidden.new_empty(args.hidden.shape)]),
    cuda=triton_backend(
        ("discriminator_head", "discriminator_head_fwd"), ("discriminator_head", "discriminator_head_bwd")
    ),
)
