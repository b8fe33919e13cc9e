"""Embeddings of a discriminator that adds its own tables to the generator's, and sends those no gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from electra_fast.config import NetworkConfig
from electra_fast.model.encoder import Embeddings


class ResidualEmbeddings(Embeddings):
    """Tables that are added to those of another network, through which no gradient reaches the other's.

        table = stop_gradient(shared table) + own table

    The module's parameters are its own tables and a LayerNorm of its own.

    config: the sizes.
    shared: the other network's embeddings, which stay a part of that network alone.
    own: embeddings that the network is to read at first; by default those of the other network, to which 0 is added.

    Source: He et al., "DeBERTaV3", ICLR 2023, section 3.3 (gradient-disentangled embedding sharing).
    """

    def __init__(self, config: NetworkConfig, shared: Embeddings, own: Embeddings | None = None) -> None:
        super().__init__(config)
        self.shared = [shared]  # in a list, so that it is no submodule
        with torch.no_grad():
            for table in (self.word, self.position, self.token_type):
                table.weight.zero_()
            self.norm.load_state_dict((own or shared).norm.state_dict())
        if own is not None:
            self.represent(own.tables())

    def tables(self) -> tuple[Tensor, Tensor, Tensor]:
        words, positions, types = (
            shared.detach() + own for shared, own in zip(self.shared[0].tables(), super().tables(), strict=True)
        )
        return words, positions, types

    @torch.no_grad()
    def represent(self, tables: tuple[Tensor, ...]) -> None:
        """Set the own tables so that `tables()` returns these, up to rounding."""
        for own, shared, table in zip(super().tables(), self.shared[0].tables(), tables, strict=True):
            own.copy_(table - shared)
