"""The running mean of the weights: its formula, what is evaluated and saved, and resume."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from test_model import CONFIG, padded
from test_objectives import WORDS

from electra_fast import Batch, Electra, PretrainConfig, Pretrainer
from electra_fast.model.networks import Generator
from electra_fast.storage import checkpoint
from electra_fast.train.pretrain import pretrain
from electra_fast.train.settings import RunConfig

BATCH = Batch.from_padded(*padded((9, 7, 24)))


def trainer(seed: int = 1) -> Pretrainer:
    torch.manual_seed(seed)
    return Pretrainer(Electra(CONFIG), PretrainConfig(steps=9, warmup_steps=1, batch_size=3, average_decay=0.25))


def test_three_steps_are_the_formula_s() -> None:
    one, name = trainer(), "generator.vocabulary_bias"
    p = dict(one.model.named_parameters())[name]
    gold = p.detach().double()
    for decay in (2 / 11, 3 / 12, 0.25):
        one.step(BATCH)
        gold = decay * gold + (1 - decay) * p.detach().double()
    last = p.detach().clone()
    with one.evaluated():
        assert torch.allclose(p.double(), gold, rtol=1e-5, atol=1e-9) and not torch.equal(p, last)
    assert torch.equal(p, last)


def test_it_goes_on_bit_for_bit() -> None:
    whole, first, second = trainer(), trainer(), trainer(seed=9)
    for _ in range(2):
        whole.step(BATCH), first.step(BATCH)
    second.load_state_dict(first.state_dict(), steps_done=2, skipped=0)
    for one in (whole, second):
        one.step(BATCH)
    for kind, tensors in whole.state_dict().items():
        assert all(torch.equal(t, second.state_dict()[kind][name]) for name, t in tensors.items())


@pytest.mark.usefixtures("no_pictures")
def test_final_weights_are_the_averages(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(WORDS)
    run = RunConfig(out=tmp_path / "out", data=(tmp_path / "text.txt",), vocab_size=40, max_length=16, objective="mlm",
                    device="cpu")  # fmt: skip
    pretrain(run, PretrainConfig.recipe("tiny", None, "mlm", steps=3, batch_size=4, average_decay=0.9))
    saved = checkpoint.load(run.out / "checkpoint-3")[1]
    name = "generator.vocabulary_bias"
    final = Generator.from_pretrained(run.out / "final" / "generator").vocabulary_bias
    assert torch.equal(final, saved["average"][name]) and not torch.equal(final, saved["model"][name])
