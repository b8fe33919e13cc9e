"""How an op is declared: schema, reference, fake and autograd in one place; PyTorch's dispatcher is the registry.

A plain op is one dispatcher op. A differentiable op `name` is two, `name_fwd` and `name_bwd`:

    name_fwd(arguments, *, bool keep=True)         -> (outputs..., Tensor[] saved)
    name_bwd(Tensor[] grads, arguments, Tensor[] saved) -> Tensor[]

`grads` holds one gradient for each floating-point output, `saved` the outputs followed by what the forward saved, and
the result one gradient for each differentiable argument that is not None, one for each tensor where the argument is a
list. What is saved may differ by backend; without `keep`, as where no gradient is asked for, it is nothing. The
reference serves every backend that has no implementation of its own, and float64; its backward is PyTorch's autograd
through the plain function.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

from electra_fast.ops._core import core, why

_AUTOGRAD_KEYS = [
    getattr(torch._C.DispatchKey, key) for key in ("AutogradFunctionality", "AutogradOther", "ADInplaceOrView")
]
LIBRARY = torch.library.Library("electra_fast", "DEF")
HAS_TRITON = importlib.util.find_spec("triton") is not None
backends: dict[str, dict[str, str]] = {}  # op -> device -> what runs there and why; read by electra_fast.info()


def launcher(file: str, name: str) -> Callable[..., Any]:
    """The Triton launcher `name` of kernels/<file>.py; triton is imported when it is first called."""

    def launch(*args: Any) -> Any:
        with torch.cuda.device_of(_tensors(args)[0]):  # Triton launches on the current device
            return getattr(importlib.import_module(f"electra_fast.kernels.{file}"), name)(*args)

    return launch


def define(
    name: str,
    schema: str,
    reference: Callable,
    fake: Callable,
    cpu: Callable | None = None,
    floats: bool = True,
    cuda: Callable | None = None,
    limit: str = "",
) -> Any:
    """Register the plain op `electra_fast::name` and return its overload.

    `cpu` is the C++ implementation, used where the core is built and, if the op takes floats, for float32 alone. `cuda`
    is a `launcher`, or what chooses between one and the reference; `limit` says by what.
    """
    LIBRARY.define(name + schema)
    LIBRARY.impl(name, reference, "CompositeExplicitAutograd")
    torch.library.register_fake(f"electra_fast::{name}", fake, lib=LIBRARY)
    compiled = cpu if core is not None else None
    if floats:
        LIBRARY.impl(name, _by_dtype(name, compiled or reference, reference), "CPU")
    elif compiled is not None:
        LIBRARY.impl(name, compiled, "CPU")
    said = f"C++, {why}" if compiled else f"reference: {why if cpu else 'no C++ yet'}"
    backends[name] = {"cpu": said, "cuda": "reference: no Triton kernel yet"}
    if cuda is not None:
        backends[name]["cuda"] = "reference: triton is not installed"
    if cuda is not None and HAS_TRITON:
        LIBRARY.impl(name, cuda, "CUDA")
        backends[name]["cuda"] = f"Triton{limit and f' for {limit}, else the reference'}"
    return getattr(torch.ops.electra_fast, name).default


def _by_dtype(name: str, float32: Callable, float64: Callable) -> Callable:
    """The one place that chooses an implementation by dtype on the CPU."""

    def implementation(*args: Any, **options: Any) -> Any:
        dtypes = {t.dtype for t in _tensors(args) if t.is_floating_point()}
        if dtypes <= {torch.float32}:
            return float32(*args, **options)
        if dtypes <= {torch.float32, torch.float64}:
            return float64(*args, **options)
        raise TypeError(
            f"{name}: found {sorted(map(str, dtypes))} on the CPU, where float32 and float64 are supported; "
            f"convert with .float()"
        )

    return implementation


def refuse_transforms(name: str, args: Sequence[Any]) -> None:
    """What autograd alone gives a gradient to says so, where a derivative would silently be zero."""
    if torch.compiler.is_compiling():
        return
    if torch._C._functorch.peek_interpreter_stack() is not None:
        raise NotImplementedError(f"{name}: torch.func transforms are not implemented; use torch.autograd")
    if forward_ad._current_level >= 0 and any(forward_ad.unpack_dual(t).tangent is not None for t in _tensors(args)):
        raise NotImplementedError(f"{name}: forward-mode differentiation is not implemented; use backward")


def _tensors(values: Sequence[Any]) -> list[Tensor]:
    flat: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            flat.append(value)
        elif isinstance(value, (list, tuple)):
            flat += [v for v in value if isinstance(v, Tensor)]
    return flat


class Backend(NamedTuple):
    """A differentiable op on one device."""

    fwd: Callable[..., Any]  # (*arguments) -> (*outputs, saved)
    bwd: Callable[..., list[Tensor]]  # (grads, *arguments, saved) -> gradients
    saves: Callable[..., list[Tensor]] = lambda *arguments: []  # tensors shaped as `saved`, for the fake
    takes: Callable[..., bool] = lambda *arguments: True  # whether it serves such shapes; the reference serves others
    limit: str = ""  # `takes` in words
    infer: Callable[..., Any] | None = None  # (*arguments) -> (*outputs), where it is cheaper to keep nothing

    def forward(self, *arguments: Any, keep: bool = True) -> Any:
        if keep:
            return self.fwd(*arguments)
        outputs = self.fwd(*arguments)[:-1] if self.infer is None else _tuple(self.infer(*arguments))
        return (*outputs, [])


class DifferentiableOp:
    """`op(*arguments) -> outputs`, differentiable in the arguments named in `differentiable`.

    `cpu` is the C++ implementation in float32, `cuda` the Triton one in float32, float16 and bfloat16; without one, or
    without the core or triton, the reference runs.
    """

    def __init__(
        self,
        name: str,
        arguments: str,
        *,
        outputs: Sequence[str],
        differentiable: Sequence[str],
        reference: Callable[..., Tensor | tuple[Tensor, ...]],
        fake: Callable[..., tuple[Tensor, ...]],
        cpu: Backend | None = None,
        cuda: Backend | None = None,
    ) -> None:
        self.name, self.outputs, self.cpu = name, len(outputs), cpu if core is not None else None
        self.cuda = cuda if HAS_TRITON else None
        names = [argument.split("=")[0].split()[-1] for argument in arguments.split(",")]
        self.count, self.slots = len(names), [names.index(d) for d in differentiable]
        returns = ", ".join(f"Tensor {output}" for output in outputs)
        plain = self.through_autograd(reference)
        self.fwd = define(
            f"{name}_fwd",
            f"({arguments}, *, bool keep=True) -> ({returns}, Tensor[] saved)",
            plain.forward,
            lambda *args, keep=True: (*fake(*args), self._saved(args) if keep else []),
            cpu and cpu.forward,
            cuda=cuda and (lambda *args, **keep: (cuda if self._on_triton(args) else plain).forward(*args, **keep)),
            limit=cuda.limit if cuda else "",
        )
        self.bwd = define(
            f"{name}_bwd",
            f"(Tensor[] grads, {arguments}, Tensor[] saved) -> Tensor[]",
            plain.bwd,
            lambda grads, *rest: [t.new_empty(t.shape) for t in self._differentiated(rest)],
            cpu and cpu.bwd,
            cuda=cuda and (lambda *args: (cuda if self._on_triton(args[1:-1]) else plain).bwd(*args)),
            limit=cuda.limit if cuda else "",
        )
        LIBRARY.impl(f"{name}_fwd", self._autograd, "Autograd")
        for device in ("CPU", "CUDA"):
            LIBRARY.impl(f"{name}_fwd", self._autocast(device.lower()), f"Autocast{device}")

    def _differentiated(self, args: Sequence[Any]) -> list[Tensor]:
        """The tensors that backward has gradients for."""
        return _tensors([args[i] for i in self.slots])

    def _saved(self, args: Sequence[Any]) -> list[Tensor]:
        """What the implementation that these arguments reach saves, for the fake."""
        floats = [t for t in _tensors(args) if t.is_floating_point()]
        if self.cuda is not None and floats[0].device.type == "cuda":
            return self.cuda.saves(*args) if self._on_triton(args) else []
        on_cpu = all(t.device.type == "cpu" and t.dtype == torch.float32 for t in floats)
        return self.cpu.saves(*args) if self.cpu is not None and on_cpu else []

    def _on_triton(self, args: Sequence[Any]) -> bool:
        """The one place that chooses between Triton and the reference on CUDA, by dtype and shape."""
        wide = any(t.dtype == torch.float64 for t in _tensors(args))
        return self.cuda is not None and not wide and self.cuda.takes(*args)

    def __call__(self, *args: Any) -> Any:
        refuse_transforms(self.name, args)
        outputs = self.fwd(*args, keep=_asks_for_gradients(args))[: self.outputs]
        return outputs[0] if self.outputs == 1 else outputs

    def _autograd(self, *args: Any, **keep: bool) -> Any:
        if _asks_for_gradients(args):
            *outputs, saved = _Function.apply(self, args, *_tensors(args))
            return (*outputs, saved)
        with torch._C._AutoDispatchBelowAutograd():
            return self.fwd(*args, **keep)

    def _autocast(self, device: str) -> Callable[..., Any]:
        """Under torch.autocast everything is float32 on the CPU, whose only precision that is, and of autocast's dtype
        on CUDA; float64 stays."""

        def cast(value: Any, dtype: torch.dtype) -> Any:
            if isinstance(value, (list, tuple)):
                return [cast(v, dtype) for v in value]
            floats = isinstance(value, Tensor) and value.is_floating_point() and value.dtype != torch.float64
            return value.to(dtype) if floats else value

        def forward(*args: Any, **keep: bool) -> Any:
            dtype = torch.float32 if device == "cpu" else torch.get_autocast_dtype(device)
            with torch.autocast(device, enabled=False):
                return self.fwd(*cast(args, dtype), **keep)

        return forward

    def through_autograd(self, function: Callable[..., Tensor | tuple[Tensor, ...]]) -> Backend:
        """A backend of a function of the arguments: it saves nothing, and its backward is autograd's, run anew."""

        def backward(grads: list[Tensor], *rest: Any) -> list[Tensor]:
            args = list(rest[: self.count])
            with torch.enable_grad(), torch._C._PreserveDispatchKeyGuard():
                for key in _AUTOGRAD_KEYS:  # excluded under a TorchDispatchMode, as FlopCounterMode is one
                    torch._C._dispatch_tls_set_dispatch_key_excluded(key, False)
                for i in self.slots:
                    args[i] = _leaf(args[i])
                outputs = [o for o in _tuple(function(*args)) if o.is_floating_point()]
                leaves = self._differentiated(args)
                found = torch.autograd.grad(outputs, leaves, grads, allow_unused=True, materialize_grads=True)
            # An op may not return its input, and autograd hands a gradient through an addition as it is.
            given = {g.untyped_storage().data_ptr() for g in grads}
            return [g.clone() if g.untyped_storage().data_ptr() in given else g.contiguous() for g in found]

        return Backend(lambda *args: (*_tuple(function(*args)), []), backward)


def _tuple(value: Any) -> tuple[Tensor, ...]:
    return value if isinstance(value, tuple) else (value,)


def _asks_for_gradients(args: Sequence[Any]) -> bool:
    return torch.is_grad_enabled() and any(t.requires_grad for t in _tensors(args))


def _leaf(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().requires_grad_()
    return [_leaf(t) for t in value] if value is not None else None


class _Function(torch.autograd.Function):
    """Of an op's arguments, and of the tensors among them in order, which autograd would not see in a list."""

    @staticmethod
    def forward(ctx: Any, op: DifferentiableOp, args: Sequence[Any], *tensors: Tensor) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            *outputs, saved = op.fwd(*args)
        ctx.save_for_backward(*tensors, *outputs, *saved)
        ctx.op, ctx.given = op, len(tensors)
        ctx.args = [_place(a) for a in args]
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
        kept = ctx.saved_tensors
        tensors = iter(kept)
        args = [_filled(a, tensors) for a in ctx.args]
        wanted = [g.contiguous() for g, floating in zip(grads, ctx.floating, strict=False) if floating]
        found = iter(op.bwd(wanted, *args, list(kept[ctx.given :])))
        result = [next(found) if i in op.slots else None for i, a in enumerate(args) for _ in _tensors([a])]
        return (None, None, *result)


_HERE = object()  # where a tensor stood: autograd keeps those


def _place(value: Any) -> Any:
    if isinstance(value, Tensor):
        return _HERE
    return [_place(v) for v in value] if isinstance(value, (list, tuple)) else value


def _filled(value: Any, tensors: Iterator[Tensor]) -> Any:
    if value is _HERE:
        return next(tensors)
    return [_filled(v, tensors) for v in value] if isinstance(value, list) else value
