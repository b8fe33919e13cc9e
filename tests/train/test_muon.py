"""Muon against its formula in float64, and beside AdamW."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from electra_fast.train.muon import COEFFICIENTS, Muon, orthogonalise
from electra_fast.train.optimizer import AdamW
from electra_fast.train.settings import PretrainConfig

CONFIG = PretrainConfig(optimizer="muon", momentum=0.9, weight_decay=0.1)


def network(seed: int = 0) -> dict[str, nn.Parameter]:
    """Two matrices of a layer, one of them of queries, keys and values, and what AdamW is for."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "encoder.layers.0.qkv.weight": (24, 8),
        "encoder.layers.0.up.weight": (20, 8),
        "encoder.layers.0.up.bias": (20,),
        "encoder.embeddings.word.weight": (30, 8),
    }
    return {name: nn.Parameter(torch.randn(shape, generator=generator)) for name, shape in shapes.items()}


def give_gradients(parameters: dict[str, nn.Parameter], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for p in parameters.values():
        p.grad = torch.randn(p.shape, generator=generator).to(p.dtype) * 0.01


def truth(matrix: torch.Tensor) -> torch.Tensor:
    """The iteration in float64, by the singular values, each of which becomes a s + b s^3 + c s^5 five times."""
    u, s, v = torch.linalg.svd(matrix.double() / matrix.double().norm(), full_matrices=False)
    for _ in range(5):
        s = COEFFICIENTS[0] * s + COEFFICIENTS[1] * s**3 + COEFFICIENTS[2] * s**5
    return u * s @ v


@pytest.mark.parametrize("shape", [(8, 8), (20, 7), (7, 20), (1, 5), (5, 1)])
def test_orthogonal(shape: tuple[int, int]) -> None:
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    ours = orthogonalise(matrix)
    assert torch.allclose(ours.double(), truth(matrix), atol=1e-4)
    singular = torch.linalg.svdvals(ours)
    assert singular.min() > 0.65 and singular.max() < 1.25
    assert torch.equal(orthogonalise(torch.zeros(shape)), torch.zeros(shape))


def test_three_steps_are_the_formula_s() -> None:
    parameters = network()
    names = [name for name in parameters if name.endswith((".qkv.weight", ".up.weight"))]
    gold = {name: parameters[name].detach().double() for name in names}
    means = {name: torch.zeros_like(gold[name]) for name in names}
    optimizer = Muon(parameters.items(), CONFIG)
    for step in range(3):
        give_gradients(parameters, step)
        grads = {name: p.grad.double() for name, p in parameters.items()}
        norm = optimizer.step(0.02, torch.ones(1))
        assert norm.item() == pytest.approx(math.sqrt(sum(float(g.square().sum()) for g in grads.values())), rel=1e-5)
        for name in names:
            means[name] = 0.9 * means[name] + 0.1 * grads[name]
            update = 0.9 * means[name] + 0.1 * grads[name]
            parts = update.split(8) if name.endswith("qkv.weight") else [update]
            orthogonal = torch.cat([0.2 * math.sqrt(max(part.shape)) * truth(part) for part in parts])
            gold[name] -= 0.02 * (orthogonal + 0.1 * gold[name])
        assert all(p.grad is None for p in parameters.values())
    for name in names:
        assert torch.allclose(parameters[name].double(), gold[name], atol=1e-5), name


def test_the_rest_is_adamw_s() -> None:
    ours, theirs = network(), network()
    others = {name: p for name, p in theirs.items() if not name.endswith((".qkv.weight", ".up.weight"))}
    give_gradients(ours, 0), give_gradients(theirs, 0)
    Muon(ours.items(), CONFIG).step(0.02, torch.ones(1))
    AdamW(others.items(), CONFIG).step(0.02, torch.ones(1))
    assert all(torch.equal(ours[name], p) for name, p in others.items())


@pytest.mark.parametrize("where", ["guard", "encoder.layers.0.qkv.weight", "encoder.layers.0.up.bias"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_changes_nothing(where: str, value: float) -> None:
    parameters = network()
    optimizer = Muon(parameters.items(), CONFIG)
    give_gradients(parameters, 0)
    optimizer.step(0.02, torch.ones(1))
    before = {name: p.detach().clone() for name, p in parameters.items()}
    state = {name: t.clone() for name, t in optimizer.state_dict().items()}
    give_gradients(parameters, 1)
    if where != "guard":
        parameters[where].grad.view(-1)[3] = value
    norm = optimizer.step(0.02, torch.full((1,), value if where == "guard" else 1.0))
    assert where == "guard" or not norm.isfinite()
    assert all(torch.equal(parameters[name], p) for name, p in before.items())
    assert all(torch.equal(t, state[name]) for name, t in optimizer.state_dict().items())


def test_a_narrow_copy_is_rounded_from_the_parameters() -> None:
    parameters = {name: p for name, p in network().items() if p.dim() == 2 and ".layers." in name}
    copies = {name: nn.Parameter(p.detach().bfloat16()) for name, p in parameters.items()}
    optimizer = Muon(parameters.items(), CONFIG, copies.items())
    give_gradients(copies, 0)
    optimizer.step(0.02, torch.ones(1))
    assert all(torch.equal(copies[name], p.bfloat16()) for name, p in parameters.items())
    assert not torch.equal(parameters["encoder.layers.0.up.weight"], network()["encoder.layers.0.up.weight"])


def test_a_matrix_without_a_gradient_stays() -> None:
    parameters = network()
    give_gradients(parameters, 0)
    parameters["encoder.layers.0.up.weight"].grad = None
    Muon(parameters.items(), CONFIG).step(0.02, torch.ones(1))
    assert torch.equal(parameters["encoder.layers.0.up.weight"], network()["encoder.layers.0.up.weight"])


def test_state_is_kept() -> None:
    """Three steps are one step, and two of an optimiser that took over its state."""
    whole, parts = network(), network()
    first, second = Muon(whole.items(), CONFIG), Muon(parts.items(), CONFIG)
    for step in range(3):
        give_gradients(whole, step)
        first.step(0.02, torch.ones(1))
        if step == 1:
            state = second.state_dict()
            second = Muon(parts.items(), CONFIG)
            second.load_state_dict(state)
        give_gradients(parts, step)
        second.step(0.02, torch.ones(1))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert "exp_avg_sq.encoder.layers.0.up.weight" not in first.state_dict()
