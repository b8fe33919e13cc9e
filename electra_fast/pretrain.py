"""A pre-training run from text to final weights: data, checkpoints, resume, signals, held-out figures, report."""

from __future__ import annotations

import dataclasses
import json
import platform
import signal
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from electra_fast import checkpoint
from electra_fast.batch import Batch
from electra_fast.budget import Budget
from electra_fast.config import ElectraConfig, PretrainConfig
from electra_fast.corpus import Corpus, check_free, examples_at
from electra_fast.graph import StepGraph
from electra_fast.info import info
from electra_fast.metrics import StepMetrics
from electra_fast.mlm import MaskedLanguageModel
from electra_fast.model import Discriminator, Electra, Generator
from electra_fast.objective import Objective
from electra_fast.ops._core import why
from electra_fast.prepare import prepare
from electra_fast.report import (
    Callback,
    Log,
    Progress,
    closing_report,
    marked_sentence,
    measured_peak,
    plot_curves,
    read_log,
)
from electra_fast.shards import MANIFEST
from electra_fast.tokenizer import Tokenizer
from electra_fast.trainer import Pretrainer, evaluate
from electra_fast.weights import read_json, write_file

EVALUATED = 16_384  # held-out tokens, at most, at each evaluation
SAMPLED = 2048  # examples whose lengths tell the shapes of a step
# The paper's table 6. tiny is ours, for minutes on two cores: among few tokens the networks find a word's neighbours
# within some hundred steps, among 64 of them they do not in thousands.
RECIPES: dict[str, dict[str, Any]] = {
    "tiny": dict(batch_size=128, learning_rate=6e-4, steps=2000, max_length=16),
    "small": dict(batch_size=128, learning_rate=5e-4, steps=1_000_000, max_length=128),
    "small_plus": dict(batch_size=128, learning_rate=5e-4, steps=1_000_000, max_length=512),
    "base": dict(batch_size=256, learning_rate=2e-4, steps=766_000, max_length=512),
    "large": dict(batch_size=2048, learning_rate=2e-4, steps=400_000, max_length=512),
}

OBJECTIVES: dict[str, type[Objective]] = {"electra": Electra, "mlm": MaskedLanguageModel}


@dataclass(frozen=True)
class RunConfig:
    """Where a run reads and writes, and how often."""

    out: Path
    data: tuple[Path, ...] = ()  # text files, or one prepared directory; none: the text CPython carries
    tokenizer: Path | None = None  # None: trained on the text, or that of the weights to start from
    vocab_size: int | None = None  # of a tokenizer trained here; None: 8,192, or 1,000 for the text Python carries
    model: str = "tiny"
    objective: str = "electra"
    max_length: int | None = None  # None: the data's, or the model's recipe
    init_generator: Path | None = None
    init_discriminator: Path | None = None
    faithful: bool = False
    device: str = "auto"
    resume: bool = False
    allow_change: tuple[str, ...] = ()  # settings that may differ from the checkpoint's
    save_every: int = 1000
    keep: int = 3
    eval_every: int = 100
    log_every: int = 10

    def __post_init__(self) -> None:
        if self.model not in RECIPES:
            raise ValueError(f"model is {self.model!r}; allowed: {', '.join(RECIPES)}")
        if self.objective not in OBJECTIVES:
            raise ValueError(f"objective is {self.objective!r}; allowed: {', '.join(OBJECTIVES)}")
        if self.objective == "mlm" and self.init_discriminator is not None:
            raise ValueError(
                f"objective is mlm, which has no discriminator, and init_discriminator is {self.init_discriminator}; "
                f"leave it out, or start by --init-generator from the final/generator of another run of mlm"
            )
        if self.device not in ("auto", "cpu", "cuda"):
            raise ValueError(f"device is {self.device!r}; allowed: auto, cpu, cuda")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ValueError("device is cuda, but torch sees no GPU; use --device cpu, or install torch for CUDA")
        for name in ("save_every", "keep", "eval_every", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")


@dataclass(frozen=True)
class Result:
    """How a run ended: at which step, on which signal if one stopped it, and the held-out figures."""

    step: int
    signal: int | None
    figures: dict[str, float]


def pretrain(run: RunConfig, config: PretrainConfig, callback: Callback | None = None) -> Result:
    """Run it, or go on with it: OUT/checkpoint-STEP, metrics.jsonl, curves.png, final/NETWORK.

    Raises ValueError (and its kin CheckpointError) for settings, data or checkpoints that do not fit, OSError where OUT
    cannot be written, FloatingPointError for a loss that is not finite.
    """
    try:
        run.out.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise ValueError(f"out is {run.out}; a directory is needed, and a file is in its way: give another") from error
    with checkpoint.Lock(run.out):
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


def open_corpus(run: RunConfig) -> Corpus:
    """The prepared data: the directory given, or text prepared into OUT/data, once: another start finds it there."""
    if len(run.data) == 1 and (run.data[0] / MANIFEST).exists():
        return _prepared(run)
    for path in run.data:
        if (path / MANIFEST).exists():
            raise ValueError(
                f"data holds {path}, which is prepared, and {len(run.data) - 1} more; one prepared directory alone can "
                f"be read: prepare the text of all into one"
            )
    tokenizer = run.tokenizer
    weights = [path for path in (run.init_discriminator, run.init_generator) if path is not None]
    if tokenizer is None and weights:
        named = ("tokenizer.json", "vocab.txt")
        tokenizer = next((path for path in weights if any((path / name).is_file() for name in named)), None)
        if tokenizer is None:
            raise ValueError(
                f"{weights[0]} holds neither tokenizer.json nor vocab.txt; name the tokenizer that these weights were "
                f"trained with: --tokenizer PATH"
            )
    # The text that Python carries is small: fewer words, so that each is seen often, and a larger share held out.
    words, share = (8192, 0.01) if run.data else (1000, 0.05)
    vocab_size = run.vocab_size or words if tokenizer is None else run.vocab_size
    length = run.max_length or RECIPES[run.model]["max_length"]
    files = [f"{path.name}, {path.stat().st_size if path.exists() else 0} bytes" for path in run.data]
    asked = {"data": files, "tokenizer": tokenizer and str(tokenizer), "vocab_size": vocab_size, "max_length": length}
    found, source = run.out / "data", run.out / "data.json"
    if (found / MANIFEST).exists() and source.exists():
        changed = checkpoint.differences(read_json(source), asked)
        if refused := [line for line in changed if line.split(":")[0] not in run.allow_change]:
            raise ValueError(
                f"{found} was prepared by an earlier start, with other settings than these:\n  "
                + "\n  ".join(refused)
                + f"\npass the old values, take it as it is by --allow-change NAME, give another --out, or remove it: "
                f"rm -r {found}"
            )
        return Corpus(found)
    check_free(found)
    write_file(source, [json.dumps(asked, indent=1).encode()])
    return prepare(
        list(run.data) or None, found, tokenizer=tokenizer, vocab_size=vocab_size, max_length=length, heldout=share
    )


def _prepared(run: RunConfig) -> Corpus:
    corpus = Corpus(run.data[0])
    if run.max_length not in (None, corpus.max_length):
        raise ValueError(
            f"{run.data[0]} holds examples of {corpus.max_length} tokens, max_length is {run.max_length}; "
            f"pass --max-length {corpus.max_length}, or prepare the text again"
        )
    if run.vocab_size is not None and run.vocab_size < corpus.vocab_size:  # more: the text may have given less
        raise ValueError(
            f"{run.data[0]} was prepared with a vocabulary of {corpus.vocab_size} entries, vocab_size is "
            f"{run.vocab_size}; leave --vocab-size out, or prepare the text again"
        )
    if run.tokenizer is not None and Tokenizer.load(run.tokenizer).sha256 != corpus.tokenizer.sha256:
        raise ValueError(
            f"{run.data[0]} was prepared with another tokenizer than {run.tokenizer}; leave --tokenizer out, "
            f"or prepare the text again with it"
        )
    return corpus


def build_model(run: RunConfig, corpus: Corpus, seed: int) -> Objective:
    """The preset fitted to the tokenizer, or the given weights; initial weights are a function of the seed."""
    torch.manual_seed(seed)
    tokenizer = corpus.tokenizer
    ids = {f"{name}_token_id": getattr(tokenizer, f"{name}_token_id") for name in ("pad", "unk", "cls", "sep", "mask")}
    preset = getattr(ElectraConfig, run.model)(
        vocab_size=corpus.vocab_size,
        faithful=run.faithful,
        max_position_embeddings=max(512, corpus.max_length),
        **ids,
    )
    if run.faithful:
        preset = dataclasses.replace(preset, max_predictions=int((preset.mask_prob + 0.005) * corpus.max_length))
    given: dict[str, Any] = {}
    if run.init_generator is not None:
        given["generator"] = Generator.from_pretrained(run.init_generator)
    if run.init_discriminator is not None:
        given["discriminator"] = Discriminator.from_pretrained(run.init_discriminator)
    objective = OBJECTIVES[run.objective]
    if leading := given.get(objective.leading):
        preset = dataclasses.replace(preset, **asdict(leading.config) | {"vocab_size": corpus.vocab_size})
    if len(given) == 2:
        tables = [network.encoder.embeddings.word.weight for network in given.values()]
        if tables[0].shape == tables[1].shape and not torch.equal(*tables):
            print("note: the two networks come with different embeddings; the discriminator's are taken for both")
    return objective(preset, **given)


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
        on = run.device if run.device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
        self.device = torch.device(on)
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
