"""Loss curves of ours and of electra_fast.reference, from the same weights on the same batches and masks.

    python benches loss_curves --corpus DIR --steps 1000 --json benches/results/loss_curves.jsonl

DIR is a directory that `electra-fast prepare` wrote. Both start from the same weights and see the same batches and
masks. With --forced the reference also gets our generator's samples, and dropout is off, so the losses must agree to
rounding. Without it each draws samples and dropout from its own random numbers, so the curves must agree to noise.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import trange

from electra_fast import Batch, Electra, ElectraConfig, PretrainConfig, Pretrainer
from electra_fast.data.corpus import Corpus, examples_at
from electra_fast.ops.masking import Masked
from electra_fast.reference.adamw import ReferenceAdamW
from electra_fast.reference.electra import ReferenceElectra, ReferenceOutput
from electra_fast.storage.names import to_huggingface
from electra_fast.train.schedule import learning_rate


class ReferenceTrainer:
    """The reference, trained as Pretrainer trains: from the same weights, with its schedule, masks and optimiser."""

    def __init__(self, model: Electra, config: PretrainConfig) -> None:
        self.config, self.steps_done = config, 0
        self.model = ReferenceElectra(model.config).train()
        for network in ("generator", "discriminator"):
            state = to_huggingface(getattr(model, network).state_dict())
            getattr(self.model, network).load_state_dict(state, strict=False)  # the tied word table has two names
        named: dict[int, tuple[str, nn.Parameter]] = {id(p): (name, p) for name, p in self.model.named_parameters()}
        self.optimizer = ReferenceAdamW(named.values(), lr=0.0, eps=config.eps, weight_decay=config.weight_decay)

    def step(self, batch: Batch, masked: Masked, samples: Tensor | None = None) -> ReferenceOutput:
        """One step on the batch with these masks. samples: the generator's words; None: the reference draws its own."""
        flat = torch.repeat_interleave(batch.lengths) * batch.width + batch.position_ids
        out = self.model(
            batch.pad(batch.input_ids),
            batch.pad(torch.ones_like(batch.input_ids)),
            batch.pad(batch.token_type_ids),
            batch.pad(masked.masked_ids),
            flat[masked.positions],
            masked.labels,
            samples,
        )
        out.loss.backward()
        self.optimizer.lr = learning_rate(self.config, self.steps_done)
        self.optimizer.step()
        self.steps_done += 1
        return out


def race(corpus: Corpus, config: PretrainConfig, forced: bool) -> list[dict[str, float]]:
    """Train both; returns a row for each step, with both losses of ours and of the reference."""
    torch.manual_seed(config.seed)
    ids = {f"{n}_token_id": getattr(corpus.tokenizer, f"{n}_token_id") for n in ("pad", "unk", "cls", "sep", "mask")}
    settings = ElectraConfig.tiny(vocab_size=corpus.vocab_size, **ids)
    if forced:
        settings = dataclasses.replace(settings, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    model = Electra(settings)
    reference = ReferenceTrainer(model, config)
    trainer = Pretrainer(model, config)
    rows = []
    for step in trange(config.steps, unit="step", smoothing=0.05):
        first = step * config.batch_size
        names = range(first, first + config.batch_size)
        batch = Batch.from_examples(examples_at(corpus, config.seed, first, config.batch_size), names)
        masked = model.mask(batch, config.seed, step)
        samples = model.train()(batch, config.seed, step, masked).slot_samples.detach() if forced else None
        ours, theirs = trainer.step(batch), reference.step(batch, masked, samples)
        rows.append(
            {
                "step": step,
                "generator_loss": ours.generator_loss,
                "discriminator_loss": ours.discriminator_loss,
                "reference_generator_loss": theirs.generator_loss.item(),
                "reference_discriminator_loss": theirs.discriminator_loss.item(),
            }
        )
    return rows


def plot(rows: list[dict[str, float]], path: Path, window: int = 25) -> None:
    """Draw both losses, ours over the reference's, as running means over `window` steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    for axes, name in zip(figure.subplots(1, 2), ("generator_loss", "discriminator_loss"), strict=True):
        for prefix, label, style in (("reference_", "reference", "-"), ("", "electra_fast", "--")):
            values = torch.tensor([row[prefix + name] for row in rows])
            smooth = values.unfold(0, min(window, len(rows)), 1).mean(1)
            axes.plot(range(len(rows) - len(smooth), len(rows)), smooth, style, label=label, lw=1.5)
        axes.set(title=name.replace("_", " ") + " (nats)", xlabel="step")
        axes.grid(alpha=0.3)
        axes.legend(frameon=False)
    figure.savefig(path, dpi=110)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        "python benches loss_curves", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--corpus", type=Path, required=True, help="folder that `electra-fast prepare` wrote")
    parser.add_argument("--steps", type=int, default=1000, help="number of optimiser steps (default: 1000)")
    parser.add_argument("--batch-size", type=int, default=8, help="sequences per step (default: 8)")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="peak learning rate (default: 0.001)")
    parser.add_argument("--forced", action="store_true", help="give the reference our samples, and switch dropout off")
    parser.add_argument("--json", type=Path, required=True, help="file for the losses; a plot goes beside it")
    options = parser.parse_args(arguments)
    config = PretrainConfig(steps=options.steps, batch_size=options.batch_size, learning_rate=options.learning_rate)
    try:
        corpus = Corpus(options.corpus)
    except (OSError, ValueError) as error:
        parser.error(f"--corpus: {error}")
    rows = race(corpus, config, options.forced)
    options.json.write_text("".join(json.dumps(row) + "\n" for row in rows))
    plot(rows, options.json.with_suffix(".png"))
    last = rows[-max(1, len(rows) // 10) :]
    for name in ("generator_loss", "discriminator_loss"):
        ours, theirs = (sum(row[prefix + name] for row in last) / len(last) for prefix in ("", "reference_"))
        apart = max(abs(row[name] / row["reference_" + name] - 1) for row in rows)
        print(f"{name}: last tenth {ours:.4f}, reference {theirs:.4f}; a step's largest difference {apart:.2e}")
    return 0
