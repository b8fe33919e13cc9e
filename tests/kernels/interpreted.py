"""Triton's interpreter, which runs kernels where there is no GPU: how tests call an op's launchers in it, with products
whose bits do not depend on the BLAS, and without the work that it repeats at every operation."""

import inspect
import types
from collections.abc import Callable
from typing import Any

import numerics
import numpy as np
import pytest
import torch
from numerics import LAYOUTS

from electra_fast.ops._differentiable import DifferentiableOp, _Function
from electra_fast.ops._library import tensors_in


def repeats(*values: Any) -> list[Any]:
    """Parameters of tests that take a path through the code which a faster test takes, too: left to `make test-all`."""
    return [pytest.param(*(v if isinstance(v, tuple) else (v,)), marks=pytest.mark.slow) for v in values]


def in_two_dtypes(*shapes: tuple, half: tuple, slow: list[tuple] | None = None) -> list[Any]:
    """(*shape, dtype) for each shape in float32 and float16. In the fast set are `shapes` in float32 and `half` in
    float16; `slow` are further shapes."""
    fast = [(*shape, torch.float32) for shape in shapes] + [(*half, torch.float16)]
    others = [(*shape, dtype) for shape in (*shapes, *(slow or [])) for dtype in (torch.float32, torch.float16)]
    return fast + repeats(*(case for case in others if case not in fast))


# Layouts for `one_layout`: columns that are not consecutive and a gradient of stride 0, and those that repeat these.
FEW_LAYOUTS = ["transposed", "zero-stride upstream", *repeats(*(n for n in LAYOUTS if n != "transposed"))]


def one_layout(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """numerics.check takes inputs of this layout alone, or contiguous ones with an upstream gradient of stride 0."""
    kinds: dict[str, Callable[..., Any]] = {"contiguous": lambda shape, **kind: torch.randn(shape, **kind)}
    if layout == "zero-stride upstream":
        kinds = {"zero-stride": lambda shape, **kind: torch.randn((), **kind).expand(shape)}
    monkeypatch.setattr(numerics, "UPSTREAMS", kinds)
    monkeypatch.setattr(numerics, "LAYOUTS", [layout if layout in LAYOUTS else "contiguous"])


def through_triton(op: DifferentiableOp) -> Callable[..., Any]:
    """The op's launchers under autograd; what they save is what the fake says."""
    shim = types.SimpleNamespace(
        name=op.name,
        slots=op.slots,
        fwd=lambda *values: op.cuda.fwd(op.make(values)),
        bwd=lambda grads, *values: op.cuda.bwd(grads, op.make(values[:-1]), values[-1]),
    )

    def call(args: Any) -> Any:
        assert op.on_triton(args)
        *outputs, saved = _Function.apply(shim, args, *tensors_in(args))
        for tensor, fake in zip(saved, op.cuda.saves(args), strict=True):
            assert (tensor.shape, tensor.dtype, tensor.stride()) == (fake.shape, fake.dtype, fake.stride())
        return outputs[0] if op.outputs == 1 else tuple(outputs)

    return call


def of_values(launch: Callable[[Any], Any], arguments: Any) -> Callable[..., Any]:
    """A launcher, called as the dispatcher's op is: with the values of the op's NamedTuple one by one."""
    return lambda *values: launch(arguments(*values))


def prepare(interpreter: types.ModuleType) -> None:
    """Give triton.runtime.interpreter products of fixed bits, and keep what it would look up again at every operation.

    Products come from `ordered_product`, so that a test may compare the bits of kernels' results. Such a test proves
    that a kernel multiplies the same numbers whatever surrounds a row. The order in which a GPU adds within one product
    depends on the tile alone, which is proven on a GPU.

    The interpreter's own look-ups take two thirds of its time. It builds a table of dtypes for every operation, and
    searches triton.language for functions to replace at every call of a helper, where the launch has replaced them.
    """

    def matmul(a: np.ndarray, b: np.ndarray, dtype: Any = None) -> np.ndarray:
        return ordered_product(a, b).astype(dtype or np.result_type(a, b))

    products = types.ModuleType("numpy with ordered products")
    products.__dict__.update(vars(np), matmul=matmul)
    interpreter.np = products  # type: ignore[attr-defined]
    interpreter._get_np_dtype = _remembered(interpreter._get_np_dtype, interpreter.tl)  # type: ignore[attr-defined]
    interpreter._patch_lang = _Patches(interpreter._patch_lang, interpreter.tl)  # type: ignore[attr-defined]


def _remembered(numpy_dtype: Callable[[Any], np.dtype], tl: types.ModuleType) -> Callable[[Any], np.dtype]:
    """The function from a type of Triton to numpy's, which remembers the answer by the name of the element's type."""
    answers: dict[str, np.dtype] = {}

    def remembering(kind: Any) -> np.dtype:
        element = kind.element_ty if isinstance(kind, tl.block_type) else kind
        if isinstance(element, tl.pointer_type):
            return np.dtype(np.uint64)
        if element.name not in answers:
            answers[element.name] = numpy_dtype(element)
        return answers[element.name]

    return remembering


class _Patches:
    """Replaces the functions of triton.language once a launch, for the kernel and the helpers that it calls."""

    def __init__(self, patch: Callable[[Callable], Any], tl: types.ModuleType) -> None:
        self.patch, self.languages = patch, (tl, tl.core)
        self.used: dict[str, set[str]] = {}  # by module of a function: the languages that it sees
        self.done: set[str] = set()  # languages whose functions are replaced during this launch
        self.scope: Any = None

    def __call__(self, fn: Callable) -> Any:
        if fn.__module__ not in self.used:
            modules = [value for value in fn.__globals__.values() if inspect.ismodule(value)]
            self.used[fn.__module__] = {m.__name__ for m in modules if m in self.languages}
        wanted = self.used[fn.__module__]
        if not self.done:  # a launch: the interpreter restores the functions when it ends
            self.scope = self.patch(fn)
        elif not wanted <= self.done:  # a helper that sees another one, such as tl.sum
            self.patch(fn)
        self.done |= wanted
        return self

    def restore(self) -> None:
        self.done.clear()
        self.scope.restore()


def ordered_product(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """a (..., M, K) times b (..., K, N) in float64; an element's bits depend on its row of a and its column of b alone.

    A BLAS adds in another order for another shape, and each BLAS in its own. Here the order does not matter: the values
    of a row of a, and of a column of b, are written as two whole numbers of at most 21 bits times powers of two that
    fit the largest of them. The products of such numbers, and sums of up to 1024 of them, are exact in float64.
    What lies below 2^-42 of a row's largest value is dropped; a float32 sum rounds at 2^-24.
    Where a value is not finite, the elements are summed one k after the other instead.
    """
    assert a.shape[-1] <= 1024, "sums of more products are not exact in float64"
    a, b = a.astype(np.float64), b.astype(np.float64)
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        out = np.zeros(np.broadcast_shapes(a.shape[:-2], b.shape[:-2]) + (a.shape[-2], b.shape[-1]))
        for k in range(a.shape[-1]):
            out = out + a[..., :, k, None] * b[..., None, k, :]
        return out
    high_a, low_a, scale_a = _split(a, axis=-1)
    high_b, low_b, scale_b = _split(b, axis=-2)
    middle = high_a @ low_b + low_a @ high_b
    return (high_a @ high_b + (middle + low_a @ low_b * 2.0**-21) * 2.0**-21) * (scale_a * scale_b)


def _split(x: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """high, low, scale with x = (high + low 2^-21) scale to 42 bits: whole numbers of at most 2^21, a power of two."""
    largest = np.abs(x).max(axis=axis, keepdims=True, initial=0.0)
    scale = np.ldexp(1.0, np.frexp(largest)[1] - 21)
    high = np.rint(x / scale)
    return high, np.rint((x / scale - high) * 2.0**21), scale
