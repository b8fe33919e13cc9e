"""Backend: how one device computes a differentiable op."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic

from torch import Tensor

from electra_fast.ops._library import A, launcher


@dataclass(frozen=True)
class Backend(Generic[A]):
    """A differentiable op on one device. Its functions take the op's arguments as their NamedTuple."""

    fwd: Callable[[A], Any]  # (args) -> (*outputs, saved)
    bwd: Callable[[list[Tensor], A, list[Tensor]], list[Tensor]]  # (grads, args, saved) -> gradients
    saves: Callable[[A], Sequence[Tensor]] = lambda args: ()  # tensors shaped as `saved`, for the fake
    takes: Callable[[A], bool] = lambda args: True  # whether it serves these shapes; if not, the reference does
    limit: str = ""  # `takes` in words
    infer: Callable[[A], Any] | None = None  # (args) -> outputs, where it is cheaper to save nothing

    def forward(self, args: A, keep: bool = True) -> Any:
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
    """The backend of two launchers, each named by its file in kernels/ and its function, that take the arguments one by
    one."""
    fwd, bwd = launcher(*forward), launcher(*backward)
    return Backend(lambda args: fwd(*args), lambda grads, args, saved: bwd(grads, *args, saved), saves, takes, limit)


def as_tuple(value: Any) -> tuple[Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)
