"""Google's AdamW in plain PyTorch."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn


class ReferenceAdamW:
    """AdamW without bias correction, with decoupled weight decay, after clipping gradients by their norm.

        g = g * max_grad_norm / max(max_grad_norm, norm)
        m = beta1 m + (1 - beta1) g        v = beta2 v + (1 - beta2) g^2
        p = p - lr (m / (sqrt(v) + eps) + decay p)

    decay is 0 for a parameter whose name contains one of `exclude`, and weight_decay for all others.
    """

    exclude = ("LayerNorm", "layer_norm", "bias")

    def __init__(
        self,
        named_parameters: Iterable[tuple[str, nn.Parameter]],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        max_grad_norm: float = 1.0,
    ) -> None:
        self.parameters = dict(named_parameters)
        self.lr, self.betas, self.eps = lr, betas, eps
        self.weight_decay, self.max_grad_norm = weight_decay, max_grad_norm
        self.exp_avg = {name: torch.zeros_like(p) for name, p in self.parameters.items()}
        self.exp_avg_sq = {name: torch.zeros_like(p) for name, p in self.parameters.items()}

    @torch.no_grad()
    def step(self) -> Tensor:
        """Update the parameters and drop the gradients. Returns the gradients' global norm (), before clipping."""
        gradients = {name: p.grad for name, p in self.parameters.items() if p.grad is not None}
        norm = torch.stack([g.square().sum() for g in gradients.values()]).sum().sqrt()
        scale = self.max_grad_norm / norm.clamp(min=self.max_grad_norm)
        for name, g in gradients.items():
            p, m, v = self.parameters[name], self.exp_avg[name], self.exp_avg_sq[name]
            m.lerp_(g * scale, 1 - self.betas[0])
            v.lerp_((g * scale).square(), 1 - self.betas[1])
            decay = 0.0 if any(part in name for part in self.exclude) else self.weight_decay
            p.sub_(self.lr * (m / (v.sqrt() + self.eps) + decay * p))
            p.grad = None
        return norm
