"""LAMB: the steps of AdamW, each tensor's scaled to the size of the tensor, for large batches."""

from __future__ import annotations

import torch
from torch import Tensor

from electra_fast.train.optimizer import AdamW, decays


class Lamb(AdamW):
    """LAMB over the named parameters of a model, with clipping by the global norm.

        m = beta1 m + (1 - beta1) g        v = beta2 v + (1 - beta2) g^2        u = m / (sqrt(v) + eps) + weight_decay p
        p = p - lr (|p| / |u|) u

    The factor |p| / |u| is 1 where either norm is 0, and for biases and LayerNorm's parameters, which have no weight
    decay. There is no bias correction, as in AdamW.

    The arguments are those of AdamW.

    Source: You et al., "Large batch optimization for deep learning", ICLR 2020, algorithm 2; without bias correction
    and with these exceptions, google-research/albert, lamb_optimizer.py.
    """

    @torch.no_grad()
    def step(self, lr: float | Tensor, guard: Tensor) -> Tensor:
        """Update the parameters once from their gradients, as AdamW.step."""
        owners = self.copies or self.params
        grads = {name: p.grad.to(self.params[name].dtype) for name, p in owners.items() if p.grad is not None}
        norm = torch.stack([grad.norm() for grad in grads.values()] or [guard.new_zeros(())]).norm().reshape(1)
        finite = (norm + 0 * guard).isfinite()
        scale = self.config.max_grad_norm / norm.clamp(min=self.config.max_grad_norm)
        for name, grad in grads.items():
            self._update(name, torch.where(finite, grad * scale, 0), lr, finite)
        self.forget()
        return norm

    def _update(self, name: str, grad: Tensor, lr: float | Tensor, finite: Tensor) -> None:
        """Take one tensor's step, or leave it and its moments as they are where `finite` (1,) is False."""
        p, config = self.params[name], self.config
        for moment, beta, value in (
            (self.exp_avg[name], config.beta1, grad),
            (self.exp_avg_sq[name], config.beta2, grad.square()),
        ):
            moment.copy_(torch.where(finite, moment.lerp(value, 1 - beta), moment))
        update = self.exp_avg[name] / (self.exp_avg_sq[name].sqrt() + config.eps)
        if decays(name):
            update = update + config.weight_decay * p
            sizes = p.norm(), update.norm()
            update = update * torch.where((sizes[0] > 0) & (sizes[1] > 0), sizes[0] / sizes[1], 1.0)
        p.sub_(torch.where(finite, lr * self.scales.get(name, 1.0), 0.0) * update)
        if self.copies:
            self.copies[name].copy_(p)
