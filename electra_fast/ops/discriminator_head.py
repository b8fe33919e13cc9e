"""discriminator_head: logit = w . gelu(W h + b) + c for each token, and its binary cross-entropy.

hidden (T, D), dense (D, D) and (D,), out (1, D) and (1,), labels (T,) -> loss (T,), logits (T,);
loss = max(x, 0) - x y + log(1 + exp(-|x|)) with y = 1 where the token was replaced. No LayerNorm and no dropout here.
Cost: 2 T D D flops forward, twice that backward.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from electra_fast.ops._check import check_devices, check_floats, check_integers, check_matrix, check_shape
from electra_fast.ops._core import core
from electra_fast.ops._library import Backend, DifferentiableOp, launcher
from electra_fast.ops.linear import linear_reference


def discriminator_head(
    hidden: Tensor, dense_weight: Tensor, dense_bias: Tensor, out_weight: Tensor, out_bias: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    """hidden (T, D), dense (D, D), (D,), out (1, D), (1,), labels (T,) bool -> loss (T,), logits (T,).

    Raises TypeError on mixed dtypes, ValueError on shapes, RuntimeError on mixed devices.
    """
    name = "discriminator_head"
    check_matrix(name, hidden=hidden)
    rows, width = hidden.shape
    floats = dict(
        hidden=hidden, dense_weight=dense_weight, dense_bias=dense_bias, out_weight=out_weight, out_bias=out_bias
    )
    check_devices(name, **floats, labels=labels)
    check_floats(name, **floats)
    check_integers(name, torch.bool, labels=labels)
    check_shape(name, "dense_weight", dense_weight, width, width)
    check_shape(name, "dense_bias", dense_bias, width)
    check_shape(name, "out_weight", out_weight, 1, width)
    check_shape(name, "out_bias", out_bias, 1)
    check_shape(name, "labels", labels, rows)
    return _discriminator_head(*floats.values(), labels)


def discriminator_head_reference(
    hidden: Tensor, dense_weight: Tensor, dense_bias: Tensor, out_weight: Tensor, out_bias: Tensor, labels: Tensor
) -> tuple[Tensor, Tensor]:
    scored = F.linear(linear_reference(hidden, dense_weight, dense_bias, gelu=True), out_weight, out_bias)
    logits = scored.squeeze(1)
    return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), reduction="none"), logits


def _forward_cpu(*args: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
    given = [t.contiguous() for t in args]
    hidden = given[0]
    loss, logits, inner = hidden.new_empty(len(hidden)), hidden.new_empty(len(hidden)), torch.empty_like(hidden)
    pointers = [t.data_ptr() for t in given]
    results = [t.data_ptr() for t in (loss, logits, inner)]
    core.discriminator_head_fwd(*pointers, *hidden.shape, *results, torch.get_num_threads())
    return loss, logits, [inner]


def _backward_cpu(
    grads: list[Tensor],
    hidden: Tensor,
    dense_weight: Tensor,
    dense_bias: Tensor,
    out_weight: Tensor,
    out_bias: Tensor,
    labels: Tensor,
    saved: list[Tensor],
) -> list[Tensor]:
    read = [t.contiguous() for t in (*grads, hidden, dense_weight, out_weight, labels, *saved[1:])]
    found = [t.new_empty(t.shape) for t in (hidden, dense_weight, dense_bias, out_weight, out_bias)]
    pointers, results = ([t.data_ptr() for t in tensors] for tensors in (read, found))
    core.discriminator_head_bwd(*pointers, *hidden.shape, *results, torch.get_num_threads())
    return found


_discriminator_head = DifferentiableOp(
    "discriminator_head",
    "Tensor hidden, Tensor dense_weight, Tensor dense_bias, Tensor out_weight, Tensor out_bias, Tensor labels",
    outputs=("loss", "logits"),
    differentiable=("hidden", "dense_weight", "dense_bias", "out_weight", "out_bias"),
    reference=discriminator_head_reference,
    fake=lambda hidden, *_: (hidden.new_empty(hidden.shape[0]), hidden.new_empty(hidden.shape[0])),
    cpu=Backend(_forward_cpu, _backward_cpu, lambda hidden, *_: [hidden.new_empty(hidden.shape)]),
    cuda=Backend(
        launcher("discriminator_head", "discriminator_head_fwd"),
        launcher("discriminator_head", "discriminator_head_bwd"),
    ),
)
