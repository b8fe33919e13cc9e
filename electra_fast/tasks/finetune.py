"""Fine-tuning from a pre-trained directory to a model of a task, with scores over several seeds."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from electra_fast.config import FinetuneConfig
from electra_fast.data.tokenizer import Tokenizer
from electra_fast.device import chosen_device
from electra_fast.report.curves import plot_finetuning
from electra_fast.report.log import Callback, Log, read_log
from electra_fast.storage.atomic import check_free, write_file
from electra_fast.tasks.datasets import read_dataset
from electra_fast.tasks.examples import Columns, Dataset, check_labels
from electra_fast.tasks.features import STSB_HIGHEST, Feature, Featurizer, collate
from electra_fast.tasks.model import Task, TaskModel, load_encoder
from electra_fast.tasks.predict import Predictions, evaluate
from electra_fast.tasks.predictions import write_predictions
from electra_fast.tasks.schemes import described
from electra_fast.tasks.scores import errors, primary
from electra_fast.train.optimizer import AdamW, working_copy
from electra_fast.train.schedule import layerwise_scales, learning_rate

EPOCHS = {"rte": 10, "stsb": 10, "squad1": 2, "squad2": 2}  # Google's; 3 elsewhere
UNORDERED = ("mrpc", "stsb")
RESULTS = "results.json"


@dataclass(frozen=True)
class FinetuneRun:
    """What a run reads and writes."""

    task: str
    model: Path  # a Hugging Face directory with its tokenizer, such as OUT/final/discriminator of pretrain
    train: Path
    dev: Path
    out: Path  # must not exist, or be empty
    columns: Columns | None = None
    seeds: tuple[int, ...] = (0,)
    random_init: bool = False  # the model's sizes and tokenizer alone, its weights drawn anew
    device: str = "auto"
    log_every: int = 10

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds are {self.seeds}; one or more are needed, each once")


def finetune(run: FinetuneRun, config: FinetuneConfig, callback: Callback | None = None) -> dict[str, Any]:
    """Train a model a seed, measure each on dev, and return what results.json holds.

    OUT appears when all is done: model/ (of the best seed), results.json, metrics.jsonl, curves.png, the predictions
    on dev and errors.txt; after a failure or Ctrl-C too, with the seeds that were done by then, if any was. Raises
    ValueError for files, models and settings that do not fit, FileExistsError where OUT is not free, FloatingPointError
    for a loss that is not finite.
    """
    check_free(run.out)
    device = chosen_device(run.device)
    train = read_dataset(run.train, run.task, columns=run.columns)
    dev = read_dataset(run.dev, run.task, columns=run.columns, benchmark=train.name)
    check_labels(train, dev, run.dev)
    dev = dataclasses.replace(dev, labels=train.labels)  # it may lack classes, which the model may predict there
    if run.task == "qa" and "squad2" in (train.name, dev.name):
        train, dev = (dataclasses.replace(data, name="squad2") for data in (train, dev))
    elif train.name != dev.name:
        train, dev = (dataclasses.replace(data, name=None) for data in (train, dev))
    if run.task == "tagging":
        print(described(train.labels))
    staging = run.out.with_name(f".{run.out.name}.tmp-{os.getpid()}")
    staging.mkdir(parents=True)
    try:
        return _Finetuning(run, config, train, dev, device, staging, callback).go()
    finally:
        if (staging / RESULTS).exists():
            if run.out.exists():
                run.out.rmdir()
            staging.rename(run.out)
        shutil.rmtree(staging, ignore_errors=True)


def batches(count: int, size: int, steps: int, seed: int) -> Iterator[np.ndarray]:
    """Indices of each step's batch: the examples in one random order an epoch, one epoch joined to the next."""
    epoch, left = 0, np.zeros(0, np.int64)
    for _ in range(steps):
        while len(left) < size:
            left = np.concatenate([left, np.random.default_rng((seed % 2**64, epoch)).permutation(count)])
            epoch += 1
        yield left[:size]
        left = left[size:]


class Finetuner:
    """Trains a TaskModel, a batch of features at a time; every random number is a function of (seed, step, example)."""

    def __init__(self, model: TaskModel, config: FinetuneConfig, steps: int, seed: int) -> None:
        self.model, self.steps_done = model, 0
        self.settings = config.optimisation(steps, seed)
        self.working = working_copy(model, config.precision)
        named = dict(model.named_parameters())
        scales = layerwise_scales(named, model.config.num_hidden_layers, config.layerwise_decay, config.faithful)
        copies = () if self.working is model else self.working.named_parameters()
        self.optimizer = AdamW(named.items(), self.settings, copies, scales)
        self.seed = torch.full((1,), seed, dtype=torch.int64, device=next(model.parameters()).device)

    def step(self, features: Sequence[Feature], names: Sequence[int]) -> tuple[float, float]:
        """One update from features, whose random numbers names key -> (mean loss, gradients' norm).

        Raises FloatingPointError where either is not finite; nothing was changed then.
        """
        config = self.model.settings
        asked = collate(features, names, self.model.task.kind).to(self.seed.device)
        losses = self.working.train().losses(asked, self.seed, torch.full_like(self.seed, self.steps_done))
        loss = losses.sum() if config.faithful else losses.mean()
        loss.backward()
        rate = learning_rate(self.settings, self.steps_done, config.faithful)
        norm = self.optimizer.step(rate, loss.detach().reshape(1).float())
        mean, size = losses.detach().mean().item(), norm.item()
        if not np.isfinite([mean, size]).all():
            raise FloatingPointError(
                f"step {self.steps_done}: the loss is {mean}, the gradients' norm {size}; lower --learning-rate "
                f"({self.settings.learning_rate})"
            )
        self.steps_done += 1
        return mean, size


class _Finetuning:
    """The runs over the seeds, and what they write."""

    def __init__(
        self,
        run: FinetuneRun,
        config: FinetuneConfig,
        train: Dataset,
        dev: Dataset,
        device: torch.device,
        out: Path,
        callback: Callback | None,
    ) -> None:
        self.run, self.config, self.train, self.dev, self.device, self.out = run, config, train, dev, device, out
        self.log = Log(out / "metrics.jsonl", 0, callback)
        self.primary = primary(run.task, dev.name, train.labels)
        if run.task == "qa" and dev.name == "squad2":
            self.primary = f"best_{self.primary}"
        self.best = -float("inf")

    def go(self) -> dict[str, Any]:
        """Every seed in turn; what is known is written after each."""
        done: dict[int, dict[str, float]] = {}
        for seed in self.run.seeds:
            try:
                done[seed] = self._seed(seed)
            except (Exception, KeyboardInterrupt):
                if done:
                    named = ", ".join(map(str, done))
                    print(f"seed {seed} was not finished; {self.run.out} holds what is done: seed {named}")
                raise
            results = self._write(done)
        return results

    def _write(self, seeds: dict[int, dict[str, float]]) -> dict[str, Any]:
        values = [scores[self.primary] for scores in seeds.values()]
        results = {
            "task": self.run.task,
            "benchmark": self.dev.name,
            "metric": self.primary,
            "seeds": {str(seed): scores for seed, scores in seeds.items()},
            "median": statistics.median(values),
            "spread": max(values) - min(values),
            "best_seed": max(seeds, key=lambda seed: seeds[seed][self.primary]),
            "examples": {"train": len(self.train.examples), "dev": len(self.dev.examples)},
            "model": str(self.run.model),
            "random_init": self.run.random_init,
            "settings": asdict(self.config),
        }
        write_file(self.out / RESULTS, [json.dumps(results, indent=2).encode() + b"\n"])
        plot_finetuning(read_log(self.out / "metrics.jsonl"), self.primary, self.out / "curves.png")
        return results

    def _seed(self, seed: int) -> dict[str, float]:
        """Train and measure one model; keep it and its predictions if it is the best so far."""
        run, config, train = self.run, self.config, self.train
        torch.manual_seed(seed)
        encoder, tokenizer = load_encoder(run.model, run.random_init)
        task = Task(run.task, train.name, tuple(train.labels), STSB_HIGHEST if train.name == "stsb" else 1.0)
        model = TaskModel(encoder, task, config).to(self.device)
        features = self._features(model, tokenizer)
        epochs = config.epochs or EPOCHS.get(train.name or "", 2 if run.task == "qa" else 3)
        steps = max(1, int(len(features) * epochs / config.batch_size))
        finetuner = Finetuner(model, config, steps, seed)
        order = batches(len(features), config.batch_size, steps, seed)
        tokens, since = 0, time.monotonic()
        with tqdm(total=steps, unit="step", desc=f"seed {seed}", dynamic_ncols=True) as bar:
            for names in order:
                chosen = [features[i] for i in names]
                loss, norm = finetuner.step(chosen, names.tolist())
                tokens += sum(len(feature.ids) for feature in chosen)
                bar.update()
                if (done := finetuner.steps_done) % run.log_every == 0 or done == steps:
                    now = time.monotonic()
                    speed, tokens, since = tokens / max(1e-9, now - since), 0, now
                    self.log.write(
                        "train", done, {"seed": seed, "loss": loss, "grad_norm": norm, "tokens_per_s": speed}
                    )
                    bar.set_postfix_str(f"loss {loss:.3f}, {speed:,.0f} tokens/s")
        scores, found = self._measure(model, tokenizer)
        self.log.write("dev", steps, {"seed": seed, **scores})
        if scores[self.primary] > self.best:
            self.best = scores[self.primary]
            self._keep(model, tokenizer, found)
        return scores

    def _features(self, model: TaskModel, tokenizer: Tokenizer) -> list[Feature]:
        if model.max_length > model.config.max_position_embeddings:
            raise ValueError(
                f"max_length is {model.max_length}, and {self.run.model} reads sequences of at most "
                f"{model.config.max_position_embeddings} tokens; lower --max-length"
            )
        featurizer = Featurizer(tokenizer, self.run.task, model.task.labels, self.config, model.max_length)
        double = self.config.double_unordered
        swap = self.train.name in UNORDERED if double is None else double
        features = featurizer(self.train.examples, model.task.scale, swap)
        if featurizer.truncated:
            print(f"{featurizer.truncated:,} training examples are longer than {model.max_length} tokens and lose some")
        return features

    def _measure(self, model: TaskModel, tokenizer: Tokenizer) -> tuple[dict[str, float], Predictions]:
        with tqdm(unit="sequence", desc="dev", dynamic_ncols=True) as bar:
            scores, found = evaluate(model, tokenizer, self.dev, lambda n: bar.update(n) and None)
            if "best_f1_threshold" in scores:
                model.task = dataclasses.replace(model.task, null_threshold=scores["best_f1_threshold"])
        return scores, found

    def _keep(self, model: TaskModel, tokenizer: Tokenizer, found: Predictions) -> None:
        model.save(self.out / "model", tokenizer)
        (self.out / "dev").mkdir(exist_ok=True)
        write_predictions(self.out / "dev", self.dev, found.values, found.null_odds or None)
        write_file(self.out / "errors.txt", [errors(self.dev, found.values).encode()])
