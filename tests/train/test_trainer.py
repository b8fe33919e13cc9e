"""The step and its figures: micro-batches, losses by hand, what is not finite, held-out measures."""

import math

import pytest
import torch
from test_model import CONFIG, padded

from electra_fast import Batch, Electra, ElectraConfig, PretrainConfig, Pretrainer, evaluate
from electra_fast.data.ngrams import NGrams
from electra_fast.train.metrics import auc, precision_recall


def trainer(**changes: object) -> Pretrainer:
    torch.manual_seed(1)
    return Pretrainer(Electra(CONFIG), PretrainConfig(steps=100, warmup_steps=2, **changes))


def test_micro_batches_change_nothing_but_rounding() -> None:
    batch = Batch.from_padded(*padded((9, 7, 24, 3, 17)))
    whole, parts = trainer(), trainer(micro_batch_size=2)
    for _ in range(3):
        one, two = whole.step(batch), parts.step(batch)
        assert one.loss == pytest.approx(two.loss, rel=1e-5)
        assert one.grad_norm == pytest.approx(two.grad_norm, rel=1e-4)
        assert torch.equal(one.is_replaced, two.is_replaced)
    for (name, p), q in zip(whole.model.named_parameters(), parts.model.parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-4), name


def test_losses_by_hand() -> None:
    """Means over used slots and over all tokens, [CLS] and [SEP] included; a right guess counts as original."""
    model = Electra(CONFIG).eval()
    batch = Batch.from_padded(*padded((9, 7, 24, 3, 17)))
    out = model(batch, seed=2)
    seen = (out.slots.masked_ids, torch.ones_like(batch.input_ids), batch.token_type_ids)
    logits = model.generator(*map(batch.pad, seen))
    rows = torch.repeat_interleave(batch.lengths)
    total = 0.0
    for position in out.masked_positions.tolist():
        row = logits[rows[position], batch.position_ids[position]]
        total += (row.logsumexp(0) - row[batch.input_ids[position]]).item()
    assert out.generator_loss.item() == pytest.approx(total / (out.masked_positions.numel() + 1e-6), rel=1e-4)
    cost = 0.0
    for x, fake in zip(out.discriminator_logits.tolist(), out.is_replaced.tolist(), strict=True):
        cost -= math.log(1 / (1 + math.exp(-x)) if fake else 1 - 1 / (1 + math.exp(-x)))
    assert out.discriminator_loss.item() == pytest.approx(cost / (batch.num_tokens + 1e-6), rel=1e-4)
    assert out.loss.item() == pytest.approx(out.generator_loss.item() + 50 * out.discriminator_loss.item(), rel=1e-6)
    fake = out.sampled_ids != batch.input_ids[out.masked_positions]
    assert torch.equal(out.is_replaced[out.masked_positions], fake) and out.is_replaced.sum() == fake.sum()


def test_no_gradient_passes_through_the_samples() -> None:
    model = Electra(CONFIG)
    model(Batch.from_padded(*padded()), seed=0).discriminator_loss.backward()
    reached = {name for name, p in model.generator.named_parameters() if p.grad is not None and p.grad.any()}
    assert all("embeddings" in name for name in reached) and reached, "the shared tables alone"


def test_default_and_faithful_first_steps() -> None:
    batch = Batch.from_padded(*padded())
    for faithful, moves in ((False, True), (True, False)):
        torch.manual_seed(1)
        model = Electra(ElectraConfig.small(**{**CONFIG.__dict__, "faithful": faithful}))
        before = [p.clone() for p in model.parameters()]
        Pretrainer(model, PretrainConfig(steps=10, warmup_steps=2)).step(batch)
        assert any(not torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True)) == moves


@pytest.mark.parametrize("where", ["generator", "discriminator"])
def test_a_loss_that_is_not_finite_stops_and_changes_nothing(where: str) -> None:
    t = trainer()
    batch = Batch.from_padded(*padded())
    t.step(batch)
    with torch.no_grad():
        getattr(t.model, where).encoder.layers[0].up.bias[0] = math.inf
    before = {name: tensor.clone() for name, tensor in (t.state_dict()["model"] | t.state_dict()["optimizer"]).items()}
    with pytest.raises(
        FloatingPointError, match=r"step 1: the loss is nan.*no parameter was changed. Lower learning_rate"
    ):
        t.step(batch)
    for name, tensor in (t.state_dict()["model"] | t.state_dict()["optimizer"]).items():
        assert torch.equal(tensor, before[name]), name
    assert t.steps_done == 1


def test_such_steps_are_skipped_and_counted_on_request() -> None:
    t = trainer(non_finite="skip")
    batch = Batch.from_padded(*padded())
    bias = t.model.generator.encoder.layers[0].up.bias
    with torch.no_grad():
        bias[0] = math.nan
    assert math.isnan(t.step(batch).loss) and (t.skipped, t.steps_done) == (1, 1)
    with torch.no_grad():
        bias[0] = 0.0
    assert math.isfinite(t.step(batch).loss) and (t.skipped, t.steps_done) == (1, 2)


def test_state_goes_on_bit_for_bit() -> None:
    batch = Batch.from_padded(*padded())
    whole, first = trainer(), trainer()
    for _ in range(2):
        whole.step(batch), first.step(batch)
    state = {kind: {n: t.clone() for n, t in tensors.items()} for kind, tensors in first.state_dict().items()}
    torch.manual_seed(99)
    second = Pretrainer(Electra(CONFIG), first.config)
    second.load_state_dict(state, steps_done=2, skipped=0)
    assert torch.equal(whole.step(batch).losses, second.step(batch).losses)
    for p, q in zip(whole.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(p, q)


def test_it_learns() -> None:
    """Text with a rule (each token follows from the last) is learnt: both losses fall."""
    torch.manual_seed(0)
    start = torch.randint(5, 90, (16, 1))
    batch = Batch.from_padded((start + torch.arange(24) * 3 - 5) % 20 + 5)
    t = Pretrainer(Electra(CONFIG), PretrainConfig(steps=200, learning_rate=5e-3))
    before = evaluate(t.model, [batch])
    for _ in range(100):
        t.step(batch)
    after = evaluate(t.model, [batch])
    assert after["generator_loss"] < 0.8 * before["generator_loss"]
    assert after["discriminator_loss"] < 0.8 * before["discriminator_loss"]


def test_evaluation_is_the_same_at_every_call_and_in_every_split() -> None:
    model = Electra(CONFIG).train()
    batch = Batch.from_padded(*padded((9, 7, 24, 3, 17)))
    one, two, split = evaluate(model, [batch]), evaluate(model, [batch]), evaluate(model, batch.split(2))
    assert one == two and model.training
    assert split == pytest.approx(one, rel=1e-4)
    with pytest.raises(ValueError, match="no tokens to evaluate on"):
        evaluate(model, [])


def test_auc_precision_recall_by_hand() -> None:
    scores = torch.tensor([2.0, 1.0, 1.0, -1.0, -3.0])
    fake = torch.tensor([True, False, True, True, False])
    pairs = [(2 > 1) + (2 > -3), 0.5 + 1, 0 + 1]  # each replaced token against the two originals, 1 and -3
    assert auc(scores, fake) == pytest.approx(sum(pairs) / 6)
    assert precision_recall(scores, fake) == (2 / 3, 2 / 3)
    assert math.isnan(auc(scores, torch.zeros(5, dtype=torch.bool)))
    s, y = torch.randn(300).round(decimals=1), torch.rand(300) < 0.3
    brute = sum(float(a > b) + 0.5 * float(a == b) for a in s[y].tolist() for b in s[~y].tolist())
    assert auc(s, y) == pytest.approx(brute / (int(y.sum()) * int((~y).sum())))


def test_figures_are_of_the_tokens_that_may_be_replaced() -> None:
    """Scores that tell [CLS] and [SEP] alone, which are never replaced, are worth a guess."""
    model = Electra(CONFIG)
    special = torch.tensor(model.special_ids)
    ids, mask, *_ = padded((9, 7, 24, 3, 17))
    ids[:, 0], ids[:, 2] = CONFIG.cls_token_id, CONFIG.sep_token_id
    batch = Batch.from_padded(ids, mask)
    assert torch.equal(model.replaceable(batch.input_ids), ~torch.isin(batch.input_ids, special))
    config = PretrainConfig(steps=10)
    metrics = Pretrainer(model, config).step(batch)
    allowed = ~torch.isin(batch.input_ids, special)
    assert 0 < allowed.sum() < len(allowed)
    assert metrics.auc == auc(metrics.scores[allowed], metrics.is_replaced[allowed])
    out = model.eval()(batch, 3)
    figures = evaluate(model, [batch], seed=3)
    assert figures["auc"] == pytest.approx(auc(out.discriminator_logits[allowed], out.is_replaced[allowed]))
    assert figures["replaced"] == pytest.approx(out.is_replaced.sum().item() / int(allowed.sum()))


def test_what_counts_reach_is_measured_on_the_same_tokens() -> None:
    """On the text that the generator corrupted, and on the slots that it filled; in every split."""
    model = Electra(CONFIG).eval()
    batch = Batch.from_padded(*padded((9, 7, 24, 3, 17)))
    ids, lengths = batch.input_ids.numpy(), batch.lengths.numpy()
    ngrams = NGrams.count(ids, lengths, CONFIG.vocab_size)
    out = model(batch, 5)
    figures = evaluate(model, [batch], seed=5, ngrams=ngrams)
    allowed = model.replaceable(batch.input_ids)
    suspicion = torch.from_numpy(ngrams.suspicion(out.corrupted_ids.numpy(), lengths))
    assert figures["auc_pairs"] == auc(suspicion[allowed], out.is_replaced[allowed])
    losses = torch.from_numpy(ngrams.losses(ids, lengths))
    assert figures["trigram_loss"] == pytest.approx(losses[out.masked_positions].mean().item())
    assert evaluate(model, batch.split(2), seed=5, ngrams=ngrams) == pytest.approx(figures, rel=1e-4)
    assert "auc_pairs" not in evaluate(model, [batch], seed=5)
