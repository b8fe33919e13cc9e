"""Collapses that no error shows: told once, and counted until a run is dead."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from electra_fast.train import health
from electra_fast.train.health import Health
from electra_fast.train.pretrain import pretrain
from electra_fast.train.settings import PretrainConfig, RunConfig

CONFIG = PretrainConfig(steps=100, warmup_steps=10, generator_share=0.2)  # looked at from step 30, against counts at 80
WELL = dict(score_spread=1.0, most_sampled=0.1, auc=0.8, auc_pairs=0.7)


def test_a_healthy_run_is_told_nothing() -> None:
    watch = Health(CONFIG)
    assert [watch.look(step, WELL) for step in range(0, 101, 10)] == [[]] * 11
    assert not watch.dead
    assert watch.look(100, dict(most_sampled=0.1)) == []  # a masked language model has no scores


@pytest.mark.parametrize(
    ("figures", "first", "words", "dead"),
    [
        (dict(score_spread=1e-4), 30, "same score .* --initial-weights counts", True),
        (dict(most_sampled=0.6), 30, "60% of the generator's samples", True),
        (dict(auc=0.6), 80, "0.600, is below that of a table of neighbouring pairs, 0.700", False),
    ],
)
def test_a_fault_is_told_once(figures: dict[str, float], first: int, words: str, dead: bool) -> None:
    watch = Health(CONFIG)
    lines = {step: watch.look(step, WELL | figures) for step in range(0, 101, 10)}
    assert [step for step, told in lines.items() if told] == [first]
    assert len(lines[first]) == 1 and re.search(words, lines[first][0])
    assert watch.dead == dead


def test_a_fault_that_passes_is_no_death() -> None:
    watch = Health(CONFIG)
    for step, spread in ((40, 0.0), (50, 0.0), (60, 1.0), (70, 0.0), (80, 0.0)):
        watch.look(step, WELL | dict(score_spread=spread))
    assert not watch.dead
    watch.look(90, WELL | dict(score_spread=0.0))
    assert watch.dead


def test_stop_when_dead(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """With a bound that every discriminator falls below, the run ends at the third evaluation, with a checkpoint."""
    monkeypatch.setattr(health, "CONSTANT", 1e9)
    (tmp_path / "text.txt").write_text("to be or not to be\nthat is the question\n\n" * 60)
    out = tmp_path / "out"
    run = RunConfig(
        out=out, data=(tmp_path / "text.txt",), vocab_size=60, max_length=16, eval_every=1, device="cpu",
        stop_when_dead=True,
    )  # fmt: skip
    config = PretrainConfig(steps=9, warmup_steps=2, batch_size=4)
    with pytest.raises(FloatingPointError, match="step 4: a network has collapsed"):
        pretrain(run, config)
    assert (out / "checkpoint-4").is_dir()
    assert capsys.readouterr().out.count("the same score") == 1
