"""An op's Triton backend called where there is no GPU: the dispatcher is left out, since it would choose the CPU."""

import types
from collections.abc import Callable
from typing import Any

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
