"""The command line, `electra-fast`: each option is a field of a config, each command one call."""

from __future__ import annotations

import argparse
import dataclasses
import json
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from electra_fast.config import PRECISIONS, PretrainConfig
from electra_fast.google import convert
from electra_fast.info import info
from electra_fast.prepare import PACKINGS, prepare
from electra_fast.pretrain import RECIPES, RunConfig, pretrain
from electra_fast.report import tensorboard, wandb


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
    p("files", nargs="+", type=Path, metavar="FILE", help=".txt, .jsonl, .parquet, or these with .gz or .xz")
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
    p("--device", choices=("auto", "cpu", "cuda"), default="auto")
    p("--precision", choices=PRECISIONS, default="auto", help="of forward and backward; auto: bfloat16 on CUDA alone")
    p("--non-finite", choices=("stop", "skip"), default="stop", help="what a loss that is not finite does")
    p("--init-generator", type=Path, metavar="DIR", help="start from these Hugging Face weights")
    p("--init-discriminator", type=Path, metavar="DIR", help="start from these Hugging Face weights")
    p("--faithful", action="store_true", help="reproduce Google's code where it is odd")
    p("--log-to", choices=("tensorboard", "wandb"), help="send the figures there too")

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


def run_convert(options: dict[str, Any]) -> int:
    print(*convert(**options), sep="\n")
    return 0


def run_info(options: dict[str, Any]) -> int:
    print(json.dumps(info(), indent=2))
    return 0


COMMANDS = {"prepare": run_prepare, "pretrain": run_pretrain, "convert": run_convert, "info": run_info}
