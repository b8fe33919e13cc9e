"""adamw on the GPU: one launch for the norm, one for the update, however many tensors; the host never waits.

g is clipped to max_grad_norm; then m = beta1 m + (1 - beta1) g, v = beta2 v + (1 - beta2) g^2, and
p -= lr (m / (sqrt(v) + eps) + decay p), where lr is the step's rate times the tensor's.

A table (10, n) on the device has a column for each tensor: its five addresses (parameter, gradient, two moments, copy),
its size, the number of its first piece, its rate and decay, and whether the addresses are multiples of 16. All tensors
are cut into pieces of BLOCK elements, which are numbered through. A program finds the tensor of a piece by counting the
first pieces that are not above it. Each list has a dtype of its own. If there are copies, such as bfloat16 beside a
float32 parameter, the same launch rounds the new parameter into its copy.

adamw_norm_kernel: program p of P sums the squares of gradients in the pieces p, p + P, ... in float64, so neither
digits nor range are lost.
adamw_update_kernel: a program adds these P sums in order, and updates one piece, unless the norm or the guard is not
finite; the host need not know. No atomics, and two runs give the same bits.

CUDA graphs: lr and the guard are read on the device at every replay (there is no bias correction, so no step count).
Rates and decays are lists of the schema, so a graph keeps those of its capture, as it does the addresses. The table is
copied to the device only if it differs from that of the last step. A capture that copies it reads pinned memory that an
earlier step has set aside; this memory and the table are then kept, so that a replay finds both unchanged.

Cost: 2 flops in float64 and 12 in float32 a parameter; bytes in float32: 4 for the norm, 28 for the update; with
gradients and copies in bfloat16 2 and 28. ELECTRA-Small, 14.3 million parameters: 57 and 400 MB, at 4.3 TB/s 13 and
93 us, so bandwidth is the limit; there are no products. Launches: 2, and the table's copy (80 n bytes, 32 KB for 400
tensors) if addresses changed. The reference, in PyTorch's foreach operations, takes 12 passes and 112 bytes a
parameter, and the host waits for the norm and for lr.

Tiles: 2,048 elements for 8 warps are 8 a thread, two vectors of 16 bytes from each tensor in float32, and 64 registers,
76 with copies: 4 or 3 programs, which have 128 or 96 KB of loads in flight on a multiprocessor. Beside its 57 KB a
program reads 8 KB from the cache. A piece that is whole and aligned is read in such vectors; the last piece of a tensor
and pieces at odd addresses are read element by element.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK = 2048  # elements of a piece
WARPS = 8
PROGRAMS = 512  # the most programs, and partial sums, of the norm

_spare: dict[int, Tensor] = {}  # pinned memory by size, for a capture, during which none can be allocated
_tables: dict[tuple, tuple[Tensor, Tensor]] = {}  # by device and size: the last table on the host and on the device
_captured: list[Tensor] = []  # memory that a CUDA graph reads at every replay


@triton.jit
def _piece(table_ptr, count, number, TENSORS: tl.constexpr, BLOCK: tl.constexpr):
    """Returns for piece `number`: its tensor's column of the table; its first element in the tensor, 64-bit; the number
    of elements from there to the tensor's end; and whether the piece is whole and its addresses multiples of 16."""
    index = tl.arange(0, TENSORS)
    starts = tl.load(table_ptr + 6 * count + index, mask=index < count, other=2**62)
    column_ptr = table_ptr + tl.sum((starts <= number).to(tl.int32), 0) - 1
    first = (number - tl.load(column_ptr + 6 * count)) * BLOCK
    left = tl.load(column_ptr + 5 * count) - first
    return column_ptr, first, left, (left >= BLOCK) & (tl.load(column_ptr + 9 * count) != 0)


@triton.jit
def _at(like_ptr, address_ptr, first, WHOLE: tl.constexpr):
    """The address of element `first` of the tensor whose address is stored at address_ptr; like_ptr has its dtype."""
    ptr = tl.load(address_ptr).to(like_ptr.dtype)
    if WHOLE:
        ptr = tl.multiple_of(ptr, 16)
    return ptr + first


@triton.jit
def _squares(like_ptr, column_ptr, count, first, left, WHOLE: tl.constexpr, BLOCK: tl.constexpr):
    offs = tl.arange(0, BLOCK)
    inside = offs < (BLOCK if WHOLE else left)
    grad = tl.load(_at(like_ptr, column_ptr + count, first, WHOLE) + offs, mask=inside, other=0.0).to(tl.float64)
    return grad * grad


@triton.jit
def adamw_norm_kernel(like_ptr, table_ptr, parts_ptr, count, pieces, TENSORS: tl.constexpr, BLOCK: tl.constexpr):
    program = tl.program_id(0).to(tl.int64)
    acc = tl.zeros((BLOCK,), tl.float64)
    for number in range(program, pieces, tl.num_programs(0)):
        column_ptr, first, left, whole = _piece(table_ptr, count, number, TENSORS, BLOCK)
        if whole:
            acc += _squares(like_ptr, column_ptr, count, first, left, True, BLOCK)
        else:
            acc += _squares(like_ptr, column_ptr, count, first, left, False, BLOCK)
    tl.store(parts_ptr + program, tl.sum(acc, 0))


class Lists(NamedTuple):
    """A tensor of each list, which tells the kernel the dtype behind the addresses in the table."""

    params: Any
    grads: Any
    moments: Any  # of exp_avgs, and of exp_avg_sqs
    copies: Any  # None where there are no copies


class Step(NamedTuple):
    """The numbers of a step of AdamW that all tensors share."""

    beta1: Any
    rest1: Any  # 1 - beta1, rounded once, from float64
    beta2: Any
    rest2: Any  # 1 - beta2
    eps: Any
    max_grad_norm: Any


@triton.jit
def _update(lists, step, column_ptr, count, first, left, clip, lr, WHOLE: tl.constexpr, BLOCK: tl.constexpr):
    """Updates the `left` elements, at most BLOCK, from element `first` on of the tensor in a column of the table."""
    offs = tl.arange(0, BLOCK)
    inside = offs < (BLOCK if WHOLE else left)
    param_ptr = _at(lists.params, column_ptr, first, WHOLE) + offs
    grad_ptr = _at(lists.grads, column_ptr + count, first, WHOLE) + offs
    exp_avg_ptr = _at(lists.moments, column_ptr + 2 * count, first, WHOLE) + offs
    exp_avg_sq_ptr = _at(lists.moments, column_ptr + 3 * count, first, WHOLE) + offs
    lr *= tl.load(column_ptr + 7 * count).to(tl.float64, bitcast=True).to(tl.float32)
    decay = tl.load(column_ptr + 8 * count).to(tl.float64, bitcast=True).to(tl.float32)
    p = tl.load(param_ptr, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(grad_ptr, mask=inside, other=0.0).to(tl.float32) * clip
    m = step.beta1 * tl.load(exp_avg_ptr, mask=inside, other=0.0).to(tl.float32) + step.rest1 * g
    v = step.beta2 * tl.load(exp_avg_sq_ptr, mask=inside, other=0.0).to(tl.float32) + step.rest2 * (g * g)
    p -= lr * (m / (tl.sqrt(v) + step.eps) + decay * p)
    tl.store(param_ptr, p.to(lists.params.dtype.element_ty), mask=inside)
    tl.store(exp_avg_ptr, m.to(lists.moments.dtype.element_ty), mask=inside)
    tl.store(exp_avg_sq_ptr, v.to(lists.moments.dtype.element_ty), mask=inside)
    if lists.copies is not None:
        copy_ptr = _at(lists.copies, column_ptr + 4 * count, first, WHOLE) + offs
        tl.store(copy_ptr, p.to(lists.copies.dtype.element_ty), mask=inside)


@triton.jit
def adamw_update_kernel(
    lists,
    step,
    table_ptr,
    parts_ptr,
    lr_ptr,
    guard_ptr,
    norm_ptr,
    count,
    programs,
    TENSORS: tl.constexpr,
    PARTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    lists, step = Lists(*lists), Step(*step)
    number = tl.program_id(0).to(tl.int64)
    offs = tl.arange(0, PARTS)
    squares = tl.sum(tl.load(parts_ptr + offs, mask=offs < programs, other=0.0), 0)
    norm = tl.sqrt(squares).to(norm_ptr.dtype.element_ty)
    if number == 0:
        tl.store(norm_ptr, norm)
    norm = norm.to(tl.float32)
    if (tl.abs(norm) < float("inf")) & (tl.abs(tl.load(guard_ptr).to(tl.float64)) < float("inf")):
        clip = tl.minimum(step.max_grad_norm / norm, 1.0)
        lr = tl.load(lr_ptr).to(tl.float32)
        column_ptr, first, left, whole = _piece(table_ptr, count, number, TENSORS, BLOCK)
        if whole:
            _update(lists, step, column_ptr, count, first, left, clip, lr, True, BLOCK)
        else:
            _update(lists, step, column_ptr, count, first, left, clip, lr, False, BLOCK)


def adamw_fwd(args: Any) -> Tensor:
    """-> |g| (1,); params, exp_avgs, exp_avg_sqs and copies are updated in place.

    args: an AdamWArguments (electra_fast/ops/adamw.py)
    """
    params, grads, lr, copies = args.params, args.grads, args.lr, args.copies
    lists = (params, grads, args.exp_avgs, args.exp_avg_sqs, copies)
    dense = [[t.contiguous() for t in tensors] for tensors in lists]
    sizes = torch.tensor([t.numel() for t in params])
    ends = ((sizes + BLOCK - 1) // BLOCK).cumsum(0)
    starts, count, pieces = torch.cat([ends.new_zeros(1), ends[:-1]]), len(params), int(ends[-1])
    if pieces == 0:
        return lr.new_zeros(1)
    dense[4] = dense[4] or dense[0]  # without copies, the table's addresses of copies are not used
    addresses = torch.tensor([[t.data_ptr() for t in tensors] for tensors in dense])
    numbers = torch.tensor([args.lr_scales, args.weight_decays], dtype=torch.float64).view(torch.int64)
    wide = (addresses % 16 == 0).all(0)
    table = _on_device(torch.cat([addresses, torch.stack([sizes, starts]), numbers, wide[None]]), lr)
    programs = min(PROGRAMS, pieces)
    parts, norm = lr.new_empty(programs, dtype=torch.float64), lr.new_empty(1)
    chosen = dict(TENSORS=triton.next_power_of_2(count), BLOCK=BLOCK, num_warps=WARPS, enable_fp_fusion=True)
    adamw_norm_kernel[(programs,)](grads[0], table, parts, count, pieces, **chosen)
    adamw_update_kernel[(pieces,)](
        (params[0], grads[0], args.exp_avgs[0], copies[0] if copies else None),
        (args.beta1, 1 - args.beta1, args.beta2, 1 - args.beta2, args.eps, args.max_grad_norm),
        table,
        parts,
        lr,
        args.guard,
        norm,
        count,
        programs,
        PARTS=PROGRAMS,
        **chosen,
    )
    for tensors, contiguous in zip(lists, dense, strict=True):
        for tensor, updated in zip(tensors, contiguous, strict=False):
            if updated is not tensor and tensors is not grads:
                tensor.copy_(updated)
    return norm


def _on_device(table: Tensor, like: Tensor) -> Tensor:
    """The table on the device of `like`, copied without waiting for the device."""
    if like.device.type != "cuda":
        return table.to(like.device)
    key, capturing = (like.device, table.numel()), torch.cuda.is_current_stream_capturing()
    if key not in _tables or not torch.equal(_tables[key][0], table):
        if not capturing:
            _spare.setdefault(table.numel(), torch.empty_like(table, pin_memory=True))
            pinned = torch.empty_like(table, pin_memory=True)
        elif table.numel() in _spare:
            pinned = _spare.pop(table.numel())
            _captured.append(pinned)
        else:
            raise RuntimeError("adamw: take a step over the same number of tensors before a CUDA graph captures one")
        on_device = pinned.copy_(table).to(like.device, non_blocking=True)
        if capturing:
            return on_device  # the graph owns this memory, so no other call may use the table
        _tables[key] = table, on_device
    if capturing:
        _captured.append(_tables[key][1])
    return _tables[key][1]
