"""A pre-training run from text to final weights: data, checkpoints, resume, signals, held-out figures, report."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch

from electra_fast.data.batch import Batch
from electra_fast.data.corpus import Corpus, examples_at
from electra_fast.data.ngrams import LARGEST_VOCABULARY, NGrams
from electra_fast.data.verification import Verification
from electra_fast.device import chosen_device, set_threads
from electra_fast.model.initial_counts import start_from_counts
from electra_fast.model.networks import Generator
from electra_fast.objectives.base import Objective
from electra_fast.objectives.electra import Electra
from electra_fast.objectives.one_network import OneNetwork
from electra_fast.objectives.uniform import Uniform
from electra_fast.report.log import Callback, Log, Progress, measured_peak
from electra_fast.report.terminal import say
from electra_fast.storage import checkpoint
from electra_fast.storage.checkpoint import CheckpointError
from electra_fast.storage.lock import Lock
from electra_fast.train.evaluate import evaluate, heldout_batches
from electra_fast.train.finish import finish
from electra_fast.train.graph import StepGraph, budget_for
from electra_fast.train.health import IN_A_ROW, Health
from electra_fast.train.menu import check_together
from electra_fast.train.metrics import StepMetrics
from electra_fast.train.resume import restore, state_of
from electra_fast.train.settings import PretrainConfig, RunConfig
from electra_fast.train.signals import Stop
from electra_fast.train.start import build_model, open_corpus, starts_from_counts
from electra_fast.train.trainer import Pretrainer

COUNTED = 1 << 23  # training tokens, at most, whose neighbours are counted: what the networks are held against


@dataclass(frozen=True)
class Result:
    """How a run ended.

    step: optimiser steps done. signal: the number of the signal that stopped it, or None.
    figures: held-out figures of the last weights, as `evaluate` names them.
    """

    step: int
    signal: int | None
    figures: dict[str, float]


def pretrain(run: RunConfig, config: PretrainConfig, callback: Callback | None = None) -> Result:
    """Pre-train from text, or go on from the newest checkpoint; writes everything below run.out.

    OUT/checkpoint-STEP, OUT/metrics.jsonl and, at the end, OUT/curves.png and OUT/final/NETWORK, each a Hugging Face
    directory with its tokenizer. Text that is not prepared yet is prepared into OUT/data.

    run: where the run reads and writes, which model it trains, how often it saves and evaluates.
    config: the optimiser's settings.
    callback: called as callback(step, figures) with every row of metrics.jsonl.

    Returns how the run ended. SIGTERM, SIGINT and SIGHUP end it after a checkpoint (see signals.Stop). The digests of
    the data are checked beside the training, and no checkpoint is written before all of them are found right.

    Raises ValueError (CheckpointError and InUseError among them) for settings, data or checkpoints that do not fit,
    OSError where OUT cannot be written, FloatingPointError for a loss that is not finite.
    """
    sharing = run.embedding_sharing
    if run.init_generator is None and run.init_discriminator is None and sharing is None:
        sharing = run.chosen("embedding_sharing")
    check_together(run.objective, config, sharing, run.init_generator)
    chosen_device(run.device)  # before anything is written
    set_threads(run.threads)
    try:
        run.out.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ValueError(f"out is {run.out}; a directory is needed, and a file is in its way: give another") from error
    with Lock(run.out / ".lock", run.out) as lock:
        checkpoint.clean(run.out)
        newest = checkpoint.latest(run.out)
        if newest is not None and not run.resume:
            raise ValueError(
                f"{run.out} holds {newest.name} of an earlier run; go on with it by --resume, or give another --out"
            )
        saved = None if newest is None else checkpoint.load(newest)
        corpus = open_corpus(run)
        model = build_model(run, corpus, config.seed, config.steps)
        tied = model.config.share_embeddings and not model.config.disentangled and isinstance(model, Electra)
        check_together(run.objective, config, "tied" if tied else None, run.init_generator)
        words = model.config.vocab_size
        ngrams = NGrams.of(corpus, COUNTED, words) if words <= LARGEST_VOCABULARY else None
        if ngrams is None and (starts_from_counts(run) or run.noise == "unigram"):
            raise ValueError(
                f"the vocabulary has {words:,} tokens; counts are for at most {LARGEST_VOCABULARY:,}: take "
                f"--initial-weights random, and --noise uniform"
            )
        if ngrams is not None and isinstance(model, Uniform) and run.noise == "unigram":
            model.draw_by(torch.from_numpy(ngrams.unigram(np.arange(words))))
        if ngrams is not None and saved is None and starts_from_counts(run):
            own = isinstance(model.generator, Generator) and not isinstance(model, OneNetwork)
            own = own and run.init_generator is None
            start_from_counts(model.discriminator, model.generator if own else None, ngrams)
        return _Run(run, config, corpus, model, ngrams, lock, callback).go(saved)


def stepper(trainer: Pretrainer, corpus: Corpus) -> Callable[[Batch], StepMetrics]:
    """The function that takes a step: on CUDA a graph of the whole step, unless it is split in micro-batches."""
    if trainer.seed.device.type != "cuda" or trainer.config.micro_batch_size is not None:
        return trainer.step
    return StepGraph(trainer, budget_for(trainer, corpus)).step


class _Run:
    """The training loop, and what it does every few steps: log, evaluate, save."""

    def __init__(
        self,
        run: RunConfig,
        config: PretrainConfig,
        corpus: Corpus,
        model: Objective,
        ngrams: NGrams | None,
        lock: Lock,
        callback: Callback | None,
    ) -> None:
        if len(corpus) < config.batch_size:
            raise ValueError(
                f"the text gives {len(corpus)} examples, fewer than batch_size {config.batch_size}; "
                f"add text, or lower --batch-size to {max(1, len(corpus))} or less"
            )
        self.run, self.config, self.corpus, self.lock, self.callback = run, config, corpus, lock, callback
        self.directory = os.stat(run.out)
        self.device = chosen_device(run.device)
        self.trainer = Pretrainer(model.to(self.device), config)
        self.take_step = stepper(self.trainer, corpus)
        self.heldout = heldout_batches(corpus)
        self.ngrams = ngrams
        self.stop = Stop()
        self.figures: dict[str, float] = {}  # of the last evaluation
        self.save_failed = False
        self.health = Health(config)

    def go(self, saved: checkpoint.Saved | None) -> Result:
        """Train to the last step or to a signal, from `saved` if given."""
        run, config, trainer = self.run, self.config, self.trainer
        if saved is not None:
            restore(run, trainer, self.corpus, saved)
        elif run.resume:
            say(f"no checkpoint in {run.out}: starting at step 0")
        self.log = Log(run.out / "metrics.jsonl", trainer.steps_done, self.callback)
        if trainer.steps_done == 0:
            self._evaluate()
        self.progress = Progress(trainer.steps_done, config.steps, measured_peak(self.device))
        with self.stop, Verification(self.corpus) as self.verification:
            try:
                while trainer.steps_done < config.steps and self.stop.signal is None:
                    self._step()
            finally:
                self.progress.close()
        with trainer.evaluated():
            figures = evaluate(trainer.model, self.heldout, ngrams=self.ngrams)
            if self.stop.signal is None:
                finish(run, trainer, self.corpus, self.heldout, figures)
        return Result(trainer.steps_done, self.stop.signal, figures)

    def _step(self) -> None:
        """One optimiser step, and what is due after it."""
        run, config, trainer = self.run, self.config, self.trainer
        self.verification.check()
        first = trainer.steps_done * config.batch_size
        names = range(first, first + config.batch_size)
        batch = Batch.from_examples(examples_at(self.corpus, config.seed, first, config.batch_size), names)
        metrics = self.take_step(batch)
        done = trainer.steps_done
        if done == config.generator_steps:  # from now on another network learns, so what was captured is of no use
            self.take_step = stepper(trainer, self.corpus)
        is_last = done == config.steps
        slots = int(batch.slots(trainer.model.config.mask_prob, trainer.model.config.max_predictions)[1])
        self.progress.step(metrics.tokens, trainer.model.step_flops(batch.lengths.tolist(), slots))
        if done % run.log_every == 0 or is_last:
            trainer.check()
            figures = metrics.row() | self.progress.speed() | {"skipped": trainer.skipped}
            self._hold_out()
            self.log.write("train", done, figures)
            self.progress.show(figures, self.figures.get("auc_pairs"))
        if done % run.eval_every == 0 or is_last:
            self._evaluate()
        if done % run.save_every == 0 or is_last or self.stop.signal is not None:
            self._hold_out()
            self._save()

    def _evaluate(self) -> None:
        trainer, steps = self.trainer, self.trainer.steps_done
        with trainer.evaluated():
            self.figures = evaluate(trainer.model, self.heldout, ngrams=self.ngrams)
        self.log.write("heldout", steps, self.figures)
        for line in self.health.look(steps, self.figures):
            say(line)
        if self.health.dead and self.run.stop_when_dead:
            self._save()
            raise FloatingPointError(
                f"step {steps}: a network has collapsed and stayed so for {IN_A_ROW} evaluations; the run is saved and "
                f"stops here, as stop_when_dead asks (--stop-when-dead)"
            )

    def _save(self) -> None:
        """Write a checkpoint; a disk that is full costs the checkpoint and not the run, unless it is the last one."""
        trainer = self.trainer
        self.verification.wait(lambda: say(f"checking the digests of {self.corpus.path} before the first checkpoint"))
        state = state_of(self.run, trainer, self.corpus)
        try:
            checkpoint.save(self.run.out, trainer.steps_done, trainer.state_dict(), state, self.run.keep)
        except OSError as error:
            lost = f"checkpoint-{trainer.steps_done} could not be saved ({error})"
            remedy = f"older checkpoints are kept. Free some space in {self.run.out}, or make it writable"
            if trainer.steps_done == self.config.steps or self.stop.signal is not None:
                raise OSError(f"{lost}; {remedy}, and go on with --resume") from error
            if not self.save_failed:
                say(f"{lost}; training goes on, {remedy}")
            self.save_failed = True

    def _hold_out(self) -> None:
        """Lock OUT again if it was removed or moved while the run goes on, so that no other run writes there too."""
        if self.lock.is_held():
            return
        out = self.run.out
        is_the_same = out.exists() and os.path.samestat(self.directory, os.stat(out))
        with suppress(OSError):  # what is written next says that it cannot be
            self.lock.renew()
            self.directory = os.stat(out)
        newest = checkpoint.latest(out)
        if not is_the_same and newest is not None:
            raise CheckpointError(
                f"{out} was removed or moved while this run wrote there, and now holds {newest.name} of another run; "
                f"nothing was written to it. Put this run's directory back and go on with --resume"
            )
        say(
            f"{out} or its lock was removed or moved while this run writes there; it is made again and training goes on"
        )
