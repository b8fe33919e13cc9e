"""The reference against transformers, and its losses, masks and optimiser against numbers worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from electra_fast.config import ElectraConfig, NetworkConfig
from electra_fast.reference.adamw import ReferenceAdamW
from electra_fast.reference.electra import ReferenceElectra, mask_tokens
from electra_fast.reference.networks import ReferenceDiscriminator, ReferenceGenerator

SHAPES = [  # embedding, hidden, heads, ffn, layers, vocabulary
    (128, 256, 4, 1024, 3, 3000),
    (64, 64, 1, 256, 2, 1000),
    (96, 192, 3, 384, 1, 517),
    (48, 128, 4, 256, 2, 700),
]


def network_config(shape: tuple[int, ...]) -> NetworkConfig:
    names = "embedding_size hidden_size num_attention_heads intermediate_size num_hidden_layers vocab_size".split()
    return NetworkConfig(**dict(zip(names, shape, strict=True)))


def theirs(kind: str, config: NetworkConfig) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    names = "embedding_size hidden_size num_attention_heads intermediate_size num_hidden_layers vocab_size".split()
    fields = {name: getattr(config, name) for name in names}
    return getattr(transformers, kind)(transformers.ElectraConfig(initializer_range=0.1, **fields)).eval()


def padded_batch(vocabulary: int) -> tuple[Tensor, Tensor, Tensor]:
    """Lengths 1 to 96, padded right, one on the left, one with a hole."""
    g = torch.Generator().manual_seed(0)
    lengths = torch.tensor([1, 7, 64, 33, 96])
    columns = torch.arange(96)[None, :]
    mask = (columns < lengths[:, None]).long()
    ids = torch.randint(5, vocabulary, (5, 96), generator=g) * mask
    types = (columns >= lengths[:, None] // 2).long() * mask
    ids[3], mask[3], types[3] = ids[3].flip(0), mask[3].flip(0), types[3].flip(0)
    ids[4, 40:44], mask[4, 40:44] = 0, 0
    return ids, mask, types


def tiny(**changes: object) -> ElectraConfig:
    sizes = dict(vocab_size=50, num_hidden_layers=2, intermediate_size=64, embedding_size=16, hidden_size=32)
    return ElectraConfig.tiny(**(sizes | dict(num_attention_heads=2) | changes))


def masked_text(config: ElectraConfig) -> dict[str, Tensor]:
    """Two sequences of 8 and 5 tokens with three slots, one of them unused."""
    ids = torch.arange(5, 21).view(2, 8)
    mask = torch.tensor([[1] * 8, [1] * 5 + [0] * 3])
    ids = ids * mask
    positions = torch.tensor([2, 9, 8])
    masked = ids.flatten().index_fill(0, positions[:2], config.mask_token_id).view(2, 8)
    labels = torch.tensor([7, 14, -100])
    return dict(
        input_ids=ids,
        attention_mask=mask,
        token_type_ids=torch.zeros_like(ids),
        masked_ids=masked,
        masked_positions=positions,
        labels=labels,
    )


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", ["ElectraForPreTraining", "ElectraForMaskedLM"])
def test_logits_and_keys_are_transformers(shape: tuple[int, ...], kind: str) -> None:
    config = network_config(shape)
    model = theirs(kind, config)
    ours = (ReferenceDiscriminator if kind == "ElectraForPreTraining" else ReferenceGenerator)(config).eval()
    assert ours.state_dict().keys() == model.state_dict().keys()
    ours.load_state_dict(model.state_dict())
    ids, mask, types = padded_batch(config.vocab_size)
    with torch.no_grad():
        want = model(input_ids=ids, attention_mask=mask, token_type_ids=types).logits
        got = ours(ids, mask, types)
    got = got[1] if isinstance(got, tuple) else got
    keep = mask.bool()
    assert (got - want)[keep].abs().max() <= 2e-5 * want[keep].abs().max()
    assert not got[~keep].any()


def test_rows_are_those_of_all_logits() -> None:
    config = network_config(SHAPES[1])
    generator = ReferenceGenerator(config).double().eval()
    ids, mask, types = padded_batch(config.vocab_size)
    rows = mask.flatten().nonzero().flatten()[::7]
    hidden, logits = generator(ids, mask, types, rows)
    all_hidden, all_logits = generator(ids, mask, types)
    torch.testing.assert_close(hidden, all_hidden.flatten(0, 1)[rows])
    torch.testing.assert_close(logits, all_logits.flatten(0, 1)[rows])


def test_discriminator_loss_is_transformers() -> None:
    config = tiny()
    model = ReferenceElectra(config).eval()
    text = masked_text(config)
    pretraining = theirs("ElectraForPreTraining", config.discriminator)
    model.discriminator.load_state_dict(pretraining.state_dict())
    with torch.no_grad():
        out = model(**text)
        want = pretraining(
            input_ids=out.corrupted_ids, attention_mask=text["attention_mask"], labels=out.is_replaced.long()
        ).loss
    assert out.discriminator_loss.item() == pytest.approx(want.item(), rel=1e-5)


def test_losses_worked_by_hand() -> None:
    """With all weights of the heads' last layers zero, logits are their biases: losses follow on paper."""
    config = tiny(gen_weight=2.0, disc_weight=3.0)
    model = ReferenceElectra(config).double().eval()
    with torch.no_grad():
        model.generator.generator_predictions["LayerNorm"].weight.zero_()
        model.generator.generator_predictions["LayerNorm"].bias.zero_()
        model.generator.generator_lm_head.bias.zero_()
        model.generator.generator_lm_head.bias[7] = math.log(51)  # p(7) = 51 / 100, every other word 1 / 100
        model.discriminator.discriminator_predictions["dense_prediction"].weight.zero_()
        model.discriminator.discriminator_predictions["dense_prediction"].bias.fill_(math.log(1 / 3))  # p = 1 / 4
    text = masked_text(config)
    # Slot 0 is given back its own word: no replacement. Slot 1 gets another one. The third is unused.
    out = model(**text, sampled_ids=torch.tensor([7, 20, 30]))
    generator_loss = (-math.log(0.51) - math.log(0.01)) / (2 + 1e-6)
    discriminator_loss = (-math.log(1 / 4) - 12 * math.log(3 / 4)) / (13 + 1e-6)
    assert out.generator_loss.item() == pytest.approx(generator_loss, rel=1e-12)
    assert out.discriminator_loss.item() == pytest.approx(discriminator_loss, rel=1e-12)
    assert out.loss.item() == pytest.approx(2 * generator_loss + 3 * discriminator_loss, rel=1e-12)
    assert out.is_replaced.nonzero().tolist() == [[1, 1]]
    assert out.corrupted_ids[1, 1] == 20 and out.corrupted_ids[1, 0] == text["input_ids"][1, 0]
    assert not out.discriminator_logits[1, 5:].any()


def test_duplicate_slots_leave_the_mean() -> None:
    config = tiny()
    text = masked_text(config) | dict(masked_positions=torch.tensor([2, 2, 9]), labels=torch.tensor([7, 7, 14]))
    out = ReferenceElectra(config).eval()(**text, sampled_ids=torch.tensor([10, 21, 14]))
    assert out.corrupted_ids[0, 2] == 15 and out.is_replaced.nonzero().tolist() == [[0, 2]]


def test_samples() -> None:
    """Gumbel samples have the softmax's frequencies; temperature 0 is the argmax; the label can be forbidden."""
    torch.manual_seed(0)
    logits = torch.randn(6).expand(60_000, 6)
    labels = logits[:, :].argmax(-1)
    model = ReferenceElectra(tiny())
    for temperature in (1.0, 0.5):
        counts = torch.bincount(model.sample(logits, labels, temperature), minlength=6)
        expected = (logits[0] / temperature).softmax(-1) * 60_000
        assert ((counts - expected) ** 2 / expected).sum() < 20.5  # chi-squared, 5 degrees: one run in a thousand
    assert (model.sample(logits, labels, 0.0) == labels).all()
    forbidding = ReferenceElectra(tiny(disallow_correct=True))
    assert (forbidding.sample(logits, labels, 1.0) != labels).all()


def test_no_gradient_through_samples_and_shared_embeddings() -> None:
    config = tiny(gen_weight=0.0)
    model = ReferenceElectra(config).eval()
    model(**masked_text(config)).loss.backward()
    inner = [p for n, p in model.generator.named_parameters() if "embeddings." not in n and "lm_head.weight" not in n]
    assert all(p.grad is None or not p.grad.any() for p in inner)
    tables = model.generator.electra.embeddings
    assert tables is model.discriminator.electra.embeddings
    assert model.generator.generator_lm_head.weight is tables["word_embeddings"].weight
    assert tables["LayerNorm"].weight.grad.any() and tables["word_embeddings"].weight.grad.any()


def test_empty_sequence_gives_numbers() -> None:
    config = tiny()
    text = masked_text(config)
    text["attention_mask"][1] = 0
    out = ReferenceElectra(config)(**text | dict(labels=torch.tensor([7, -100, -100])))
    out.loss.backward()
    assert out.loss.isfinite() and not out.discriminator_logits[1].any()


def test_dropout_reaches_every_site() -> None:
    seen: dict[str, tuple[tuple[int, ...], float]] = {}

    def record(x: Tensor, p: float, site: str) -> Tensor:
        assert site not in seen
        seen[site] = tuple(x.shape), p
        return x

    config = tiny(attention_probs_dropout_prob=0.2)
    model = ReferenceElectra(config, record)
    text = masked_text(config)
    model.eval()(**text)
    assert not seen
    model.train()(**text)
    want: dict[str, tuple[tuple[int, ...], float]] = {}
    for name, network in (("generator", config.generator), ("discriminator", config.discriminator)):
        wide = (2, 8, network.hidden_size)
        want[f"{name}.embeddings"] = (2, 8, 16), 0.1
        for i in range(2):
            want[f"{name}.layer.{i}.attention"] = (2, network.num_attention_heads, 8, 8), 0.2
            want[f"{name}.layer.{i}.attention_output"] = want[f"{name}.layer.{i}.ffn"] = wide, 0.1
    assert seen == want


@pytest.mark.parametrize("site", ["embeddings", "layer.1.attention", "layer.1.attention_output", "layer.1.ffn"])
def test_what_dropout_returns_is_used(site: str) -> None:
    config = tiny()
    torch.manual_seed(1)
    model = ReferenceElectra(config, lambda x, p, where: x * 0.5 if where == f"discriminator.{site}" else x)
    text = masked_text(config)
    given = torch.tensor([9, 9, 9])
    changed, plain = model.train()(**text, sampled_ids=given), model.eval()(**text, sampled_ids=given)
    assert changed.generator_loss == plain.generator_loss
    assert changed.discriminator_loss != plain.discriminator_loss


def test_default_dropout_drops_in_training_alone() -> None:
    config = tiny(hidden_dropout_prob=0.5)
    model = ReferenceDiscriminator(config.discriminator)
    ids = torch.arange(5, 13)[None]
    assert not torch.equal(model.train()(ids), model(ids))
    assert torch.equal(model.eval()(ids), model(ids))


@pytest.mark.parametrize(("tokens", "prob", "count"), [(128, 0.15, 19), (10, 0.25, 2), (14, 0.25, 4), (3, 0.15, 1)])
def test_masking_counts(tokens: int, prob: float, count: int) -> None:
    """19.2 -> 19; 2.5 -> 2 and 3.5 -> 4 (halves to even); never below 1."""
    config = ElectraConfig.small(mask_prob=prob)
    ids = torch.randint(1000, 30000, (4, 130)).masked_fill(torch.arange(130) >= tokens, 0)
    masked = mask_tokens(ids, (ids > 0).long(), config)
    assert (masked.labels.view(4, -1) != -100).sum(1).tolist() == [count] * 4


def test_masking_hides_what_it_chose_and_no_more() -> None:
    g = torch.Generator().manual_seed(0)
    config = ElectraConfig.small(mask_prob=0.5)
    ids = torch.randint(104, 3000, (64, 128), generator=g)
    ids[:, 0], ids[:, 60] = config.cls_token_id, config.sep_token_id
    mask = (torch.arange(128) < torch.randint(1, 129, (64, 1), generator=g)).long()
    ids = ids * mask
    masked_ids, positions, labels = mask_tokens(ids, mask, config, g)
    used = labels != -100
    chosen = positions[used]
    assert chosen.unique().numel() == chosen.numel() and positions.unique().numel() == positions.numel()
    assert torch.equal(ids.flatten()[chosen], labels[used]) and (labels[used] >= 104).all()
    changed = (masked_ids != ids).flatten()
    assert (masked_ids.flatten()[changed] == config.mask_token_id).all()
    assert not changed.index_fill(0, chosen, False).any()
    assert abs(changed.sum().item() / chosen.numel() - 0.85) < 0.03


def test_masking_obeys_its_cap_and_generator() -> None:
    config = ElectraConfig.small(max_predictions=3)
    ids = torch.randint(1000, 30000, (2, 128))
    first, again = (mask_tokens(ids, torch.ones_like(ids), config, torch.Generator().manual_seed(5)) for _ in range(2))
    assert first.labels.numel() == 6 and all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_adamw_by_hand() -> None:
    """First update: m = .1 g, v = .001 g^2, so u = .1 / sqrt(.001) = 3.162 in g's direction; decay where it belongs."""
    weight, bias, norm = (nn.Parameter(torch.tensor([2.0, -1.0], dtype=torch.float64)) for _ in range(3))
    named = [("dense.weight", weight), ("dense.bias", bias), ("LayerNorm.weight", norm)]
    optimizer = ReferenceAdamW(named, lr=0.01, weight_decay=0.1)
    for p in (weight, bias):
        p.grad = torch.tensor([0.3, -0.4], dtype=torch.float64)
    assert optimizer.step().item() == pytest.approx(math.sqrt(2 * (0.09 + 0.16)))
    step = [0.03 / (math.sqrt(0.001) * 0.3 + 1e-6), -0.04 / (math.sqrt(0.001) * 0.4 + 1e-6)]
    assert step[0] == pytest.approx(3.162, rel=1e-3)
    assert bias.tolist() == pytest.approx([2 - 0.01 * step[0], -1 - 0.01 * step[1]], rel=1e-12)
    decayed = [2 - 0.01 * (step[0] + 0.2), -1 - 0.01 * (step[1] - 0.1)]
    assert weight.tolist() == pytest.approx(decayed, rel=1e-12)
    assert norm.tolist() == [2, -1] and weight.grad is None  # without a gradient a parameter stands still

    m, v = optimizer.exp_avg["dense.bias"][0].item(), optimizer.exp_avg_sq["dense.bias"][0].item()
    bias.grad = torch.tensor([6.0, -8.0], dtype=torch.float64)  # norm 10, clipped to 1: (0.6, -0.8)
    before = bias[0].item()
    assert optimizer.step().item() == pytest.approx(10)
    m, v = 0.9 * m + 0.1 * 0.6, 0.999 * v + 0.001 * 0.36
    assert bias[0].item() == pytest.approx(before - 0.01 * m / (math.sqrt(v) + 1e-6), rel=1e-12)


def test_training_learns_a_batch() -> None:
    torch.manual_seed(0)
    config = tiny(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    model = ReferenceElectra(config)
    optimizer = ReferenceAdamW(model.named_parameters(), lr=1e-3)
    text = masked_text(config) | dict(sampled_ids=torch.tensor([9, 12, 0]))
    losses = []
    for _ in range(30):
        loss = model(**text).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.2 * losses[0]


def test_bfloat16_runs_and_samples_in_float32() -> None:
    config = tiny()
    model = ReferenceElectra(config).bfloat16()
    out = model(**masked_text(config))
    out.loss.backward()
    assert (
        out.loss.isfinite() and F.cosine_similarity(out.discriminator_logits.float(), torch.ones(2, 8)).isfinite().all()
    )
