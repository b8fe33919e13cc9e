"""Triton kernels where there is no GPU: an op's launchers without the dispatcher, which would choose the CPU, and
products whose bits do not depend on the BLAS."""

import types
from collections.abc import Callable
from typing import Any

import numpy as np

from electra_fast.ops._library import DifferentiableOp, _Function, _tensors


def through_triton(op: DifferentiableOp) -> Callable[..., Any]:
    """The op's launchers under autograd; what they save is what the fake says."""
    shim = types.SimpleNamespace(name=op.name, slots=op.slots, fwd=op.cuda.fwd, bwd=op.cuda.bwd)

    def call(*args: Any) -> Any:
        assert op._on_triton(args)
        *outputs, saved = _Function.apply(shim, args, *_tensors(args))
        for tensor, fake in zip(saved, op.cuda.saves(*args), strict=True):
            assert (tensor.shape, tensor.dtype, tensor.stride()) == (fake.shape, fake.dtype, fake.stride())
        return outputs[0] if op.outputs == 1 else tuple(outputs)

    return call


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
