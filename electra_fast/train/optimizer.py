"""The optimiser of ELECTRA: which parameters decay, the schedule, the working copy, and the fused AdamW step."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from typing import TypeVar

import torch
from torch import Tensor, nn

from electra_fast import ops
from electra_fast.train.settings import PretrainConfig

Model = TypeVar("Model", bound=nn.Module)


def decays(name: str) -> bool:
    """Whether weight decay holds for a parameter: not for biases (the vocabulary's too) and LayerNorm."""
    return "bias" not in name and "norm" not in name


def working_copy(model: Model, precision: str) -> Model:
    """What forward and backward run through: the model, or, where its dtype is not the precision's, a copy in that.

    "auto" is bfloat16 on CUDA and the model's own dtype elsewhere. The model's parameters stay the ones that are
    updated, saved and evaluated; AdamW rounds them into the copy as it steps. Raises ValueError for bfloat16 on the
    CPU, where no op computes in it.
    """
    own = next(model.parameters())
    chosen = {"cuda": torch.bfloat16}.get(own.device.type, own.dtype)
    dtype = chosen if precision == "auto" else getattr(torch, precision)
    if dtype == torch.bfloat16 and own.device.type == "cpu":
        raise ValueError(
            "precision is bfloat16, which the CPU's ops do not compute in; pass --precision float32 there, or use a GPU"
        )
    return model if dtype == own.dtype else copy.deepcopy(model).to(dtype)


class AdamW:
    """AdamW over the named parameters of a model, with global-norm clipping; see ops/adamw.py for the formula.

    copies: the named parameters of its working copy, if it has one. Gradients are theirs then, in their dtype, and they
    receive the new parameters rounded; parameters and moments keep the model's dtype. scales: by name, what multiplies
    the learning rate, where that is not 1.
    """

    def __init__(
        self,
        named_parameters: Iterable[tuple[str, nn.Parameter]],
        config: PretrainConfig,
        copies: Iterable[tuple[str, nn.Parameter]] = (),
        scales: Mapping[str, float] | None = None,
    ) -> None:
        self.config, self.scales = config, scales or {}
        self.params = {name: p for name, p in named_parameters if p.requires_grad}
        self.copies = {name: p for name, p in copies if p.requires_grad}
        self.exp_avg = {name: torch.zeros_like(p) for name, p in self.params.items()}
        self.exp_avg_sq = {name: torch.zeros_like(p) for name, p in self.params.items()}

    def gather(self) -> None:
        """Between micro-batches: add the copies' gradients to the parameters' own, in whose dtype little is lost.

        Without copies autograd has added them up itself.
        """
        for name, narrow in self.copies.items():
            if narrow.grad is not None:
                grad, sofar = narrow.grad.to(self.params[name].dtype), self.params[name].grad
                self.params[name].grad = grad if sofar is None else sofar.add_(grad)
                narrow.grad = None

    @torch.no_grad()
    def refresh(self) -> None:
        """Round the parameters into the copies, where something else than `step` has changed them."""
        for name, narrow in self.copies.items():
            narrow.copy_(self.params[name])

    def step(self, lr: float | Tensor, guard: Tensor) -> Tensor:
        """One update from the gradients at hand, which are then dropped; parameters without one stand still.

        lr: a number, or (1,) on the device. Returns the gradients' global norm (1,) before clipping. If it or the guard
        is not finite, nothing was changed.
        """
        config = self.config
        found = {name: p.grad for name, p in [*self.copies.items(), *self.params.items()] if p.grad is not None}
        names = [name for name in self.params if name in found]
        norm = ops.adamw(
            [self.params[name] for name in names],
            [found[name] for name in names],
            [self.exp_avg[name] for name in names],
            [self.exp_avg_sq[name] for name in names],
            lr if isinstance(lr, Tensor) else torch.full((1,), lr, dtype=guard.dtype, device=guard.device),
            [self.scales.get(name, 1.0) for name in names],
            [config.weight_decay if decays(name) else 0.0 for name in names],
            beta1=config.beta1,
            beta2=config.beta2,
            eps=config.eps,
            max_grad_norm=config.max_grad_norm,
            guard=guard,
            copies=[self.copies[name] for name in names] if self.copies else None,
        )
        self.forget()
        return norm

    def forget(self) -> None:
        """Drop the gradients at hand."""
        for p in (*self.params.values(), *self.copies.values()):
            p.grad = None

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
        self.refresh()
