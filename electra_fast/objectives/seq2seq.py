"""The objective of an encoder-decoder: predict each token of the target from those before it and from the source."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from electra_fast.data.batch import Batch
from electra_fast.model.encoder_decoder import EncoderDecoder


@dataclass(frozen=True)
class PairBatch:
    """N sources and their targets, packed.

    Attributes:
        source: Ts tokens of the sources.
        target: T tokens of the targets, each from its start token to the token before its end token.
        labels: (T,) int64, the token that follows each of them; the last is the end token.
    """

    source: Batch
    target: Batch
    labels: Tensor

    @classmethod
    def of(
        cls, sources: Sequence[tuple[Sequence[int], int]], targets: Sequence[Sequence[int]], names: Sequence[int]
    ) -> PairBatch:
        """Pack pairs, on the CPU.

        sources: for each the ids, and the place where its second segment begins.
        targets: for each the ids from the start token to the end token.
        names: for each a number, by which its random numbers are keyed.
        """
        source = Batch.from_examples([(np.asarray(ids), second) for ids, second in sources], names)
        target = Batch.from_examples([(np.asarray(ids[:-1]), len(ids)) for ids in targets], names)
        return cls(source, target, torch.tensor([id for ids in targets for id in ids[1:]], dtype=torch.int64))

    def to(self, device: torch.device) -> PairBatch:
        return PairBatch(self.source.to(device), self.target.to(device), self.labels.to(device))


def token_losses(
    model: EncoderDecoder, batch: PairBatch, seed: Tensor, step: Tensor, label_smoothing: float = 0.0
) -> Tensor:
    """The cross-entropy in nats of each target token, with label smoothing.

        loss = -(1 - e) log p(label) - e mean over words v of log p(v)

    seed, step: (1,) int64, which key dropout in training mode. label_smoothing: e.

    Returns (T,). No logits are stored. Source of label smoothing: Szegedy et al., CVPR 2016, section 7.
    """
    rows = model.decoder.transform(model.hidden(batch.source, batch.target, seed, step))
    return model.decoder.head(rows, batch.labels, label_smoothing=label_smoothing, temperature=0.0)[0]
