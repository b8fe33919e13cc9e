"""How an op is declared to PyTorch's dispatcher: its arguments, reference, fake and implementations.

Each op has a NamedTuple of its arguments, from which the dispatcher's schema is made. Every implementation gets an
instance of it, so an argument is always read by its name. The reference runs on every backend that has no
implementation of its own, and in float64.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterable
from typing import Annotated, Any, TypeVar, get_type_hints

import torch
from torch import Tensor

from electra_fast.ops._core import core, why
from electra_fast.ops._triton_cache import make_cache_usable

LIBRARY = torch.library.Library("electra_fast", "DEF")
HAS_TRITON = importlib.util.find_spec("triton") is not None
backends: dict[str, dict[str, str]] = {}  # op -> device -> which implementation runs there and why; for info()

A = TypeVar("A", bound=tuple[Any, ...])  # the NamedTuple of an op's arguments
Size = Annotated[int, "SymInt"]  # an int that may be symbolic in torch.compile
Written = Annotated[Tensor, "Tensor(a!)"]  # a tensor that the op changes
_SCHEMA_TYPES: dict[Any, str] = {
    Tensor: "Tensor",
    Tensor | None: "Tensor?",
    list[Tensor]: "Tensor[]",
    int: "int",
    float: "float",
    bool: "bool",
    list[int]: "int[]",
    list[float]: "float[]",
}


def schema_of(arguments: type[tuple[Any, ...]]) -> str:
    """The fields of a NamedTuple in the words of a schema, such as "Tensor x, Tensor weight, bool gelu"."""
    hints = get_type_hints(arguments, include_extras=True)
    kinds = {name: getattr(hint, "__metadata__", None) or [_SCHEMA_TYPES[hint]] for name, hint in hints.items()}
    return ", ".join(f"{kind[0]} {name}" for name, kind in kinds.items())


def maker(arguments: type[A]) -> Callable[[Iterable[Any]], A]:
    """The function that makes an instance of the NamedTuple from its values in order."""
    return arguments._make  # type: ignore[attr-defined]


def launcher(file: str, name: str) -> Callable[..., Any]:
    """The function `name` of kernels/<file>.py, which launches Triton kernels; its first call imports triton.

    It takes the NamedTuple of the op's arguments; that of a backward takes (grads, arguments, saved).
    """

    def launch(*values: Any) -> Any:
        make_cache_usable()
        with torch.cuda.device_of(tensors_in(values)[0]):  # Triton launches on the current device
            return getattr(importlib.import_module(f"electra_fast.kernels.{file}"), name)(*values)

    return launch


def define(
    name: str,
    arguments: type[A],
    returns: str,
    *,
    reference: Callable[[A], Any],
    fake: Callable[[A], Any],
    cpu: Callable[[A], Any] | None = None,
    floats: bool = True,
    cuda: Callable[[A], Any] | None = None,
    limit: str = "",
    check: Callable[[A], None] | None = None,
) -> Any:
    """Register the plain op `electra_fast::name`, which has no gradients, and return its overload.

    arguments: the NamedTuple of its arguments, which each of the functions below takes.
    returns: the type of its result in the schema.
    reference: the formula in PyTorch.
    fake: returns tensors of the result's shapes, for torch.compile.
    cpu: the C++ implementation, which runs if the core is built. If the op takes floats, it runs in float32 only.
    floats: whether any argument is a floating-point tensor.
    cuda: launches the Triton kernel, or chooses between it and the reference.
    limit: the arguments that `cuda` runs in Triton, in words.
    check: runs before every implementation on the CPU, and raises on values that would lead to wrong addresses.
    """
    make = maker(arguments)

    def of_values(function: Callable[[A], Any]) -> Callable[..., Any]:
        return lambda *values: function(make(values))

    def on_cpu(*values: Any) -> Any:
        narrow = not floats or in_float32(name, values)
        args = make(values)
        if check is not None:
            check(args)
        return (cpu if narrow and cpu is not None and core is not None else reference)(args)

    schema = f"({schema_of(arguments)}) -> {returns}"
    register(name, schema, of_values(reference), of_values(fake), on_cpu, cuda and of_values(cuda))
    return registered(name, cpu is not None, cuda is not None, limit)


def register(
    name: str,
    schema: str,
    reference: Callable[..., Any],
    fake: Callable[..., Any],
    cpu: Callable[..., Any],
    cuda: Callable[..., Any] | None,
) -> None:
    """Declare `electra_fast::name` to the dispatcher. The functions take the values of the schema one by one."""
    LIBRARY.define(name + schema)
    LIBRARY.impl(name, reference, "CompositeExplicitAutograd")
    torch.library.register_fake(f"electra_fast::{name}", fake, lib=LIBRARY)
    LIBRARY.impl(name, cpu, "CPU")
    if cuda is not None and HAS_TRITON:
        LIBRARY.impl(name, cuda, "CUDA")


def registered(name: str, cpu: bool, cuda: bool, limit: str = "") -> Any:
    """The overload of a registered op; notes in `backends` which implementation runs on each device.

    cpu, cuda: whether there is an implementation in C++, and in Triton.
    limit: the arguments that run in Triton, in words.
    """
    on_cpu, on_cuda = "reference: no C++ yet", "reference: no Triton kernel yet"
    if cpu:
        on_cpu = f"reference: {why}" if core is None else f"C++, {why}"
    if cuda:
        on_cuda = f"Triton{limit and f' for {limit}, else the reference'}"
        on_cuda = on_cuda if HAS_TRITON else "reference: triton is not installed"
    backends[name] = {"cpu": on_cpu, "cuda": on_cuda}
    return getattr(torch.ops.electra_fast, name).default


def in_float32(op: str, values: Iterable[Any]) -> bool:
    """Whether all floating-point tensors are float32, which the C++ takes; float64 is left to the reference.

    Raises TypeError for other floating-point dtypes, which the CPU does not support.
    """
    floats = {dtype for dtype in {t.dtype for t in tensors_in(values)} if dtype.is_floating_point}
    if floats <= {torch.float32, torch.float64}:
        return torch.float64 not in floats
    raise TypeError(
        f"{op}: the tensors are {', '.join(sorted(map(str, floats)))}; on the CPU float32 and float64 are supported: "
        f"convert with .float()"
    )


def tensors_in(values: Iterable[Any]) -> list[Tensor]:
    """The tensors among the values, and in lists among the values, in order."""
    flat: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            flat.append(value)
        elif isinstance(value, (list, tuple)):
            flat += [v for v in value if isinstance(v, Tensor)]
    return flat
