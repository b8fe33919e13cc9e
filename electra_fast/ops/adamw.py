"""adamw: one optimiser step over all parameters, as in ELECTRA's code, which has no bias correction.

If the norm of the gradients or the guard (the loss) is not finite, nothing changes. Training in bfloat16 keeps the
parameters and moments in float32, reads gradients in bfloat16, and rounds the new parameters into a bfloat16 copy.
"""

from __future__ import annotations

import math
from array import array
from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from electra_fast.ops._check import check_devices, check_floats
from electra_fast.ops._core import core
from electra_fast.ops._library import define, launcher
from electra_fast.ops._structs import AdamW, addresses


class AdamWArguments(NamedTuple):
    """The arguments of `adamw`, in the order of the dispatcher op. Those whose schema has a ! are updated in place."""

    params: Annotated[list[Tensor], "Tensor(a!)[]"]
    grads: list[Tensor]
    exp_avgs: Annotated[list[Tensor], "Tensor(b!)[]"]
    exp_avg_sqs: Annotated[list[Tensor], "Tensor(c!)[]"]
    lr: Tensor
    lr_scales: list[float]
    weight_decays: list[float]
    beta1: float
    beta2: float
    eps: float
    max_grad_norm: float
    guard: Tensor
    copies: Annotated[list[Tensor], "Tensor(d!)[]"]


@torch.no_grad()
def adamw(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    lr: Tensor,
    lr_scales: list[float],
    weight_decays: list[float],
    *,
    beta1: float,
    beta2: float,
    eps: float,
    max_grad_norm: float,
    guard: Tensor,
    copies: list[Tensor] | None = None,
) -> Tensor:
    """Take one step of AdamW: update params, exp_avgs, exp_avg_sqs and copies in place.

        g = grad min(1, max_grad_norm / |grads|)          with |grads| the norm over all gradients
        m = beta1 m + (1 - beta1) g        v = beta2 v + (1 - beta2) g^2
        p = p - lr lr_scale (m / (sqrt(v) + eps) + weight_decay p)

    params: the parameters p, of one floating-point dtype. All lists of tensors have the same length and shapes.
    grads: their gradients, of the dtype of params or of copies.
    exp_avgs, exp_avg_sqs: the running means m of the gradients and v of their squares, of the dtype of params.
    lr: (1,), the learning rate.
    lr_scales: for each parameter, the factor of the learning rate.
    weight_decays: for each parameter, its weight decay.
    beta1, beta2: the decay of the two running means, in [0, 1).
    eps: the number added to the square root of v.
    max_grad_norm: the norm that larger gradients are scaled down to, above 0.
    guard: one element, such as the loss. If it is not finite, nothing is changed.
    copies: tensors of another dtype, shaped as params, that receive the new parameters, rounded; none by default.

    Returns |grads| (1,) before clipping. If it is not finite, nothing was changed.

    Raises ValueError if lists differ in length or shapes, or max_grad_norm is not above 0, TypeError if dtypes differ,
    RuntimeError if the tensors are on several devices.

    Cost: 10 flops and 28 bytes for each parameter.

    Source: Loshchilov & Hutter, ICLR 2019 (AdamW); google-research/electra, model/optimization.py.
    """
    if not 0 < max_grad_norm < math.inf:
        raise ValueError(f"adamw: max_grad_norm is {max_grad_norm}; a finite number above 0 is needed")
    copies = copies or []
    lists = dict(grads=grads, exp_avgs=exp_avgs, exp_avg_sqs=exp_avg_sqs) | (dict(copies=copies) if copies else {})
    shapes = [p.shape for p in params]
    for name, tensors in lists.items():
        if [t.shape for t in tensors] != shapes:
            raise ValueError(f"adamw: {name} has other shapes than params; give one tensor of the same shape for each")
    if not len(params) == len(lr_scales) == len(weight_decays):
        raise ValueError(
            f"adamw: there are {len(params)} params, {len(lr_scales)} lr_scales, {len(weight_decays)} weight_decays; "
            f"give one of each for each parameter"
        )
    if not params:
        return torch.zeros_like(lr)
    every = [*params, *exp_avgs, *exp_avg_sqs]
    alike = len({t.dtype for t in every}) == 1 and {t.dtype for t in grads} <= {params[0].dtype, *dtypes(copies)}
    alike = alike and len(dtypes(copies)) <= 1 and len({t.device for t in (lr, guard, *every, *grads, *copies)}) == 1
    for i, param in enumerate(params[:1] if alike else params):  # to check every one takes a tenth of a step
        others = {name: tensors[i] for name, tensors in lists.items()}
        check_devices("adamw", lr=lr, guard=guard, param=param, **others)
        if copies and others["grads"].dtype == others["copies"].dtype:  # gradients of the copy
            check_floats("adamw", grads=others.pop("grads"), copies=others["copies"])
        others.pop("copies", None)
        check_floats("adamw", param=param, **others)
    moments, numbers = (exp_avgs, exp_avg_sqs), (beta1, beta2, eps, max_grad_norm)
    return _adamw(params, grads, *moments, lr, lr_scales, weight_decays, *numbers, guard, copies)


def dtypes(tensors: list[Tensor]) -> set[torch.dtype]:
    return {t.dtype for t in tensors}


def adamw_reference(args: AdamWArguments) -> Tensor:
    lr, max_norm = args.lr, args.max_grad_norm
    grads = [g.to(p.dtype) for g, p in zip(args.grads, args.params, strict=True)]
    norm = torch.stack(torch._foreach_norm(grads, dtype=torch.float64)).norm().reshape(1).to(grads[0].dtype)
    if not (norm.isfinite() & args.guard.isfinite()).all():
        return norm.to(lr.dtype)
    clipped = torch._foreach_mul(grads, (max_norm * torch.minimum(1 / norm, norm.new_tensor(1 / max_norm)))[0])
    torch._foreach_lerp_(args.exp_avgs, clipped, 1 - args.beta1)
    torch._foreach_mul_(args.exp_avg_sqs, args.beta2)
    torch._foreach_addcmul_(args.exp_avg_sqs, clipped, clipped, 1 - args.beta2)
    denominators = torch._foreach_sqrt(args.exp_avg_sqs)
    torch._foreach_add_(denominators, args.eps)
    updates = torch._foreach_div(args.exp_avgs, denominators)
    torch._foreach_add_(updates, torch._foreach_mul(args.params, args.weight_decays))
    torch._foreach_mul_(updates, [lr.item() * scale for scale in args.lr_scales])
    torch._foreach_sub_(args.params, updates)
    if args.copies:
        torch._foreach_copy_(args.copies, args.params)
    return norm.to(lr.dtype)


def _adamw_cpu(args: AdamWArguments) -> Tensor:
    tensors = [t for four in zip(args.params, args.grads, args.exp_avgs, args.exp_avg_sqs, strict=True) for t in four]
    dense = [t.contiguous() for t in tensors]
    sizes, rate = array("q", [t.numel() for t in args.params]), args.lr.item()
    lrs, decays = array("d", [rate * scale for scale in args.lr_scales]), array("d", args.weight_decays)
    step, guard = AdamW(args.beta1, args.beta2, args.eps, args.max_grad_norm), math.isfinite(args.guard.item())
    parameters, norm = (addresses(dense), sizes, lrs, decays, len(args.params)), torch.empty(1)
    core.adamw(*parameters, step, guard, norm, torch.get_num_threads())
    for tensor, copy in zip(tensors, dense, strict=True):
        if copy is not tensor:
            tensor.copy_(copy)
    for copy, param in zip(args.copies, args.params, strict=False):
        copy.copy_(param)
    return norm


_adamw_triton = launcher("adamw", "adamw_fwd")


def _adamw_cuda(args: AdamWArguments) -> Tensor:
    """Triton where each list is of one dtype but float64, the reference elsewhere."""
    lists = [dtypes(tensors) for tensors in (args.params, args.grads, args.exp_avgs, args.exp_avg_sqs, args.copies)]
    narrow = all(len(kinds) <= 1 and torch.float64 not in kinds for kinds in lists)
    if narrow and dtypes(args.exp_avgs) == dtypes(args.exp_avg_sqs):
        return _adamw_triton(args)
    return adamw_reference(args)


_adamw = define(
    "adamw",
    AdamWArguments,
    "Tensor",
    reference=adamw_reference,
    fake=lambda args: torch.empty_like(args.lr),
    cpu=_adamw_cpu,
    cuda=_adamw_cuda,
    limit="lists of one dtype each",
)
