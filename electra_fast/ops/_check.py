"""The checks of arguments: a public op makes them once, before it calls its dispatcher op."""

from __future__ import annotations

from operator import sub
from typing import Any

import torch
from torch import Tensor


def check_devices(op: str, **tensors: Tensor | None) -> None:
    """Raises RuntimeError unless all tensors are on one device. Without this the dispatcher would choose the
    first's."""
    if len({t.device for t in tensors.values() if t is not None}) > 1:
        words = ", ".join(f"{name} on {device}" for name, device in _unlike(tensors, "device"))
        raise RuntimeError(f"{op}: tensors on different devices: {words}; move them to one with .to(device)")


def check_floats(op: str, **tensors: Tensor | None) -> None:
    """Raises TypeError unless all tensors have one floating-point dtype. Under torch.autocast they may differ, since
    the dispatcher converts them (_differentiable.py)."""
    dtypes = {t.dtype for t in tensors.values() if t is not None}
    floats = all(dtype.is_floating_point for dtype in dtypes)
    if not floats or (len(dtypes) > 1 and not torch._C._is_any_autocast_enabled()):
        words = ", ".join(f"{name} is {dtype}" for name, dtype in _unlike(tensors, "dtype"))
        raise TypeError(f"{op}: {words}; one floating-point dtype is allowed: convert with .to(dtype)")


def _unlike(tensors: dict[str, Tensor | None], attribute: str) -> list[tuple[str, Any]]:
    """The name and device (or dtype) of the first tensor, and of each tensor whose own differs from it."""
    (name, first), *others = ((name, getattr(t, attribute)) for name, t in tensors.items() if t is not None)
    return [(name, first), *((other, value) for other, value in others if value != first)]


def check_integers(op: str, dtype: torch.dtype, **tensors: Tensor | None) -> None:
    """Raises TypeError unless all tensors have this dtype."""
    for name, t in tensors.items():
        if t is not None and t.dtype != dtype:
            raise TypeError(f"{op}: {name} is {t.dtype}; {dtype} is allowed: convert with .to({dtype})")


def check_shape(op: str, name: str, tensor: Tensor, *shape: int) -> None:
    """Raises ValueError unless the tensor has this shape."""
    if tensor.shape != shape:
        raise ValueError(f"{op}: {name} has shape {tuple(tensor.shape)}; {shape} is needed here")


def check_probability(op: str, name: str, p: float) -> float:
    """Returns p as a float; raises ValueError unless it lies in [0, 1]."""
    if not 0.0 <= p <= 1.0:
        raise ValueError(f"{op}: {name} is {p}; a probability lies between 0 and 1")
    return float(p)


def check_matrix(op: str, **tensors: Tensor) -> None:
    """Raises ValueError unless all tensors have two dimensions."""
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
    """Raises IndexError for the first id outside a table of `size` rows.

    This reads the ids, and on a GPU would wait for the device, so only implementations on the CPU call it.
    """
    if ids.numel() == 0:
        return
    least, most = (t.item() for t in ids.aminmax())
    if least < 0 or most >= size:
        at = int(((ids < 0) | (ids >= size)).nonzero()[0])
        raise IndexError(
            f"{op}: {name}[{at}] is {int(ids[at])}, outside the {table} of {size} (0 to {size - 1}); {advice}"
        )


def check_offsets(op: str, name: str, offsets: Tensor) -> None:
    """Raises ValueError unless offsets are (N + 1,) int32."""
    if offsets.dtype != torch.int32 or offsets.dim() != 1 or offsets.numel() < 1:
        kind = f"{offsets.dtype} of shape {tuple(offsets.shape)}"
        raise ValueError(f"{op}: {name} is {kind}; (N + 1,) torch.int32 is needed")


def check_cu_seqlens(op: str, name: str, cu_seqlens: Tensor, total: int, longest: int | None = None) -> None:
    """Raises ValueError unless offsets start at 0, never fall and end at `total`, and no sequence is longer than
    `longest`.

    This reads the offsets, and on a GPU would wait for the device, so only implementations on the CPU call it.
    """
    check_offsets(op, name, cu_seqlens)
    values = cu_seqlens.tolist()
    lengths = list(map(sub, values[1:], values)) or [0]
    if values[0] != 0 or values[-1] != total or min(lengths) < 0:
        raise ValueError(
            f"{op}: {name} begins with {values[:4]} and ends with {values[-1]}; it must start at 0, never fall, "
            f"and end at {total}, the number of rows"
        )
    if longest is not None and max(lengths) > longest:
        raise ValueError(
            f"{op}: {name} holds a sequence of {max(lengths)} rows, max_seqlen is {longest}; "
            f"pass {max(lengths)} or more"
        )


def check_queries(op: str, args: Any, max_rows: int | None) -> None:
    """Raises ValueError unless the heads divide the width of x, and the offsets and `rows` have the right shapes.

    args: the arguments of attention_block or encoder.
    max_rows: as the caller gave it: args has 0 in place of None.
    """
    if args.num_heads < 1 or args.x.shape[1] % args.num_heads:
        raise ValueError(f"{op}: width {args.x.shape[1]} is not a multiple of num_heads {args.num_heads}")
    if (args.rows is None) != (args.cu_rows is None) or (args.rows is None) != (max_rows is None):
        raise ValueError(f"{op}: rows, cu_rows and max_rows come together; give all three or none")
    check_shape(op, "row_ids", args.row_ids, args.x.shape[0])
    check_offsets(op, "cu_seqlens", args.cu_seqlens)
    if args.rows is not None:
        check_shape(op, "rows", args.rows, args.rows.numel())
        check_shape(op, "cu_rows", args.cu_rows, *args.cu_seqlens.shape)
        check_offsets(op, "cu_rows", args.cu_rows)


def check_query_values(op: str, args: Any) -> None:
    """Raises unless sequences and queries lie within x. Implementations on the CPU call it, since a compiled graph, or
    a direct call of the dispatcher op, does not pass the checks of the public op."""
    check_queries(op, args, None if args.rows is None else args.max_rows)
    check_integers(op, torch.int64, row_ids=args.row_ids, rows=args.rows)
    check_cu_seqlens(op, "cu_seqlens", args.cu_seqlens, args.x.shape[0], args.max_seqlen)
    if args.rows is not None:
        check_cu_seqlens(op, "cu_rows", args.cu_rows, args.rows.shape[0], args.max_rows)
        check_ids(op, "rows", args.rows, args.x.shape[0], "batch", "rows index its packed tokens")


def seed_tensor(op: str, seed: int | Tensor, device: torch.device) -> Tensor:
    """The seed as a one-element int64 tensor, which the schemas take. Raises ValueError unless it fits in 64 bits, or
    is such a tensor on this device."""
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
