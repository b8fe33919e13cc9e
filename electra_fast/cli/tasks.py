"""The commands on tasks: finetune, evaluate, predict."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from electra_fast.cli.interrupts import importing
from electra_fast.cli.options import Command
from electra_fast.cli.writing import variant
from electra_fast.config import DeviceOptions, PrecisionOptions
from electra_fast.tasks.examples import Columns
from electra_fast.tasks.settings import FinetuneConfig, FinetuneRun, ReadOptions

if TYPE_CHECKING:
    from electra_fast.data.tokenizer import Tokenizer
    from electra_fast.tasks.model import TaskModel


@dataclass(frozen=True, kw_only=True)
class ColumnOptions:
    """Columns: where a file is not a benchmark's, the names of its columns, or fields of .jsonl."""

    text_column: str | None = None
    """Column of the text. (default: text)"""

    text2_column: str | None = None
    """Column of the second text, if there is one. (default: text2)"""

    label_column: str | None = None
    """Column of the label. (default: label)"""

    id_column: str | None = None
    """Column of the id. (default: id)"""

    word_column: str | None = None
    """Column of the words, by number from 1 or by name. (tagging) (default: the first; FORM in CoNLL-U)"""

    tag_column: str | None = None
    """Column of the tags, by number from 1 or by name. (tagging) (default: the last; UPOS in CoNLL-U)"""

    def columns(self) -> Columns | None:
        """The columns that are named, the others by their usual names; None if none is named."""
        named = {name.removesuffix("_column"): value for name, value in vars(self).items() if value is not None}
        return Columns(**named) if named else None


def run_finetune(run: FinetuneRun, config: FinetuneConfig, columns: ColumnOptions) -> int:
    """Example: electra-fast finetune --task classification --train train.csv \\
        --dev dev.csv --model my-run/final/discriminator --out my-task --seeds 3

    Train a pre-trained model on a task, once per seed, and measure each model on
    --dev. OUT holds the best model, its predictions, the scores and curves."""
    with importing():
        from electra_fast.tasks.finetune import finetune
    seeds = tuple(range(run.seeds[0])) if len(run.seeds) == 1 and run.seeds[0] > 0 else run.seeds
    results = finetune(dataclasses.replace(run, seeds=seeds, columns=columns.columns()), config)
    for seed, scores in results["seeds"].items():
        print(f"seed {seed}: " + ", ".join(f"{name} {value:.4f}" for name, value in scores.items()))
    print(f"{results['metric']}: median {results['median']:.4f}, spread {results['spread']:.4f}; wrote {run.out}")
    return 0


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Model: what answers."""

    model: Path
    """Fine-tuned model: OUT/model of finetune, or a fine-tuned one of transformers."""


@dataclass(frozen=True, kw_only=True)
class UseOptions(ModelOptions, DeviceOptions, PrecisionOptions):
    """A fine-tuned model, and how it is run."""

    def load(self) -> tuple[TaskModel, Tokenizer]:
        """The model on the device, in the precision asked for, and its tokenizer."""
        from electra_fast.device import chosen_device, set_threads
        from electra_fast.tasks.model import TaskModel
        from electra_fast.train.optimizer import working_copy

        set_threads(self.threads)
        model, tokenizer = TaskModel.load(self.model)
        return working_copy(model.to(chosen_device(self.device)), self.precision), tokenizer


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions(ReadOptions):
    """Data: what is read and written."""

    data: Path
    """File of labelled examples; of blimp a file of minimal pairs, or a directory of them."""

    out: Path | None = None
    """File of predictions to write as well, in the benchmark's format. (default: none is written)"""

    task: Literal["blimp"] | None = None
    """Task of a model that is not fine-tuned: blimp asks a generator or a discriminator which of two sentences is
    grammatical. (default: the task that the model was fine-tuned for)"""


def run_evaluate(use: UseOptions, options: EvaluateOptions, columns: ColumnOptions) -> int:
    """Example: electra-fast evaluate --model my-task/model --data dev.csv

    Print the official scores of a fine-tuned model as JSON, or with --task blimp
    the accuracy of a pre-trained network on minimal pairs."""
    if options.task == "blimp":
        return _run_blimp(use, options)
    with importing():
        from electra_fast.report.terminal import say
        from electra_fast.tasks.datasets import read_dataset
        from electra_fast.tasks.evaluate import evaluate, fitted
        from electra_fast.tasks.predictions import check_predictions_path, write_predictions
        from electra_fast.tasks.tag_spans import described
    model, tokenizer = use.load()
    task = model.task
    data = read_dataset(
        options.data,
        task.kind,
        columns=columns.columns(),
        benchmark=task.benchmark,
        max_bad_lines=options.max_bad_lines,
    )
    model.task = fitted(task, data, options.data)
    for note in (*data.notes, *([described(model.task.labels)] if task.kind == "tagging" else [])):
        say(note, sys.stderr)
    if options.out is not None:
        check_predictions_path(options.out, data, model.task.labels)
    scores, found = evaluate(model, tokenizer, data)
    found.tell(model)
    print(json.dumps(scores, indent=2), flush=True)  # before the predictions, whose writing may fail
    if options.out is not None:
        write_predictions(options.out, data, found.values, found.null_odds or None)
    return 0


def _run_blimp(use: UseOptions, options: EvaluateOptions) -> int:
    if options.out is not None:
        raise ValueError(f"out is {options.out}, and blimp has no predictions to write; leave --out away")
    with importing():
        from electra_fast.device import chosen_device, set_threads
        from electra_fast.report.terminal import progress_bar
        from electra_fast.tasks.minimal_pairs import accuracies, read_pairs
        from electra_fast.tasks.sentence_scores import load_network, sentence_scores
        from electra_fast.train.optimizer import working_copy
    set_threads(use.threads)
    pairs = read_pairs(options.data)
    network, tokenizer = load_network(use.model)
    network = working_copy(network.to(chosen_device(use.device)), use.precision)
    sentences = [pair.good for pair in pairs] + [pair.bad for pair in pairs]
    with progress_bar(total=len(sentences), unit="sentence") as bar:
        scores = sentence_scores(network, tokenizer, sentences, bar.update)
    print(json.dumps(accuracies(pairs, scores), indent=2), flush=True)
    return 0


@dataclass(frozen=True, kw_only=True)
class PredictOptions(ReadOptions):
    """Data: what is read and written."""

    files: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Files of finetune's formats, or .txt. (default: stdin, one example per line)"""

    out: Path | None = None
    """File of predictions to write, in the benchmark's format. (default: one JSON object per line on stdout)"""

    at_once: int = 256
    """Examples that are read before the first is answered."""

    def __post_init__(self) -> None:
        if self.at_once < 1:
            raise ValueError(f"at_once is {self.at_once}; it must be at least 1")
        if self.out is not None and len(self.files) != 1:
            raise ValueError(
                f"out is {self.out}, one file of predictions, and {len(self.files)} files are given; name one"
            )


def run_predict(use: UseOptions, options: PredictOptions, columns: ColumnOptions) -> int:
    """Example: echo "a good film" | electra-fast predict --model my-task/model

    Print what a fine-tuned model says of examples without labels."""
    with importing():
        from electra_fast.report.terminal import say
        from electra_fast.tasks.datasets import read_dataset, stream_examples, unlabelled_examples
        from electra_fast.tasks.files import Malformed
        from electra_fast.tasks.predict import predict, predict_stream
        from electra_fast.tasks.predictions import check_predictions_path, json_line, write_predictions
    model, tokenizer = use.load()
    task, named = model.task, columns.columns()
    most = options.max_bad_lines
    how: dict[str, Any] = dict(columns=named, benchmark=task.benchmark)
    if options.out is not None:
        data = read_dataset(options.files[0], task.kind, labelled=False, max_bad_lines=most, **how)
        for note in data.notes:
            say(note, sys.stderr)
        check_predictions_path(options.out, data, task.labels)
        found = predict(model, tokenizer, data.examples)
        found.tell(model)
        print("\n".join(map(str, write_predictions(options.out, data, found.values, found.null_odds or None))))
        return 0

    def of_files() -> Iterator[Any]:
        for file in options.files:
            malformed = Malformed(file, most)
            yield from unlabelled_examples(file, task.kind, malformed, **how)
            for note in malformed.notes():
                say(note, sys.stderr)

    examples = (
        of_files() if options.files else stream_examples(sys.stdin.buffer, task.kind, columns=named, texts=task.texts)
    )
    for row in predict_stream(model, tokenizer, examples, options.at_once):
        print(json_line(row), end="", flush=True)
    return 0


COMMANDS = {
    "finetune": Command(run_finetune, variant=variant),
    "evaluate": Command(run_evaluate, variant=variant),
    "predict": Command(run_predict, variant=variant),
}
