"""A working copy beside the parameters; float32 beside float64 stands in for bfloat16 beside float32.

What a GPU alone can show is not tested here: the ops in bfloat16, the loss curve on top of float32's.
"""

import pytest
import torch
from test_model import CONFIG, padded
from torch import Tensor

from electra_fast import Batch, Electra, PretrainConfig, Pretrainer


def trainer(seed: int = 1, **changes: object) -> Pretrainer:
    """Parameters in float64, forward and backward in float32."""
    torch.manual_seed(seed)
    settings = dict(steps=100, warmup_steps=2, precision="float32") | changes
    return Pretrainer(Electra(CONFIG).double(), PretrainConfig(**settings))


def batch(lengths: tuple[int, ...] = (9, 7, 24, 3, 17)) -> Batch:
    torch.manual_seed(3)
    return Batch.from_padded(*padded(lengths))


def rounded(t: Pretrainer) -> bool:
    """Whether the copy is the parameters, rounded."""
    pairs = zip(t.model.named_parameters(), t.working.named_parameters(), strict=True)
    return all(n == m and torch.equal(p.float(), q) for (n, p), (m, q) in pairs)


def test_the_model_keeps_its_dtype_and_the_copy_follows() -> None:
    narrow, wide = trainer(), trainer(precision="auto")
    assert wide.working is wide.model, "on the CPU auto is the model's own dtype"
    assert narrow.working is not narrow.model and rounded(narrow)
    shared = narrow.working
    assert shared.generator.encoder.embeddings is shared.discriminator.encoder.embeddings
    for _ in range(3):
        one, two = narrow.step(batch()), wide.step(batch())
        assert one.losses.dtype == torch.float32 and one.loss == pytest.approx(two.loss, rel=1e-5)
        assert one.grad_norm == pytest.approx(two.grad_norm, rel=1e-4)
        assert rounded(narrow)
        assert all(p.grad is None for t in (narrow.model, narrow.working) for p in t.parameters())
    state = narrow.state_dict()
    assert list(state["model"]) == [name for name, _ in narrow.model.named_parameters()]
    assert all(t.dtype == torch.float64 for kind in state.values() for t in kind.values())
    assert not torch.equal(*(t.model.discriminator.out.weight for t in (narrow, wide))), "it ran in float32"
    for (name, p), q in zip(narrow.model.named_parameters(), wide.model.parameters(), strict=True):
        assert torch.allclose(p, q, atol=1e-4), name


def test_updates_too_small_for_the_copy_add_up_in_the_parameters() -> None:
    """3e-11 at 0.02 is below half a last place of float32, 9e-10; a hundred are above it."""
    t = trainer(learning_rate=1e-11, warmup_steps=0, weight_decay=0.0)
    weight, copy = (network.discriminator.encoder.layers[0].up.weight for network in (t.model, t.working))
    start, seen = weight.detach().clone(), copy.detach().clone()
    t.step(batch())
    moved = (weight - start).abs()
    assert 0 < moved.max() < 1e-9 and (copy != seen).double().mean() < 0.2
    for _ in range(99):
        t.step(batch())
    assert (weight - start).abs().mean() > 5 * moved.mean() and rounded(t)


def test_resumed_equals_uninterrupted() -> None:
    whole, first = trainer(), trainer()
    for _ in range(2):
        whole.step(batch()), first.step(batch())
    state = {kind: {n: t.clone() for n, t in tensors.items()} for kind, tensors in first.state_dict().items()}
    second = trainer(seed=99)
    second.load_state_dict(state, steps_done=2, skipped=0)
    assert rounded(second)
    assert torch.equal(whole.step(batch()).losses, second.step(batch()).losses)
    for p, q in zip(whole.model.parameters(), second.model.parameters(), strict=True):
        assert torch.equal(p, q)


def test_micro_batches_add_up_in_the_parameters_dtype(monkeypatch: pytest.MonkeyPatch) -> None:
    grads = []
    t = trainer(micro_batch_size=2)
    step = t.optimizer.step

    def noted(lr: Tensor, guard: Tensor) -> Tensor:
        grads.extend((p.grad, q.grad) for p, q in zip(t.model.parameters(), t.working.parameters(), strict=True))
        return step(lr, guard)

    monkeypatch.setattr(t.optimizer, "step", noted)
    whole = trainer()
    one, two = whole.step(batch()), t.step(batch())
    assert all(q is None and p.dtype == torch.float64 for p, q in grads)
    assert one.loss == pytest.approx(two.loss, rel=1e-5) and one.grad_norm == pytest.approx(two.grad_norm, rel=1e-4)


def test_losses_of_bfloat16_are_added_up_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    model = Electra(CONFIG)
    head, score, rows = model.generator.head, model.discriminator.score, {}

    def narrowed(kind: str, found: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        rows[kind] = found[0].bfloat16()
        return rows[kind], found[1]

    monkeypatch.setattr(model.generator, "head", lambda *a, **k: narrowed("generator", head(*a, **k)))
    monkeypatch.setattr(model.discriminator, "score", lambda *a: narrowed("discriminator", score(*a)))
    out = model(batch())
    for kind, found in (("generator", out.generator_loss), ("discriminator", out.discriminator_loss)):
        assert found.dtype == torch.float32
        assert found.item() == pytest.approx(rows[kind].double().sum().item() / len(rows[kind]), rel=1e-5), kind


def test_what_is_refused() -> None:
    with pytest.raises(ValueError, match="precision is bfloat16, which the CPU's ops do not compute in; pass --precis"):
        Pretrainer(Electra(CONFIG), PretrainConfig(precision="bfloat16"))
    with pytest.raises(ValueError, match="precision is 'half'; allowed: auto, float32, bfloat16"):
        PretrainConfig(precision="half")
