"""Each objective against a few lines of plain PyTorch in float64: loss and every gradient; what transformers reads."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from plain import SMALL, hidden, normed, over, same_gradients, scores, sequences, text, word_logits

from electra_fast.config import ElectraConfig
from electra_fast.objectives.base import ElectraOutput, Objective
from electra_fast.objectives.corrective import Corrective
from electra_fast.objectives.electra import Electra
from electra_fast.objectives.electric import Electric
from electra_fast.objectives.one_network import OneNetwork
from electra_fast.objectives.uniform import Uniform

BATCH = text()


def built(kind: type[Objective], config: ElectraConfig = SMALL) -> tuple[Objective, ElectraOutput]:
    """A model in float64 whose weights are not small, and its output on BATCH in training mode."""
    torch.manual_seed(0)
    model = kind(config).double()
    for name, p in model.named_parameters():
        if "norm" not in name:
            torch.nn.init.normal_(p, std=0.2)
    return model, model.train()(BATCH, seed=3, step=5)


def used(out: ElectraOutput) -> torch.Tensor:
    return out.slots.labels != -100


def blanks(model: Objective, out: ElectraOutput, temperature: float = 1.0) -> torch.Tensor:
    """The logits of the used slots."""
    states = over(model.generator.encoder, BATCH, out.slots.masked_ids)[out.masked_positions]
    return word_logits(model.generator, states) / temperature


def detection(model: Objective, out: ElectraOutput, tables: tuple[torch.Tensor, ...] | None = None) -> torch.Tensor:
    found = scores(model.discriminator, over(model.discriminator.encoder, BATCH, out.corrupted_ids, tables))
    wanted = (out.corrupted_ids != BATCH.input_ids).double()
    return F.binary_cross_entropy_with_logits(found, wanted, reduction="sum") / (BATCH.num_tokens + 1e-6)


def of_blanks(model: Objective, out: ElectraOutput, smoothing: float = 0.0) -> torch.Tensor:
    labels = out.slots.labels[used(out)]
    total = F.cross_entropy(blanks(model, out), labels, reduction="sum", label_smoothing=smoothing)
    return total / (len(labels) + 1e-6)


def test_uniform() -> None:
    model, out = built(Uniform)
    words = 90 - 4  # all but [PAD], [CLS], [SEP], [MASK]
    count = len(out.masked_positions)
    assert out.generator_loss.item() == pytest.approx(math.log(words) * count / (count + 1e-6), rel=1e-6)
    same_gradients(model, out.loss, out.generator_loss + 50 * detection(model, out))
    rows = model.generator.rows(50_000)
    _, drawn = model.generator.head(rows, torch.full((len(rows),), -100), seed=5)
    counts = drawn.bincount(minlength=90).double()
    assert not counts[model.special_ids].any()
    expected = len(drawn) / words
    kept = torch.tensor([i for i in range(90) if i not in model.special_ids])
    chi = ((counts[kept] - expected) ** 2 / expected).sum().item()
    assert abs(chi - (words - 1)) < 4 * math.sqrt(2 * (words - 1))


def test_unigram_draws_words_as_often_as_they_stand_in_the_text() -> None:
    model = Uniform(SMALL)
    weights = torch.zeros(90)
    weights[10], weights[11] = 3.0, 1.0
    model.draw_by(weights)
    drawn = torch.cat([model(BATCH, seed=seed).sampled_ids for seed in range(100)])
    assert set(drawn.tolist()) == {10, 11}
    share = (drawn == 10).double().mean().item()
    assert abs(share - 0.75) < 4 * math.sqrt(0.75 * 0.25 / len(drawn))
    labels = torch.tensor([10, 11])
    losses, _ = model.generator.head(model.generator.rows(2), labels)
    assert losses.tolist() == pytest.approx([-math.log(0.75), -math.log(0.25)], rel=1e-5)
    losses, _ = model.to(torch.bfloat16).generator.head(model.generator.rows(2), labels)
    assert losses.tolist() == pytest.approx([-math.log(0.75), -math.log(0.25)], rel=1e-5)


@pytest.mark.parametrize("sharing", ["tied", "disentangled", "none"])
def test_electric(sharing: str) -> None:
    changes = dict(share_embeddings=sharing != "none", disentangled=sharing == "disentangled")
    model, out = built(Electric, dataclasses.replace(SMALL, **changes))
    towers, logits = model.generator, []
    for part in sequences(BATCH):
        ids = BATCH.input_ids[part]
        left = hidden(towers.left_to_right, ids, causal=True)
        words, positions, types = towers.left_to_right.embeddings.tables()
        mirrored = (words, positions[: len(ids)].flip(0), types)  # a token keeps its place when read backwards
        right = hidden(towers.right_to_left, ids.flip(0), mirrored, causal=True).flip(0)
        both = [F.pad(left[:-1], (0, 0, 1, 0)), F.pad(right[1:], (0, 0, 0, 1))]
        rows = normed(F.gelu(towers.transform.dense(torch.cat(both, 1))), towers.transform.norm)
        logits.append(rows @ words.T + towers.vocabulary_bias)
    log_q = torch.cat(logits).log_softmax(1)
    at = torch.arange(BATCH.num_tokens)
    words_alone = model.replaceable(BATCH.input_ids)
    cloze = -log_q[at, BATCH.input_ids][words_alone].sum() / (words_alone.sum().item() + 1e-6)
    drawn = torch.zeros(BATCH.num_tokens, dtype=torch.bool).index_fill(0, out.masked_positions, True)
    assert torch.equal(out.is_replaced, drawn)
    energies = scores(model.discriminator, over(model.discriminator.encoder, BATCH, out.corrupted_ids))
    z = energies + log_q[at, out.corrupted_ids].detach() + math.log(0.15 / 0.85)
    assert torch.allclose(out.discriminator_logits, z, atol=1e-9)
    cost = F.binary_cross_entropy_with_logits(z, drawn.double(), reduction="sum") / (BATCH.num_tokens + 1e-6)
    same_gradients(model, out.loss, cloze + 50 * cost)
    shares = model.generator.left_to_right.embeddings is model.discriminator.encoder.embeddings
    assert (
        shares == (sharing == "tied")
        and model.generator.right_to_left.embeddings is model.generator.left_to_right.embeddings
    )


def test_a_tower_does_not_see_the_token_it_predicts() -> None:
    model = Electric(SMALL).eval()
    zero, other = torch.zeros(1, dtype=torch.int64), BATCH.input_ids.clone()
    other[4] = 89
    one, two = (
        model.generator(dataclasses.replace(BATCH, input_ids=ids), zero, zero) for ids in (BATCH.input_ids, other)
    )
    same = (one == two).all(1)
    assert same[4] and not same[[3, 5]].any() and same[9:].all()


def test_corrective() -> None:
    model, out = built(Corrective, dataclasses.replace(SMALL, correction_weight=2.0))
    states = over(model.discriminator.encoder, BATCH, out.corrupted_ids)
    nats = F.cross_entropy(word_logits(model.corrector, states), BATCH.input_ids, reduction="none")
    suspicion = scores(model.discriminator, states).detach().sigmoid()
    named = (suspicion * nats).sum() / (len(out.masked_positions) + 1e-6)
    same_gradients(model, out.loss, of_blanks(model, out) + 50 * detection(model, out) + 2 * named)


def test_one_network() -> None:
    model, out = built(OneNetwork)
    assert model.generator.encoder is model.discriminator.encoder
    same_gradients(model, out.loss, of_blanks(model, out) + 50 * detection(model, out))


def test_disentangled_embeddings() -> None:
    """Two steps of autograd: the discriminator's loss by tables that are leaves, whose gradients its own tables get."""
    model, out = built(Electra, dataclasses.replace(SMALL, disentangled=True))
    own, shared = model.discriminator.encoder.embeddings, model.generator.encoder.embeddings
    assert own is not shared and own.shared[0] is shared
    tables = tuple((a + b).detach().requires_grad_() for a, b in zip(
        (own.word.weight, own.position.weight, own.token_type.weight), shared.tables(), strict=True))  # fmt: skip
    generator_loss = of_blanks(model, out)
    discriminator_loss = 50 * detection(model, out, tables)
    out.loss.backward()
    wanted = torch.autograd.grad(discriminator_loss, tables)
    for name, gradient in zip(("word", "position", "token_type"), wanted, strict=True):
        assert torch.allclose(getattr(own, name).weight.grad, gradient, rtol=1e-9, atol=1e-12)
    wanted = torch.autograd.grad(generator_loss, shared.tables())
    for table, gradient in zip(shared.tables(), wanted, strict=True):
        assert torch.allclose(table.grad, gradient, rtol=1e-9, atol=1e-12)


def test_options_of_the_generator_s_loss_and_samples() -> None:
    """While the temperature falls, the loss is that of the logits as they are, and samples follow the softened ones."""
    changes = dict(label_smoothing=0.2, temperature_from=4.0, temperature_steps=10, disallow_correct=True)
    for fall, wanted in (("linear", 2.5), ("exponential", 2.0)):
        model, out = built(Electra, dataclasses.replace(SMALL, temperature_fall=fall, **changes))
        at = torch.tensor([5, 10, 99])
        assert model.temperature(at).tolist() == pytest.approx([wanted, 1.0, 1.0])
        assert out.generator_loss.item() == pytest.approx(of_blanks(model, out, smoothing=0.2).item(), rel=1e-9)
        assert not (out.sampled_ids == BATCH.input_ids[out.masked_positions]).any()
        shown = dataclasses.replace(SMALL, temperature=wanted, disallow_correct=True)
        with_it = Electra(shown, model.generator, model.discriminator).double().train()
        assert torch.equal(with_it(BATCH, seed=3, step=5).sampled_ids, out.sampled_ids)
        model.learning = "discriminator"
        assert torch.equal(model.train()(BATCH, seed=3, step=5).sampled_ids, out.sampled_ids)
        assert not torch.equal(model.eval()(BATCH, seed=3, step=5).sampled_ids, out.sampled_ids)


def test_generator_without_dropout() -> None:
    config = dataclasses.replace(SMALL, hidden_dropout_prob=0.1, generator_dropout=0.0)
    model = Electra(config)
    probabilities = [
        (n.config.hidden_dropout_prob, n.config.attention_probs_dropout_prob) for n in model.networks.values()
    ]
    assert probabilities == [(0.1, 0.0), (0.0, 0.0)]
    masked = model.train().mask(BATCH, 1, 1)
    assert torch.equal(*(m(BATCH, 1, 1, masked).generator_loss for m in (model.train(), model.eval())))


@pytest.mark.parametrize(
    ("kind", "changes", "networks"),
    [
        (Uniform, {}, ["discriminator"]),
        (Electric, {}, ["discriminator"]),
        (Electric, dict(disentangled=True), ["discriminator"]),
        (Corrective, {}, ["discriminator", "generator", "corrector"]),
        (OneNetwork, {}, ["discriminator", "generator"]),
        (Electra, dict(disentangled=True), ["discriminator", "generator"]),
        (Corrective, dict(disentangled=True), ["discriminator", "generator", "corrector"]),
    ],
)
def test_what_transformers_loads(kind: type[Objective], changes: dict, networks: list[str], tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    model, _ = built(kind, dataclasses.replace(SMALL, **changes))
    model.float().eval().save_pretrained(tmp_path)
    assert list(model.networks) == networks
    ids = BATCH.input_ids[:9]
    for name, network in model.networks.items():
        theirs, info = getattr(transformers, network.architecture).from_pretrained(
            tmp_path / name, output_loading_info=True
        )
        assert not info["missing_keys"] and not info["unexpected_keys"]
        with torch.no_grad():
            assert torch.allclose(theirs.eval()(ids[None]).logits, network(ids[None]), atol=2e-4)


def test_disentangled_pair_comes_back(tmp_path: Path) -> None:
    model, _ = built(Electra, dataclasses.replace(SMALL, disentangled=True))
    model.float().eval().save_pretrained(tmp_path)
    again = Electra.from_pretrained(tmp_path)
    assert again.config.disentangled
    assert torch.allclose(again(BATCH, 1).loss, model(BATCH, 1).loss, rtol=1e-5)
    own = [m.discriminator.encoder.embeddings.word.weight for m in (model, again)]
    assert torch.allclose(*own, atol=1e-6)


def test_fresh_disentangled_tables_add_nothing() -> None:
    torch.manual_seed(0)
    model = Electra(dataclasses.replace(SMALL, disentangled=True))
    tables = [network.encoder.embeddings.tables() for network in (model.generator, model.discriminator)]
    assert all(torch.equal(*pair) for pair in zip(*tables, strict=True))
