"""Which tile of a table a device takes: the one place that looks at a device's generation and shared memory.

A table maps a class of shapes to a tile, which serves every device. If a generation needs another tile, the table also
maps (class, generation) to that tile; or to an empty one, if the kernel does not fit there and the launcher has to take
another. Generations:

    80    A100: 163 KB of shared memory a program; tensor cores keep operands and sums in registers
    86    the cards with 99 KB (compute capability 8.6, 8.9, 12); without an entry of their own, they take 80's
    90    H100, H200: 227 KB; wgmma reads operands from shared memory
    100   B200: 227 KB; tcgen05 keeps sums in tensor memory
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

LIKE = {80: (80,), 86: (86, 80), 90: (90,), 100: (100,)}


def entry(table: dict, key: tuple, x: Tensor) -> dict:
    """The table's tile for the class `key` on x's device; empty if it has none."""
    keys = [(*key, like) for like in LIKE[generation(x.device)]]
    return next((table[k] for k in keys if k in table), table.get(key, {}))


@cache
def generation(device: torch.device) -> int:
    """Returns 80, 86, 90 or 100; 90 if there is no GPU, for the interpreter and the compilation ahead of time."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return 90
    properties = torch.cuda.get_device_properties(device)
    if properties.shared_memory_per_block_optin < 163 * 1024:
        return 86
    return {8: 80, 9: 90}.get(properties.major, 100)
