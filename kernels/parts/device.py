"""Which entry of a table of tiles a device takes: the one place that looks at a device's generation and shared memory.

A table has an entry for each class of shapes, which serves every device; where a generation takes another tile, or
none (an empty one: the launcher goes another way), an entry of the class and the generation stands beside it:

    80    A100: 163 KB of shared memory a program, tensor cores that keep operands and sums in registers
    86    the cards with 99 KB (compute capability 8.6, 8.9, 12); where it has no entry of its own, 80's is taken
    90    H100, H200: 227 KB, wgmma reads operands from shared memory
    100   B200: 227 KB, tcgen05 keeps sums beside the registers
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

LIKE = {80: (80,), 86: (86, 80), 90: (90,), 100: (100,)}


def entry(table: dict, key: tuple, x: Tensor) -> dict:
    """What the table has for the class `key` on x's device, empty where it has nothing."""
    keys = [(*key, like) for like in LIKE[generation(x.device)]]
    return next((table[k] for k in keys if k in table), table.get(key, {}))


@cache
def generation(device: torch.device) -> int:
    """80, 86, 90 or 100; 90 where there is no GPU: interpreted, or compiled ahead of time."""
    if device.type != "cuda" or not torch.cuda.is_available():
        return 90
    found = torch.cuda.get_device_properties(device)
    if found.shared_memory_per_block_optin < 163 * 1024:
        return 86
    return {8: 80, 9: 90}.get(found.major, 100)
