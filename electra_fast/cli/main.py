"""The command line, `electra-fast`: each option is a field of a config, each command one call."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import json
import os
import signal
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from electra_fast.config import HEADS, PRECISIONS, FinetuneConfig, PretrainConfig
from electra_fast.data.prepare import PACKINGS, prepare
from electra_fast.data.tokenizer import Tokenizer
from electra_fast.device import DEVICES, chosen_device
from electra_fast.info import info
from electra_fast.interop.convert import convert
from electra_fast.report.log import tensorboard, wandb
from electra_fast.tasks.datasets import read_dataset, stream_examples
from electra_fast.tasks.examples import KINDS, Columns
from electra_fast.tasks.finetune import FinetuneRun, finetune
from electra_fast.tasks.model import TaskModel
from electra_fast.tasks.predict import evaluate, fitted, predict, predict_stream
from electra_fast.tasks.predictions import check_predictions_path, json_line, write_predictions
from electra_fast.tasks.schemes import described
from electra_fast.train.optimizer import working_copy
from electra_fast.train.pretrain import pretrain
from electra_fast.train.start import OBJECTIVES, RECIPES, RunConfig


def main(arguments: list[str] | None = None) -> int:
    """Exit status: 0 done, 1 a user's mistake or a full disk (one sentence on stderr), 128 + n stopped by signal n."""
    options = vars(parser().parse_args(arguments))
    command = COMMANDS[options.pop("command")]
    try:
        return command(options)
    except ModuleNotFoundError as error:
        print(f"electra-fast: {error}; pip install {error.name}", file=sys.stderr)
    except (ValueError, TypeError, IndexError, OSError, FloatingPointError, ImportError) as error:
        print(f"electra-fast: {error}", file=sys.stderr)
    except KeyboardInterrupt:
        print("electra-fast: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    return 1


def parser() -> argparse.ArgumentParser:
    whole = argparse.ArgumentParser("electra-fast", description="Pre-train ELECTRA, fast, on GPU and CPU.")
    commands = whole.add_subparsers(dest="command", required=True)

    def command(name: str, help: str) -> Callable[..., argparse.Action]:
        formatter = argparse.ArgumentDefaultsHelpFormatter
        return commands.add_parser(name, help=help, description=help, formatter_class=formatter).add_argument

    p = command("prepare", "text -> tokenizer and hashed shards of examples")
    p("files", nargs="+", type=Path, metavar="FILE", help=".txt, .tokens, .jsonl, .parquet, or .gz or .xz of them")
    p("--out", type=Path, required=True, help="directory to write; it must not exist")
    p("--vocab-size", type=int, help="of the vocabulary trained on the text; 30,522 unless given")
    p("--tokenizer", type=Path, help="in its stead: tokenizer.json, vocab.txt, or a directory with one")
    p("--max-length", type=int, default=128, help="tokens of an example, at most")
    p("--packing", choices=PACKINGS, default="pairs", help="Google's pairs, or one stream cut up")
    p("--cased", action="store_true", help="keep upper case")
    p("--no-strip-accents", action="store_true", help="keep accents")
    p("--heldout", type=float, default=0.01, help="share of the documents kept for evaluation")
    p("--processes", type=int, help="worker processes; chosen by the size of the text unless given")
    p("--seed", type=int, default=0, help="of the examples")

    p = command("pretrain", "train a generator and a discriminator")
    p("--data", nargs="+", type=Path, help="text files or a prepared directory; the text that Python carries if none")
    p("--tokenizer", type=Path, help="tokenizer.json, vocab.txt, or a directory with one; trained here if none")
    p("--vocab-size", type=int, help="of a vocabulary trained here; 8,192, or 1,000 without --data")
    p("--model", choices=RECIPES, default="tiny")
    p(
        "--objective",
        choices=OBJECTIVES,
        default="electra",
        help="or mlm: one network of the discriminator's size that fills blanks",
    )
    p("--steps", type=int, help="optimiser steps; the model's recipe unless given, as with the next three")
    p("--batch-size", type=int, help="sequences a step")
    p("--max-length", type=int, help="tokens of a sequence (of prepared data: as it was prepared)")
    p("--learning-rate", type=float, help="at its highest")
    p("--micro-batch-size", type=int, help="sequences at once, to fit the memory; all of them unless given")
    p("--warmup-steps", type=int, help="10,000 unless given, or a tenth of a shorter run")
    p("--out", type=Path, default=Path("electra-out"), help="directory of checkpoints, metrics and final weights")
    p("--resume", action="store_true", help="go on from the newest checkpoint of OUT")
    p(
        "--allow-change",
        nargs="+",
        metavar="NAME",
        help="settings that may differ on --resume, as its refusal names them",
    )
    p("--save-every", type=int, default=RunConfig.save_every, help="steps")
    p("--keep", type=int, default=RunConfig.keep, help="newest checkpoints to keep")
    p("--eval-every", type=int, default=RunConfig.eval_every, help="steps")
    p("--log-every", type=int, default=RunConfig.log_every, help="steps")
    p("--seed", type=int, default=0)
    p("--device", choices=DEVICES, default="auto")
    p("--precision", choices=PRECISIONS, default="auto", help="of forward and backward; auto: bfloat16 on CUDA alone")
    p("--non-finite", choices=("stop", "skip"), default="stop", help="what a loss that is not finite does")
    p("--init-generator", type=Path, metavar="DIR", help="start from these Hugging Face weights")
    p("--init-discriminator", type=Path, metavar="DIR", help="start from these Hugging Face weights")
    p("--faithful", action="store_true", help="reproduce Google's code where it is odd")
    p("--log-to", choices=("tensorboard", "wandb"), help="send the figures there too")

    p = command("finetune", "train a pre-trained model on a task, over several seeds")
    p("--task", choices=KINDS, required=True)
    p("--model", type=Path, required=True, help="pre-trained: a Hugging Face directory with its tokenizer")
    p("--train", type=Path, required=True, help="file of labelled examples")
    p("--dev", type=Path, required=True, help="file of labelled examples to measure on")
    p("--out", type=Path, required=True, help="directory to write; it must not exist")
    columns(p)
    p(
        "--seeds",
        nargs="+",
        type=int,
        default=[0],
        metavar="N",
        help="of which each trains a model; one alone: how many",
    )
    p("--resume", action="store_true", help="continue the run in OUT with the seeds that are not done")
    p("--random-init", action="store_true", help="take the model's sizes and tokenizer, and draw its weights anew")
    p("--device", choices=DEVICES, default="auto")
    p("--log-every", type=int, default=FinetuneRun.log_every, help="steps")
    p("--epochs", type=float, help="3 unless given; 10 for RTE and STS-B, 2 for qa")
    p("--learning-rate", type=float, default=FinetuneConfig.learning_rate, help="of the head, at its highest")
    p("--layerwise-decay", type=float, default=FinetuneConfig.layerwise_decay, help="of it, from layer to layer below")
    p("--weight-decay", type=float, default=FinetuneConfig.weight_decay)
    p("--batch-size", type=int, default=FinetuneConfig.batch_size, help="sequences a step")
    p("--max-length", type=int, help="tokens of a sequence; 128, or 512 for qa, unless given")
    p("--stride", type=int, default=FinetuneConfig.stride, help="tokens between windows on a long text")
    p("--head", choices=HEADS, default=FinetuneConfig.head, help="Google's, or what transformers' classes load")
    p("--precision", choices=PRECISIONS, default="auto", help="auto: bfloat16 on CUDA alone")
    p("--faithful", action="store_true", help="reproduce Google's code where it is odd")

    p = command("evaluate", "the official scores of a fine-tuned model")
    p("--model", type=Path, required=True, help="OUT/model of finetune, or a fine-tuned one of transformers")
    p("--data", type=Path, required=True, help="file of labelled examples")
    p("--out", type=Path, help="file of predictions to write as well")
    columns(p)
    p("--device", choices=DEVICES, default="auto")
    p("--precision", choices=PRECISIONS, default="auto")

    p = command("predict", "what a fine-tuned model says of examples without labels")
    p("files", nargs="*", type=Path, metavar="FILE", help="files of finetune's formats, or .txt; stdin if none")
    p("--model", type=Path, required=True, help="OUT/model of finetune, or a fine-tuned one of transformers")
    p("--out", type=Path, help="write a file in the benchmark's format in place of a JSON object a line on stdout")
    p("--at-once", type=int, default=256, help="examples that are read before the first is answered")
    columns(p)
    p("--device", choices=DEVICES, default="auto")
    p("--precision", choices=PRECISIONS, default="auto")

    p = command(
        "convert", "weights of Google's TensorFlow checkpoints, or of transformers -> OUT/generator, discriminator"
    )
    p("source", type=Path, metavar="SOURCE", help="model.ckpt[.index], or a directory with it or model.safetensors")
    p("out", type=Path, metavar="OUT", help="directory to write; it must not exist")
    p("--tokenizer", type=Path, help="tokenizer.json, vocab.txt, or a directory; that beside the weights unless given")

    command("info", "versions, devices, and what each op runs on")
    return whole


def run_prepare(options: dict[str, Any]) -> int:
    files, out = options.pop("files"), options.pop("out")
    lowercase = not options.pop("cased")
    strip_accents = False if options.pop("no_strip_accents") else None
    prepare(files, out, lowercase=lowercase, strip_accents=strip_accents, **options)
    return 0


def run_pretrain(options: dict[str, Any]) -> int:
    recipe = RECIPES[options["model"]]
    options |= {name: value for name, value in recipe.items() if options[name] is None and name != "max_length"}
    log_to = options.pop("log_to")
    callback = {None: lambda _: None, "tensorboard": tensorboard, "wandb": wandb}[log_to](options["out"])
    fields = {field.name for field in dataclasses.fields(PretrainConfig)}
    config = PretrainConfig(**{name: options.pop(name) for name in sorted(fields & options.keys())})
    options |= {name: tuple(options[name] or ()) for name in ("data", "allow_change")}
    result = pretrain(RunConfig(**options), config, callback)
    if result.signal is None:
        return 0
    print(f"stopped after step {result.step}, which is saved; go on with --resume", file=sys.stderr)
    return 128 + result.signal


def run_finetune(options: dict[str, Any]) -> int:
    seeds = options.pop("seeds")
    options["seeds"] = tuple(range(seeds[0])) if len(seeds) == 1 and seeds[0] > 0 else tuple(seeds)
    options["columns"] = chosen_columns(options)
    fields = {field.name for field in dataclasses.fields(FinetuneConfig)}
    config = FinetuneConfig(**{name: options.pop(name) for name in sorted(fields & options.keys())})
    results = finetune(FinetuneRun(**options), config)
    for seed, scores in results["seeds"].items():
        print(f"seed {seed}: " + ", ".join(f"{name} {value:.4f}" for name, value in scores.items()))
    print(
        f"{results['metric']}: median {results['median']:.4f}, spread {results['spread']:.4f}; wrote {options['out']}"
    )
    return 0


def run_evaluate(options: dict[str, Any]) -> int:
    model, tokenizer = loaded(options)
    data = read_dataset(
        options["data"], model.task.kind, columns=chosen_columns(options), benchmark=model.task.benchmark
    )
    model.task = fitted(model.task, data, options["data"])
    if model.task.kind == "tagging":
        print(described(model.task.labels), file=sys.stderr)
    if options["out"] is not None:
        check_predictions_path(options["out"], data, model.task.labels)
    scores, found = evaluate(model, tokenizer, data)
    print(json.dumps(scores, indent=2), flush=True)  # before the predictions, whose writing may fail
    if options["out"] is not None:
        write_predictions(options["out"], data, found.values, found.null_odds or None)
    return 0


def run_predict(options: dict[str, Any]) -> int:
    files, out = options["files"], options["out"]
    if options["at_once"] < 1:
        raise ValueError(f"at_once is {options['at_once']}; it must be at least 1")
    if out is not None and len(files) != 1:
        raise ValueError(f"out is {out}, one file of predictions, and {len(files)} files are given; name one")
    model, tokenizer = loaded(options)
    task, chosen = model.task, chosen_columns(options)
    read = functools.partial(read_dataset, kind=task.kind, columns=chosen, labelled=False, benchmark=task.benchmark)
    if out is not None:
        data = read(files[0])
        check_predictions_path(out, data, task.labels)
        found = predict(model, tokenizer, data.examples)
        print("\n".join(map(str, write_predictions(out, data, found.values, found.null_odds or None))))
        return 0
    sources: Iterable[Any] = (example for file in files for example in read(file).examples)
    if not files:
        sources = stream_examples(sys.stdin.buffer, task.kind, columns=chosen)
    try:
        for row in predict_stream(model, tokenizer, sources, options["at_once"]):
            print(json_line(row), end="", flush=True)
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def loaded(options: dict[str, Any]) -> tuple[TaskModel, Tokenizer]:
    """The fine-tuned model on the device, in the precision asked for."""
    model, tokenizer = TaskModel.load(options["model"])
    return working_copy(model.to(chosen_device(options["device"])), options["precision"]), tokenizer


def columns(p: Callable[..., argparse.Action]) -> None:
    p("--text-column", metavar="NAME", help="of the text; this and the next three where a file is not GLUE's")
    p("--text2-column", metavar="NAME", help="of the second text, if there is one")
    p("--label-column", metavar="NAME")
    p("--id-column", metavar="NAME")


def chosen_columns(options: dict[str, Any]) -> Columns | None:
    given = {name: options.pop(f"{name}_column") for name in ("text", "text2", "label", "id")}
    given = {name: value for name, value in given.items() if value is not None}
    return Columns(**given) if given else None


def run_convert(options: dict[str, Any]) -> int:
    print(*convert(**options), sep="\n")
    return 0


def run_info(options: dict[str, Any]) -> int:
    print(json.dumps(info(), indent=2))
    return 0


COMMANDS = {
    "prepare": run_prepare,
    "pretrain": run_pretrain,
    "finetune": run_finetune,
    "evaluate": run_evaluate,
    "predict": run_predict,
    "convert": run_convert,
    "info": run_info,
}
