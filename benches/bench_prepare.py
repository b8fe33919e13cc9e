"""Text to ids on the host: `prepare` against what the `tokenizers` library alone takes for the same text.

    python benches prepare --rounds 5

Two questions: the vocabulary trained, and the examples made with it. Ours reads the file, trains a vocabulary that is
the same at every run, builds Google's examples, and writes and syncs hashed shards; the rival has the lines in memory
and leaves its ids there. The text is the English that Python carries, about 2 MB; gbps is its bytes by the time.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import tokenizers
from racing.clock import Step
from racing.race import Options, Race
from tokenizers import models, normalizers, pre_tokenizers, trainers

from electra_fast.data.embedded import embedded_documents
from electra_fast.data.prepare import prepare
from electra_fast.data.tokenizer import SPECIAL_TOKENS, Tokenizer

WORDS = 8192


def train_alone(lines: list[str]) -> int:
    library = tokenizers.Tokenizer(models.WordPiece({}, unk_token="[UNK]"))
    library.normalizer, library.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    special = list(SPECIAL_TOKENS)
    trainer = trainers.WordPieceTrainer(vocab_size=WORDS, min_frequency=2, special_tokens=special, show_progress=False)
    library.train_from_iterator(lines, trainer)
    return library.get_vocab_size()


def encode_alone(library: tokenizers.Tokenizer, lines: list[str]) -> int:
    return sum(len(line.ids) for line in library.encode_batch_fast(lines, add_special_tokens=False))


def prepare_anew(file: Path, out: Path, tokenizer: Tokenizer) -> int:
    shutil.rmtree(out, ignore_errors=True)
    return prepare(file, out, tokenizer=tokenizer, progress=False).manifest["text"]["tokens"]


def gives(wanted: int) -> Callable[[Step], str]:
    """Both count what they made: entries of a vocabulary, tokens of the text."""

    def check(step: Step) -> str:
        found = step()
        return "" if found == wanted else f"gives {found}, expected {wanted}"

    return check


def races(options: Options) -> Iterator[Race]:
    if options.device != "cpu":
        return
    documents = embedded_documents()
    lines = [line for document in documents for line in document]
    tokenizer = Tokenizer.train(documents, WORDS)
    tokens = sum(map(len, tokenizer.encode(lines)))
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        (root / "text.txt").write_text("\n\n".join("\n".join(document) for document in documents))
        tokenizer.save(root)
        library = tokenizers.Tokenizer.from_file(str(root / "tokenizer.json"))
        common: dict[str, Any] = dict(bench="prepare", dtype="text", bytes=(root / "text.txt").stat().st_size)
        yield Race(
            model="vocabulary",
            shape=f"{len(lines)} lines, {WORDS} words",
            contestants=dict(
                ours=lambda: lambda: Tokenizer.train(documents, WORDS).vocab_size,
                tokenizers=lambda: lambda: train_alone(lines),
            ),
            check=gives(WORDS),
            **common,
        )
        yield Race(
            model="examples",
            shape=f"{len(lines)} lines, {tokens} tokens",
            contestants=dict(
                ours=lambda: lambda: prepare_anew(root / "text.txt", root / "corpus", tokenizer),
                tokenizers=lambda: lambda: encode_alone(library, lines),
            ),
            check=gives(tokens),
            tokens=tokens,
            **common,
        )
