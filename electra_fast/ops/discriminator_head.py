"""discriminator_head: a logit for each token, and its binary cross-entropy. It has no LayerNorm and no dropout."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from electra_fast.ops._backend import Backend, triton_backend
from electra_fast.ops._check import check_devices, check_floats, check_integers, check_matrix, check_shape
from electra_fast.ops._core import core
from electra_fast.ops._differentiable import DifferentiableOp
from electra_fast.ops._structs import Affine, DiscriminatorWeights, Rows
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
    """Score each token as original or replaced: its logit, and the binary cross-entropy of that.

        logit = w . gelu(W h + b) + c        loss = max(logit, 0) - logit y + log(1 + exp(-|logit|))

    hidden: (T, D), rows h of a floating-point dtype that all tensors but labels have.
    dense_weight, dense_bias: (D, D) and (D,), the W and b of the layer before the GELU.
    out_weight, out_bias: (1, D) and (1,), the w and c of the layer after it.
    labels: (T,) bool; y is 1 where the token was replaced.

    Returns loss (T,) in nats and logits (T,), both differentiable.

    Raises TypeError if the dtypes differ, ValueError if a shape does not fit, RuntimeError if the tensors are on
    several devices.

    Cost: 2 T D D flops forward and twice that backward.

    Source: Clark et al., ICLR 2020 (ELECTRA).
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


def _weights(args: DiscriminatorHeadArguments) -> DiscriminatorWeights:
    return DiscriminatorWeights(
        Affine.of(args.dense_weight, args.dense_bias), Affine.of(args.out_weight, args.out_bias)
    )


def _forward_cpu(args: DiscriminatorHeadArguments) -> tuple[Tensor, Tensor, list[Tensor]]:
    (loss, logits), inner = _fake(args), args.hidden.new_empty(args.hidden.shape)
    hidden, labels = Rows.of(args.hidden), args.labels.contiguous()
    core.discriminator_head_fwd(hidden, _weights(args), labels, loss, logits, inner, torch.get_num_threads())
    return loss, logits, [inner]


def _backward_cpu(grads: list[Tensor], args: DiscriminatorHeadArguments, saved: list[Tensor]) -> list[Tensor]:
    dloss, dlogits = (t.contiguous() for t in grads)
    _loss, logits, inner = (t.contiguous() for t in saved)
    hidden, labels = Rows.of(args.hidden), args.labels.contiguous()
    dhidden = args.hidden.new_empty(args.hidden.shape)
    dense, out = ([t.new_empty(t.shape) for t in layer] for layer in _weights(args))
    gradients = DiscriminatorWeights(Affine(*dense), Affine(*out))
    read = (dloss, dlogits, hidden, _weights(args), labels, logits, inner)
    core.discriminator_head_bwd(*read, dhidden, gradients, torch.get_num_threads())
    return [dhidden, *dense, *out]


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
