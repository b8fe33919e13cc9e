"""Random numbers: Philox-4x32-10, a pure function of a key and a counter, without state.

One call gives four 32-bit words. The conventions are the same in csrc/philox.h and in every kernel:

    key     = (low, high) 32 bits of the 64-bit seed
    counter = (low, high) 32 bits of the row's id, group, plane

A row id is made of an example's id and a token's place in the example (see data/batch.py), so a token has the same id
in every batch. Random numbers therefore depend neither on packing, padding and tiles, nor on the other rows of a batch.

Dropout takes 8 bits for each element. Column c of a row reads byte c % 16 of the call with group c // 16, where the
sixteen bytes are the four words in order, little-endian. With t = round(256 p), the element is kept if byte >= t, and
scaled by 256 / (256 - t); so p = 0.1 becomes 26/256. Plane 0 has the columns of a hidden row. Plane 1 + h has the
attention probabilities of a row in head h, whose columns are the keys, counted from the start of the sequence.

Masking and sampling take whole words of group 0 and plane 0; see masking.py and generator_head.py.

The seed of each op comes from the run's seed by one more call, `derive_seeds`: key = seed, counter = (low, high of the
step, stream, 0), and the derived seed is word 0 + 2**32 word 1.

Cost: one core draws 6.2 G elements of dropout masks a second with AVX2 and 1.8 G with SSE2 (Zen 4; torch's dropout of
float32: 0.1 G).
Source: Salmon et al., SC 2011.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from electra_fast.ops._core import core
from electra_fast.ops._library import Size, define, launcher
from electra_fast.ops._structs import Dropout, dropout_threshold

_LOW = 0xFFFFFFFF


class DeriveSeedsArguments(NamedTuple):
    """The arguments of `derive_seeds`, which derives the seeds of n streams from number `first` on."""

    seed: Tensor  # (1,) int64, the run's
    step: Tensor  # (1,) int64
    first: Size
    n: Size


class DropoutMaskArguments(NamedTuple):
    """The arguments of `dropout_mask`, which draws the masks of rows in one plane."""

    seed: Tensor  # (1,) int64
    row_ids: Tensor  # (T,) int64
    columns: Size
    threshold: int
    plane: int


def philox(
    seed: Tensor, row: Tensor, group: Tensor | int, plane: Tensor | int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The four random words of each counter, as int64 tensors in [0, 2**32); row, group and plane are broadcast."""
    k0, k1 = seed & _LOW, (seed >> 32) & _LOW
    zero = torch.zeros((), dtype=torch.int64, device=row.device)
    c0, c1, c2, c3 = torch.broadcast_tensors(row & _LOW, (row >> 32) & _LOW, zero + group, zero + plane)
    for _ in range(10):
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57  # wraps in 64 bits; the mask makes the high words unsigned again
        c0, c1, c2, c3 = ((p1 >> 32) & _LOW) ^ c1 ^ k0, p1 & _LOW, ((p0 >> 32) & _LOW) ^ c3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + 0x9E3779B9) & _LOW, (k1 + 0xBB67AE85) & _LOW
    return c0, c1, c2, c3


def derive_seeds_reference(args: DeriveSeedsArguments) -> Tensor:
    stream = torch.arange(args.first, args.first + args.n, device=args.seed.device)
    w0, w1, _, _ = philox(args.seed, args.step, stream, 0)
    return w0 | (w1 << 32)


def _derive_seeds_cpu(args: DeriveSeedsArguments) -> Tensor:
    out = torch.empty(args.n, dtype=torch.int64)
    core.derive_seeds(args.seed.item(), args.step.item(), args.first, args.n, out)
    return out


derive_seeds = define(
    "derive_seeds",
    DeriveSeedsArguments,
    "Tensor",
    reference=derive_seeds_reference,
    fake=lambda args: args.seed.new_empty(args.n),
    cpu=_derive_seeds_cpu,
    floats=False,
    cuda=launcher("seeds", "derive_seeds_fwd"),
)


def dropout_scale(threshold: int) -> float:
    """The factor of kept elements, which keeps the mean. With p = 1 no element is kept, and the factor is 256."""
    return 256 / max(1, 256 - threshold)


def dropout_mask_reference(args: DropoutMaskArguments) -> Tensor:
    """(T, columns) bool, True where an element is kept. Cost: one call of Philox for 16 elements."""
    group = torch.arange((args.columns + 15) // 16, device=args.row_ids.device)
    words = torch.stack(philox(args.seed, args.row_ids[:, None], group, args.plane), -1)  # (T, groups, 4)
    lanes = (words[..., None] >> torch.arange(0, 32, 8, device=args.row_ids.device)) & 255
    return lanes.flatten(1)[:, : args.columns] >= args.threshold


def _dropout_mask_cpu(args: DropoutMaskArguments) -> Tensor:
    dropout = Dropout(args.row_ids.contiguous(), int(args.seed.item()), args.threshold)
    out = torch.empty(args.row_ids.numel(), args.columns, dtype=torch.bool)
    core.dropout_mask(dropout, *out.shape, args.plane, out, torch.get_num_threads())
    return out


dropout_mask = define(
    "dropout_mask",
    DropoutMaskArguments,
    "Tensor",
    reference=dropout_mask_reference,
    fake=lambda args: args.row_ids.new_empty((args.row_ids.shape[0], args.columns), dtype=torch.bool),
    cpu=_dropout_mask_cpu,
    floats=False,
)


def dropout_reference(x: Tensor, p: float, seed: Tensor, row_ids: Tensor, plane: int = 0) -> Tensor:
    """Dropout of x (T, D): dropped elements become 0, and kept ones are multiplied by `dropout_scale`."""
    threshold = dropout_threshold(p)
    if threshold == 0:
        return x
    kept = dropout_mask(seed, row_ids, x.shape[-1], threshold, plane)
    return torch.where(kept, x * dropout_scale(threshold), 0.0)
