"""The encoder-decoder against transformers' EncoderDecoderModel: weights, logits, and what generate writes."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

import electra_fast as ef
from electra_fast.config import NetworkConfig
from electra_fast.data.batch import Batch
from electra_fast.data.tokenizer import Tokenizer
from electra_fast.model.networks import Discriminator, Generator

SMALL = NetworkConfig(
    vocab_size=90,
    embedding_size=16,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=48,
    max_position_embeddings=40,
)
NARROW = dataclasses.replace(SMALL, hidden_size=24, num_attention_heads=3, num_hidden_layers=1)
OTHER_WORDS = dataclasses.replace(SMALL, vocab_size=70)
TOKENS = dict(decoder_start_token_id=2, eos_token_id=3)
CONFIGS = {
    "shared": ef.EncoderDecoderConfig(SMALL, SMALL, True, **TOKENS),
    "narrow": ef.EncoderDecoderConfig(SMALL, NARROW, **TOKENS),
    "other words": ef.EncoderDecoderConfig(SMALL, OTHER_WORDS, **TOKENS),
}


def drawn(config: ef.EncoderDecoderConfig, scale: float = 12.0) -> ef.EncoderDecoder:
    """A model whose random weights are large enough that its targets differ, and that often ends them."""
    torch.manual_seed(0)
    model = ef.EncoderDecoder(config).eval()
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() == 2:
                p.mul_(scale)
            elif not p.any():
                p.normal_(std=0.1)
        model.decoder.vocabulary_bias[3] += 3.0
    return model


def sources(lengths: list[int], vocab_size: int = 90) -> tuple[torch.Tensor, torch.Tensor]:
    """Padded random sources and their mask."""
    draws = np.random.default_rng(len(lengths))
    ids, mask = (np.zeros((len(lengths), max(lengths)), np.int64) for _ in range(2))
    for i, length in enumerate(lengths):
        ids[i, :length] = draws.integers(5, vocab_size, length)
        mask[i, :length] = 1
    return torch.from_numpy(ids), torch.from_numpy(mask)


def theirs_of(path: Path) -> transformers.EncoderDecoderModel:
    model, report = transformers.EncoderDecoderModel.from_pretrained(path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    return model.eval()


@pytest.mark.parametrize("name", CONFIGS)
def test_logits_equal_those_of_transformers_in_both_directions(name: str, tmp_path: Path) -> None:
    ours = drawn(CONFIGS[name], 8.0)
    ours.save_pretrained(tmp_path / "ours")
    theirs = theirs_of(tmp_path / "ours")
    ids, mask = sources([7, 3, 12])
    targets, target_mask = sources([5, 9, 1], 70)
    given = dict(input_ids=ids, attention_mask=mask, decoder_input_ids=targets, decoder_attention_mask=target_mask)
    with torch.no_grad():
        expected = theirs(**given).logits * target_mask[:, :, None]
        torch.testing.assert_close(ours(**given), expected, rtol=2e-5, atol=2e-5)
        theirs.save_pretrained(tmp_path / "theirs")
        back = ef.EncoderDecoder.from_pretrained(tmp_path / "theirs")
        torch.testing.assert_close(back(**given), expected, rtol=2e-5, atol=2e-5)
    assert back.config == dataclasses.replace(ours.config, share_embeddings=back.config.share_embeddings)
    again = ef.EncoderDecoder.from_pretrained(tmp_path / "ours")
    assert again.config == ours.config
    for key, tensor in ours.state_dict().items():
        assert torch.equal(again.state_dict()[key], tensor), key


OPTIONS = {
    "greedy": dict(),
    "beams": dict(num_beams=4),
    "long beams": dict(num_beams=4, length_penalty=2.0),
    "short beams": dict(num_beams=3, length_penalty=-1.0),
    "runs": dict(no_repeat_ngram_size=2),
    "runs of beams": dict(num_beams=4, no_repeat_ngram_size=3),
    "minimum": dict(min_length=9),
    "minimum of beams": dict(num_beams=4, min_length=12),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_generate_gives_the_tokens_of_transformers(name: str, tmp_path: Path) -> None:
    ours = drawn(CONFIGS["narrow"])
    ours.save_pretrained(tmp_path)
    ids, mask = sources([3 + i % 11 for i in range(24)])
    theirs = theirs_of(tmp_path).generate(input_ids=ids, attention_mask=mask, max_length=20, **OPTIONS[name])
    written = ours.generate(ids, mask, max_length=20, **OPTIONS[name])
    assert [ended(row) for row in written.tolist()] == [ended(row) for row in theirs.tolist()]
    lengths = {len(ended(row)) for row in written.tolist()}
    assert len(lengths) > 1, "targets that all end at once show little"


def ended(row: list[int]) -> list[int]:
    """A target up to its end token; behind it transformers' beam search writes the end token, where [PAD] is 0."""
    return row[: row.index(3) + 1] if 3 in row else row


@torch.no_grad()
def float64_beams(model: ef.EncoderDecoder, ids: torch.Tensor, mask: torch.Tensor, most: int) -> list[list[int]]:
    """Beam search with 3 beams and penalty 0.7, in a few lines: whole targets go through the model, in float64."""
    running = [[(0.0, [2])] for _ in ids]
    finished: list[list[tuple[float, list[int]]]] = [[] for _ in ids]
    for length in range(1, most):
        rows = [(i, score, tokens) for i, beams in enumerate(running) for score, tokens in beams]
        if not rows:
            break
        where = [i for i, _, _ in rows]
        logits = model(ids[where], mask[where], torch.tensor([tokens for _, _, tokens in rows]))[:, -1]
        longer: list[list[tuple[float, list[int]]]] = [[] for _ in ids]
        for (i, score, tokens), row in zip(rows, logits.log_softmax(-1), strict=True):
            longer[i] += [(score + float(row[token]), [*tokens, token]) for token in row.topk(6).indices.tolist()]
        for i, found in enumerate(longer):
            best = sorted(found, key=lambda each: -each[0])[:6]
            ends = [tokens[-1] == 3 or length + 1 == most for _, tokens in best]
            finished[i] += [(s / length**0.7, t) for (s, t), end in zip(best[:3], ends, strict=False) if end]
            finished[i] = sorted(finished[i], key=lambda each: -each[0])[:3]
            running[i] = [each for each, end in zip(best, ends, strict=True) if not end][:3]
            if len(finished[i]) == 3 and running[i] and running[i][0][0] / length**0.7 <= finished[i][-1][0]:
                running[i] = []
    return [each[0][1] for each in finished]


def test_beams_equal_a_search_in_float64() -> None:
    model = drawn(CONFIGS["narrow"])
    ids, mask = sources([2 + i % 9 for i in range(200)])
    written = model.generate(ids, mask, num_beams=3, max_length=8, length_penalty=0.7).tolist()
    expected = float64_beams(drawn(CONFIGS["narrow"]).double(), ids, mask, 8)
    assert [ended(row) for row in written] == [ended(row) for row in expected]


@torch.no_grad()
@settings(max_examples=8, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 12), st.integers(1, 20)), min_size=1, max_size=5))
def test_a_step_with_the_cache_equals_the_whole_target(shapes: list[tuple[int, int]]) -> None:
    """Hidden states of ragged targets, one token at a time and whole; targets that end leave the batch."""
    from electra_fast.model.writer import Writer

    model = drawn(CONFIGS["narrow"], 3.0)
    source = Batch.from_padded(*sources([a for a, _ in shapes]))
    target = Batch.from_padded(*sources([b for _, b in shapes], 70))
    zero = torch.zeros(1, dtype=torch.int64)
    whole = target.pad(model.hidden(source, target, 0, 0))
    tokens = target.pad(target.input_ids)
    writer = Writer(model.decoder, model.encode(source, zero, zero))
    rows = torch.arange(len(shapes))
    parents = rows
    for place in range(int(target.lengths.max())):
        hidden = writer.step(tokens[rows, place], parents)
        torch.testing.assert_close(hidden, whole[rows, place], rtol=1e-5, atol=1e-5)
        parents = (target.lengths[rows] > place + 1).nonzero().flatten()
        rows = rows[parents]


@torch.no_grad()
def test_samples_do_not_depend_on_the_batch() -> None:
    model = drawn(CONFIGS["narrow"], 4.0)
    ids, mask = sources([4, 9, 6, 2])
    options = dict(do_sample=True, max_length=15, temperature=1.3, top_k=20, top_p=0.9, seed=5)
    together = model.generate(ids, mask, **options)
    assert together.tolist() == model.generate(ids, mask, **options).tolist()
    assert together.tolist() != model.generate(ids, mask, **options | dict(seed=6)).tolist()
    for i in range(4):
        row = torch.tensor([i])
        alone = model.generate(ids[row], mask[row], row_ids=row, **options)[0].tolist()
        assert together[i].tolist()[: len(alone)] == alone


@torch.no_grad()
def test_samples_follow_the_probabilities() -> None:
    """The first tokens of 3,000 samples of one source, by chi-squared against softmax(logits / temperature)."""
    model = drawn(CONFIGS["shared"], 2.0)
    ids = sources([5])[0].expand(3000, -1)
    first = model.generate(ids, max_length=2, do_sample=True, temperature=1.7, top_k=6)[:, 1]
    logits = model(ids[:1], None, torch.tensor([[2]]))[0, 0] / 1.7
    top = logits.topk(6)
    p = top.values.softmax(0)
    counts = torch.stack([(first == token).sum() for token in top.indices])
    assert int(counts.sum()) == 3000
    assert float(((counts - 3000 * p) ** 2 / (3000 * p)).sum()) < 20.5  # 5 degrees of freedom, p = 0.001


def saved(network: Discriminator | Generator, folder: Path, words: int) -> Path:
    network.save_pretrained(folder)
    lines = [f"w{i} x{i} y{i}" for i in range(200)]
    Tokenizer.train(lines, words).save(folder)
    return folder


def test_networks_become_an_encoder_decoder(tmp_path: Path) -> None:
    torch.manual_seed(1)
    discriminator = Discriminator(SMALL)
    generator = Generator(SMALL, discriminator.encoder.embeddings)
    a, b = saved(discriminator, tmp_path / "d", 60), saved(generator, tmp_path / "g", 60)
    model = ef.EncoderDecoder.from_networks(a, b)
    assert model.config.share_embeddings, "a generator's and its discriminator's embeddings are equal"
    assert model.decoder.embeddings is model.encoder.embeddings
    assert torch.equal(model.encoder.layers[1].qkv.weight, discriminator.encoder.layers[1].qkv.weight)
    assert torch.equal(model.decoder.layers[1].qkv.weight, generator.encoder.layers[1].qkv.weight)
    assert torch.equal(model.decoder.transform.dense.weight, generator.transform.dense.weight)
    assert torch.equal(model.decoder.vocabulary_bias, generator.vocabulary_bias)
    assert model.config.eos_token_id == 3
    two = ef.EncoderDecoder.from_networks(a, share_embeddings=False)
    assert torch.equal(two.decoder.layers[0].up.weight, discriminator.encoder.layers[0].up.weight)
    assert two.decoder.embeddings is not two.encoder.embeddings
    random = ef.EncoderDecoder.from_networks(a, b, random_init=True)
    assert not torch.equal(random.encoder.layers[1].qkv.weight, discriminator.encoder.layers[1].qkv.weight)


def test_what_does_not_fit_is_told(tmp_path: Path) -> None:
    a = saved(Discriminator(SMALL), tmp_path / "d", 60)
    b = saved(Generator(OTHER_WORDS), tmp_path / "g", 60)
    with pytest.raises(ValueError, match="share_embeddings is True, and encoder and decoder have vocab_size 90 and 70"):
        ef.EncoderDecoder.from_networks(a, b, share_embeddings=True)
    c = saved(Generator(dataclasses.replace(SMALL, vocab_size=20)), tmp_path / "small", 60)
    with pytest.raises(ValueError, match="has a tokenizer of [0-9]+ entries and a network of 20"):
        ef.EncoderDecoder.from_networks(a, c)
    with pytest.raises(ValueError, match="model_type is 'electra'; an encoder-decoder is wanted"):
        ef.EncoderDecoder.from_pretrained(a)
    with pytest.raises(ValueError, match="eos_token_id is 90, outside the decoder's vocabulary of 90"):
        ef.EncoderDecoderConfig(SMALL, SMALL, decoder_start_token_id=2, eos_token_id=90)
    model = drawn(CONFIGS["narrow"])
    ids, mask = sources([4, 2])
    for options, sentence in {
        "max_length is 41, and the decoder has 40 positions": dict(max_length=41),
        "num_beams is 0; it must be at least 1": dict(num_beams=0),
        "do_sample and num_beams 2 are both set": dict(do_sample=True, num_beams=2),
        "top_p is 0.0; it must lie above 0": dict(top_p=0.0),
        "temperature is 0.0; it must be above 0": dict(temperature=0.0),
        "min_length is 9, above max_length 5": dict(min_length=9, max_length=5),
    }.items():
        with pytest.raises(ValueError, match=options):
            model.generate(ids, mask, **{"max_length": 8, **sentence})
    with pytest.raises(ValueError, match="source 1 has no tokens"):
        model.generate(ids, mask * torch.tensor([[1], [0]]), max_length=8)
    with pytest.raises(ValueError, match="there are 2 sources and 1 targets"):
        model(ids, mask, ids[:1])
    long = torch.full((2, 41), 5)
    with pytest.raises(ValueError, match="the targets are 41 columns wide"):
        model(ids, mask, long)
