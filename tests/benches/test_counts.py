"""Launches and activations, counted on meta tensors: that the counts are right, and that they do not grow."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from tools import launches, memory
from torch import nn

from electra_fast import ElectraConfig
from electra_fast.ops import _philox

README = Path(launches.__file__).parents[1] / "README.md"


def cells(lines: list[str]) -> dict[str, list[str]]:
    """The rows of a table by their first cell."""
    rows = ([cell.strip() for cell in line.strip("|\n").split("|")] for line in lines if line.startswith("| "))
    return {name: others for name, *others in rows}


def test_a_step_launches_no_more_than_the_table_says() -> None:
    """Of the small model at 128 x 128; where it launches fewer, `python benches launches` makes the table anew."""
    said = cells(README.read_text().splitlines(keepends=True))
    config = ElectraConfig.small()
    layers = config.discriminator.num_hidden_layers
    counted = cells(list(launches.table(launches.count_step(config, 128, 128), layers)))
    assert counted.pop("op") == said["op"]
    for name, found in counted.items():
        assert name in said, f"{name}: not in the table of {README}"
        for now, then in zip(found, said[name], strict=True):
            last = (int(cell.split()[-1]) if cell else 0 for cell in (now, then))
            assert next(last) <= next(last), f"{name}: {now}, the table has {then}"


def test_what_launches_is_counted() -> None:
    """By hand: two operations and a wait; views, allocations and host tensors launch nothing; ops are told apart."""
    x = torch.empty(6, 4, device="meta")
    with launches.Counting() as mode:
        (x + 1).sum().item()
        x.view(4, 6).t()[1:].detach(), torch.empty_like(x), torch.ones(3).add_(1)
        _philox.derive_seeds(*(torch.empty(1, dtype=torch.int64, device="meta") for _ in range(2)), 3, 2)
    between, seeds = mode.counts[launches.BETWEEN], mode.counts["derive_seeds"]
    assert (between.operations, between.kernels, between.calls, mode.waits) == (2, 0, [], 1)
    assert seeds.calls == [seeds.launches] and seeds.operations + seeds.kernels == seeds.launches > 0


def test_a_layer_of_other_generations() -> None:
    """On sm_80 the small discriminator's FFN is in pieces, 2 launches more each way; the generator's is not, whose last
    layer, where masked rows ask, is 6 more each way on both."""
    counted = {g: launches.count_step(ElectraConfig.small(), 4, 128, g) for g in (80, 90)}
    fwd, bwd = ({g: m.counts[f"encoder_{way}"].calls for g, m in counted.items()} for way in ("fwd", "bwd"))
    assert fwd == {80: [12 * 2 + 6, 12 * 4], 90: [12 * 2 + 6, 12 * 2]}
    assert bwd == {80: [12 * 10, 12 * 8 + 6], 90: [12 * 8, 12 * 8 + 6]}


@pytest.mark.parametrize("part", ["discriminator", "generator"])
def test_a_layer_keeps_what_it_does_on_paper(part: str) -> None:
    """Bytes a token in bfloat16. Ours: what goes into either norm (D each) and the projection (3 D), log-sum-exps,
    statistics; and the FFN's inside and slope (2 F) unless it is one launch.
    Eager: q, k, v, what was read, and either LayerNorm's rows in and out (8 D), masks (2 D bytes), the FFN's inside
    before and after the GELU (2 F), probabilities, their mask and what it leaves of them (5 H S bytes), statistics."""
    config, rows, width = getattr(ElectraConfig.tiny(), part), 3, 32
    size, heads, inner = config.hidden_size, config.num_attention_heads, config.intermediate_size
    one_launch = size in (64, 128, 256) and inner % 64 == 0
    wanted = 2 * 5 * size + 4 * heads + 4 * 4 + (0 if one_launch else 2 * 2 * inner)
    assert memory.layer_bytes(memory.ours, config, rows, width) == wanted * rows * width + 2 * 8  # its seeds
    wanted = 2 * 8 * size + 2 * size + 2 * 2 * inner + 5 * heads * width + 4 * 4
    assert memory.layer_bytes(memory.transformers_eager, config, rows, width) == wanted * rows * width


def test_what_is_saved_twice_counts_once_and_parameters_do_not() -> None:
    layer, x = nn.Linear(8, 8, device="meta"), torch.empty(5, 8, device="meta", requires_grad=True)
    assert memory.kept(layer, lambda: layer(x) + layer(x.view(5, 8))) == 5 * 8 * 4
    assert memory.kept(layer, lambda: layer(x).exp()) == 2 * 5 * 8 * 4


def test_the_small_model_keeps_what_the_table_says() -> None:
    said = cells(README.read_text().splitlines(keepends=True))
    counted = cells(list(memory.table(memory.CASES[:1])))
    assert counted.pop("network") == said["network"]
    assert counted == {name: said[name] for name in counted}
