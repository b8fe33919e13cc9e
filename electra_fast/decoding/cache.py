"""The keys and values of the tokens that are written so far, so that each step computes one token a target alone.

They lie in pages of PAGE tokens, and a table names the pages of each target in order. Beams of one source share the
pages of the text that they have in common; a page is copied only when two targets are about to write to it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from electra_fast.ops.decoder_step import Paged

PAGE = 16  # tokens


class Cache:
    """Keys and values of R targets of equal length, for each layer of a decoder.

    pool: an empty tensor (layers, 0, 2, H, PAGE, head dim) of the keys' dtype and device; it grows as pages are needed.
    rows: R at the start.
    """

    def __init__(self, pool: Tensor, rows: int) -> None:
        self.pool = pool
        self.tables = torch.empty(rows, 0, dtype=torch.int32, device=pool.device)
        self.length = 0

    def select(self, parents: Tensor) -> None:
        """Let row r continue what was row parents[r]; the pages of rows that are nobody's parent become free.

        parents: (R,) int64, rows that continue the same one next to each other or not.
        """
        self.tables = self.tables[parents]
        if self.length % PAGE == 0:
            return
        ordered, order = parents.sort(stable=True)
        again = torch.zeros_like(parents, dtype=torch.bool)
        again[order[1:]] = ordered[1:] == ordered[:-1]  # rows whose last page another row writes to as well
        copies = again.nonzero().flatten()
        if len(copies):
            old = self.tables[copies, -1].long()
            new = self._free(len(copies))
            self.pool[:, new] = self.pool[:, old]
            self.tables[copies, -1] = new.int()

    def extend(self) -> Paged:
        """Make room for one more token of each target; returns the pages, as ops.decoder_step takes them."""
        if self.length % PAGE == 0:
            new = self._free(len(self.tables))
            self.tables = torch.cat([self.tables, new[:, None].int()], 1)
        self.length += 1
        lengths = torch.full((len(self.tables),), self.length, dtype=torch.int32, device=self.pool.device)
        return Paged(self.pool, self.tables, lengths)

    def _free(self, count: int) -> Tensor:
        """The numbers (count,) of pages that no target uses; the pool doubles if they are too few."""
        used = torch.zeros(self.pool.shape[1], dtype=torch.bool, device=self.pool.device)
        used[self.tables.flatten().long()] = True
        free = (~used).nonzero().flatten()
        if len(free) < count:
            more = max(count - len(free), self.pool.shape[1])
            layers, size, *shape = self.pool.shape
            free = torch.cat([free, torch.arange(size, size + more, device=free.device)])
            self.pool = torch.cat([self.pool, self.pool.new_zeros(layers, more, *shape)], 1)
        return free[:count]
