"""LAMB against its formula in float64."""

from __future__ import annotations

import pytest
import torch
from test_muon import give_gradients, network

from electra_fast.train.lamb import Lamb
from electra_fast.train.settings import PretrainConfig

CONFIG = PretrainConfig(optimizer="lamb", weight_decay=0.1, max_grad_norm=0.05, beta2=0.98)


def test_three_steps_are_the_formula_s() -> None:
    parameters = network()
    gold = {name: p.detach().double() for name, p in parameters.items()}
    first, second = ({name: torch.zeros_like(t) for name, t in gold.items()} for _ in range(2))
    optimizer = Lamb(parameters.items(), CONFIG)
    for step in range(3):
        give_gradients(parameters, step)
        grads = {name: p.grad.double() for name, p in parameters.items()}
        norm = torch.cat([g.flatten() for g in grads.values()]).norm()
        found = optimizer.step(0.01, torch.zeros(1))
        assert found.item() == pytest.approx(norm.item(), rel=1e-5) and norm > CONFIG.max_grad_norm
        for name, p in gold.items():
            g = grads[name] * CONFIG.max_grad_norm / norm
            first[name] = 0.9 * first[name] + 0.1 * g
            second[name] = 0.98 * second[name] + 0.02 * g**2
            u = first[name] / (second[name].sqrt() + 1e-6)
            factor = 1.0
            if not name.endswith("bias"):
                u = u + 0.1 * p
                factor = p.norm() / u.norm()
            gold[name] = p - 0.01 * factor * u
    for name, p in parameters.items():
        assert torch.allclose(p.double(), gold[name], rtol=1e-5, atol=1e-7), name


@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_changes_nothing(wrong: float) -> None:
    parameters = network()
    optimizer = Lamb(parameters.items(), CONFIG)
    for step in range(2):
        before = {name: t.clone() for name, t in (optimizer.state_dict() | parameters).items()}
        give_gradients(parameters, step)
        if step:
            parameters["encoder.layers.0.up.bias"].grad[3] = wrong
        optimizer.step(0.01, torch.zeros(1))
    assert all(torch.equal(t, before[name]) for name, t in (optimizer.state_dict() | parameters).items())


def test_a_tensor_of_zeros_moves() -> None:
    parameters = network()
    with torch.no_grad():
        parameters["encoder.layers.0.up.weight"].zero_()
    give_gradients(parameters, 0)
    Lamb(parameters.items(), CONFIG).step(0.01, torch.zeros(1))
    assert parameters["encoder.layers.0.up.weight"].any()
