"""Shards on disk: what is written is read, and every damage is refused by name."""

import errno
import hashlib
import io
import json
import os
import pickle
import resource
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest

from electra_fast.data.corpus import Corpus, CorpusWriter, examples_at, run_order
from electra_fast.data.shards import HEADER, MANIFEST
from electra_fast.data.tokenizer import SPECIAL_TOKENS, Tokenizer
from electra_fast.storage.atomic import staged_directory

WORDS = "abcdefghijklmnop"


def make_tokenizer(path: Path, size: int = 21) -> Tokenizer:
    tokens = [*SPECIAL_TOKENS, *WORDS, *(f"w{i}" for i in range(size - 21))]
    path.write_text("\n".join(tokens) + "\n", "utf-8")
    return Tokenizer.load(path)


def make_examples(count: int, vocab_size: int = 21, seed: int = 0) -> list[tuple[list[int], int]]:
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        ids = [2, *generator.integers(5, vocab_size, generator.integers(1, 14)).tolist(), 3]
        found.append((ids, int(generator.integers(1, len(ids) + 1))))
    return found


def write(path: Path, tokenizer: Tokenizer, splits: dict[str, list], shard_tokens: int = 100) -> None:
    with staged_directory(path, MANIFEST) as directory:
        settings = {"builder": "pairs", "seed": 0}
        writer = CorpusWriter(directory, tokenizer, 16, settings=settings, shard_tokens=shard_tokens)
        for split, found in splits.items():
            for begin in range(0, len(found), 7):
                part = found[begin : begin + 7]
                tokens = np.array([token for ids, _ in part for token in ids], np.uint32)
                writer.add(split, tokens, np.array([len(ids) for ids, _ in part]), np.array([b for _, b in part]))
        writer.finish({"lines": 3})


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("corpus")
    write(
        root / "c",
        make_tokenizer(root / "vocab.txt"),
        {"train": make_examples(50), "heldout": make_examples(3, seed=1)},
    )
    return root / "c"


@pytest.fixture
def corpus(original, tmp_path) -> Path:
    """A copy to damage."""
    shutil.copytree(original, tmp_path / "c")
    return tmp_path / "c"


@pytest.mark.parametrize(("size", "width"), [(21, 2), (65536, 2), (65537, 4)])
def test_what_is_written_is_read(tmp_path, size, width):
    tokenizer = make_tokenizer(tmp_path / "vocab.txt", size)
    train, heldout = make_examples(50, size), make_examples(3, size, seed=1)
    train[0] = ([2, size - 1, 3], 3)
    write(tmp_path / "c", tokenizer, {"train": train, "heldout": heldout})
    for split, wanted in (("train", train), ("heldout", heldout)):
        corpus = Corpus(tmp_path / "c", split)
        assert len(corpus) == len(wanted) and corpus.splits == {"train": 50, "heldout": 3}
        assert corpus.tokens == sum(len(ids) for ids, _ in wanted)
        for i, (ids, start) in enumerate(wanted):
            found, found_start = corpus[i]
            assert found.dtype == np.int64 and found.flags.writeable
            assert (found.tolist(), found_start) == (ids, start)
        assert corpus[-1][0].tolist() == wanted[-1][0]
        corpus.verify()
    assert len(list((tmp_path / "c").glob("train-*.bin"))) > 3  # several shards
    corpus = Corpus(tmp_path / "c")
    assert (corpus.max_length, corpus.vocab_size, corpus.special_ids["mask"]) == (16, size, 4)
    assert corpus.tokenizer.sha256 == tokenizer.sha256 and corpus.manifest["text"] == {"lines": 3}
    head = HEADER.unpack((tmp_path / "c/train-00000.bin").read_bytes()[: HEADER.size])
    assert head[0] == b"EFCORPUS" and head[3] == width
    with pytest.raises(IndexError, match="example 50 of 50 in split 'train'"):
        corpus[50]
    with pytest.raises(IndexError):
        corpus[-51]
    assert pickle.loads(pickle.dumps(corpus))[7][0].tolist() == train[7][0]  # as a loader's processes need it


def test_digest_is_of_the_data(original, tmp_path):
    tokenizer = Tokenizer.load(original / "tokenizer")
    write(tmp_path / "same", tokenizer, {"train": make_examples(50), "heldout": make_examples(3, seed=1)})
    write(tmp_path / "other", tokenizer, {"train": make_examples(50), "heldout": make_examples(3, seed=2)})
    digests = [Corpus(path).sha256 for path in (original, tmp_path / "same", tmp_path / "other")]
    assert digests[0] == digests[1] != digests[2] and len(digests[0]) == 64
    assert Corpus(original, "heldout").sha256 == digests[0]


# Damages: each takes the directory of a corpus. With its manifest made to agree where the damage is to be found by
# looking at the shard itself.
def shard(root: Path) -> Path:
    return root / "train-00000.bin"


def manifest(root: Path, change) -> None:
    content = json.loads((root / "corpus.json").read_text())
    change(content)
    (root / "corpus.json").write_text(json.dumps(content))


def entry(root: Path, **changes) -> None:
    manifest(root, lambda content: content["splits"]["train"][0].update(changes))


def agree(root: Path) -> None:
    content = shard(root).read_bytes()
    entry(root, size=len(content), sha256=hashlib.sha256(content).hexdigest())


def truncate(root: Path, size: int, told: bool = False) -> None:
    os.truncate(shard(root), size)
    if told:
        agree(root)


def patch(root: Path, offset: int, content: bytes) -> None:
    data = bytearray(shard(root).read_bytes())
    data[offset : offset + len(content)] = content
    shard(root).write_bytes(data)
    agree(root)


def pickled(root: Path) -> None:
    class Bomb:
        def __reduce__(self):
            return (os.mkdir, (str(root / "exploded"),))

    stream = io.BytesIO()
    np.save(stream, np.array([Bomb()], dtype=object), allow_pickle=True)
    shard(root).write_bytes(stream.getvalue())
    agree(root)


def linked(root: Path) -> None:
    shard(root).rename(root / "elsewhere.bin")
    shard(root).symlink_to(root / "elsewhere.bin")


def pipe(root: Path) -> None:
    shard(root).unlink()
    os.mkfifo(shard(root))


def huge_counts(root: Path) -> None:
    patch(root, 24, struct.pack("<QQ", 1 << 40, 1 << 40))
    entry(root, examples=1 << 40, tokens=1 << 40)


def overflowing_counts(root: Path) -> None:
    """8 (n + 1) + 4 n, taken modulo 2^64, would be small."""
    number(root, 24, (1 << 62) - 1)
    entry(root, examples=(1 << 62) - 1)


def offset(index: int) -> int:
    return HEADER.size + 8 * index


def count(root: Path) -> int:
    return HEADER.unpack(shard(root).read_bytes()[: HEADER.size])[5]


def number(root: Path, at: int, value: int) -> None:
    patch(root, at, struct.pack("<Q", value))


def settings(root: Path, **changes) -> None:
    manifest(root, lambda content: content.update(changes))


def vocabulary(root: Path) -> None:
    tokenizer = make_tokenizer(root / "vocab.txt", 30)
    tokenizer.save(root / "tokenizer")


DAMAGES = {
    # 30: missing, empty
    "no corpus": (lambda root: (root / "corpus.json").unlink(), "is no corpus: it has no corpus.json; prepare it anew"),
    "missing shard": (lambda root: shard(root).unlink(), "train-00000.bin is missing; copy it again, or prepare"),
    "empty shard": (lambda root: truncate(root, 0), r"train-00000.bin: bytes 0, expected \d+: it is truncated"),
    "empty shard, told": (lambda root: truncate(root, 0, True), "has 0 bytes, its header alone 64"),
    # 31: truncated
    "truncated": (lambda root: truncate(root, 200), r"train-00000.bin: bytes 200, expected \d+: it is truncated"),
    "truncated, told": (lambda root: truncate(root, 201, True), r"bytes by its header 201, expected \d+"),
    "longer": (lambda root: shard(root).write_bytes(shard(root).read_bytes() + b"x"), r"bytes \d+, expected \d+"),
    # 32: counts beyond the file
    "huge counts": (huge_counts, r"bytes by its header \d+, expected \d{14,}: its counts do not fit its size"),
    "huge counts, untold": (lambda root: number(root, 24, 1 << 40), r"examples 1099511627776, expected"),
    # 33: offsets
    "first offset": (lambda root: number(root, offset(0), 1), r"offsets from and to \(1, "),
    "last offset": (lambda root: patch(root, offset(count(root)), b"\1"), r"offsets from and to \(0, 1\), expected"),
    "falling": (lambda root: number(root, offset(2), 1), r"example 1 has offsets \[\d+, 1\]"),
    "beyond the end": (lambda root: number(root, offset(2), 1 << 40), "offsets must rise by 1 to 16"),
    "wrapping": (lambda root: number(root, offset(2), (1 << 64) - 1), "offsets must rise by 1 to 16"),
    "overflow": (overflowing_counts, r"bytes by its header \d+, expected \d{19,}"),
    # 34: another format, another vocabulary
    "magic": (lambda root: patch(root, 0, b"SOMEBODY"), r"magic b'SOMEBODY', expected b'EFCORPUS': it is no shard"),
    "byte order": (lambda root: patch(root, 8, b"\1\2\3\4"), r"byte-order mark 67305985, expected 16909060.*other"),
    "version": (lambda root: patch(root, 12, b"\2"), r"version 2, expected 1: another version of electra_fast"),
    "dtype": (lambda root: patch(root, 16, b"\4"), r"bytes a token 4, expected 2: the vocabulary has 21 entries"),
    "format": (lambda root: settings(root, format=2), r"has format 2, this version reads 1; prepare"),
    "vocab size": (lambda root: settings(root, vocab_size=70_000), "bytes a token 2, expected 4"),
    # 35: pickles
    "pickle": (pickled, r"magic b'\\x93NUMPY.*expected b'EFCORPUS'"),
    # 38: names
    **{
        f"name {name}": (lambda root, name=name: entry(root, file=name), "names a shard .*; a shard is a plain .bin")
        for name in ("../c/train-00000.bin", "/etc/passwd", "//x.bin", "a/b", "..", ".bin", "a\0.bin", "", "x.bin\n")
    },
    "link": (linked, r"train-00000.bin cannot be opened \(a symbolic link\); it must be a plain file"),
    "pipe": (pipe, r"train-00000.bin: bytes 0, expected \d+"),
    # corpus.json itself
    "no JSON": (lambda root: (root / "corpus.json").write_text("{"), "corpus.json is no JSON"),
    "a list": (lambda root: (root / "corpus.json").write_text("[]"), "'format' of the corpus is None; it must be a"),
    "nesting": (lambda root: (root / "corpus.json").write_text("[" * 99999), "corpus.json is no JSON"),
    "negative": (lambda root: entry(root, tokens=-1), "'tokens' of shard train-00000.bin is -1; it must be"),
    "no size": (lambda root: entry(root, size=None), "'size' of shard train-00000.bin is None"),
    "true": (lambda root: entry(root, size=True), "'size' of shard train-00000.bin is True"),
    "too many": (lambda root: entry(root, examples=1 << 63), r"'examples' of shard train-00000.bin is \d+; it must be"),
    "max_length": (lambda root: settings(root, max_length=1 << 21), "'max_length' of the corpus is"),
    "special": (lambda root: manifest(root, lambda m: m["special_ids"].update(sep=99)), "special id sep is 99"),
    "no splits": (lambda root: manifest(root, lambda m: m.pop("splits")), "'splits' of the corpus is None"),
    "empty split": (
        lambda root: manifest(root, lambda m: m["splits"].update(train=[])),
        r"split 'train' of .* has 0 examples; the corpus has {'train': 0, 'heldout': 3}: choose another",
    ),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_refused(corpus, damage):
    """By name, and with an address space that has no room for what a lying header asks for."""
    spoil, message = DAMAGES[damage]
    spoil(corpus)
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + (64 << 20), before[1]))
    try:
        with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
            Corpus(corpus)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert str(corpus) in str(caught.value)
    assert not (corpus / "exploded").exists()


def test_segment_start_is_held_against_the_example(corpus):
    for start in (0, 17):
        patch(corpus, offset(count(corpus) + 1), struct.pack("<I", start))
        with pytest.raises(ValueError, match=rf"example 0 has offsets \[0, \d+\] and segment B at {start}"):
            Corpus(corpus)


def test_verify_finds_a_flipped_bit(corpus):
    content = bytearray(shard(corpus).read_bytes())
    content[-1] ^= 64
    shard(corpus).write_bytes(content)
    with pytest.raises(ValueError, match=r"train-00000.bin: sha256 .* expected .*: its content has changed"):
        Corpus(corpus).verify()


def test_verify_finds_ids_outside_the_vocabulary(corpus):
    size = shard(corpus).stat().st_size
    patch(corpus, size - 2, struct.pack("<H", 21))
    with pytest.raises(ValueError, match=r"train-00000.bin: token \d+ is 21, outside the vocabulary of 21"):
        Corpus(corpus).verify()


@pytest.mark.parametrize("size", [0, 64, 64 + 8, 200, -1])
def test_a_shard_cut_short_while_it_is_open_is_named(corpus, size):
    """Wherever it is cut: within the offsets, the starts or the tokens. A mapped page that is gone would be SIGBUS."""
    opened = Corpus(corpus)
    size %= shard(corpus).stat().st_size
    os.truncate(shard(corpus), size)
    with pytest.raises(
        ValueError, match=rf"shard {shard(corpus)} has {size} bytes, and had .* cut short or overwritten"
    ):
        for index in range(count(corpus) if size >= HEADER.size else 1):
            _ = opened[index]
    with pytest.raises(ValueError, match=rf"shard {shard(corpus)} has {size} bytes, "):
        opened.verify()


def test_a_shard_overwritten_while_it_is_open_is_read_within_bounds(corpus):
    opened = Corpus(corpus)
    whole = shard(corpus).read_bytes()
    for at, value in ((offset(0), 1 << 40), (offset(1), 1 << 40), (offset(1), 0)):
        shard(corpus).write_bytes(whole)
        number(corpus, at, value)
        with pytest.raises(ValueError, match=rf"shard {shard(corpus)}: example 0 has offsets .* must rise by 1 to 16"):
            _ = opened[0]
    shard(corpus).write_bytes(whole)
    assert opened[0][0].tolist() == make_examples(1)[0][0]


def test_a_disk_that_fails_is_told_with_the_file(corpus, monkeypatch):
    def fail(*_: int) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    opened = Corpus(corpus)
    monkeypatch.setattr(os, "pread", fail)
    with pytest.raises(OSError, match=rf"Input/output error: '{shard(corpus)}'"):
        _ = opened[0]


def test_a_corpus_that_is_dropped_closes_its_files(corpus):
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        Corpus(corpus)
    assert len(os.listdir("/proc/self/fd")) == before


def test_another_tokenizer_is_refused(corpus):
    vocabulary(corpus)
    with pytest.raises(
        ValueError, match=r"has 30 entries and sha256 \w+, but the ids were made by one with 21 entries"
    ):
        _ = Corpus(corpus).tokenizer
    with pytest.raises(ValueError, match="restore it, or prepare it anew"):
        Corpus(corpus).verify()


def test_unknown_split_is_refused(corpus):
    with pytest.raises(ValueError, match=r"split 'dev' of .* is not there; the corpus has {'train': 50, 'heldout': 3}"):
        Corpus(corpus, "dev")


def test_endless_run(original):
    corpus = Corpus(original)
    whole = run_order(3, 50, 0, 160)
    assert [sorted(whole[i : i + 50]) for i in (0, 50, 100)] == [list(range(50))] * 3
    assert whole[:50].tolist() != whole[50:100].tolist()
    for start, count in ((0, 8), (47, 8), (99, 61), (160, 0)):
        assert run_order(3, 50, start, count).tolist() == whole[start : start + count].tolist()
    found = examples_at(corpus, 3, 48, 5)
    for (ids, start), index in zip(found, whole[48:53], strict=True):
        assert ids.tolist() == corpus[int(index)][0].tolist() and start == corpus[int(index)][1]
    for arguments in ((0, 0, 1), (5, -1, 1), (5, 0, -1)):
        with pytest.raises(ValueError, match="n must be positive"):
            run_order(0, *arguments)


def test_a_target_in_use_is_refused(original, tmp_path):
    tokenizer = Tokenizer.load(original / "tokenizer")
    before = sorted(path.name for path in original.iterdir())
    with pytest.raises(
        FileExistsError, match=r"already holds a corpus; use it, write to another --out, or remove it: rm -r"
    ):
        write(original, tokenizer, {"train": make_examples(2)})
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("years of work")
    (tmp_path / "file").write_text("x")
    for name in ("full", "file"):
        with pytest.raises(FileExistsError, match=f"{name} exists and is no empty directory; name another place"):
            write(tmp_path / name, tokenizer, {"train": make_examples(2)})
    assert before == sorted(path.name for path in original.iterdir())
    assert (tmp_path / "full" / "thesis.tex").read_text() == "years of work"
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty", tokenizer, {"train": make_examples(2)})
    assert len(Corpus(tmp_path / "empty")) == 2
