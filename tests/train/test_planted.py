"""Words planted at random: where they stand, and what a discriminator that knows the text makes of them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from electra_fast.config import ElectraConfig
from electra_fast.data.batch import Batch
from electra_fast.objectives.electra import Electra
from electra_fast.train.planted import find_planted, plant

CONFIG = ElectraConfig.tiny(vocab_size=200)


def batch(first: int = 110) -> Batch:
    ids = torch.randint(first, 200, (8, 30), generator=torch.Generator().manual_seed(first))
    return Batch.from_padded(ids, torch.ones_like(ids))


def knowing(text: Batch, sign: int) -> SimpleNamespace:
    """A discriminator that suspects every token but the text's own, or (sign -1) these alone."""
    return SimpleNamespace(
        encoder=lambda batch, ids, *_: ids, logits=lambda ids: sign * (2.0 * (ids != text.input_ids) - 1)
    )


def test_words_change_places() -> None:
    torch.manual_seed(0)
    model, text = Electra(CONFIG).eval(), batch()
    planted = plant(model, model.discriminator, text, seed=3)
    slots = model.mask(text, 3)
    assert torch.equal(planted.input_ids.sort().values, text.input_ids.sort().values)
    assert torch.equal(planted.is_planted, planted.input_ids != text.input_ids)
    changed = planted.is_planted.nonzero().flatten()
    assert 0.8 * len(slots.positions) < len(changed) and set(changed.tolist()) <= set(slots.positions.tolist())
    assert torch.equal(plant(model, model.discriminator, text, seed=3).input_ids, planted.input_ids)
    assert not torch.equal(plant(model, model.discriminator, text, seed=4).input_ids, planted.input_ids)
    assert planted.logits.shape == text.input_ids.shape


@pytest.mark.parametrize(("sign", "expected"), [(1, 1.0), (-1, 0.0)])
def test_figures_of_one_that_knows(sign: int, expected: float) -> None:
    model, text = Electra(CONFIG).eval(), batch()
    figures = find_planted(model, knowing(text, sign), [text])  # type: ignore[arg-type]
    assert figures == dict.fromkeys(("auc_planted", "precision_planted", "recall_planted"), expected)
