"""The commands around pre-training: prepare, pretrain, convert, info."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from electra_fast.cli.interrupts import importing
from electra_fast.cli.options import Command, Default
from electra_fast.train.recipes import PAPER, recipe_of
from electra_fast.train.settings import Packing, PretrainConfig, RunConfig


@dataclass(frozen=True, kw_only=True)
class PrepareOptions:
    """Data: the text, and what is made of it."""

    files: Annotated[tuple[Path, ...], tyro.conf.Positional]
    """Text: .txt, .tokens, .jsonl or .parquet; all but the last may be packed as .gz or .xz."""

    out: Path
    """Directory to write; it must not exist, or be empty."""

    vocab_size: int | None = None
    """Entries of the vocabulary that is trained on the text. (default: 30,522)"""

    tokenizer: Path | None = None
    """Tokenizer to use instead of training one: tokenizer.json, vocab.txt, or a directory with one. (default: a
    vocabulary is trained)"""

    max_length: int = 128
    """Tokens of an example, at most, [CLS] and [SEP] included."""

    packing: Packing = "pairs"
    """How text is cut into examples: pairs is Google's pairs of segments, plain is one stream that drops nothing."""

    cased: bool = False
    """Keep upper case, and accents with it."""

    no_strip_accents: bool = False
    """Keep accents: for languages that need them."""

    heldout: float = 0.01
    """Share of the text kept for evaluation."""

    processes: int | None = None
    """Worker processes; 1 works in this process, with threads. (default: chosen by the size of the text)"""

    seed: int = 0
    """Seed of the examples."""


def run_prepare(options: PrepareOptions) -> int:
    """Example: electra-fast prepare my-text.txt --out my-corpus --vocab-size 4000

    Train a WordPiece vocabulary on text, cut the text into training examples,
    and write both to a directory for `electra-fast pretrain --data`."""
    with importing():
        from electra_fast.data.prepare import prepare
    settings = vars(options) | {"lowercase": not options.cased}
    settings["strip_accents"] = False if options.no_strip_accents else None
    for name in ("files", "cased", "no_strip_accents"):
        del settings[name]
    prepare(list(options.files), **settings)
    return 0


@dataclass(frozen=True, kw_only=True)
class LogOptions:
    """Output: where figures go besides metrics.jsonl."""

    log_to: Literal["tensorboard", "wandb"] | None = None
    """Send the figures there too. (default: nowhere)"""


def run_pretrain(run: RunConfig, config: PretrainConfig, logging: LogOptions) -> int:
    """Example: electra-fast pretrain --data my-text.txt --model tiny --out my-run

    Train a generator and a discriminator on text. Checkpoints, metrics, curves
    and the final weights go to --out; a run that was stopped continues with
    --resume."""
    with importing():
        from electra_fast.report.log import tensorboard, wandb
        from electra_fast.train.pretrain import pretrain
    callback = {None: lambda _: None, "tensorboard": tensorboard, "wandb": wandb}[logging.log_to](run.out)
    result = pretrain(run, config, callback)
    if result.signal is None:
        return 0
    print(f"stopped after step {result.step}, which is saved; go on with --resume", file=sys.stderr)
    return 128 + result.signal


def pretrain_defaults(arguments: Sequence[str]) -> dict[str, Default]:
    """Defaults of `pretrain` that the dataclasses leave open: the output directory, and what the recipe says."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("model", "recipe", "objective"):
        parser.add_argument(f"--{name}", nargs="?")
    given = parser.parse_known_args(arguments)[0]
    model = given.model if given.model in PAPER else RunConfig.model
    recipe = recipe_of(model, given.recipe, given.objective or RunConfig.objective)
    title = f"the recipe {given.recipe}" if given.recipe else f"the recipe of {model}"
    words = {
        name: Default(value, f"{round(value, 4) if isinstance(value, float) else value}, {title}")
        for name, value in recipe["optimisation"].items()
    }
    return words | {"out": Default(Path("electra-out"), "electra-out")}


@dataclass(frozen=True, kw_only=True)
class ConvertOptions:
    """Data: the weights to read, and where they go."""

    source: Annotated[Path, tyro.conf.Positional]
    """Weights: model.ckpt[.index], or a directory with it or with model.safetensors."""

    out: Annotated[Path, tyro.conf.Positional]
    """Directory to write; it must not exist."""

    tokenizer: Path | None = None
    """Tokenizer of the weights: tokenizer.json, vocab.txt, or a directory with one. (default: that beside the
    weights)"""


def run_convert(options: ConvertOptions) -> int:
    """Example: electra-fast convert google/model.ckpt my-electra

    Read the weights of Google's TensorFlow checkpoints, or of transformers, and
    write OUT/generator and OUT/discriminator, which both transformers and
    `electra-fast pretrain --init-generator --init-discriminator` load."""
    with importing():
        from electra_fast.interop.convert import convert
    print(*convert(options.source, options.out, options.tokenizer), sep="\n")
    return 0


def run_info() -> int:
    """Example: electra-fast info

    Print as JSON the versions, the devices, the instruction set of the C++ core,
    and what each op runs on."""
    with importing():
        import electra_fast.ops  # noqa: F401  what info() imports
        from electra_fast.info import info
    print(json.dumps(info(), indent=2))
    return 0


COMMANDS = {
    "prepare": Command(run_prepare),
    "pretrain": Command(run_pretrain, pretrain_defaults),
    "convert": Command(run_convert),
    "info": Command(run_info),
}
