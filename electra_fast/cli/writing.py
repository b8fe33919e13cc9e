"""The commands finetune, evaluate and predict for tasks that write: summaries, translations, answers in words."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from electra_fast.cli.interrupts import importing
from electra_fast.cli.options import Command, Default
from electra_fast.config import DeviceOptions, PrecisionOptions
from electra_fast.decoding.settings import WritingConfig
from electra_fast.seq2seq.pairs import WRITINGS
from electra_fast.seq2seq.settings import SequenceConfig, SequenceRun
from electra_fast.tasks.examples import Columns
from electra_fast.tasks.settings import ReadOptions

if TYPE_CHECKING:
    from electra_fast.seq2seq.learner import Learner


@dataclass(frozen=True, kw_only=True)
class PairColumnOptions:
    """Columns: the names of a file's columns, or fields of .jsonl."""

    text_column: str | None = None
    """Column of the source. (default: source, text, document or article)"""

    label_column: str | None = None
    """Column of the reference, or of several in a list. (default: target, summary, translation, highlights or
    answer)"""

    id_column: str | None = None
    """Column of the id. (default: id or paper_id)"""

    def columns(self) -> Columns | None:
        """The columns that are named, the others by their usual names; None if none is named."""
        named = {name.removesuffix("_column"): value for name, value in vars(self).items() if value is not None}
        return Columns(**named) if named else None


def run_finetune(run: SequenceRun, config: SequenceConfig, writing: WritingConfig, columns: PairColumnOptions) -> int:
    """Example: electra-fast finetune --task translation --source train.en --target train.de \\
        --dev-source val.en --dev-target val.de --model my-run/final/discriminator \\
        --decoder my-run/final/generator --out my-translator

    Train an encoder-decoder of two pre-trained networks to write, once per seed, and
    measure each model on the development set. OUT holds the best model, what it
    writes, the scores and curves."""
    with importing():
        from electra_fast.seq2seq.finetune import finetune
    seeds = tuple(range(run.seeds[0])) if len(run.seeds) == 1 and run.seeds[0] > 0 else run.seeds
    results = finetune(dataclasses.replace(run, seeds=seeds, columns=columns.columns()), config, writing)
    for seed, scores in results["seeds"].items():
        print(f"seed {seed}: " + ", ".join(f"{name} {value:.4f}" for name, value in scores.items()))
    print(f"{results['metric']}: median {results['median']:.4f}, spread {results['spread']:.4f}; wrote {run.out}")
    return 0


@dataclass(frozen=True, kw_only=True)
class WriterOptions(DeviceOptions, PrecisionOptions):
    """Model: what writes."""

    model: Path
    """Trained model: OUT/model of finetune, or an EncoderDecoderModel of transformers with its tokenizer."""

    def load(self) -> Learner:
        """The model on the device, in the precision asked for."""
        from electra_fast.device import chosen_device, set_threads
        from electra_fast.seq2seq.finetune import load_learner
        from electra_fast.train.optimizer import working_copy

        set_threads(self.threads)
        return working_copy(load_learner(self.model).to(chosen_device(self.device)), self.precision)


@dataclass(frozen=True, kw_only=True)
class SampleOptions:
    """Writing: how samples are drawn."""

    seed: int = 0
    """Seed of the samples; the text of a source depends on it and on the source's number alone."""


@dataclass(frozen=True, kw_only=True)
class PairDataOptions(ReadOptions):
    """Data: what is read and written."""

    data: Path | None = None
    """File of sources with their references. (default: --source and --target)"""

    source: Path | None = None
    """File with a source a line, beside --target."""

    target: Path | None = None
    """File whose line n is the target of line n of --source."""

    out: Path | None = None
    """File to write as well: a line {"id", "text", "references"} for each example. (default: none is written)"""

    def __post_init__(self) -> None:
        if (self.data is None) != (self.source is not None and self.target is not None) or (
            (self.source is None) != (self.target is None)
        ):
            raise ValueError("give either --data, or both --source and --target")


def run_evaluate(
    use: WriterOptions,
    options: PairDataOptions,
    writing: WritingConfig,
    sample: SampleOptions,
    columns: PairColumnOptions,
) -> int:
    """Example: electra-fast evaluate --model my-translator/model --source test.en --target test.de --num-beams 4

    Print the scores of what a trained model writes, as JSON."""
    with importing():
        from electra_fast.report.terminal import progress_bar, say
        from electra_fast.seq2seq.finetune import write_texts
        from electra_fast.seq2seq.metrics import check_libraries, signatures, text_scores
        from electra_fast.seq2seq.pairs import read_pairs, read_parallel
    learner = use.load()
    task = learner.task.task
    check_libraries(task)
    if options.data is not None:
        pairs, notes = read_pairs(options.data, task, columns.columns(), max_bad_lines=options.max_bad_lines)
        for note in notes:
            say(note, sys.stderr)
    elif options.source is not None and options.target is not None:
        pairs = read_parallel(options.source, options.target)
    with progress_bar(total=len(pairs), unit="example") as bar:
        written = learner.write(pairs, writing, sample.seed, advance=bar.update)
    references = [pair.references for pair in pairs]
    for signature in signatures(task, written, references):
        say(signature, sys.stderr)
    print(json.dumps(text_scores(task, written, references), indent=2), flush=True)
    if options.out is not None:
        write_texts(options.out, pairs, written)
    return 0


@dataclass(frozen=True, kw_only=True)
class StreamOptions(ReadOptions):
    """Data: what is read and written."""

    files: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Files of finetune's formats without references, or .txt with a source a line. (default: stdin)"""

    at_once: int = 64
    """Sources that are read before the first text is written."""

    def __post_init__(self) -> None:
        if self.at_once < 1:
            raise ValueError(f"at_once is {self.at_once}; it must be at least 1")


def run_predict(
    use: WriterOptions,
    options: StreamOptions,
    writing: WritingConfig,
    sample: SampleOptions,
    columns: PairColumnOptions,
) -> int:
    """Example: echo "A man sleeps." | electra-fast predict --model my-translator/model --num-beams 4

    Print what a trained model writes of each source, as one JSON object per line."""
    with importing():
        from electra_fast.report.terminal import say
        from electra_fast.seq2seq.pairs import stdin_pairs, stream_pairs
        from electra_fast.seq2seq.predict import write_stream
        from electra_fast.tasks.files import Malformed, check_file
        from electra_fast.tasks.predictions import json_line
    learner = use.load()
    task = learner.task.task

    def of_files() -> Iterator[Any]:
        for file in options.files:
            malformed = Malformed(check_file(file), options.max_bad_lines)
            yield from stream_pairs(file, task, malformed, columns.columns())
            for note in malformed.notes():
                say(note, sys.stderr)

    pairs = of_files() if options.files else stdin_pairs(task, columns.columns())
    for row in write_stream(learner, pairs, writing, sample.seed, options.at_once):
        print(json_line(row), end="", flush=True)
    return 0


def writing_defaults(arguments: Sequence[str]) -> Mapping[str, Default]:
    """How the model of --model writes unless it is told otherwise."""
    task = _saved(_value(arguments, "--model"))
    written = task.get("writing") if isinstance(task.get("writing"), dict) else {}
    try:
        options = dataclasses.asdict(WritingConfig(**written)) if written else {}
    except (TypeError, ValueError):  # loading the model tells what is wrong with the file
        return {}
    return {name: Default(value, f"{value}, that of the model") for name, value in options.items()}


def variant(command: str, arguments: Sequence[str]) -> Command | None:
    """The command for a task that writes, if the arguments ask for one: by --task, or by the model that is named."""
    if command == "finetune" and _value(arguments, "--task") in WRITINGS:
        return Command(run_finetune)
    if command in ("evaluate", "predict") and _writes(_value(arguments, "--model")):
        return Command(run_evaluate if command == "evaluate" else run_predict, writing_defaults)
    return None


def _value(arguments: Sequence[str], option: str) -> str:
    """The value of an option in a command line; "" if it is not there."""
    for i, argument in enumerate(arguments):
        name, equals, value = argument.partition("=")
        if name == option:
            return value if equals else next(iter(arguments[i + 1 :]), "")
    return ""


def _saved(model: str, name: str = "task.json") -> dict[str, Any]:
    """What a JSON file of a model's directory says; {} if there is none, or none that can be read."""
    try:
        values = json.loads((Path(model) / name).read_bytes()) if model else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def _writes(model: str) -> bool:
    return _saved(model).get("task") in WRITINGS or _saved(model, "config.json").get("model_type") == "encoder-decoder"
