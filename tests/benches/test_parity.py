"""Steps on real text: ours and electra_fast.reference stay together from one start, as far as float32 allows."""

import dataclasses
import lzma
from pathlib import Path

import pytest
import torch
from tools.loss_curves import ReferenceTrainer

from electra_fast import Batch, Electra, ElectraConfig, PretrainConfig, Pretrainer
from electra_fast.data.tokenizer import Tokenizer


@pytest.fixture
def batches(data: Path) -> list[Batch]:
    """WikiText-2 under ELECTRA's vocabulary: fifty batches of 4 x 64 tokens."""
    tokenizer = Tokenizer.load(data / "vocab" / "bert-uncased-30522.vocab.txt")
    with lzma.open(data / "wikitext2" / "wiki.valid.tokens.xz", "rt") as file:
        lines = [line for line in file.read(300_000).splitlines() if len(line) > 300]
    rows = [[101, *ids[:62], 102] for ids in tokenizer.encode(lines) if len(ids) >= 62]
    parts = [torch.tensor(rows[i : i + 4]) for i in range(0, 200, 4)]
    return [Batch.from_padded(part, example_ids=torch.arange(4) + 4 * i) for i, part in enumerate(parts)]


@pytest.mark.parametrize("steps", [3, pytest.param(50, marks=pytest.mark.slow)])
def test_losses_stay_within_float32_rounding(batches: list[Batch], steps: int) -> None:
    """|ours - gold| <= 3 |reference - gold| + 1e-6, summed over the run: gold is the reference in float64."""
    settings = dataclasses.replace(ElectraConfig.tiny(), hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    config = PretrainConfig(steps=50, warmup_steps=5, batch_size=4, learning_rate=5e-4)
    model = Electra(settings)
    plain, gold = ReferenceTrainer(model, config), ReferenceTrainer(model, config)
    gold.model.double()
    gold.optimizer.exp_avg = {name: t.double() for name, t in gold.optimizer.exp_avg.items()}
    gold.optimizer.exp_avg_sq = {name: t.double() for name, t in gold.optimizer.exp_avg_sq.items()}
    ours = Pretrainer(model, config)
    errors = torch.zeros(2, dtype=torch.float64)
    for step, batch in enumerate(batches[:steps]):
        masked = model.mask(batch, config.seed, step)
        with torch.no_grad():
            samples = model.train()(batch, config.seed, step, masked).slot_samples
        losses = [ours.step(batch).loss, *(t.step(batch, masked, samples).loss.item() for t in (plain, gold))]
        errors += torch.tensor([abs(losses[0] / losses[2] - 1), abs(losses[1] / losses[2] - 1)], dtype=torch.float64)
    assert errors[0] <= 3 * errors[1] + 1e-6, errors / steps
    assert errors[0] / steps < 1e-3 and (steps < 50 or losses[0] < 40)
