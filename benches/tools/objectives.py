"""python benches objectives: what a step of each objective costs, in operations and in time.

    python benches objectives --json benches/results/objectives.json

Every row is a training step on the same batch. The steps of all rows take turns, and the median of each is kept. Of an
objective with phases, each phase is a row. `ratio` is the time over that of electra's step in the same round, a median
of the rounds.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from types import MappingProxyType
from typing import Any, NamedTuple

import torch

from electra_fast.config import ElectraConfig, Learning
from electra_fast.data.batch import Batch
from electra_fast.device import chosen_device
from electra_fast.train.recipes import ModelName, ObjectiveName
from electra_fast.train.settings import PretrainConfig
from electra_fast.train.start import OBJECTIVES
from electra_fast.train.trainer import Pretrainer


class Case(NamedTuple):
    """A row: an objective, and what differs from ELECTRA's settings."""

    objective: ObjectiveName
    learning: Learning = "both"
    model: Mapping[str, Any] = MappingProxyType({})
    optimiser: Mapping[str, Any] = MappingProxyType({})


APART: dict[str, Any] = dict(share_embeddings=False)
CASES = {
    "electra": Case("electra"),
    "mlm": Case("mlm"),
    "electra+mlm": Case("electra+mlm"),
    "uniform": Case("uniform"),
    "electric": Case("electric"),
    "corrective": Case("corrective"),
    "decoupled, disentangled embeddings": Case("decoupled", "both", dict(disentangled=True), dict(updates="decoupled")),
    "two-stage, the generator": Case("two-stage", "generator", APART, dict(generator_share=0.999)),
    "two-stage, the discriminator": Case("two-stage", "discriminator", APART, dict(generator_later="frozen")),
    "frozen-generator, temperature falling": Case(
        "frozen-generator",
        "discriminator",
        APART | dict(temperature_from=2.0, temperature_steps=100),
        dict(generator_later="frozen"),
    ),
    "electra, whole words": Case("electra", "both", dict(mask_unit="word")),
    "electra, spans": Case("electra", "both", dict(mask_unit="span")),
}


def trainer(case: Case, model: ModelName, vocabulary: int, device: torch.device) -> Pretrainer:
    torch.manual_seed(0)
    config = getattr(ElectraConfig, model)(vocab_size=vocabulary, **case.model)
    objective = OBJECTIVES[case.objective](config)
    objective.continues = torch.arange(vocabulary) % 4 == 0  # a quarter of the tokens continue a word
    return Pretrainer(objective.to(device), PretrainConfig(steps=100_000, **case.optimiser))


def measure(model: ModelName, shape: tuple[int, int], vocabulary: int, rounds: int, device: torch.device) -> list[Any]:
    """The rows, after one step of each that is not measured."""
    generator = torch.Generator().manual_seed(0)
    batch = Batch.from_padded(torch.randint(5, vocabulary, shape, generator=generator)).to(device)
    trainers = {name: trainer(case, model, vocabulary, device) for name, case in CASES.items()}
    times: dict[str, list[float]] = {name: [] for name in CASES}
    for _ in range(rounds + 1):
        for name, one in trainers.items():
            start = time.perf_counter()
            _ = one.step(batch).loss  # waits for the device
            times[name].append(time.perf_counter() - start)
    rows = []
    for name, case in CASES.items():
        model_of = trainers[name].model
        assert model_of.learning == case.learning
        slots = int(batch.slots(model_of.config.mask_prob, model_of.config.max_predictions)[1])
        ratios = [own / other for own, other in zip(times[name][1:], times["electra"][1:], strict=True)]
        rows.append(
            dict(
                row=name,
                objective=case.objective,
                learning=case.learning,
                model=model,
                shape=f"{shape[0]}x{shape[1]}",
                gflop=round(model_of.step_flops(batch.lengths.tolist(), slots) / 1e9, 2),
                ms=round(1000 * median(times[name][1:]), 1),
                ratio=round(median(ratios), 3),
                device=device.type,
                threads=torch.get_num_threads(),
                rounds=rounds,
            )
        )
    return rows


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python benches objectives", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="tiny", choices=["tiny", "small"], help="sizes (default: tiny)")
    parser.add_argument("--rounds", type=int, default=15, help="steps of each that are measured (default: 15)")
    parser.add_argument("--threads", type=int, default=1, help="threads on the CPU (default: 1)")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"], help="where (default: auto)")
    parser.add_argument("--json", type=Path, required=True, help="file of the rows, which is written anew")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    rows = measure(options.model, (32, 64), 4000, options.rounds, chosen_device(options.device))
    options.json.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for row in rows:
        print(f"{row['row']:40s} {row['gflop']:8.2f} GFLOP {row['ms']:8.1f} ms {row['ratio']:6.2f}")
    return 0
