"""A pre-training run from text to final weights: data, checkpoints, resume, signals, held-out figures, report."""

from __future__ import annotations

import platform
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from types import FrameType
from typing import Any

import torch

from electra_fast.config import PretrainConfig
from electra_fast.data.batch import Batch
from electra_fast.data.budget import Budget
from electra_fast.data.corpus import Corpus, examples_at
from electra_fast.device import chosen_device
from electra_fast.info import info
from electra_fast.objectives.base import Objective
from electra_fast.ops._core import why
from electra_fast.report.closing import closing_report, marked_sentence
from electra_fast.report.curves import plot_curves
from electra_fast.report.log import Callback, Log, Progress, measured_peak, read_log
from electra_fast.storage import checkpoint
from electra_fast.storage.lock import Lock
from electra_fast.train.evaluate import evaluate
from electra_fast.train.graph import StepGraph
from electra_fast.train.metrics import StepMetrics
from electra_fast.train.start import RunConfig, build_model, open_corpus
from electra_fast.train.trainer import Pretrainer

EVALUATED = 16_384  # held-out tokens, at most, at each evaluation
SAMPLED = 2048  # examples whose lengths tell the shapes of a step


@dataclass(frozen=True)
class Result:
    """How a run ended: at which step, on which signal if one stopped it, and the held-out figures."""

    step: int
    signal: int | None
    figures: dict[str, float]


def pretrain(run: RunConfig, config: PretrainConfig, callback: Callback | None = None) -> Result:
    """Run it, or go on with it: OUT/checkpoint-STEP, metrics.jsonl, curves.png, final/NETWORK.

    Raises ValueError (and its kin CheckpointError and InUseError) for settings, data or checkpoints that do not fit,
    OSError where OUT cannot be written, FloatingPointError for a loss that is not finite.
    """
    try:
        run.out.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ValueError(f"out is {run.out}; a directory is needed, and a file is in its way: give another") from error
    with Lock(run.out / ".lock", run.out):
        checkpoint.clean(run.out)
        resumed = checkpoint.latest(run.out)
        if resumed is not None and not run.resume:
            raise ValueError(
                f"{run.out} holds {resumed.name} of an earlier run; go on with it by --resume, or give another --out"
            )
        saved = None if resumed is None else checkpoint.load(resumed)
        corpus = open_corpus(run)
        model = build_model(run, corpus, config.seed)
        return _Run(run, config, corpus, model, callback).go(saved)


def budget_for(trainer: Pretrainer, corpus: Corpus) -> Budget:
    """Of a step over this text, by the lengths of examples from all over it."""
    model, every = trainer.model.config, max(1, len(corpus) // SAMPLED)
    lengths = torch.tensor([len(corpus[i][0]) for i in range(0, len(corpus), every)])
    numbers = (model.mask_prob, model.max_predictions, model.pad_token_id)
    return Budget.of(lengths, trainer.config.batch_size, corpus.max_length, *numbers)


def stepper(trainer: Pretrainer, corpus: Corpus) -> Callable[[Batch], StepMetrics]:
    """What takes the steps: on CUDA a graph of the whole step, unless that is in micro-batches."""
    if trainer.seed.device.type != "cuda" or trainer.config.micro_batch_size is not None:
        return trainer.step
    return StepGraph(trainer, budget_for(trainer, corpus)).step


class _Run:
    """The loop and what it keeps at hand."""

    def __init__(
        self, run: RunConfig, config: PretrainConfig, corpus: Corpus, model: Objective, callback: Callback | None
    ) -> None:
        self.run, self.config, self.corpus, self.callback = run, config, corpus, callback
        if len(corpus) < config.batch_size:
            raise ValueError(
                f"the text gives {len(corpus)} examples, fewer than batch_size {config.batch_size}; "
                f"add text, or lower --batch-size to {max(1, len(corpus))} or less"
            )
        self.device = chosen_device(run.device)
        self.trainer = Pretrainer(model.to(self.device), config)
        self.take_step = stepper(self.trainer, corpus)
        self.heldout = self._heldout()
        self.stopped: int | None = None
        self.save_failed = False

    def _heldout(self) -> list[Batch]:
        """Batches of held-out examples; of training examples where the text was too small to hold any out."""
        try:
            corpus = Corpus(self.corpus.path, "heldout")
        except ValueError:
            corpus = self.corpus
        names = range(min(max(1, EVALUATED // corpus.max_length), len(corpus)))
        parts = [names[i : i + 32] for i in range(0, len(names), 32)]
        return [Batch.from_examples([corpus[i] for i in part], part) for part in parts]

    def go(self, saved: tuple[int, dict[str, Any], dict[str, Any]] | None) -> Result:
        run, config, trainer = self.run, self.config, self.trainer
        if saved is not None:
            self._restore(saved)
        elif run.resume:
            print(f"no checkpoint in {run.out}: starting at step 0")
        self.log = Log(run.out / "metrics.jsonl", trainer.steps_done, self.callback)
        if trainer.steps_done == 0:
            self.log.write("heldout", 0, evaluate(trainer.model, self.heldout))
        self.progress = Progress(trainer.steps_done, config.steps, measured_peak(self.device))
        handlers = {number: signal.signal(number, self._on_signal) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            while trainer.steps_done < config.steps and self.stopped is None:
                self._step()
        finally:
            self.progress.close()
            for number, handler in handlers.items():
                signal.signal(number, handler)
        figures = evaluate(trainer.model, self.heldout)
        if self.stopped is None:
            self._finish(figures)
        return Result(trainer.steps_done, self.stopped, figures)

    def _step(self) -> None:
        run, config, trainer = self.run, self.config, self.trainer
        first = trainer.steps_done * config.batch_size
        names = range(first, first + config.batch_size)
        batch = Batch.from_examples(examples_at(self.corpus, config.seed, first, config.batch_size), names)
        metrics = self.take_step(batch)
        done = trainer.steps_done
        slots = int(batch.slots(trainer.model.config.mask_prob, trainer.model.config.max_predictions)[1])
        self.progress.step(metrics.tokens, trainer.model.step_flops(batch.lengths.tolist(), slots))
        if done % run.log_every == 0 or done == config.steps:
            trainer.check()
            figures = metrics.row() | self.progress.speed() | {"skipped": trainer.skipped}
            self.log.write("train", done, figures)
            self.progress.show(figures)
        if done % run.eval_every == 0 or done == config.steps:
            self.log.write("heldout", done, evaluate(trainer.model, self.heldout))
        if done % run.save_every == 0 or done == config.steps or self.stopped is not None:
            self._save()

    def _save(self) -> None:
        """A checkpoint; a disk that is full costs the checkpoint, not the run, unless it is the last one."""
        trainer = self.trainer
        state = {"settings": self._settings(), "environment": self._environment(), "skipped": trainer.skipped}
        try:
            checkpoint.save(self.run.out, trainer.steps_done, trainer.state_dict(), state, self.run.keep)
        except OSError as error:
            lost = f"checkpoint-{trainer.steps_done} could not be saved ({error})"
            remedy = f"older checkpoints are kept. Free some space in {self.run.out}, or make it writable"
            if trainer.steps_done == self.config.steps or self.stopped is not None:
                raise OSError(f"{lost}; {remedy}, and go on with --resume") from error
            if not self.save_failed:
                self.progress.say(f"{lost}; training goes on, {remedy}")
            self.save_failed = True

    def _restore(self, saved: tuple[int, dict[str, Any], dict[str, Any]]) -> None:
        step, tensors, state = saved
        changed = checkpoint.differences(state["settings"], self._settings())
        refused = [line for line in changed if line.split(":")[0] not in self.run.allow_change]
        if refused:
            raise ValueError(
                f"{self.run.out} was trained with other settings than these:\n  "
                + "\n  ".join(refused)
                + "\npass the old values, or accept a change by --allow-change NAME"
            )
        elsewhere = checkpoint.differences(state["environment"], self._environment())
        if elsewhere:
            print("note: another environment than the checkpoint's, so not bit-equal to a run in one go:")
            print("\n".join(f"  {line}" for line in elsewhere))
        self.trainer.load_state_dict(tensors, step, state["skipped"])
        print(f"resumed from {self.run.out}/checkpoint-{step}")

    def _settings(self) -> dict[str, Any]:
        """What must be the same for a resumed run to be the same run."""
        data = {"sha256": self.corpus.sha256, "max_length": self.corpus.max_length}
        model, config = self.trainer.model.config, self.config
        return {"objective": self.run.objective, "model": asdict(model), "pretrain": asdict(config), "data": data}

    def _environment(self) -> dict[str, Any]:
        versions = info()["versions"]
        return {
            **{name: versions[name] for name in ("electra_fast", "torch", "numpy")},
            "core": why,
            "threads": torch.get_num_threads(),
            "machine": platform.machine(),
            "device": self.device.type,
        }

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.stopped is not None:  # asked twice: leave at once; a save under way leaves only its staging behind
            sys.exit(128 + number)
        self.stopped = number
        name = signal.Signals(number).name
        self.progress.say(f"{name}: finishing the step, saving, leaving; once more to leave at once")

    def _finish(self, figures: dict[str, float]) -> None:
        run, model = self.run, self.trainer.model
        model.save_pretrained(run.out / "final")
        networks = [name for name, _ in model.named_children()]
        for network in networks:
            self.corpus.tokenizer.save(run.out / "final" / network)
        rows = read_log(run.out / "metrics.jsonl")
        plot_curves(rows, run.out / "curves.png")
        before = next(row for row in rows if row["kind"] == "heldout")
        report = closing_report(before, figures, self._sentences())
        if skipped := self.trainer.skipped:
            report += f"\n\n{skipped} of {self.config.steps} steps were left out: a loss or gradient was not finite"
        print(f"\n{report}\n\nwrote {run.out}/final/{{{','.join(networks)}}}, curves.png, metrics.jsonl")

    @torch.no_grad()
    def _sentences(self, count: int = 3, longest: int = 40) -> list[str]:
        """Held-out text, the generator's replacements and the discriminator's suspicions marked, if one is there."""
        model, tokenizer = self.trainer.model.eval(), self.corpus.tokenizer
        batch = self.heldout[0].split(count)[0].to(self.device)
        out = model(batch, self.config.seed)
        suspicion = out.discriminator_logits.sigmoid()
        if not len(suspicion):
            return []
        sentences = []
        for start, end in zip(batch.cu_seqlens.tolist(), batch.cu_seqlens.tolist()[1:], strict=False):
            end = min(end, start + longest)
            sampled = {
                i - start: tokenizer.token(int(out.corrupted_ids[i])) for i in range(start, end) if out.is_replaced[i]
            }
            tokens = [tokenizer.token(int(i)) for i in batch.input_ids[start:end]]
            sentences.append(marked_sentence(tokens, sampled, suspicion[start:end].cpu()))
        return sentences
