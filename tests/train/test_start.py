"""What a run starts from: text prepared as the run says, and a model with the run's settings."""

import dataclasses
from pathlib import Path

import pytest

from electra_fast.data.prepare import prepare
from electra_fast.objectives.base import Objective
from electra_fast.train.settings import RunConfig
from electra_fast.train.start import build_model, open_corpus

TEXT = "\n\n".join("\n".join(f"the {a} of the {b} ." for a in "abcd" for b in "xyz") for _ in range(9))


@pytest.fixture
def run(tmp_path: Path) -> RunConfig:
    (tmp_path / "text.txt").write_text(TEXT)
    (tmp_path / "out").mkdir()
    return RunConfig(out=tmp_path / "out", data=(tmp_path / "text.txt",), vocab_size=40, max_length=16)


def started(run: RunConfig) -> Objective:
    return build_model(run, open_corpus(run), seed=0)


@pytest.mark.parametrize("packing", [None, "pairs", "plain"])
def test_packing_of_text_that_is_prepared_here(run: RunConfig, tmp_path: Path, packing: str | None) -> None:
    """The corpus is the one that `prepare` makes with the same packing; none named is Google's pairs."""
    corpus = open_corpus(dataclasses.replace(run, packing=packing))
    settings = dict(vocab_size=40, max_length=16, packing=packing or "pairs", progress=False)
    assert corpus.sha256 == prepare(run.data[0], tmp_path / "same", **settings).sha256
    other = "pairs" if packing == "plain" else "plain"
    assert corpus.sha256 != prepare(run.data[0], tmp_path / "other", **settings | {"packing": other}).sha256
    with pytest.raises(ValueError, match=f'packing: saved "{packing or "pairs"}", now "{other}"'):
        open_corpus(dataclasses.replace(run, packing=other))


def test_packing_of_a_corpus_is_held_against_the_option(run: RunConfig, tmp_path: Path) -> None:
    prepare(run.data[0], tmp_path / "corpus", vocab_size=40, max_length=16, packing="plain", progress=False)
    run = dataclasses.replace(run, data=(tmp_path / "corpus",), vocab_size=None)
    assert len(open_corpus(run)) == len(open_corpus(dataclasses.replace(run, packing="plain"))) > 0
    with pytest.raises(ValueError, match="was prepared with packing plain, and packing is pairs; leave --packing out"):
        open_corpus(dataclasses.replace(run, packing="pairs"))


def test_mask_share_and_dropout_are_the_preset_s_or_the_run_s(run: RunConfig) -> None:
    plain = started(run).config
    assert (plain.mask_prob, plain.hidden_dropout_prob, plain.attention_probs_dropout_prob) == (0.15, 0.1, 0.1)
    model = started(dataclasses.replace(run, mask_prob=0.3, dropout=0.2))
    assert model.config == dataclasses.replace(
        plain, mask_prob=0.3, hidden_dropout_prob=0.2, attention_probs_dropout_prob=0.2
    )
    for network in (model.generator, model.discriminator):
        assert network.encoder.config.hidden_dropout_prob == network.encoder.config.attention_probs_dropout_prob == 0.2
    assert started(dataclasses.replace(run, faithful=True, mask_prob=0.3)).config.max_predictions == int(0.305 * 16)


def test_dropout_of_weights_to_start_from(run: RunConfig, tmp_path: Path) -> None:
    started(dataclasses.replace(run, dropout=0.3)).save_pretrained(tmp_path / "weights")
    names = ("generator", "discriminator")
    weights = {f"init_{name}": tmp_path / "weights" / name for name in names}
    run = dataclasses.replace(run, data=(run.out / "data",), vocab_size=None, **weights)
    for dropout, wanted in ((None, 0.3), (0.0, 0.0)):
        model = started(dataclasses.replace(run, dropout=dropout))
        configs = [model.config, *(getattr(model, name).encoder.config for name in names)]
        assert {config.hidden_dropout_prob for config in configs} == {wanted}
        assert {config.attention_probs_dropout_prob for config in configs} == {wanted}
