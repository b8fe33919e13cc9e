"""What a public op checks once, before its dispatcher op is called: devices, dtypes, shapes, probabilities, seeds."""

from __future__ import annotations

from operator import sub
from typing import Any

import torch
from torch import Tensor


def check_devices(op: str, **tensors: Tensor | None) -> None:
    """Raises RuntimeError unless all tensors are on one device; the dispatcher would run on the first one's."""
    if len({t.device for t in tensors.values() if t is not None}) > 1:
        words = ", ".join(f"{name} on {device}" for name, device in _unlike(tensors, "device"))
        raise RuntimeError(f"{op}: tensors on different devices: {words}; move them to one with .to(device)")


def check_floats(op: str, **tensors: Tensor | None) -> None:
    """Raises TypeError unless all tensors have one floating-point dtype. Under torch.autocast the dispatcher makes them
    so (_differentiable.py)."""
    dtypes = {t.dtype for t in tensors.values() if t is not None}
    floats = all(dtype.is_floating_point for dtype in dtypes)
    if not floats or (len(dtypes) > 1 and not torch._C._is_any_autocast_enabled()):
        words = ", ".join(f"{name} is {dtype}" for name, dtype in _unlike(tensors, "dtype"))
        raise TypeError(f"{op}: {words}; one floating-point dtype is allowed: convert with .to(dtype)")


def _unlike(tensors: dict[str, Tensor | None], attribute: str) -> list[tuple[str, Any]]:
    """The first tensor's device or dtype, and those that differ from it, by the tensors' names."""
    (name, first), *others = ((name, getattr(t, attribute)) for name, t in tensors.items() if t is not None)
    return [(name, first), *((other, value) for other, value in others if value != first)]


def check_integers(op: str, dtype: torch.dtype, **tensors: Tensor | None) -> None:
    for name, t in tensors.items():
        if t is not None and t.dtype != dtype:
            raise TypeError(f"{op}: {name} is {t.dtype}; {dtype} is allowed: convert with .to({dtype})")


def check_shape(op: str, name: str, tensor: Tensor, *shape: int) -> None:
    if tensor.shape != shape:
        raise ValueError(f"{op}: {name} has shape {tuple(tensor.shape)}; {shape} is needed here")


def check_probability(op: str, name: str, p: float) -> float:
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"{op}: {name} is {p}; a probability lies between 0 and 1")
    return float(p)


def check_matrix(op: str, **tensors: Tensor) -> None:
    for name, t in tensors.items():
        if t.dim() != 2:
            raise ValueError(f"{op}: {name} has shape {tuple(t.shape)}; two dimensions are needed: rows and columns")


def check_ids(
    op: str,
    name: str,
    ids: Tensor,
    size: int,
    table: str = "table",
    advice: str = "the text was encoded with another vocabulary, or the model's is too small",
) -> None:
    """Every id within its table; the first that is not is named. Checked on the host alone: on a GPU it would sync."""
    if ids.device.type != "cpu" or torch.compiler.is_compiling() or ids.numel() == 0:
        return
    least, most = (t.item() for t in ids.aminmax())
    if least < 0 or most >= size:
        at = int(((ids < 0) | (ids >= size)).nonzero()[0])
        raise IndexError(
            f"{op}: {name}[{at}] is {int(ids[at])}, outside the {table} of {size} (0 to {size - 1}); {advice}"
        )


def check_cu_seqlens(op: str, name: str, cu_seqlens: Tensor, total: int, longest: int | None = None) -> None:
    """(N + 1,) int32, starting at 0, never falling, ending at the number of rows; values on the host alone."""
    if cu_seqlens.dtype != torch.int32 or cu_seqlens.dim() != 1 or cu_seqlens.numel() < 1:
        kind = f"{cu_seqlens.dtype} of shape {tuple(cu_seqlens.shape)}"
        raise ValueError(f"{op}: {name} is {kind}; (N + 1,) torch.int32 is needed")
    if cu_seqlens.device.type != "cpu" or torch.compiler.is_compiling():
        return
    values = cu_seqlens.tolist()
    lengths = list(map(sub, values[1:], values)) or [0]
    if values[0] != 0 or values[-1] != total or min(lengths) < 0:
        raise ValueError(
            f"{op}: {name} begins with {values[:4]} and ends with {values[-1]}; it must start at 0, never fall, "
            f"and end at the {total} rows there are"
        )
    if longest is not None and max(lengths) > longest:
        raise ValueError(
            f"{op}: {name} holds a sequence of {max(lengths)} rows, max_seqlen is {longest}; "
            f"pass {max(lengths)} or more"
        )


def check_queries(op: str, args: Any, max_rows: int | None) -> None:
    """Checks the sequences of x (T, D), the heads, which must divide D, and the rows that are queries, if not all are.

    args: arguments of attention_block or encoder; max_rows: that of the caller, where it is 0 in args without rows.
    """
    if args.x.shape[1] % args.num_heads:
        raise ValueError(f"{op}: width {args.x.shape[1]} is not a multiple of num_heads {args.num_heads}")
    if (args.rows is None) != (args.cu_rows is None) or (args.rows is None) != (max_rows is None):
        raise ValueError(f"{op}: rows, cu_rows and max_rows come together; give all three or none")
    check_shape(op, "row_ids", args.row_ids, args.x.shape[0])
    check_cu_seqlens(op, "cu_seqlens", args.cu_seqlens, args.x.shape[0], args.max_seqlen)
    if args.rows is not None:
        check_shape(op, "rows", args.rows, args.rows.numel())
        check_shape(op, "cu_rows", args.cu_rows, *args.cu_seqlens.shape)
        check_cu_seqlens(op, "cu_rows", args.cu_rows, args.rows.shape[0], max_rows)
        check_ids(op, "rows", args.rows, args.x.shape[0], "batch", "rows index its packed tokens")


def seed_tensor(op: str, seed: int | Tensor, device: torch.device) -> Tensor:
    """The 64-bit seed as the one-element int64 tensor that schemas take."""
    if isinstance(seed, Tensor):
        if seed.dtype != torch.int64 or seed.numel() != 1 or seed.device != device:
            raise ValueError(
                f"{op}: seed is {seed.dtype} of {seed.numel()} elements on {seed.device}; "
                f"an int or one int64 on {device} is needed"
            )
        return seed.reshape(1)
    if not -(2**63) <= seed < 2**63:
        raise ValueError(f"{op}: seed is {seed}; it must fit in 64 bits (-2**63 to 2**63 - 1)")
    return torch.full((1,), seed, dtype=torch.int64, device=device)
