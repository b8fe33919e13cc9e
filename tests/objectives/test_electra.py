"""Electra while only one network learns, and with embeddings apart."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from electra_fast.config import ElectraConfig
from electra_fast.data.batch import Batch
from electra_fast.objectives.electra import Electra
from electra_fast.train.settings import PretrainConfig
from electra_fast.train.trainer import Pretrainer

CONFIG = ElectraConfig.tiny(vocab_size=200, share_embeddings=False)


def batch() -> Batch:
    ids = torch.randint(110, 200, (4, 12), generator=torch.Generator().manual_seed(0))
    return Batch.from_padded(ids, torch.ones_like(ids))


@pytest.mark.parametrize("micro_batch_size", [None, 2])
def test_only_the_learning_network_changes(micro_batch_size: int | None) -> None:
    """Steps 0 and 1 are the generator's, the others the discriminator's; the other network keeps its bits."""
    torch.manual_seed(0)
    config = PretrainConfig(
        steps=5, generator_share=0.4, warmup_steps=0, batch_size=4, micro_batch_size=micro_batch_size
    )
    trainer = Pretrainer(Electra(CONFIG), config)
    for learning in ["generator"] * 2 + ["discriminator"] * 3:
        before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
        metrics = trainer.step(batch())
        changed = {
            name.split(".")[0] for name, p in trainer.model.named_parameters() if not torch.equal(p, before[name])
        }
        assert changed == {learning}
        assert ("auc" in metrics.row()) == (learning == "discriminator")


def test_a_generator_that_does_not_learn_has_no_dropout() -> None:
    torch.manual_seed(0)
    model = Electra(CONFIG)
    model.learning = "discriminator"
    quiet = model.train()(batch(), 1).generator_loss
    assert not quiet.requires_grad
    assert torch.equal(quiet, model.eval()(batch(), 1).generator_loss)
    model.learning = "both"
    assert not torch.equal(quiet, model.train()(batch(), 1).generator_loss)


def test_flops_are_of_what_is_computed() -> None:
    model = Electra(CONFIG)
    flops = {}
    for model.learning in ("both", "generator", "discriminator"):
        flops[model.learning] = model.step_flops([12] * 4, 8)
    assert flops["both"] - flops["discriminator"] == flops["generator"] - flops["generator"] // 3


def test_embeddings_apart_are_saved_apart(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Electra(CONFIG)
    tables = [network.encoder.embeddings.word.weight for network in (model.generator, model.discriminator)]
    assert not torch.equal(*tables)
    model.save_pretrained(tmp_path)
    again = Electra.from_pretrained(tmp_path)
    assert not again.config.share_embeddings
    assert torch.equal(again.generator.encoder.embeddings.word.weight, tables[0])
    assert torch.equal(again.discriminator.encoder.embeddings.word.weight, tables[1])
    assert torch.equal(again(batch(), 1).loss, model.eval()(batch(), 1).loss)
