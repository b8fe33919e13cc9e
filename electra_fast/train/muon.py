"""Muon: the layers' matrices take steps that are orthogonal matrices, all other parameters those of AdamW."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from electra_fast import ops
from electra_fast.train.optimizer import AdamW
from electra_fast.train.settings import PretrainConfig

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the iteration's polynomial, whose slope at 0 is steep
ITERATIONS = 5
ADAMW_SIZE = 0.2  # root mean square of a step of AdamW, which Muon's steps are scaled to


def orthogonalise(matrix: Tensor) -> Tensor:
    """Bring all singular values of a matrix near 1, by five Newton-Schulz iterations.

        X = M / |M|        five times: X = a X + (b X X^T + c (X X^T)^2) X

    matrix: (N, K), of a floating-point dtype.

    Returns (N, K): U V^T of the singular value decomposition M = U S V^T, about; singular values lie between 0.7 and
    1.2 where those of M / |M| are above 0.01, and a matrix of zeros stays as it is.

    Cost: 5 (4 n^2 k + 2 n^3) flops, where n is the smaller of N and K and k the larger.

    Source: Jordan et al., "Muon", 2024, https://kellerjordan.github.io/posts/muon/
    """
    a, b, c = COEFFICIENTS
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.t()
    x = (wide / wide.norm().clamp(min=1e-7)).contiguous()
    for _ in range(ITERATIONS):
        square = _product(x, x)
        polynomial = b * square + c * _product(square, square)  # square is symmetric
        x = a * x + _product(polynomial, x.t().contiguous())
    return x if wide is matrix else x.t()


def _product(x: Tensor, y: Tensor) -> Tensor:
    """x y^T."""
    return ops.linear(x, y, x.new_zeros(y.shape[0]))


class Muon(AdamW):
    """Muon for the matrices of the layers, AdamW for embeddings, heads, biases and norms.

        m = mu m + (1 - mu) g        u = mu m + (1 - mu) g
        p = p - lr (0.2 sqrt(max(N, K)) orthogonalise(u) + weight_decay p)

    The factor 0.2 sqrt(max(N, K)) makes a step as large as one of AdamW, so both take the same learning rate. Queries,
    keys and values are three matrices. The matrices' gradients are not clipped, since the size of a step does not
    depend on theirs.

    named_parameters, config, copies, scales: as for AdamW; mu is config.momentum.

    Source: as `orthogonalise`; the factor, Liu et al., "Muon is scalable for LLM training", 2025, section 2.2.
    """

    def __init__(
        self,
        named_parameters: Iterable[tuple[str, nn.Parameter]],
        config: PretrainConfig,
        copies: Iterable[tuple[str, nn.Parameter]] = (),
        scales: Mapping[str, float] | None = None,
    ) -> None:
        super().__init__(named_parameters, config, copies, scales)
        self.matrices = [name for name, p in self.params.items() if p.dim() == 2 and ".layers." in name]
        for name in self.matrices:
            del self.exp_avg_sq[name]  # Muon has the mean of the gradients alone

    @torch.no_grad()
    def step(self, lr: float | Tensor, guard: Tensor) -> Tensor:
        """Update the parameters once from their gradients, as AdamW.step; the norm it returns is of all gradients."""
        owners = self.copies or self.params
        names = [name for name in self.matrices if owners[name].grad is not None]
        grads: list[Tensor] = []
        for name in names:
            grad = owners[name].grad
            assert grad is not None
            grads.append(grad.to(self.params[name].dtype))
            owners[name].grad = None  # AdamW leaves a parameter without a gradient as it is
        norms = torch.stack([grad.norm() for grad in grads] or [guard.new_zeros(())])
        ours = norms.norm().reshape(1)
        guard = guard + 0 * ours  # 0 times infinity is NaN, with which AdamW changes nothing
        theirs = super().step(lr, guard)
        finite = (theirs + 0 * guard).isfinite()
        for name, grad in zip(names, grads, strict=True):
            self._update(name, grad, lr, finite)
        return (theirs.square() + ours.square()).sqrt()

    def _update(self, name: str, grad: Tensor, lr: float | Tensor, finite: Tensor) -> None:
        """Take one matrix's step, or leave it and its mean as they are where `finite` (1,) is False."""
        p, mean, config = self.params[name], self.exp_avg[name], self.config
        grad = torch.where(finite, grad, 0)
        mean.copy_(torch.where(finite, mean.lerp(grad, 1 - config.momentum), mean))
        parts = grad.lerp(mean, config.momentum).chunk(3 if name.endswith("qkv.weight") else 1)
        update = torch.cat([orthogonalise(part) * (ADAMW_SIZE * max(part.shape) ** 0.5) for part in parts])
        rate = torch.where(finite, lr * self.scales.get(name, 1.0), 0.0)
        p.sub_(rate * (update + config.weight_decay * p))
        if self.copies:
            self.copies[name].copy_(p)
