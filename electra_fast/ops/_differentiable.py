"""Ops with gradients: how a forward and a backward become two dispatcher ops and an autograd function.

A differentiable op `name` is two dispatcher ops, `name_fwd` and `name_bwd`:

    name_fwd(arguments, *, bool keep=True)              -> (outputs..., Tensor[] saved)
    name_bwd(Tensor[] grads, arguments, Tensor[] saved) -> Tensor[]

`grads` holds one gradient for each floating-point output, and `saved` the outputs followed by what the forward saved.
The result holds one gradient for each differentiable argument that is not None; where such an argument is a list, one
for each tensor in it. Each backend saves the tensors that it needs. With keep=False, if no gradient is needed, nothing
is saved. The reference's backward is PyTorch's autograd through the plain function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Generic

import torch
from torch import Tensor
from torch.autograd import forward_ad

from electra_fast.ops._backend import Backend, as_tuple
from electra_fast.ops._core import core
from electra_fast.ops._library import (
    HAS_TRITON,
    LIBRARY,
    A,
    in_float32,
    maker,
    register,
    registered,
    schema_of,
    tensors_in,
)

_AUTOGRAD_KEYS = [
    getattr(torch._C.DispatchKey, key) for key in ("AutogradFunctionality", "AutogradOther", "ADInplaceOrView")
]


def refuse_transforms(name: str, args: Iterable[Any]) -> None:
    """Raises NotImplementedError under torch.func and forward-mode differentiation, which these ops do not support;
    otherwise derivatives would silently be zero."""
    if torch.compiler.is_compiling():
        return
    if torch._C._functorch.peek_interpreter_stack() is not None:
        raise NotImplementedError(f"{name}: torch.func transforms are not implemented; use torch.autograd")
    if forward_ad._current_level >= 0 and any(forward_ad.unpack_dual(t).tangent is not None for t in tensors_in(args)):
        raise NotImplementedError(f"{name}: forward-mode differentiation is not implemented; use backward")


Choice = Callable[[Any, Sequence[Any]], Backend[Any]]  # (args, all values of the call) -> the backend that runs them


class DifferentiableOp(Generic[A]):
    """A differentiable op: it is called with its arguments, and returns its outputs.

    name: that of the op.
    arguments: the NamedTuple of its arguments.
    outputs: the names of its outputs.
    differentiable: the names of the arguments that have gradients.
    reference: the formula in PyTorch, which runs if no backend takes the arguments, and in float64.
    fake: returns tensors of the outputs' shapes, for torch.compile.
    cpu: the implementation in C++, for float32.
    cuda: the implementation in Triton, for float32, float16 and bfloat16.
    check: runs before every implementation on the CPU, forward and backward, and raises on values that would lead to
        wrong addresses.
    """

    def __init__(
        self,
        name: str,
        arguments: type[A],
        *,
        outputs: Sequence[str],
        differentiable: Sequence[str],
        reference: Callable[[A], Tensor | tuple[Tensor, ...]],
        fake: Callable[[A], tuple[Tensor, ...]],
        cpu: Backend[A] | None = None,
        cuda: Backend[A] | None = None,
        check: Callable[[A], None] = lambda args: None,
    ) -> None:
        self.name, self.outputs, self.make = name, len(outputs), maker(arguments)
        self.cpu, self.cuda = cpu if core is not None else None, cuda if HAS_TRITON else None
        self.plain = self.through_autograd(reference)
        self.fake, self.check = fake, check
        self.slots = [arguments._fields.index(d) for d in differentiable]  # type: ignore[attr-defined]
        schema, returns = schema_of(arguments), ", ".join(f"Tensor {output}" for output in outputs)
        choices = self._on_reference, self._on_cpu, self._on_cuda
        for way, declared, run, shapes in (
            ("fwd", f"({schema}, *, bool keep=True) -> ({returns}, Tensor[] saved)", self._forward, self._forward_fake),
            ("bwd", f"(Tensor[] grads, {schema}, Tensor[] saved) -> Tensor[]", self._backward, self._backward_fake),
        ):
            on_reference, on_cpu, on_cuda = (run(choose) for choose in choices)
            register(f"{name}_{way}", declared, on_reference, shapes, on_cpu, None if cuda is None else on_cuda)
        limit = cuda.limit if cuda else ""
        self.fwd, self.bwd = (
            registered(f"{name}_{way}", cpu is not None, cuda is not None, limit) for way in ("fwd", "bwd")
        )
        LIBRARY.impl(f"{name}_fwd", self._autograd, "Autograd")
        for device in ("CPU", "CUDA"):
            LIBRARY.impl(f"{name}_fwd", self._autocast(device.lower()), f"Autocast{device}")

    def _forward(self, choose: Choice) -> Callable[..., Any]:
        """The dispatcher op name_fwd, which takes its arguments one by one and runs the backend that `choose`
        returns."""

        def forward(*values: Any, keep: bool = True) -> Any:
            args = self.make(values)
            return choose(args, values).forward(args, keep)

        return forward

    def _backward(self, choose: Choice) -> Callable[..., list[Tensor]]:
        """The dispatcher op name_bwd, likewise."""

        def backward(grads: list[Tensor], *values: Any) -> list[Tensor]:
            *rest, saved = values
            args = self.make(rest)
            return choose(args, (grads, *values)).bwd(grads, args, saved)

        return backward

    def _on_reference(self, args: A, values: Sequence[Any]) -> Backend[A]:
        return self.plain

    def _on_cpu(self, args: A, values: Sequence[Any]) -> Backend[A]:
        narrow = in_float32(self.name, values)
        self.check(args)
        return self.plain if self.cpu is None or not narrow else self.cpu

    def _on_cuda(self, args: A, values: Sequence[Any]) -> Backend[A]:
        return self.plain if self.cuda is None or not self.on_triton(args) else self.cuda

    def on_triton(self, args: A) -> bool:
        """Whether Triton runs these arguments on CUDA; otherwise the reference does, as for float64."""
        wide = any(t.dtype == torch.float64 for t in tensors_in(args))
        return self.cuda is not None and not wide and self.cuda.takes(args)

    def _forward_fake(self, *values: Any, keep: bool = True) -> Any:
        """Tensors of the shapes of the outputs, and of what the backend saves that would run these arguments."""
        args = self.make(values)
        floats = [t for t in tensors_in(args) if t.is_floating_point()]
        narrow = all(t.device.type == "cpu" and t.dtype == torch.float32 for t in floats)
        backend = self.plain
        if self.cuda is not None and floats[0].device.type == "cuda":
            backend = self._on_cuda(args, values)
        elif self.cpu is not None and narrow:
            backend = self.cpu
        return (*self.fake(args), list(backend.saves(args)) if keep else [])

    def _backward_fake(self, grads: list[Tensor], *values: Any) -> list[Tensor]:
        return [t.new_empty(t.shape) for t in self._differentiated(values)]

    def _differentiated(self, args: Sequence[Any]) -> list[Tensor]:
        """The tensors that have gradients, in order."""
        return tensors_in([args[i] for i in self.slots])

    def __call__(self, args: A) -> Any:
        refuse_transforms(self.name, args)
        outputs = self.fwd(*args, keep=_asks_for_gradients(args))[: self.outputs]
        return outputs[0] if self.outputs == 1 else outputs

    def _autograd(self, *values: Any, **keep: bool) -> Any:
        if _asks_for_gradients(values):
            *outputs, saved = _Function.apply(self, values, *tensors_in(values))
            return (*outputs, saved)
        with torch._C._AutoDispatchBelowAutograd():
            return self.fwd(*values, **keep)

    def _autocast(self, device: str) -> Callable[..., Any]:
        """The forward under torch.autocast: tensors become float32 on the CPU, which has no 16-bit ops, and autocast's
        dtype on CUDA. Those in float64 stay."""

        def cast(value: Any, dtype: torch.dtype) -> Any:
            if isinstance(value, (list, tuple)):
                return [cast(v, dtype) for v in value]
            floats = isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64
            return value.to(dtype) if floats else value

        def forward(*values: Any, **keep: bool) -> Any:
            dtype = torch.float32 if device == "cpu" else torch.get_autocast_dtype(device)
            with torch.autocast(device, enabled=False):
                return self.fwd(*cast(values, dtype), **keep)

        return forward

    def through_autograd(self, function: Callable[[A], Tensor | tuple[Tensor, ...]]) -> Backend[A]:
        """A backend whose forward is a function of PyTorch ops. It saves nothing: its backward runs the function again,
        under autograd."""

        def backward(grads: list[Tensor], args: A, saved: list[Tensor]) -> list[Tensor]:
            values = list(args)
            with torch.enable_grad(), torch._C._PreserveDispatchKeyGuard():
                for key in _AUTOGRAD_KEYS:  # a TorchDispatchMode, such as FlopCounterMode, excludes them
                    torch._C._dispatch_tls_set_dispatch_key_excluded(key, False)
                for i in self.slots:
                    values[i] = _leaf(values[i])
                outputs = [o for o in as_tuple(function(self.make(values))) if o.is_floating_point()]
                leaves = self._differentiated(values)
                gradients = torch.autograd.grad(outputs, leaves, grads, allow_unused=True, materialize_grads=True)
            # An op must not return its input, but autograd returns the upstream gradient itself for an addition.
            inputs = {g.untyped_storage().data_ptr() for g in grads}
            return [g.clone() if g.untyped_storage().data_ptr() in inputs else g.contiguous() for g in gradients]

        return Backend(lambda args: (*as_tuple(function(args)), []), backward)


def _asks_for_gradients(args: Iterable[Any]) -> bool:
    """Whether autograd is on, and a tensor among the arguments requires gradients."""
    return torch.is_grad_enabled() and any(t.requires_grad for t in tensors_in(args))


def _leaf(value: Any) -> Any:
    """A tensor, or the tensors of a list, as leaves of a new autograd graph."""
    if isinstance(value, Tensor):
        return value.detach().requires_grad_()
    return [_leaf(t) for t in value] if value is not None else None


class _Function(torch.autograd.Function):
    """The autograd function of an op. It takes the op's arguments, and then again each tensor among them, since
    autograd does not look into lists."""

    @staticmethod
    def forward(ctx: Any, op: DifferentiableOp, values: Sequence[Any], *tensors: Tensor) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            *outputs, saved = op.fwd(*values)
        ctx.save_for_backward(*tensors, *outputs, *saved)
        ctx.op, ctx.inputs = op, len(tensors)
        ctx.values = [_place(v) for v in values]
        ctx.floating = [o.is_floating_point() for o in outputs]
        ctx.mark_non_differentiable(*(o for o in outputs if not o.is_floating_point()))
        return (*outputs, saved)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        op = ctx.op
        if torch.is_grad_enabled():
            raise NotImplementedError(
                f"{op.name}: double backward is not implemented; call backward once, without create_graph"
            )
        tensors = ctx.saved_tensors
        inputs = iter(tensors)
        values = [_filled(v, inputs) for v in ctx.values]
        upstream = [g.contiguous() for g, floating in zip(grads, ctx.floating, strict=False) if floating]
        gradients = iter(op.bwd(upstream, *values, list(tensors[ctx.inputs :])))
        result = [next(gradients) if i in op.slots else None for i, v in enumerate(values) for _ in tensors_in([v])]
        return (None, None, *result)


_TENSOR = object()  # takes the place of a tensor among the values, since autograd keeps the tensors themselves


def _place(value: Any) -> Any:
    """The value with _TENSOR in place of each tensor."""
    if isinstance(value, Tensor):
        return _TENSOR
    return [_place(v) for v in value] if isinstance(value, (list, tuple)) else value


def _filled(value: Any, tensors: Iterator[Tensor]) -> Any:
    """The value with the next tensors in place of each _TENSOR."""
    if value is _TENSOR:
        return next(tensors)
    return [_filled(v, tensors) for v in value] if isinstance(value, list) else value
