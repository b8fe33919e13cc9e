"""The optimiser of ELECTRA: AdamW over named parameters, and the low-precision copy that forward and backward use."""

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
    """Whether a parameter has weight decay: all but biases (the vocabulary's among them) and LayerNorm's."""
    return "bias" not in name and "norm" not in name


def working_copy(model: Model, precision: str) -> Model:
    """The model that forward and backward run through: `model` itself, or a copy of it in another dtype.

    The parameters of `model` stay the ones that are updated, saved and evaluated; AdamW rounds them into the copy at
    each step.

    model: any module with parameters of one dtype on one device.
    precision: "float32", "bfloat16", or "auto": bfloat16 on CUDA, the model's own dtype elsewhere.

    Raises ValueError for bfloat16 on the CPU, whose ops do not compute in it.
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
    """AdamW over the named parameters of a model, with clipping by the global norm (formula: ops/adamw.py).

    named_parameters: the parameters that are updated; those that require no gradient are left out.
    config: betas, eps, weight decay and the largest norm of the gradients.
    copies: the named parameters of a working copy, if there is one. Then the gradients are read from the copies, in
        their dtype, and the new parameters are rounded into them; parameters and moments keep the model's dtype.
    scales: name -> factor of the learning rate, where that is not 1.
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
        """Add the copies' gradients to the parameters' own, whose dtype is wider; call it after each micro-batch.

        Without copies it does nothing: autograd has added the gradients up.
        """
        for name, narrow in self.copies.items():
            if narrow.grad is not None:
                grad, total = narrow.grad.to(self.params[name].dtype), self.params[name].grad
                self.params[name].grad = grad if total is None else total.add_(grad)
                narrow.grad = None

    @torch.no_grad()
    def refresh(self) -> None:
        """Round the parameters into the copies; call it after something else than `step` has changed the parameters."""
        for name, narrow in self.copies.items():
            narrow.copy_(self.params[name])

    def step(self, lr: float | Tensor, guard: Tensor) -> Tensor:
        """Update the parameters once from their gradients, and drop the gradients.

        A parameter without a gradient is left as it is. If the guard or the gradients' norm is not finite, nothing is
        changed.

        lr: the learning rate, a number or (1,) float32 on the parameters' device.
        guard: (1,) float32, such as the loss.

        Returns the global norm of the gradients before clipping, (1,).
        """
        config = self.config
        grads = {name: p.grad for name, p in [*self.copies.items(), *self.params.items()] if p.grad is not None}
        names = [name for name in self.params if name in grads]
        norm = ops.adamw(
            [self.params[name] for name in names],
            [grads[name] for name in names],
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
        """Drop all gradients."""
        for p in (*self.params.values(), *self.copies.values()):
            p.grad = None

    def state_dict(self) -> dict[str, Tensor]:
        """The moments of every parameter, as exp_avg.NAME and exp_avg_sq.NAME: the tensors themselves, no copies."""
        state = {f"exp_avg.{name}": t for name, t in self.exp_avg.items()}
        return state | {f"exp_avg_sq.{name}": t for name, t in self.exp_avg_sq.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Copy the moments from a `state_dict`, and refresh the copies. Raises ValueError if its names are others."""
        own = self.state_dict()
        if state.keys() != own.keys():
            raise ValueError(f"optimiser state for other parameters: {sorted(state.keys() ^ own.keys())[:5]} differ")
        for name, tensor in own.items():
            tensor.copy_(state[name])
        self.refresh()
