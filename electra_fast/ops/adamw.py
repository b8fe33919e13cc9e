"""adamw: one optimiser step over all parameters, as ELECTRA's code takes it (no bias correction).

    g *= max_norm min(1 / |g|, 1 / max_norm)          |g| the norm over all gradients
    m = beta1 m + (1 - beta1) g,  v = beta2 v + (1 - beta2) g^2
    p -= lr lr_scale (m / (sqrt(v) + eps) + weight_decay p)

Where |g| or the guard (the loss) is not finite, nothing changes. Training in bfloat16 keeps p, m and v in float32,
reads gradients in bfloat16 and rounds the new p into a bfloat16 copy. Cost: 10 flops and 28 bytes a parameter.
Source: google-research/electra, model/optimization.py; Loshchilov & Hutter, ICLR 2019.
"""

from __future__ import annotations

import math
from array import array
from typing import Any

import torch
from torch import Tensor

from electra_fast.ops._check import check_devices, check_floats
from electra_fast.ops._core import core
from electra_fast.ops._library import define, launcher


@torch.no_grad()
def adamw(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    lr: Tensor,
    lr_scales: list[float],
    weight_decays: list[float],
    beta1: float,
    beta2: float,
    eps: float,
    max_grad_norm: float,
    guard: Tensor,
    copies: list[Tensor] | None = None,
) -> Tensor:
    """Update params, exp_avgs and exp_avg_sqs in place; lr (1,), guard of one element -> |g| (1,) before clipping.

    The lists are of one length and agree in shapes. `copies`, where given, receive the new params rounded to their
    dtype, in which the gradients may be too. A norm that comes back not finite, or a guard that is not, means
    that nothing was changed. Raises ValueError on lists that disagree or a max_grad_norm not above 0, TypeError on
    mixed dtypes, RuntimeError on mixed devices.
    """
    if not 0 < max_grad_norm < math.inf:
        raise ValueError(f"adamw: max_grad_norm is {max_grad_norm}; a finite number above 0 is needed")
    copies = copies or []
    lists = dict(grads=grads, exp_avgs=exp_avgs, exp_avg_sqs=exp_avg_sqs) | (dict(copies=copies) if copies else {})
    shapes = [p.shape for p in params]
    for name, tensors in lists.items():
        if [t.shape for t in tensors] != shapes:
            raise ValueError(f"adamw: {name} does not match params in number or shapes; one tensor for each, as shaped")
    if not len(params) == len(lr_scales) == len(weight_decays):
        raise ValueError(f"adamw: {len(params)} params, {len(lr_scales)} lr_scales, {len(weight_decays)} weight_decays")
    if not params:
        return torch.zeros_like(lr)
    every = [*params, *exp_avgs, *exp_avg_sqs]
    alike = len({t.dtype for t in every}) == 1 and {t.dtype for t in grads} <= {params[0].dtype, *dtypes(copies)}
    alike = alike and len(dtypes(copies)) <= 1 and len({t.device for t in (lr, guard, *every, *grads, *copies)}) == 1
    for i, param in enumerate(params[:1] if alike else params):  # one by one they cost a tenth of the step
        found = {name: tensors[i] for name, tensors in lists.items()}
        check_devices("adamw", lr=lr, guard=guard, param=param, **found)
        if copies and found["grads"].dtype == found["copies"].dtype:  # gradients of the copy
            check_floats("adamw", grads=found.pop("grads"), copies=found["copies"])
        found.pop("copies", None)
        check_floats("adamw", param=param, **found)
    moments, numbers = (exp_avgs, exp_avg_sqs), (beta1, beta2, eps, max_grad_norm)
    return _adamw(params, grads, *moments, lr, lr_scales, weight_decays, *numbers, guard, copies)


def dtypes(tensors: list[Tensor]) -> set[torch.dtype]:
    return {t.dtype for t in tensors}


def adamw_reference(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    lr: Tensor,
    lr_scales: list[float],
    weight_decays: list[float],
    beta1: float,
    beta2: float,
    eps: float,
    max_grad_norm: float,
    guard: Tensor,
    copies: list[Tensor],
) -> Tensor:
    grads = [g.to(p.dtype) for g, p in zip(grads, params, strict=True)]
    norm = torch.stack(torch._foreach_norm(grads, dtype=torch.float64)).norm().reshape(1).to(grads[0].dtype)
    if not (norm.isfinite() & guard.isfinite()).all():
        return norm.to(lr.dtype)
    clipped = torch._foreach_mul(
        grads, (max_grad_norm * torch.minimum(1 / norm, norm.new_tensor(1 / max_grad_norm)))[0]
    )
    torch._foreach_lerp_(exp_avgs, clipped, 1 - beta1)
    torch._foreach_mul_(exp_avg_sqs, beta2)
    torch._foreach_addcmul_(exp_avg_sqs, clipped, clipped, 1 - beta2)
    denominators = torch._foreach_sqrt(exp_avg_sqs)
    torch._foreach_add_(denominators, eps)
    updates = torch._foreach_div(exp_avgs, denominators)
    torch._foreach_add_(updates, torch._foreach_mul(params, weight_decays))
    torch._foreach_mul_(updates, [lr.item() * scale for scale in lr_scales])
    torch._foreach_sub_(params, updates)
    if copies:
        torch._foreach_copy_(copies, params)
    return norm.to(lr.dtype)


def _adamw_cpu(
    params: list[Tensor],
    grads: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    lr: Tensor,
    lr_scales: list[float],
    weight_decays: list[float],
    beta1: float,
    beta2: float,
    eps: float,
    max_grad_norm: float,
    guard: Tensor,
    copies: list[Tensor],
) -> Tensor:
    given = [t for four in zip(params, grads, exp_avgs, exp_avg_sqs, strict=True) for t in four]
    dense = [t.contiguous() for t in given]
    addresses = array("q", [t.data_ptr() for t in dense])
    sizes = array("q", [t.numel() for t in params])
    rate = lr.item()
    lrs, decays = array("d", [rate * scale for scale in lr_scales]), array("d", weight_decays)
    norm = torch.empty(1)
    core.adamw(
        *(numbers.buffer_info()[0] for numbers in (addresses, sizes, lrs, decays)),
        len(params),
        beta1,
        beta2,
        eps,
        max_grad_norm,
        math.isfinite(guard.item()),
        norm.data_ptr(),
        torch.get_num_threads(),
    )
    for tensor, copy in zip(given, dense, strict=True):
        if copy is not tensor:
            tensor.copy_(copy)
    for copy, param in zip(copies, params, strict=False):
        copy.copy_(param)
    return norm


_adamw_triton = launcher("adamw", "adamw_fwd")


def _adamw_cuda(*args: Any) -> Tensor:
    """Triton where each list is of one dtype but float64, the reference elsewhere."""
    lists = [dtypes(args[i]) for i in (0, 1, 2, 3, 12)]
    narrow = all(len(found) <= 1 and torch.float64 not in found for found in lists) and lists[2] == lists[3]
    return (_adamw_triton if narrow else adamw_reference)(*args)


_adamw = define(
    "adamw",
    "(Tensor(a!)[] params, Tensor[] grads, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs, Tensor lr, "
    "float[] lr_scales, float[] weight_decays, float beta1, float beta2, float eps, float max_grad_norm, Tensor guard, "
    "Tensor(d!)[] copies) -> Tensor",
    adamw_reference,
    lambda params, grads, exp_avgs, exp_avg_sqs, lr, *_: torch.empty_like(lr),
    _adamw_cpu,
    cuda=_adamw_cuda,
    limit="lists of one dtype each",
)
