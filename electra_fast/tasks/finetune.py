"""Fine-tuning from a pre-trained directory to a model of a task, with scores over several seeds."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import statistics
import sys
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import torch

from electra_fast.data.tokenizer import Tokenizer
from electra_fast.device import chosen_device, set_threads
from electra_fast.report.curves import plot_finetuning
from electra_fast.report.log import Callback, Log, read_log
from electra_fast.report.terminal import printable, progress_bar, say
from electra_fast.storage.atomic import write_file
from electra_fast.storage.digests import file_digest
from electra_fast.tasks.datasets import read_dataset
from electra_fast.tasks.evaluate import evaluate
from electra_fast.tasks.examples import Dataset, Example, check_labels
from electra_fast.tasks.features import STSB_HIGHEST
from electra_fast.tasks.finetuner import train_model
from electra_fast.tasks.model import Task, TaskModel, load_encoder
from electra_fast.tasks.output import METRICS, RESULTS, Output
from electra_fast.tasks.predict import Predictions
from electra_fast.tasks.predictions import write_predictions
from electra_fast.tasks.scores import errors, primary
from electra_fast.tasks.settings import FinetuneConfig, FinetuneRun
from electra_fast.tasks.signals import exit_on_signals
from electra_fast.tasks.tag_spans import described


def finetune(run: FinetuneRun, config: FinetuneConfig, callback: Callback | None = None) -> dict[str, Any]:
    """Trains one model per seed and measures each on the development file.

    OUT has model/ (the best seed's), results.json, metrics.jsonl, curves.png, dev/ (the predictions on the development
    file) and errors.txt, and is complete after every seed. If an error or a signal ends the run early, OUT keeps the
    seeds that were trained, a line on stderr names them, and `resume` continues. It is removed if there are none.

    Args:
        run: files and seeds.
        config: how to train.
        callback: is given each row of metrics.jsonl.

    Returns: what results.json holds.

    Raises:
        ValueError: files, model and settings do not fit each other, or not the run that is resumed.
        FileExistsError: OUT is not free.
        FloatingPointError: a loss is not finite.
        SystemExit: SIGTERM or SIGHUP came; the code is 128 + the signal's number.
    """
    Output.check(run.out, run.resume)
    device = chosen_device(run.device)
    set_threads(run.threads)
    train, dev = _datasets(run)
    load_encoder(run.model, run.random_init)  # what is wrong with it is said before OUT is made
    request = {
        "task": train.kind,
        "model": file_digest(run.model / "model.safetensors"),
        "tokenizer": Tokenizer.load(run.model).sha256,
        "random_init": run.random_init,
        "train": _examples_sha256(train),
        "dev": _examples_sha256(dev),
        "settings": asdict(config),
    }
    with exit_on_signals(), Output(run.out, request, run.resume) as output:
        return _Finetuning(run, config, train, dev, device, output, callback).go()


def _datasets(run: FinetuneRun) -> tuple[Dataset, Dataset]:
    """Training and development examples, both of one benchmark or both of none."""
    read = functools.partial(read_dataset, columns=run.columns, max_bad_lines=run.max_bad_lines)
    train = read(run.train, run.task, training=True)
    if train.kind != run.task:
        say(f"{run.train} has lists of labels: each example may have several, as with --task {train.kind}")
    dev = read(run.dev, train.kind, benchmark=train.name)
    if dev.kind != train.kind:
        raise ValueError(f"{run.dev} has lists of labels and {run.train} one label each; write both alike")
    for note in (*train.notes, *dev.notes):
        say(note)
    check_labels(train, dev, run.dev)
    dev = dataclasses.replace(dev, labels=train.labels)  # it may lack classes, which the model may predict there
    name = train.name if train.name == dev.name else None
    if run.task == "qa" and "squad2" in (train.name, dev.name):
        name = "squad2"
    if run.task == "tagging":
        say(described(train.labels))
    return dataclasses.replace(train, name=name), dataclasses.replace(dev, name=name)


def _examples_sha256(data: Dataset) -> str:
    digest = hashlib.sha256(repr((data.name, data.labels)).encode())
    for example in data.examples:
        digest.update(repr(example).encode())
    return digest.hexdigest()


class _Finetuning:
    """The loop over the seeds."""

    def __init__(
        self,
        run: FinetuneRun,
        config: FinetuneConfig,
        train: Dataset,
        dev: Dataset,
        device: torch.device,
        output: Output,
        callback: Callback | None,
    ) -> None:
        self.run, self.config, self.train, self.dev, self.device = run, config, train, dev, device
        self.output, self.log = output, Log(output.path / METRICS, sys.maxsize, callback)
        self.primary = primary(train.kind, dev.name, train.labels)
        if train.kind == "qa" and dev.name == "squad2":
            self.primary = f"best_{self.primary}"

    def go(self) -> dict[str, Any]:
        """Trains and measures every seed that is not done, and returns what results.json holds."""
        for seed in dict.fromkeys((*self.output.unmeasured(), *self.run.seeds)):
            saved = self.output.seed_path(seed)
            if seed in self.output.scores and not saved.exists():
                continue
            if saved.exists():
                model, tokenizer = TaskModel.load(saved)
                model.to(self.device)
            else:
                model, tokenizer = self._train(seed)
                self.output.save(seed, functools.partial(model.save, tokenizer=tokenizer))
            self._measure(seed, model, tokenizer)
        return self._results()

    def _train(self, seed: int) -> tuple[TaskModel, Tokenizer]:
        train, run = self.train, self.run
        torch.manual_seed(seed)
        encoder, tokenizer = load_encoder(run.model, run.random_init)
        scale = STSB_HIGHEST if train.name == "stsb" else 1.0
        texts = len(train.examples[0].texts) if isinstance(train.examples[0], Example) else None
        task = Task(train.kind, train.name, tuple(train.labels), scale, texts=texts)
        model = TaskModel(encoder, task, self.config).to(self.device)
        train_model(model, tokenizer, train.examples, seed, self.log, run.log_every)
        return model, tokenizer

    def _measure(self, seed: int, model: TaskModel, tokenizer: Tokenizer) -> None:
        """Writes the scores of a saved model and, if it is the best so far, its predictions and errors."""
        output, dev = self.output, self.dev
        others = [scores[self.primary] for other, scores in output.scores.items() if other != seed]
        with progress_bar(unit="sequence", desc="dev") as bar:
            scores, predictions = evaluate(model, tokenizer, dev, lambda n: bar.update(n) and None)
        if "best_f1_threshold" in scores:
            model.task = dataclasses.replace(model.task, null_threshold=scores["best_f1_threshold"])
            model.save_task(output.seed_path(seed))
        output.scores[seed] = scores
        rows = read_log(output.path / METRICS)
        step = max((row["step"] for row in rows if row["seed"] == seed), default=0)
        self.log.write("dev", step, {"seed": seed, **scores})
        output.write_results(self._results())
        best = all(scores[self.primary] > score for score in others)
        if best:
            optional("dev/", lambda: self._write_predictions(predictions))
            optional("errors.txt", lambda: self._write_errors(predictions))
        output.finish(seed, best)
        optional("curves.png", self._plot)

    def _write_predictions(self, predictions: Predictions) -> None:
        folder = self.output.path / "dev"
        folder.mkdir(exist_ok=True)
        write_predictions(folder, self.dev, predictions.values, predictions.null_odds or None)

    def _write_errors(self, predictions: Predictions) -> None:
        write_file(self.output.path / "errors.txt", [printable(errors(self.dev, predictions.values)).encode()])

    def _plot(self) -> None:
        plot_finetuning(read_log(self.output.path / METRICS), self.primary, self.output.path / "curves.png")

    def _results(self) -> dict[str, Any]:
        seeds = self.output.scores
        values = [scores[self.primary] for scores in seeds.values()]
        return {
            "task": self.train.kind,
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


def optional(name: str, write: Callable[[], Any]) -> None:
    """Writes a file that people only read. Its failure is said and does not end the run."""
    try:
        write()
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        say(f"{name} was not written ({reason}); the model and {RESULTS} do not need it", sys.stderr)
