"""Faults of data files (rows 30 to 39): empty, cut short, forged, of another make; see world.py."""

import dataclasses
import gzip
import os
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from world import PREPARE_AGAIN, RESUME_OLDER, SAVE_AGAIN, Bomb, Cases, World, edit, entry, header, patch, refuse, span

from electra_fast import Electra
from electra_fast.cli.main import main
from electra_fast.data import shards, text
from electra_fast.data.corpus import Corpus
from electra_fast.data.tokenizer import Tokenizer

case = Cases()


def patch_word(world: World, at: int, *values: int, **changes: object) -> None:
    patch(world, at, struct.pack(f"<{len(values)}Q", *values), **changes)


def fewer_words(world: World) -> None:
    """A pair with 10 words fewer than the tokenizer of the corpus has."""
    torch.manual_seed(1)
    config = Electra.from_pretrained(world.pair).config
    Electra(dataclasses.replace(config, vocab_size=config.vocab_size - 10)).save_pretrained(world.pair)


def other_tokenizer(world: World) -> None:
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *map(str, range(30))]
    (world.root / "vocab.txt").write_text("\n".join(words))
    Tokenizer.load(world.root / "vocab.txt").save(world.data / "tokenizer")


def pickled_array(world: World, path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.array([Bomb(world.root / "exploded")], dtype=object), allow_pickle=True)
    if path == world.shard:
        patch(world, 0, b"\x93")  # as it is: corpus.json agrees


def linked(world: World) -> None:
    world.shard.rename(world.root / "elsewhere.bin")
    world.shard.symlink_to(world.root / "elsewhere.bin")


OFFSETS = shards.HEADER.size


# What breaks, what is run on it, and what the user reads.
REFUSED: dict[str, tuple[Callable[[World], object], str | Callable[[World], object], list[str]]] = {
    "row30-empty-text": (
        lambda w: w.text.write_text(""),
        "prepare",
        ["{text} is empty (0 bytes); leave it out, or write it anew"],
    ),
    "row30-blank-text": (
        lambda w: w.text.write_text("\n \n"),
        "prepare",
        ["{text} holds no text, blank lines at most; leave it out, or write it anew"],
    ),
    "row30-missing-text": (lambda w: w.text.unlink(), "prepare", ["there is no text file {text}; check the name"]),
    "row30-missing-shard": (
        lambda w: w.shard.unlink(),
        "train",
        ["shard {data}/train-00000.bin is missing; copy it again, or " + PREPARE_AGAIN],
    ),
    "row30-empty-shard": (
        lambda w: w.shard.write_bytes(b""),
        "train",
        ["shard {data}/train-00000.bin: bytes 0, expected {size}: it is truncated", PREPARE_AGAIN],
    ),
    "row30-empty-weights": (
        lambda w: w.generator.write_bytes(b""),
        "train",
        ["{generator} has 0 bytes", "within the file are allowed", SAVE_AGAIN],
    ),
    "row31-truncated-shard": (
        lambda w: os.truncate(w.shard, w.shard.stat().st_size - 1),
        "train",
        ["shard {data}/train-00000.bin: bytes {shorter}, expected {size}: it is truncated", PREPARE_AGAIN],
    ),
    "row31-truncated-weights": (
        lambda w: os.truncate(w.generator, w.generator.stat().st_size - 3),
        "train",
        ["{generator}: tensor 'after the last' starts at byte ", "and the one before ends at ", SAVE_AGAIN],
    ),
    "row31-truncated-archive": (
        lambda w: (w.root / "text.txt.gz").write_bytes(gzip.compress(w.text.read_bytes())[:-20]),
        lambda w: w.prepare(text=w.root / "text.txt.gz"),
        ["{text}.gz is a damaged .gz archive (Compressed file ended before", "fetch or pack it again"],
    ),
    "row32-2^40-examples": (
        lambda w: patch_word(w, 24, 1 << 40, 1 << 40, examples=1 << 40, tokens=1 << 40),
        "train",
        ["train-00000.bin: bytes by its header {size}, expected 15393162788936: its counts do not fit", PREPARE_AGAIN],
    ),
    "row32-2^40-bytes-of-header": (
        lambda w: header(w, b"{}", 1 << 40),
        "train",
        ["{generator} has 10 bytes and claims a header of 1099511627776; at most 16777216", SAVE_AGAIN],
    ),
    "row33-falling-offsets": (
        lambda w: patch_word(w, OFFSETS + 16, 1),
        "train",
        ["train-00000.bin: example 1 has offsets [16, 1]", "offsets must rise by 1 to 16", PREPARE_AGAIN],
    ),
    "row33-offsets-beyond-the-end": (
        lambda w: patch_word(w, OFFSETS + 16, 1 << 40),
        "train",
        ["example 1 has offsets [16, 1099511627776]", "offsets must rise by 1 to 16", PREPARE_AGAIN],
    ),
    "row33-overflowing-count": (
        lambda w: patch_word(w, 24, (1 << 62) - 1, examples=(1 << 62) - 1),
        "train",
        ["train-00000.bin: bytes by its header {size}, expected 55340232221128", PREPARE_AGAIN],
    ),
    "row33-overlapping-tensors": (
        lambda w: header(w, {"a": span(0, 3), "b": span(2, 4)}, data=b"1234"),
        "train",
        ["{generator}: tensor 'b' starts at byte 2", "ends at 3; no gap, overlap or rest is allowed", SAVE_AGAIN],
    ),
    "row34-magic": (
        lambda w: patch(w, 0, b"SOMEBODY"),
        "train",
        ["train-00000.bin: magic b'SOMEBODY', expected b'EFCORPUS': it is no shard", PREPARE_AGAIN],
    ),
    "row34-version": (
        lambda w: patch(w, 12, b"\2"),
        "train",
        ["train-00000.bin: version 2, expected 1: another version of electra_fast wrote it", PREPARE_AGAIN],
    ),
    "row34-byte-order": (
        lambda w: patch(w, 8, b"\1\2\3\4"),
        "train",
        ["byte-order mark 67305985, expected 16909060: it was written with the other byte order", PREPARE_AGAIN],
    ),
    "row34-dtype": (
        lambda w: patch(w, 16, b"\4"),
        "train",
        ["bytes a token 4, expected 2: the vocabulary has {vocab} entries", PREPARE_AGAIN],
    ),
    "row34-another-tokenizer": (
        other_tokenizer,
        "train",
        ["{data}/tokenizer has 35 entries", "one with {vocab} entries and sha256 ", "restore it, or " + PREPARE_AGAIN],
    ),
    "row34-another-vocabulary": (
        fewer_words,
        "train",
        ["{pair}/generator has a word table of {less} rows, and the tokenizer of the data has {vocab} entries; "],
    ),
    "row34-another-language": (
        lambda w: Tokenizer.train([["another text of other words"] * 9], 40).save(w.pair / "discriminator"),
        "train",
        ["{pair}/discriminator has another tokenizer than the data (", " entries there and {vocab} in the data",
         "' there and '", "would stand for other words; prepare the text with --tokenizer {pair}/discriminator"],
    ),
    "row35-pickled-shard": (
        lambda w: pickled_array(w, w.shard),
        "train",
        ["train-00000.bin: magic b'\\x93NUMPY", "expected b'EFCORPUS': it is no shard", PREPARE_AGAIN],
    ),
    "row35-pickled-text": (
        lambda w: pickled_array(w, w.root / "text.npy"),
        lambda w: w.prepare(text=w.root / "text.npy"),
        ["text.npy ends in .npy; text is read from .txt, .tokens, .jsonl, .parquet", "convert it"],
    ),
    "row36-truncated-between-runs": (
        lambda w: os.truncate(w.shard, 200),
        "resume",
        ["train-00000.bin: bytes 200, expected {size}: it is truncated", PREPARE_AGAIN],
    ),
    "row38-parent": (
        lambda w: entry(w, file="../data/train-00000.bin"),
        "train",
        ["corpus.json names a shard '../data/train-00000.bin'; a shard is a plain .bin name in {data}", PREPARE_AGAIN],
    ),
    "row38-absolute": (
        lambda w: entry(w, file=str(w.shard)),
        "train",
        ["corpus.json names a shard '{data}/train-00000.bin'; a shard is a plain .bin name in {data}", PREPARE_AGAIN],
    ),
    "row38-double-slash": (
        lambda w: entry(w, file="//train-00000.bin"),
        "train",
        ["corpus.json names a shard '//train-00000.bin'; a shard is a plain .bin name in {data}", PREPARE_AGAIN],
    ),
    "row38-symlink": (
        linked,
        "train",
        ["train-00000.bin cannot be opened (a symbolic link); it must be a plain file: copy it"],
    ),
    "row38-in-a-checkpoint": (
        lambda w: edit(w.newest / "manifest.json", lambda content: content["files"].update({"../../text.txt": {}})),
        "resume",
        ["{run}/checkpoint-2 is damaged: '../../text.txt' is missing", RESUME_OLDER],
    ),
    "row39-smaller-than-a-batch": (
        lambda w: None,
        lambda w: w.train("--batch-size", "1000"),
        ["the text gives ", " examples, fewer than batch_size 1000; add text, or lower --batch-size to "],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str, original: World, world: World, capsys: pytest.CaptureFixture) -> None:
    refuse(*REFUSED[name], original, world, capsys)


@case("row36-truncated-while-open")
def shard_truncated_while_open(world, monkeypatch, capsys) -> None:
    corpus = Corpus(world.data)
    os.truncate(world.shard, shards.HEADER.size)
    with pytest.raises(ValueError, match=f"shard {world.shard} has 64 bytes, .*: it was cut short or overwritten"):
        _ = corpus[0]  # a page of a mapped file that is gone would end the process here


@case("row37-crlf", lambda text: text.replace(b"\n", b"\r\n"), 0)
@case("row37-blank-documents", lambda text: b"\n\n \n" + text.replace(b"\n\n", b"\n\n\n \t\n\n\n"), 0)
@case("row37-no-utf-8", lambda text: text.replace(b"cat", b"c\xfft", 7), 7)
@case("row37-nul", lambda text: text.replace(b"cat", b"c\0t", 7), 7)
def dirty_text(world, monkeypatch, capsys, spoil, replaced) -> None:
    world.text.write_bytes(spoil(world.text.read_bytes()))
    assert main(world.prepare()) == 0
    assert f"{replaced} characters that were no UTF-8" in " ".join(capsys.readouterr().err.split())
    clean, dirty = Corpus(world.data), Corpus(world.root / "new")
    assert dirty.splits.keys() == clean.splits.keys() and len(dirty) > 70
    assert (dirty.sha256 == clean.sha256) == (not replaced)


@case("row37-line-of-megabytes")
def long_line(world, monkeypatch, capsys) -> None:
    words = b"the cat of the king " * 75_000
    world.text.write_bytes(world.text.read_bytes() + b"\n\n" + words)
    assert main(world.prepare("--packing", "plain")) == 0
    said = capsys.readouterr().err
    assert "(over-long ones cut 21 times)" in said  # 1.5 MB in pieces of 64 kB, the first of which holds lines
    assert sum(Corpus(world.root / "new", split).tokens for split in ("train", "heldout")) > 5 * 75_000
    found = [line for document in text.documents(world.text) for line in document]
    assert max(map(len, found)) <= 2 * text.BLOCK and sum(map(len, found)) > 0.99 * len(words)


@pytest.mark.parametrize("name", case)
def test_survived(name: str, world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    case[name](world, monkeypatch, capsys)
