"""Steps of fixed shapes: batches filled up, the same step as without, nothing read back, figures looked at late."""

import math
import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from test_model import CONFIG, padded
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten

from electra_fast import Batch, Electra, PretrainConfig, Pretrainer
from electra_fast.data.budget import Budget, Filled

LENGTHS = (9, 7, 24, 3, 17)
OTHERS = (24, 2, 5, 24, 11)


def trainer(**changes: object) -> Pretrainer:
    torch.manual_seed(1)
    return Pretrainer(Electra(CONFIG).double(), PretrainConfig(steps=100, warmup_steps=2, **changes))


def batch(lengths: tuple[int, ...] = LENGTHS, width: int = 24) -> Batch:
    torch.manual_seed(3)
    return Batch.from_padded(*padded(lengths, width))


def budget(lengths: tuple[int, ...] = LENGTHS, sequences: int = 5) -> Budget:
    return Budget.of(torch.tensor(lengths), sequences, 24, CONFIG.mask_prob, CONFIG.max_predictions)


def filled(lengths: tuple[int, ...] = LENGTHS) -> Filled:
    found = budget().fill(batch(lengths))
    assert found is not None
    return found


@pytest.mark.parametrize("lengths", [LENGTHS, OTHERS])
def test_a_batch_is_filled_to_its_budget(lengths: tuple[int, ...]) -> None:
    room, plain, full = budget(), batch(lengths), filled(lengths)
    count = len(full.lengths)
    assert count == room.sequences + room.fillers and full.max_seqlen == room.longest
    assert full.input_ids.numel() == full.lengths.sum() == full.cu_seqlens[-1] == room.tokens
    assert torch.equal(full.cu_seqlens.diff().long(), full.lengths)
    own = full.offsets.diff()
    assert full.offsets[-1] == room.slots and own.max() <= room.most
    assert torch.equal(full.offsets[:6], plain.slots(CONFIG.mask_prob, None)[0])
    fillers = full.lengths[room.sequences :]
    assert fillers.min() >= 1 and fillers.max() <= room.longest
    assert full.num_tokens == plain.num_tokens == full.tokens
    for name in ("input_ids", "token_type_ids", "position_ids", "row_ids"):
        assert torch.equal(getattr(full, name)[: plain.num_tokens], getattr(plain, name))
    assert not full.input_ids[plain.num_tokens :].any() and full.position_ids.max() < room.longest
    assert full.split(2) == [full] and full.to("cpu").offsets is full.offsets


def test_most_batches_fit_and_what_does_not_is_told() -> None:
    torch.manual_seed(0)
    lengths = torch.where(torch.rand(20_000) < 0.8, 128, torch.randint(5, 129, (20_000,)))
    room = Budget.of(lengths, 128, 128, 0.15)
    mean = 128 * lengths.double().mean().item()
    assert room.tokens < 1.15 * mean and room.fillers < 25
    for i in range(100):
        ids = torch.zeros(128, 128, dtype=torch.int64)
        mask = (torch.arange(128) < lengths[128 * i : 128 * (i + 1), None]).long()
        assert room.fill(Batch.from_padded(ids, mask)) is not None
    narrow = budget((10, 11, 10, 9, 10))
    assert narrow.fill(batch((10, 10, 10, 10, 10))) is not None
    for wrong in ((10, 10, 10, 10), (24, 24, 24, 24, 24)):
        assert narrow.fill(batch(wrong)) is None, wrong
    assert budget((20,) * 9, 32).fill(batch((20,) * 32)) is not None
    assert budget((20,) * 9, 32).fill(batch((1,) * 32)) is None
    assert narrow.fill(batch((10, 10, 10, 10, 10), width=25)) is None
    tens = batch((10, 10, 10, 10, 10))
    for left, fits in ((6, False), (7, True), (7 * 24, True), (7 * 24 + 1, False)):  # to 7 fillers of 1 to 24 tokens
        assert narrow.fillers == 7
        assert (replace(narrow, tokens=tens.num_tokens + left).fill(tens) is not None) == fits, left
    same = Budget.of(torch.full((9,), 128), 128, 128, 0.15)  # as plain packing has them
    assert same.fillers == 2 and same.tokens == 129 * 128


def test_the_step_is_that_of_the_batch_alone() -> None:
    plain, fixed = trainer(), trainer()
    for lengths in (LENGTHS, OTHERS):
        one, two = plain.step(batch(lengths)), fixed.step(filled(lengths))
        assert one.losses == pytest.approx(two.losses, rel=1e-6) and one.grad_norm == pytest.approx(two.grad_norm)
        assert torch.equal(one.is_replaced, two.is_replaced[: one.tokens])
        assert (one.tokens, one.auc) == (two.tokens, pytest.approx(two.auc))
    for (name, p), q in zip(plain.model.named_parameters(), fixed.model.parameters(), strict=True):
        assert torch.allclose(p, q, rtol=0, atol=1e-8), name


WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "unique_dim", "_unique2", "equal", "is_nonzero"}


class NoWaits(TorchDispatchMode):
    """Refuses what would wait for a GPU, or has a shape that its data decide; notes the shapes of all that is made."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[tuple] = []

    def __enter__(self) -> Any:
        self.patch = pytest.MonkeyPatch()
        self.refuse()
        return super().__enter__()

    def refuse(self) -> None:
        for name in ("tolist", "numpy"):  # which read a tensor of the host past the dispatcher
            self.patch.setattr(torch.Tensor, name, lambda *_: pytest.fail("waits for the device"))

    def __exit__(self, *error: Any) -> None:
        self.patch.undo()
        super().__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        name, flat = func.overloadpacket.__name__, tree_flatten((args, kwargs))[0]
        tensors = [t for t in flat if isinstance(t, torch.Tensor)]
        by_bool = name.startswith(("index", "_index")) and any(t.dtype == torch.bool for t in tensors[1:2])
        unsized = name == "repeat_interleave" and (kwargs or {}).get("output_size") is None
        if name in WAITS or by_bool or unsized:
            pytest.fail(f"{func} waits for the device")
        if func.namespace == "electra_fast":  # on the CPU alone an op reads its offsets and ids, to check them
            self.patch.undo()
        out = func(*args, **(kwargs or {}))
        self.refuse()
        self.made.append((str(func), [tuple(t.shape) for t in tree_flatten(out)[0] if isinstance(t, torch.Tensor)]))
        return out


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x[0].item(),
        lambda x: bool((x > 0).any()),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x.repeat_interleave(x.long()),
        lambda x: x.tolist(),
        lambda x: torch.equal(x, x),
    ],
)
def test_waits_are_seen(wait: Callable) -> None:
    with pytest.raises(pytest.fail.Exception, match="waits for the device"), NoWaits():
        wait(torch.ones(3))


@pytest.mark.parametrize("layers", ["encoder", "blocks"])
def test_no_step_waits_nor_has_a_shape_of_its_data(layers: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checks that look at values are the host's alone, and no compiler sees them; so they are left out here as there.
    Where the kernels do not take it the encoder is its blocks."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    if layers == "blocks":
        monkeypatch.setattr(torch.ops.electra_fast, "encoder", sys.modules["electra_fast.ops.encoder"]._composed)
    t = Pretrainer(Electra(CONFIG), PretrainConfig(steps=100, warmup_steps=2))
    t.read_every = 1000
    t.step(filled())
    made = []
    for lengths in (LENGTHS, OTHERS):
        full, step, rate = filled(lengths), torch.tensor([t.steps_done]), torch.tensor([t.learning_rate])
        with NoWaits() as mode:
            t.work(full, step, rate)
            t.advance()
        made.append(mode.made)
    assert made[0] == made[1] and len(made[0]) > 100
    assert any("electra_fast.adamw" in name for name, _ in made[0])
    assert any(("attention_block_bwd" if layers == "blocks" else "encoder_bwd") in name for name, _ in made[0])


def test_a_loss_that_is_not_finite_is_told_late_and_nothing_has_changed_since() -> None:
    t = trainer()
    t.read_every = 4
    bias = t.model.generator.encoder.layers[0].up.bias
    t.step(batch())
    with torch.no_grad():
        value, bias[0] = bias[0].clone(), math.nan
    metrics = t.step(batch())
    with torch.no_grad():
        bias[0] = value
    before = {name: p.detach().clone() for name, p in t.model.named_parameters()}
    assert math.isfinite(t.step(batch()).loss) and math.isnan(metrics.loss)
    with pytest.raises(FloatingPointError, match="step 1: the loss is nan, .* no parameter was changed"):
        t.step(batch())
    assert t.steps_done == 1 and all(torch.equal(p, before[name]) for name, p in t.model.named_parameters())
    t.step(batch())
    assert not torch.equal(bias, before["generator.encoder.layers.0.up.bias"]) and t.steps_done == 2
    with torch.no_grad():
        bias[0] = math.inf
    t.step(batch())
    with pytest.raises(FloatingPointError, match="step 2"):
        t.state_dict()


def test_steps_left_out_are_counted_where_nobody_waits() -> None:
    t = trainer(non_finite="skip")
    t.read_every = 2
    bias = t.model.generator.encoder.layers[0].up.bias
    with torch.no_grad():
        value, bias[0] = bias[0].clone(), math.nan
    t.step(batch()), t.step(batch())
    with torch.no_grad():
        bias[0] = value
    t.step(batch())
    assert (t.skipped, t.steps_done) == (2, 3) and not torch.equal(bias[0], value)
    state = {kind: {n: x.clone() for n, x in tensors.items()} for kind, tensors in t.state_dict().items()}
    stopping = trainer()
    stopping.load_state_dict(state, 3, t.skipped)
    moved = bias[1].clone()
    stopping.step(batch())
    assert stopping.skipped == 2 and stopping.model.generator.encoder.layers[0].up.bias[1] != moved
