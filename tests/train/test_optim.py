"""The optimiser as Google's code has it, worked out by hand and against electra_fast.reference."""

import math
from typing import get_args

import pytest
import torch
from test_model import CONFIG
from torch import nn

from electra_fast.objectives.electra import Electra
from electra_fast.reference.adamw import ReferenceAdamW
from electra_fast.train.optimizer import AdamW, decays
from electra_fast.train.schedule import learning_rate
from electra_fast.train.settings import PretrainConfig, Schedule


def test_schedule_is_a_product_of_warmup_and_decay() -> None:
    config = PretrainConfig(steps=1000, warmup_steps=100, learning_rate=0.5)
    assert [learning_rate(config, t, faithful=True) for t in (0, 50, 100, 500, 1000)] == pytest.approx(
        [0.0, 0.5 * 0.95 * 0.5, 0.5 * 0.9, 0.5 * 0.5, 0.0]
    )
    # The default takes the first step of the warm-up at step 0 in place of a rate of 0.
    assert learning_rate(config, 0) == pytest.approx(0.5 / 100)
    assert learning_rate(config, 99) == pytest.approx(0.5 * 0.901)
    assert learning_rate(PretrainConfig(steps=10, warmup_steps=0, learning_rate=0.5), 0) == 0.5
    squared = PretrainConfig(steps=10, warmup_steps=0, learning_rate=0.5, decay_power=2.0)
    assert learning_rate(squared, 5) == pytest.approx(0.5 * 0.25)


def test_warmup_is_ten_thousand_steps_or_a_tenth() -> None:
    assert PretrainConfig().warmup(1_000_000) == 10_000
    assert PretrainConfig().warmup(600) == 60
    assert PretrainConfig(warmup_steps=5).warmup(600) == 5


def test_the_generator_alone_and_the_discriminator_each_have_their_schedule() -> None:
    config = PretrainConfig(
        steps=120, generator_share=1 / 6, generator_learning_rate=0.4, learning_rate=0.1, warmup_steps=2
    )
    assert config.generator_steps == 20
    assert [config.learning(t) for t in (0, 19, 20, 119)] == ["generator"] * 2 + ["discriminator"] * 2
    rates = [learning_rate(config, t) for t in (0, 10, 19, 20, 70, 120)]
    assert rates == pytest.approx([0.4 / 2, 0.4 * 0.5, 0.4 / 20, 0.1 / 2, 0.1 * 0.5, 0.0])
    together = PretrainConfig(steps=120, learning_rate=0.1)
    assert together.learning(0) == "both" and together.generator_steps == 0


def test_biases_and_layer_norms_do_not_decay() -> None:
    model = Electra(CONFIG)
    free = {name for name, _ in model.named_parameters() if not decays(name)}
    one_dimensional = {name for name, p in model.named_parameters() if p.dim() == 1}
    assert free == one_dimensional and "generator.vocabulary_bias" in free


def test_first_steps_by_hand() -> None:
    """No bias correction: m = .1 g, v = .001 g^2, so the first update is 3.16 lr sign(g), decay on top."""
    config = PretrainConfig(weight_decay=0.01, max_grad_norm=1.0)
    weight, bias = nn.Parameter(torch.tensor([2.0])), nn.Parameter(torch.tensor([2.0]))
    optimizer = AdamW([("weight", weight), ("bias", bias)], config)
    weight.grad, bias.grad = torch.tensor([0.3]), torch.tensor([-0.4])
    norm = optimizer.step(0.1, torch.zeros(1))
    assert norm.item() == pytest.approx(0.5)  # under 1: nothing is clipped
    update = 0.03 / (math.sqrt(0.001 * 0.09) + 1e-6)
    assert weight.item() == pytest.approx(2 - 0.1 * (update + 0.01 * 2), rel=1e-6)
    assert bias.item() == pytest.approx(2 + 0.1 * 0.04 / (math.sqrt(0.001 * 0.16) + 1e-6), rel=1e-6)
    weight.grad, bias.grad = torch.tensor([30.0]), torch.tensor([40.0])  # norm 50: clipped to 0.6 and 0.8
    optimizer.step(0.1, torch.zeros(1))
    assert optimizer.exp_avg["weight"].item() == pytest.approx(0.9 * 0.03 + 0.1 * 0.6, rel=1e-6)
    assert optimizer.exp_avg_sq["bias"].item() == pytest.approx(0.999 * 0.001 * 0.16 + 0.001 * 0.64, rel=1e-6)
    assert weight.grad is None and bias.grad is None


def test_equals_the_reference_over_many_steps() -> None:
    shapes = {"weight": (7, 5), "norm.weight": (5,), "bias": (3,)}
    ours = {name: nn.Parameter(torch.randn(shape, dtype=torch.float64)) for name, shape in shapes.items()}
    theirs = {name.replace("norm", "LayerNorm"): nn.Parameter(p.detach().clone()) for name, p in ours.items()}
    optimizer, reference = AdamW(ours.items(), PretrainConfig()), ReferenceAdamW(theirs.items(), lr=0.01)
    for _ in range(20):
        for p, q in zip(ours.values(), theirs.values(), strict=True):
            p.grad = torch.randn_like(p)
            q.grad = p.grad.clone()
        optimizer.step(0.01, torch.zeros(1, dtype=torch.float64))
        reference.step()
    for p, q in zip(ours.values(), theirs.values(), strict=True):
        assert torch.allclose(p, q, rtol=1e-12, atol=0)


@pytest.mark.parametrize(("grad", "guard"), [(math.nan, 0.0), (math.inf, 0.0), (1.0, math.nan), (1.0, math.inf)])
def test_what_is_not_finite_changes_nothing(grad: float, guard: float) -> None:
    p, q = nn.Parameter(torch.tensor([1.0])), nn.Parameter(torch.tensor([2.0]))
    optimizer = AdamW([("p", p), ("q", q)], PretrainConfig())
    p.grad, q.grad = torch.tensor([0.5]), torch.tensor([grad])
    optimizer.step(0.1, torch.tensor([guard]))
    assert p.item() == 1.0 and q.item() == 2.0
    assert not any(t.any() for t in optimizer.state_dict().values())


def test_state_of_another_model_is_refused() -> None:
    optimizer = AdamW([("p", nn.Parameter(torch.zeros(1)))], PretrainConfig())
    with pytest.raises(ValueError, match=r"optimiser state for other parameters: .*exp_avg.q"):
        optimizer.load_state_dict({"exp_avg.q": torch.zeros(1), "exp_avg_sq.q": torch.zeros(1)})


def test_other_schedules() -> None:
    cosine = PretrainConfig(steps=100, warmup_steps=0, learning_rate=0.4, schedule="cosine")
    assert [learning_rate(cosine, t) for t in (0, 50, 100)] == pytest.approx([0.4, 0.2, 0.0])
    assert learning_rate(cosine, 25) == pytest.approx(0.4 * (1 + math.sqrt(0.5)) / 2)
    stable = PretrainConfig(steps=100, warmup_steps=10, learning_rate=0.4, schedule="stable")
    assert [learning_rate(stable, t) for t in (0, 10, 79, 80, 90, 100)] == pytest.approx([0.04, 0.4, 0.4, 0.4, 0.2, 0])
    early = PretrainConfig(steps=100, warmup_steps=10, learning_rate=0.4, schedule="stable", decay_from=50)
    assert [learning_rate(early, t) for t in (50, 75, 100)] == pytest.approx([0.4, 0.2, 0.0])
    twice = PretrainConfig(
        steps=100, generator_share=0.5, generator_learning_rate=0.8, learning_rate=0.4, warmup_steps=0,
        schedule="stable", decay_from=75,
    )  # fmt: skip
    assert [learning_rate(twice, t) for t in (0, 39, 45, 50, 75, 95)] == pytest.approx([0.8, 0.8, 0.4, 0.4, 0.4, 0.08])


def test_every_schedule_has_a_curve_of_its_own() -> None:
    for schedule in get_args(Schedule):
        assert learning_rate(PretrainConfig(steps=10, schedule=schedule), 5) > 0
    config = PretrainConfig(steps=10)
    object.__setattr__(config, "schedule", "square")
    with pytest.raises(NotImplementedError, match="schedule square has no curve"):
        learning_rate(config, 5)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (dict(decay_from=5), "decay_from is 5 and schedule linear; only stable takes it"),
        (dict(schedule="stable", decay_from=10, steps=10), "decay_from is 10; it must lie between 0 and steps - 1, 9"),
        (dict(schedule="stable", decay_from=4, steps=10, generator_share=0.5), "it must lie between 5 and"),
        (dict(schedule="square"), "schedule is 'square'; allowed: linear, cosine, stable"),
        (dict(optimizer="sgd"), "optimizer is 'sgd'; allowed: adamw, muon, lamb"),
        (dict(momentum=1.0), r"momentum is 1.0; it must lie in \[0, 1\)"),
    ],
)
def test_schedules_that_do_not_fit(changes: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        PretrainConfig(**changes)
