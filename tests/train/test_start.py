"""What a run starts from: text prepared as the run says, and a model with the run's settings."""

import dataclasses
import itertools
import json
from pathlib import Path

import pytest
import torch

from electra_fast.data.batch import Batch
from electra_fast.data.corpus import Corpus
from electra_fast.data.prepare import prepare
from electra_fast.objectives.base import Objective
from electra_fast.train.settings import RunConfig
from electra_fast.train.start import build_model, open_corpus, starts_from_counts

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
    """The corpus is the one that `prepare` makes with the same packing; none named is that of the recipe, here few."""
    corpus = open_corpus(dataclasses.replace(run, packing=packing))
    settings = dict(vocab_size=40, max_length=16, packing=packing or "plain", progress=False)
    assert corpus.sha256 == prepare(run.data[0], tmp_path / "same", **settings).sha256
    other = "plain" if packing == "pairs" else "pairs"
    assert corpus.sha256 != prepare(run.data[0], tmp_path / "other", **settings | {"packing": other}).sha256
    with pytest.raises(ValueError, match=f'packing: saved "{packing or "plain"}", now "{other}"'):
        open_corpus(dataclasses.replace(run, packing=other))


def test_packing_of_a_corpus_is_held_against_the_option(run: RunConfig, tmp_path: Path) -> None:
    prepare(run.data[0], tmp_path / "corpus", vocab_size=40, max_length=16, packing="plain", progress=False)
    run = dataclasses.replace(run, data=(tmp_path / "corpus",), vocab_size=None)
    assert len(open_corpus(run)) == len(open_corpus(dataclasses.replace(run, packing="plain"))) > 0
    with pytest.raises(ValueError, match="was prepared with packing plain, and packing is pairs; leave --packing out"):
        open_corpus(dataclasses.replace(run, packing="pairs"))


def test_mask_share_and_dropout_are_the_preset_s_or_the_run_s(run: RunConfig) -> None:
    few = started(run)
    assert (few.config.mask_prob, few.config.hidden_dropout_prob, few.config.share_embeddings) == (0.15, 0.0, False)
    run = dataclasses.replace(run, recipe="paper", packing="plain")
    plain = started(run).config
    assert plain.share_embeddings
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


def test_weights_to_start_from_grow_for_tokens_added_to_the_data(run: RunConfig, tmp_path: Path) -> None:
    """Both networks get the same rows; the generator's new biases are the mean of the others."""
    first = started(dataclasses.replace(run, embedding_sharing="tied"))
    with torch.no_grad():
        first.generator.vocabulary_bias.normal_(generator=torch.Generator().manual_seed(1))
    first.save_pretrained(tmp_path / "weights")
    tokenizer = tmp_path / "tokenizer"
    Corpus(run.out / "data").tokenizer.save(tokenizer)
    (tokenizer / "tokenizer.json").unlink()
    (tokenizer / "SHA256SUMS").unlink()
    size = first.config.vocab_size
    (tokenizer / "added_tokens.json").write_text(json.dumps({"[E1]": size, "[E2]": size + 1}))
    (tmp_path / "text.txt").write_text(TEXT.replace(" of ", " [E1] "))
    weights = {f"init_{name}": tmp_path / "weights" / name for name in ("generator", "discriminator")}
    (tmp_path / "second").mkdir()
    run = dataclasses.replace(run, out=tmp_path / "second", tokenizer=tokenizer, vocab_size=None, **weights)
    corpus = open_corpus(run)
    assert size in corpus[0][0].tolist()
    model = build_model(run, corpus, seed=0)
    old, new = (m.discriminator.encoder.embeddings.word.weight for m in (first, model))
    assert model.config.vocab_size == len(new) == size + 2 and torch.equal(new[:size], old)
    assert 0.5 < (new[size:] - old.mean(0)).std() / model.config.initializer_range < 2
    assert torch.equal(model.generator.encoder.embeddings.word.weight, new)
    bias = model.generator.vocabulary_bias
    assert torch.equal(bias[:size], first.generator.vocabulary_bias) and torch.allclose(bias[size:], bias[:size].mean())


def test_weights_with_fewer_words_than_the_data_are_refused(run: RunConfig, tmp_path: Path) -> None:
    """The words of the data were not added to those of the weights."""
    started(run).save_pretrained(tmp_path / "weights")
    (tmp_path / "text.txt").write_text(TEXT + "\n\nmore words and others " * 9)
    (tmp_path / "second").mkdir()
    weights = {"init_discriminator": tmp_path / "weights" / "discriminator"}
    run = dataclasses.replace(run, out=tmp_path / "second", vocab_size=80)
    Corpus(tmp_path / "out" / "data").tokenizer.save(tmp_path / "weights" / "discriminator")
    corpus = open_corpus(run)
    with pytest.raises(
        ValueError, match=rf"word table of \d+ rows, and the tokenizer of the data has {corpus.vocab_size}"
    ):
        build_model(dataclasses.replace(run, **weights), corpus, seed=0)


def test_embeddings_of_weights_to_start_from(run: RunConfig, tmp_path: Path) -> None:
    """Separate by the recipe few, whatever they were. By the recipe paper those that are equal are shared again."""
    for embeddings in ("none", "tied"):
        directory = tmp_path / embeddings
        first = started(dataclasses.replace(run, embedding_sharing=embeddings))
        first.save_pretrained(directory)
        weights = {f"init_{name}": directory / name for name in ("generator", "discriminator")}
        again = dataclasses.replace(run, data=(run.out / "data",), vocab_size=None, **weights)
        wanted = first.generator.encoder.embeddings.word.weight
        model = started(again)
        assert not model.config.share_embeddings and not starts_from_counts(again)
        assert torch.equal(model.generator.encoder.embeddings.word.weight, wanted)
        model = started(dataclasses.replace(again, recipe="paper"))
        assert model.config.share_embeddings == (embeddings == "tied")
        assert torch.equal(model.generator.encoder.embeddings.word.weight, wanted)
    assert started(dataclasses.replace(again, embedding_sharing="tied")).config.share_embeddings
    assert starts_from_counts(run) and not starts_from_counts(dataclasses.replace(run, recipe="paper"))
    with pytest.raises(ValueError, match="initial_weights is counts, and the run starts from the weights in"):
        dataclasses.replace(again, initial_weights="counts")


@pytest.mark.parametrize("given", ["generator", "discriminator"])
def test_a_network_beside_given_weights_begins_with_their_embeddings(
    run: RunConfig, tmp_path: Path, given: str
) -> None:
    first = started(run)
    first.save_pretrained(tmp_path / "weights")
    weights = {f"init_{given}": tmp_path / "weights" / given}
    model = started(dataclasses.replace(run, data=(run.out / "data",), vocab_size=None, **weights))
    tables = [network.encoder.embeddings for network in (model.generator, model.discriminator)]
    wanted = getattr(first, given).encoder.embeddings.word.weight
    assert tables[0] is not tables[1]
    assert all(torch.equal(table.word.weight, wanted) for table in tables)


def test_words_are_masked_whole(run: RunConfig) -> None:
    """The tokenizer's continuing pieces say what a word is, of a corpus that stores no such thing."""
    words = [" ".join(map("".join, itertools.permutations("abcd", n))) for n in (1, 2, 3, 4)]
    run.data[0].write_text("\n\n".join(words * 9))
    corpus = open_corpus(dataclasses.replace(run, vocab_size=34))
    pieces = [corpus.tokenizer.token(i) for i in range(corpus.vocab_size)]
    model = build_model(dataclasses.replace(run, vocab_size=34, mask_unit="word", mask_prob=0.5), corpus, seed=0)
    assert model.config.mask_unit == "word"
    assert model.continues is not None and model.continues.tolist() == [piece.startswith("##") for piece in pieces]
    batch = Batch.from_examples([corpus[i] for i in range(8)], range(8))
    slots = model.mask(batch, 1, 2)
    starts, special = ~model.continues[batch.input_ids], ~model.replaceable(batch.input_ids)
    starts |= special.roll(1) | special
    chosen = torch.zeros(batch.num_tokens, dtype=torch.bool).index_fill(0, slots.positions[slots.labels != -100], True)
    cut = [i for i in range(1, batch.num_tokens) if not starts[i] and chosen[i] != chosen[i - 1]]
    assert (~starts).any() and len(cut) <= len(batch), "at most the last word of a sequence is cut"
    assert all(chosen[i - 1] for i in cut), "and then its first pieces are chosen"
    model.continues = None
    with pytest.raises(ValueError, match="mask_unit is word, and the model does not know which tokens continue a word"):
        model.mask(batch, 1, 2)
    with pytest.raises(ValueError, match="mask_unit is word and faithful True"):
        build_model(dataclasses.replace(run, mask_unit="word", faithful=True), corpus, seed=0)
