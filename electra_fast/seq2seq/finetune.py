"""Training of models that write, from pre-trained networks, with scores over several seeds."""

from __future__ import annotations

import dataclasses
import hashlib
import statistics
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from electra_fast.data.tokenizer import Tokenizer
from electra_fast.decoding.settings import WritingConfig
from electra_fast.device import chosen_device, set_threads
from electra_fast.report.curves import plot_finetuning
from electra_fast.report.log import Callback, Log, read_log
from electra_fast.report.terminal import progress_bar, say
from electra_fast.seq2seq.extractive import SentenceModel, average_sentences
from electra_fast.seq2seq.learner import Learner, WritingTask
from electra_fast.seq2seq.metrics import PRIMARY, check_libraries, signatures, text_scores
from electra_fast.seq2seq.pairs import Pair, read_pairs, read_parallel
from electra_fast.seq2seq.settings import SequenceConfig, SequenceRun
from electra_fast.seq2seq.trainer import dev_loss, train_learner
from electra_fast.seq2seq.writing_model import WritingModel
from electra_fast.storage.atomic import write_file
from electra_fast.storage.digests import file_digest
from electra_fast.tasks.finetune import optional
from electra_fast.tasks.output import METRICS, Output
from electra_fast.tasks.predictions import json_line
from electra_fast.tasks.signals import exit_on_signals


def load_learner(path: Path) -> Learner:
    """Read a model that `finetune` wrote, or an EncoderDecoderModel of transformers, in evaluation mode."""
    return (SentenceModel if SentenceModel.is_saved(path) else WritingModel).load(path)


def finetune(
    run: SequenceRun, config: SequenceConfig, writing: WritingConfig, callback: Callback | None = None
) -> dict[str, Any]:
    """Train one model per seed and measure each on the development set, written as `writing` says.

    OUT has model/ (the best seed's), results.json, metrics.jsonl, curves.png and dev.jsonl (what the best model writes
    of the development set), and is complete after every seed. A run that ends early keeps its seeds and, of the one in
    training, the last validation's checkpoint; `resume` goes on from there.

    Returns what results.json holds.

    Raises ValueError if files, networks and settings do not fit each other, or not the run that is resumed,
    FileExistsError if OUT is not free, ImportError if the library of the scores is missing, FloatingPointError if a
    loss is not finite, SystemExit if SIGTERM or SIGHUP came.
    """
    Output.check(run.out, run.resume)
    check_libraries(run.task)
    device = chosen_device(run.device)
    set_threads(run.threads)
    train, dev = _examples(run, "train"), _examples(run, "dev")
    task = WritingTask(run.task, writing, config)
    if run.task == "extractive":
        task = dataclasses.replace(task, sentences=config.sentences or average_sentences(train))
    torch.manual_seed(0)
    _new(run, task)  # what is wrong with the networks is said before OUT is made
    networks = [run.model] if run.decoder is None else [run.model, run.decoder]
    request = {
        "task": run.task,
        "networks": [file_digest(path / "model.safetensors") for path in networks],
        "tokenizers": [Tokenizer.load(path).sha256 for path in networks],
        "random_init": run.random_init,
        "separate_embeddings": run.separate_embeddings,
        "train": _sha256(train),
        "dev": _sha256(dev),
        "eval_every": run.eval_every,
        "dev_examples": run.dev_examples,
        "settings": asdict(config),
        "writing": asdict(writing),
    }
    with exit_on_signals(), Output(run.out, request, run.resume) as output:
        return _Training(run, task, train, dev, device, output, callback).go()


def _examples(run: SequenceRun, part: str) -> list[Pair]:
    """The training or development examples, from one file or from two parallel ones."""
    path = getattr(run, part)
    if path is not None:
        pairs, notes = read_pairs(path, run.task, run.columns, max_bad_lines=run.max_bad_lines)
        for note in notes:
            say(note)
        return pairs
    sides = ("source", "target") if part == "train" else ("dev_source", "dev_target")
    pairs = read_parallel(*(getattr(run, side) for side in sides))
    if run.task == "answering":
        raise ValueError("answering needs a question and a context; name a file in SQuAD's format with --train")
    return pairs


def _new(run: SequenceRun, task: WritingTask) -> Learner:
    if run.task == "extractive":
        return SentenceModel.new(run.model, task, run.random_init)
    return WritingModel.new(run.model, run.decoder, task, False if run.separate_embeddings else None, run.random_init)


def _sha256(pairs: list[Pair]) -> str:
    digest = hashlib.sha256()
    for pair in pairs:
        digest.update(repr(pair).encode())
    return digest.hexdigest()


class _Training:
    """The loop over the seeds."""

    def __init__(
        self,
        run: SequenceRun,
        task: WritingTask,
        train: list[Pair],
        dev: list[Pair],
        device: torch.device,
        output: Output,
        callback: Callback | None,
    ) -> None:
        self.run, self.task, self.train, self.dev, self.device = run, task, train, dev, device
        self.output, self.log = output, Log(output.path / METRICS, sys.maxsize, callback)
        self.primary = PRIMARY[run.task]

    def go(self) -> dict[str, Any]:
        """Train and measure every seed that is not done; returns what results.json holds."""
        output = self.output
        for seed in dict.fromkeys((*output.unmeasured(), *self.run.seeds)):
            saved = output.seed_path(seed)
            if seed in output.scores and not saved.exists():
                continue
            if saved.exists():
                learner = load_learner(saved).to(self.device)
            else:
                torch.manual_seed(seed)
                learner = _new(self.run, self.task).to(self.device)
                folder = output.training_path(seed)
                train_learner(learner, self.train, self.dev, seed, self.run, folder, self.log)
                output.save(seed, learner.save)
            self._measure(seed, learner)
        return self._results()

    def _measure(self, seed: int, learner: Learner) -> None:
        """Write the scores of a saved model and, if it is the best so far, what it writes."""
        output, dev = self.output, self.dev
        others = [scores[self.primary] for other, scores in output.scores.items() if other != seed]
        with progress_bar(total=len(dev), unit="example", desc="dev") as bar:
            written = learner.write(dev, advance=bar.update)
        references = [pair.references for pair in dev]
        scores = text_scores(self.run.task, written, references) | {"loss": dev_loss(learner, dev)}
        for signature in signatures(self.run.task, written, references):
            say(signature)
        output.scores[seed] = scores
        rows = read_log(output.path / METRICS)
        step = max((row["step"] for row in rows if row.get("seed") == seed), default=0)
        self.log.write("dev", step, {"seed": seed, **scores})
        output.write_results(self._results())
        best = all(scores[self.primary] > score for score in others)
        if best:
            optional("dev.jsonl", lambda: write_texts(output.path / "dev.jsonl", dev, written))
        output.finish(seed, best)
        optional("curves.png", self._plot)

    def _plot(self) -> None:
        plot_finetuning(read_log(self.output.path / METRICS), self.primary, self.output.path / "curves.png")

    def _results(self) -> dict[str, Any]:
        seeds = self.output.scores
        values = [scores[self.primary] for scores in seeds.values()]
        return {
            "task": self.run.task,
            "metric": self.primary,
            "seeds": {str(seed): scores for seed, scores in seeds.items()},
            "median": statistics.median(values),
            "spread": max(values) - min(values),
            "best_seed": max(seeds, key=lambda seed: seeds[seed][self.primary]),
            "examples": {"train": len(self.train), "dev": len(self.dev)},
            "model": str(self.run.model),
            "decoder": str(self.run.decoder or self.run.model),
            "random_init": self.run.random_init,
            "settings": asdict(self.task.settings),
            "writing": asdict(self.task.writing),
        }


def write_texts(path: Path, pairs: list[Pair], written: list[str]) -> None:
    """Write a file with a line {"id", "text", "references"} for each example."""
    rows = [
        {"id": pair.id, "text": text, "references": list(pair.references)}
        for pair, text in zip(pairs, written, strict=True)
    ]
    write_file(path, [json_line(row).encode() for row in rows])
