"""The optimiser of ELECTRA: which parameters decay, the schedule, and the fused AdamW step."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from electra_fast import ops
from electra_fast.config import PretrainConfig


def decays(name: str) -> bool:
    """Whether weight decay holds for a parameter: not for biases (the vocabulary's too) and LayerNorm."""
    return "bias" not in name and "norm" not in name


def learning_rate(config: PretrainConfig, step: int, faithful: bool = False) -> float:
    """base (1 - t / T)^power min(1, t / warmup) at step t: a product, as Google's code has it.

    Google's first step has rate 0 (faithful); here the warm-up begins with its first step, (t + 1) / warmup.
    """
    ramp = 1.0 if config.warmup == 0 else min(1.0, (step if faithful else step + 1) / config.warmup)
    return config.learning_rate * max(0.0, 1 - step / config.steps) ** config.decay_power * ramp


class AdamW:
    """AdamW over the named parameters of a model, with global-norm clipping; see ops/adamw.py for the formula."""

    def __init__(self, named_parameters: Iterable[tuple[str, nn.Parameter]], config: PretrainConfig) -> None:
        self.config = config
        self.params = {name: p for name, p in named_parameters if p.requires_grad}
        self.exp_avg = {name: torch.zeros_like(p) for name, p in self.params.items()}
        self.exp_avg_sq = {name: torch.zeros_like(p) for name, p in self.params.items()}

    def step(self, lr: float, guard: Tensor) -> Tensor:
        """One update from the gradients at hand, which are then dropped; parameters without one stand still.

        Returns the gradients' global norm (1,) before clipping. If it or the guard is not finite, nothing was changed.
        """
        config = self.config
        names = [name for name, p in self.params.items() if p.grad is not None]
        grads = [self.params[name].grad for name in names]
        norm = ops.adamw(
            [self.params[name] for name in names],
            [g for g in grads if g is not None],
            [self.exp_avg[name] for name in names],
            [self.exp_avg_sq[name] for name in names],
            torch.full((1,), lr, dtype=guard.dtype, device=guard.device),
            [1.0] * len(names),
            [config.weight_decay if decays(name) else 0.0 for name in names],
            config.beta1,
            config.beta2,
            config.eps,
            config.max_grad_norm,
            guard,
        )
        for name in names:
            self.params[name].grad = None
        return norm

    def state_dict(self) -> dict[str, Tensor]:
        """exp_avg.NAME and exp_avg_sq.NAME of every parameter."""
        state = {f"exp_avg.{name}": t for name, t in self.exp_avg.items()}
        return state | {f"exp_avg_sq.{name}": t for name, t in self.exp_avg_sq.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Raises ValueError where the names are not those of `state_dict`."""
        own = self.state_dict()
        if state.keys() != own.keys():
            raise ValueError(f"optimiser state for other parameters: {sorted(state.keys() ^ own.keys())[:5]} differ")
        for name, tensor in own.items():
            tensor.copy_(state[name])
