"""Text files -> a corpus: vocabulary, held-out split, examples and shards, by several processes in bounded memory.

The text is cut into chunks of whole documents, each chunk is encoded and built into examples by whoever is free, and
the results are written in the order of the text: the corpus is the same for any number of processes.
"""

from __future__ import annotations

import errno
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tqdm import tqdm

from electra_fast.data import text
from electra_fast.data.builder import Builder, Chunk, Part
from electra_fast.data.corpus import Corpus, CorpusWriter
from electra_fast.data.embedded import embedded_documents
from electra_fast.data.examples import SHORTEST
from electra_fast.data.heldout import HeldOut
from electra_fast.data.shards import LONGEST, MANIFEST
from electra_fast.data.tokenizer import Tokenizer
from electra_fast.data.workers import Processes, Threads, number_of_processes
from electra_fast.report.terminal import say
from electra_fast.storage.atomic import check_free, staged_directory

PACKINGS = ("pairs", "plain")
CHUNK = 1 << 18  # characters of a unit of work
MUCH_UNKNOWN = 0.01  # of the tokens: more is told
MUCH_STRIPPED = 0.02  # of the characters; 0.015 is usual in German, 0.035 in French


def prepare(
    files: str | Path | list[str | Path] | None,
    out: str | Path,
    *,
    vocab_size: int | None = None,
    tokenizer: str | Path | Tokenizer | None = None,
    max_length: int = 128,
    packing: str = "pairs",
    lowercase: bool = True,
    strip_accents: bool | None = None,
    heldout: float = 0.01,
    processes: int | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Corpus:
    """Make a corpus directory `out` of text files, and return its "train" split.

    files: what `text.documents` reads; None: `embedded_documents`. vocab_size: of the vocabulary trained on the
    text (30,522 by default, less where the text is too small for that), with lowercase and strip_accents as its rules
    (None: strip as it lower-cases); tokenizer: one to use in its stead. max_length: tokens of an example. packing:
    "pairs", Google's examples of two segments, or "plain", which drops nothing. heldout: the share of the text that
    goes to the split "heldout", in whole documents where they are many (see HeldOut). processes: None
    chooses by the size of the text; 1 works in this process with the library's threads. seed: of the examples.
    progress: show a bar, and a table at the end. Warns where much of the text is lost ([UNK], marks that are stripped),
    and where the text has too few documents to hold some out.

    Raises ValueError, FileNotFoundError or FileExistsError (out is not free) before any work is done, where it can.
    """
    check_free(out, MANIFEST)
    _check(max_length, packing, heldout, processes, seed)
    if vocab_size is not None and tokenizer is not None:
        name = "a tokenizer" if isinstance(tokenizer, Tokenizer) else f"the tokenizer {tokenizer}"
        raise ValueError(
            f"vocab_size {vocab_size} and {name} are both given; a tokenizer has its size: drop vocab_size"
        )
    source = _Source(files, progress)
    began = time.monotonic()
    is_trained = tokenizer is None
    if tokenizer is None:
        wanted = 30522 if vocab_size is None else vocab_size
        tokenizer = Tokenizer.train(source, wanted, lowercase=lowercase, strip_accents=strip_accents)
        if tokenizer.vocab_size < wanted and progress:
            say(
                f"The text yields a vocabulary of {tokenizer.vocab_size:,} entries; {wanted:,} were asked for.",
                sys.stderr,
            )
    elif not isinstance(tokenizer, Tokenizer):
        tokenizer = Tokenizer.load(tokenizer)
    builder = Builder(tokenizer, max_length, packing, seed)
    settings = {"builder": packing, "seed": seed, "heldout": heldout}
    totals, held = _Totals(), HeldOut(heldout)
    try:
        with staged_directory(Path(out), MANIFEST) as staging:
            writer = CorpusWriter(staging, tokenizer, max_length, settings=settings)
            count = number_of_processes(processes, source.size)
            with Processes(builder, count) if count > 1 else Threads(builder) as workers:
                for result in workers.build(source.chunks(held)):
                    for split, part in result.items():
                        writer.add(split, *part.arrays())
                        totals.add(split, part)
            if not totals.examples.get("train"):
                found = totals.examples
                raise ValueError(f"the text gives no training example ({found}); give more text, or less heldout")
            writer.finish(totals.as_dict(source.counts))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OSError(
            f"{out} could not be written ({error}); nothing of it is left: free some space, or give another --out"
        ) from error
    for warning in _warnings(totals, held, tokenizer, is_trained):
        warnings.warn(warning, stacklevel=2)
    if progress:
        say(_table(totals, source.counts, tokenizer, time.monotonic() - began, packing), sys.stderr)
    return Corpus(out)


def _check(max_length: int, packing: str, heldout: float, processes: int | None, seed: int) -> None:
    if not SHORTEST <= max_length <= LONGEST:
        raise ValueError(f"max_length is {max_length}; it must lie between {SHORTEST} and {LONGEST}, 128 is usual")
    if packing not in PACKINGS:
        raise ValueError(f"packing is {packing!r}; it must be one of {', '.join(PACKINGS)}")
    if not 0 <= heldout < 1:
        raise ValueError(f"heldout is {heldout}; it is a share of the text: 0 (none) up to, not including, 1")
    if processes is not None and processes < 1:
        raise ValueError(f"processes is {processes}; it must be at least 1, or None to choose by the size of the text")
    if not -(2**63) <= seed < 2**63:
        raise ValueError(f"seed is {seed}; it must fit in 64 bits")


class _Source:
    """The documents, readable more than once, with a progress bar a reading."""

    def __init__(self, files: str | Path | list[str | Path] | None, progress: bool) -> None:
        self.counts = text.Counts()
        self._progress, self._label = progress, "vocabulary"
        self._files: list[Path] = [] if files is None else text.checked_files(files)
        self._embedded = embedded_documents() if files is None else []
        self.size = sum(path.stat().st_size for path in self._files)  # bytes on disk

    def __iter__(self) -> Iterator[list[str]]:
        self.counts = counts = text.Counts()
        size = self.size or sum(len(line) for document in self._embedded for line in document)
        options: dict[str, Any] = dict(total=size, unit="B", unit_scale=True, disable=not self._progress)
        with tqdm(desc=self._label, **options) as bar:
            for document in text.documents(self._files, counts) if self._files else self._count_embedded(counts):
                bar.update(counts.read - bar.n)
                yield document
            bar.update(counts.read - bar.n)

    def _count_embedded(self, counts: text.Counts) -> Iterator[list[str]]:
        for document in self._embedded:
            counts.documents += 1
            counts.lines += len(document)
            counts.bytes += sum(len(line.encode()) for line in document)
            counts.read += sum(len(line) for line in document)
            yield document

    def chunks(self, heldout: HeldOut) -> Iterator[Chunk]:
        """Chunks of documents with their splits."""
        self._label = "examples"
        chunk: Chunk = []
        size = 0
        last: list[str] | None = None
        for number, document in enumerate(self):
            if last is not None:
                chunk.append((heldout.split(last), number - 1, last))
                size += sum(map(len, last))
                if size >= CHUNK:
                    yield chunk
                    chunk, size = [], 0
            last = document
        if last is not None:
            number = heldout.documents
            yield [*chunk, *((split, number, lines) for split, lines in heldout.split_last(last))]


@dataclass
class _Totals:
    examples: dict[str, int] = field(default_factory=dict)
    documents: dict[str, int] = field(default_factory=dict)
    tokens: int = 0
    unknown: int = 0
    kept: int = 0
    characters: int = 0
    stripped: int = 0

    def add(self, split: str, part: Part) -> None:
        self.examples[split] = self.examples.get(split, 0) + len(part.lengths)
        self.documents[split] = self.documents.get(split, 0) + part.documents
        self.tokens += part.tokens
        self.unknown += part.unknown
        self.kept += part.kept
        self.characters += part.characters
        self.stripped += part.stripped

    def as_dict(self, counts: text.Counts) -> dict[str, Any]:
        text_counts = {name: value for name, value in vars(counts).items() if name not in ("read", "documents")}
        return {**vars(self), **text_counts}


def _warnings(totals: _Totals, held: HeldOut, tokenizer: Tokenizer, is_trained: bool) -> Iterator[str]:
    """A sentence on each thing that costs much of the text, with the option that helps."""
    unknown, stripped = (
        part / max(1, whole) for part, whole in ((totals.unknown, totals.tokens), (totals.stripped, totals.characters))
    )
    if unknown > MUCH_UNKNOWN:
        remedy = (
            "ask for a larger one by --vocab-size" if is_trained else "train one on the text: leave --tokenizer out"
        )
        yield f"{unknown:.1%} of the tokens are [UNK], which the vocabulary has no pieces for; {remedy}"
    if stripped > MUCH_STRIPPED:
        remedy = "--no-strip-accents" + ("" if is_trained else " in place of --tokenizer")
        yield (
            f"{stripped:.1%} of the characters lose a mark, which in many languages is a vowel or tells words apart; "
            f"keep them by {remedy}"
        )
    if not held.share:
        return
    documents = f"{held.documents:,} document" + "s" * (held.documents > 1)
    if held.divided:
        yield (
            f"the text has {documents}, too few to hold out {held.share:.3g} of it in whole ones, so "
            f"the end of the last is held out, {held.divided:,} of its lines; put a blank line between documents, or "
            f"change --heldout"
        )
    elif not held.share / 2 <= held.share_found <= held.share * 2:
        yield (
            f"{held.share_found:.3g} of the text is held out where --heldout {held.share:.3g} was asked for, since it "
            f"has {documents}, and the last has too few lines to divide it; give more text or more "
            f"lines, or change --heldout"
        )


def _table(totals: _Totals, counts: text.Counts, tokenizer: Tokenizer, seconds: float, packing: str) -> str:
    share = totals.kept / max(1, totals.tokens)
    examples = ", ".join(f"{split} {number:,}" for split, number in totals.examples.items())
    documents = ", ".join(f"{split} {number:,}" for split, number in totals.documents.items())
    advice = "; split long lines into sentences, or use packing plain" if packing == "pairs" and share < 0.8 else ""
    rows = {
        "documents": documents + (f" ({counts.pieces:,} pieces of long ones)" if counts.pieces else ""),
        "lines": f"{counts.lines:,}"
        + (f" (over-long ones cut {counts.split_lines:,} times)" if counts.split_lines else ""),
        "tokens": f"{totals.tokens:,}, of which {share:.1%} are in examples{advice}",
        "examples": examples,
        "[UNK]": f"{totals.unknown / max(1, totals.tokens):.3%} of the tokens",
        "replaced": f"{counts.replaced:,} characters that were no UTF-8",
        "vocabulary": f"{tokenizer.vocab_size:,} entries",
        "time": f"{seconds:.1f} s, {counts.bytes / 1e6 / max(seconds, 1e-9):.1f} MB/s",
    }
    return "\n".join(f"{name:<12}{value}" for name, value in rows.items())
