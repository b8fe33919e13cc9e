"""Decoupled updates: generator and discriminator are stepped apart, each with its own norm and learning rate."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from electra_fast.train.optimizer import AdamW
from electra_fast.train.settings import PretrainConfig


class Decoupled:
    """Two optimisers, one for the parameters whose name begins with "generator.", one for all others.

    Each clips by the norm of its own gradients. The generator's learning rate is config.generator_learning_rate, which
    follows the same schedule. If the loss or any gradient is not finite, neither changes anything.

    kind: AdamW or Muon. named_parameters, config, copies: as it takes them.

    Source: He et al., "DeBERTaV3", ICLR 2023, section 3, whose code steps the generator before the discriminator's
    forward pass; here both forward passes see the weights from before the step.
    """

    def __init__(
        self,
        kind: type[AdamW],
        named_parameters: Iterable[tuple[str, nn.Parameter]],
        config: PretrainConfig,
        copies: Iterable[tuple[str, nn.Parameter]] = (),
    ) -> None:
        named, narrow = list(named_parameters), list(copies)
        factor = (config.generator_learning_rate or config.learning_rate) / config.learning_rate
        self.parts = [
            kind(
                [pair for pair in named if pair[0].startswith("generator.") == own],
                config,
                [pair for pair in narrow if pair[0].startswith("generator.") == own],
                {name: factor for name, _ in named} if own else None,
            )
            for own in (True, False)
        ]

    def gather(self) -> None:
        """Add the copies' gradients to the parameters' own, as AdamW.gather."""
        for part in self.parts:
            part.gather()

    def refresh(self) -> None:
        """Round the parameters into the copies, as AdamW.refresh."""
        for part in self.parts:
            part.refresh()

    def forget(self) -> None:
        """Drop all gradients."""
        for part in self.parts:
            part.forget()

    @torch.no_grad()
    def step(self, lr: float | Tensor, guard: Tensor) -> Tensor:
        """Update both networks once, as AdamW.step does; the norm that is returned is that of all gradients."""
        tensors = [p for part in self.parts for p in (*part.params.values(), *part.copies.values())]
        norms = torch.stack([p.grad.norm().float() for p in tensors if p.grad is not None])
        guard = guard + 0 * norms.sum()  # 0 times infinity is NaN, with which neither changes anything
        return torch.stack([part.step(lr, guard) for part in self.parts]).norm(dim=0)

    def state_dict(self) -> dict[str, Tensor]:
        """The moments of every parameter under the names that AdamW gives them."""
        return self.parts[0].state_dict() | self.parts[1].state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Copy the moments from a `state_dict`. Raises ValueError if its names are others."""
        if state.keys() != self.state_dict().keys():
            differing = sorted(state.keys() ^ self.state_dict().keys())[:5]
            raise ValueError(f"optimiser state for other parameters: {differing} differ")
        for part in self.parts:
            part.load_state_dict({name: state[name] for name in part.state_dict()})
