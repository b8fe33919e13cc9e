"""Backend: how one device computes a differentiable op."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic

from torch import Tensor

from electra_fast.ops._library import A, launcher


@dataclass(frozen=True)
class Backend(Generic[A]):
    """The functions that compute a differentiable op on one device. They take the op's arguments as a NamedTuple."""

    fwd: Callable[[A], Any]  # (args) -> (*outputs, saved)
    bwd: Callable[[list[Tensor], A, list[Tensor]], list[Tensor]]  # (grads, args, saved) -> gradients
    saves: Callable[[A], Sequence[Tensor]] = lambda args: ()  # tensors of the shapes of `saved`, for the fake
    takes: Callable[[A], bool] = lambda args: True  # whether it takes these shapes; otherwise the reference runs
    limit: str = ""  # the condition `takes`, in words
    infer: Callable[[A], Any] | None = None  # (args) -> outputs, if to save nothing is cheaper

    def forward(self, args: A, keep: bool = True) -> Any:
        """Returns the outputs, and a list of the saved tensors, which is empty unless `keep` is True."""
        if keep:
            return self.fwd(args)
        outputs = self.fwd(args)[:-1] if self.infer is None else as_tuple(self.infer(args))
        return (*outputs, [])


def triton_backend(
    forward: tuple[str, str],
    backward: tuple[str, str],
    saves: Callable[[A], Sequence[Tensor]] = lambda args: (),
    takes: Callable[[A], bool] = lambda args: True,
    limit: str = "",
) -> Backend[A]:
    """A backend in Triton.

    forward, backward: the launchers, each by its file in kernels/ and its function, which Backend calls fwd and bwd.
    saves, takes, limit: as Backend describes them.
    """
    return Backend(launcher(*forward), launcher(*backward), saves, takes, limit)


def as_tuple(value: Any) -> tuple[Tensor, ...]:
    """The outputs of a function as a tuple, also if it is a single tensor."""
    return value if isinstance(value, tuple) else (value,)
