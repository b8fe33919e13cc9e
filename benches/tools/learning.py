"""What each part of the recipe `few` is worth: the main job with one thing changed, at the same cost, over seeds.

    python benches learning --steps 300 --seeds 0 1 --json benches/results/learning.jsonl

Each variant pre-trains the tiny model on the text that Python carries, on one thread. --steps are those of the recipe;
a variant whose steps cost more or fewer operations takes fewer or more. A row is written as soon as a run ends, and a
row that is there is not run again, so the command can be stopped and started. A plot goes beside the file.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from electra_fast import PretrainConfig
from electra_fast.data.corpus import Corpus
from electra_fast.objectives.base import Objective
from electra_fast.train.pretrain import pretrain
from electra_fast.train.settings import RunConfig
from electra_fast.train.start import build_model, open_corpus

FIGURES = ("generator_loss", "trigram_loss", "auc", "auc_pairs", "precision", "recall", "replaced")


@dataclass(frozen=True)
class Variant:
    """What a variant changes of the recipe `few`: fields of RunConfig and of PretrainConfig."""

    run: dict[str, Any] = field(default_factory=dict)
    optimisation: dict[str, Any] = field(default_factory=dict)


TOGETHER: dict[str, Any] = dict(generator_share=0.0)
VARIANTS = {
    "few": Variant(),
    "random initial weights": Variant(run=dict(initial_weights="random")),
    "both networks learn throughout": Variant(optimisation=TOGETHER),
    "both, embeddings shared": Variant(run=dict(embedding_sharing="tied"), optimisation=TOGETHER),
    "both, embeddings shared, random": Variant(dict(embedding_sharing="tied", initial_weights="random"), TOGETHER),
    "dropout 0.1": Variant(run=dict(dropout=0.1)),
    "30 % masked": Variant(run=dict(mask_prob=0.3)),
    "discriminator at 2e-3": Variant(optimisation=dict(learning_rate=2e-3)),
    "beta2 0.999": Variant(optimisation=dict(beta2=0.999)),
    "pairs of segments": Variant(run=dict(packing="pairs")),
    "paper": Variant(run=dict(recipe="paper")),
}


def settings(variant: str, out: Path, seed: int, steps: int) -> tuple[RunConfig, PretrainConfig]:
    """The run of a variant, without the checkpoints in its midst."""
    changes = VARIANTS[variant]
    options: dict[str, Any] = dict(recipe="few") | changes.run
    config = PretrainConfig.recipe("tiny", options["recipe"], steps=steps, seed=seed, **changes.optimisation)
    return RunConfig(
        out=out, device="cpu", threads=1, save_every=steps, eval_every=max(1, steps // 4), **options
    ), config


def cost(model: Objective, config: PretrainConfig, length: int) -> float:
    """Operations of a step, a mean over the run's steps."""
    lengths, slots = [length] * config.batch_size, int(config.batch_size * length * model.config.mask_prob)
    share, total = config.generator_steps / config.steps, 0.0
    for learning, part in (("generator", share), ("discriminator", 1 - share)) if share else (("both", 1.0),):
        model.learning = learning
        total += part * model.step_flops(lengths, slots)
    return total


def measure(variant: str, seed: int, budget: float, corpora: Path) -> dict[str, Any]:
    """Run a variant for so many operations -> its row."""
    with tempfile.TemporaryDirectory() as scratch:
        run, config = settings(variant, Path(scratch) / "run", seed, steps=1200)
        # Variants of one packing and length read one corpus, which the first of them prepares.
        prepared = corpora / f"{run.chosen('packing')}-{run.chosen('max_length')}"
        if not (prepared / "data" / "manifest.json").exists():
            prepared.mkdir(parents=True, exist_ok=True)
            open_corpus(dataclasses.replace(run, out=prepared))
        corpus = Corpus(prepared / "data")
        steps = max(4, round(budget / cost(build_model(run, corpus, seed), config, corpus.max_length)))
        run, config = settings(variant, Path(scratch) / "run", seed, steps)
        start = time.monotonic()
        result = pretrain(dataclasses.replace(run, data=(prepared / "data",)), config)
        if result.signal is not None:  # a run that was stopped has no row
            sys.exit(128 + result.signal)
        figures = result.figures
    tokens = steps * config.batch_size * corpus.max_length
    row = {"variant": variant, "seed": seed, "gflop": round(budget / 1e9), "steps": steps, "tokens": tokens}
    row["minutes"] = round((time.monotonic() - start) / 60, 2)
    return row | {name: round(float(figures[name]), 4) for name in FIGURES}


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw, for each variant, the AUC above that of counts of pairs and the generator's loss below a trigram's."""
    from matplotlib.figure import Figure

    names = [name for name in VARIANTS if any(row["variant"] == name for row in rows)]
    figure = Figure(figsize=(10, 1 + 0.4 * len(names)), layout="constrained")
    panels = (
        ("auc", "auc_pairs", 1, "AUC above that of counts of pairs"),
        ("trigram_loss", "generator_loss", 1, "nats below a trigram"),
    )
    axes = figure.subplots(1, 2, sharey=True)
    for panel, (better, other, sign, title) in zip(axes, panels, strict=True):
        for row in rows:
            panel.plot(
                sign * (row[better] - row[other]), names.index(row["variant"]), "o", color="tab:orange", alpha=0.7
            )
        panel.axvline(0, color="gray", lw=1)
        panel.set(title=title)
        panel.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(names)), names)
    axes[0].invert_yaxis()
    figure.savefig(path, dpi=110)


def table(rows: list[dict[str, Any]], variants: list[str]) -> None:
    """Print the means over seeds."""
    names = ("auc", "auc_pairs", "generator_loss", "recall")
    print(f"{'variant':34s} runs " + " ".join(f"{name:>14s}" for name in names))
    for variant in variants:
        of = [row for row in rows if row["variant"] == variant]
        means = (sum(row[name] for row in of) / len(of) for name in names)
        print(f"{variant:34s} {len(of):4d} " + " ".join(f"{mean:14.3f}" for mean in means))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python benches learning", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--variants",
        nargs="+",
        default=list(VARIANTS),
        choices=list(VARIANTS),
        metavar="NAME",
        help=f"of: {', '.join(VARIANTS)} (default: all)",
    )
    parser.add_argument(
        "--steps", type=int, default=300, help="steps of the recipe few, whose cost all have (default: 300)"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1], help="seeds of each variant (default: 0 1)")
    parser.add_argument(
        "--json", type=Path, required=True, help="file of the rows, which are added; a plot goes beside it"
    )
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows = [json.loads(line) for line in options.json.read_text().splitlines()] if options.json.exists() else []
    with tempfile.TemporaryDirectory() as scratch:
        run, config = settings("few", Path(scratch), seed=0, steps=options.steps)
        corpora = Path(scratch) / "corpora"
        few = corpora / f"{run.chosen('packing')}-{run.chosen('max_length')}"
        few.mkdir(parents=True)
        corpus = open_corpus(dataclasses.replace(run, out=few))
        budget = options.steps * cost(build_model(run, corpus, 0), config, corpus.max_length)
        for seed in options.seeds:
            for variant in options.variants:
                known = {"variant": variant, "seed": seed, "gflop": round(budget / 1e9)}
                if any(known.items() <= row.items() for row in rows):
                    continue
                rows.append(measure(variant, seed, budget, corpora))
                with options.json.open("a") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
                plot(rows, options.json.with_suffix(".png"))
    table(rows, options.variants)
    return 0
