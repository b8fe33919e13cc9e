"""The command score: how natural sentences are to a network that was never fine-tuned."""

from __future__ import annotations

import itertools
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from electra_fast.cli.interrupts import importing
from electra_fast.cli.options import Command
from electra_fast.config import DeviceOptions, PrecisionOptions

if TYPE_CHECKING:
    from electra_fast.data.tokenizer import Tokenizer
    from electra_fast.model.networks import Discriminator, Generator


@dataclass(frozen=True, kw_only=True)
class NetworkOptions:
    """Model: what scores."""

    model: Path
    """Pre-trained network, such as RUN/final/generator, which hides each token in turn, or RUN/final/discriminator,
    which reads a sentence once."""


@dataclass(frozen=True, kw_only=True)
class ScorerOptions(NetworkOptions, DeviceOptions, PrecisionOptions):
    """A pre-trained network, and how it is run."""

    def load(self) -> tuple[Generator | Discriminator, Tokenizer]:
        """The network on the device, in the precision asked for, and its tokenizer."""
        from electra_fast.device import chosen_device, set_threads
        from electra_fast.tasks.sentence_scores import load_network
        from electra_fast.train.optimizer import working_copy

        set_threads(self.threads)
        network, tokenizer = load_network(self.model)
        return working_copy(network.to(chosen_device(self.device)), self.precision), tokenizer


@dataclass(frozen=True, kw_only=True)
class ScoreOptions:
    """Data: what is read and written."""

    files: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Text files, a sentence a line. (default: stdin)"""

    tokens: bool = False
    """Print a JSON object a line, with the score of each token."""

    rank: bool = False
    """Lines are alternatives of each other, in groups that empty lines part: print each group from the best to the
    worst, as the score, a tab and the line."""

    at_once: int = 256
    """Lines that are read before the first is scored."""

    def __post_init__(self) -> None:
        if self.at_once < 1:
            raise ValueError(f"at_once is {self.at_once}; it must be at least 1")
        if self.tokens and self.rank:
            raise ValueError("tokens and rank are two forms of the output; leave one away")


def run_score(scorer: ScorerOptions, options: ScoreOptions) -> int:
    """Example: echo "Cats sleep." | electra-fast score --model run/final/generator

    Print a score for each line, in nats: the more natural, the higher. Scores of
    sentences of the same length or meaning can be compared."""
    with importing():
        from electra_fast.report.terminal import printable
        from electra_fast.tasks.files import decode, read_lines
        from electra_fast.tasks.predictions import json_line
        from electra_fast.tasks.sentence_scores import sentence_scores, token_scores
    network, tokenizer = scorer.load()
    sources = [(str(path), read_lines(path)) for path in options.files] or [("stdin", sys.stdin.buffer)]
    lines = (
        decode(line, f"{name}, line {number}") for name, source in sources for number, line in enumerate(source, 1)
    )
    if options.rank:
        for empty, group in itertools.groupby(lines, lambda line: not line.strip()):
            if not empty:
                texts = list(group)
                totals = sentence_scores(network, tokenizer, texts).tolist()
                for total, text in sorted(zip(totals, texts, strict=True), key=lambda pair: -pair[0]):
                    print(f"{total:.6f}\t{printable(text)}")
                print(flush=True)
        return 0
    while texts := list(itertools.islice(lines, options.at_once)):
        for text, (ids, scores) in zip(texts, token_scores(network, tokenizer, texts), strict=True):
            total = float(scores.sum())
            if options.tokens:
                words = [[tokenizer.token(int(i)), round(float(s), 6)] for i, s in zip(ids, scores, strict=True)]
                print(json_line({"text": text, "score": round(total, 6), "tokens": words}), end="", flush=True)
            else:
                print(f"{total:.6f}", flush=True)
    return 0


COMMANDS = {"score": Command(run_score)}
