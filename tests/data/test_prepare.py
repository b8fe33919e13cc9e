"""Text files -> corpus: the same for any number of processes, whole or not there at all, and said in plain words."""

import json
import os
import sys
import warnings
from pathlib import Path

import pytest

from electra_fast.cli.main import main
from electra_fast.data import prepare as module
from electra_fast.data import text
from electra_fast.data.corpus import Corpus
from electra_fast.data.examples import pack_examples, pair_examples
from electra_fast.data.heldout import HeldOut
from electra_fast.data.prepare import prepare
from electra_fast.storage.lock import InUseError, Lock

DATA = Path(os.environ.get("ELECTRA_FAST_DATA", Path(__file__).parents[3] / "shared/data"))
QUIET = dict(progress=False, processes=1)


def contents(corpus: Corpus) -> list[tuple[list[int], int]]:
    return [(ids.tolist(), start) for ids, start in (corpus[i] for i in range(len(corpus)))]


def test_examples_are_those_of_the_builder(book, tokenizer, tmp_path, monkeypatch):
    """What lies in the shards is pair_examples of every document in order, those of held-out ones apart."""
    monkeypatch.setattr(module, "CHUNK", 20_000)  # many chunks
    documents = list(text.documents(book))
    corpus = prepare(book, tmp_path / "c", tokenizer=tokenizer, max_length=64, seed=5, heldout=0.1, **QUIET)
    special = dict(cls_id=2, sep_id=3)
    wanted = [
        pair_examples(tokenizer.encode(document), 64, **special, seed=5, index=index)
        for index, document in enumerate(documents)
    ]
    chosen = HeldOut(0.1)
    held = [index for index, document in enumerate(documents[:-1]) if chosen.split(document) == "heldout"]
    assert chosen.split_last(documents[-1]) == [("train", documents[-1])]
    assert 0.05 < len(held) / len(documents) < 0.15 and 0.08 <= chosen.share_found <= 0.15
    train = [found for index, group in enumerate(wanted) if index not in held for found in group]
    assert contents(corpus) == train
    assert contents(Corpus(tmp_path / "c", "heldout")) == [found for index in held for found in wanted[index]]
    corpus.verify()
    manifest = corpus.manifest
    assert (manifest["builder"], manifest["seed"], manifest["heldout"], corpus.max_length) == ("pairs", 5, 0.1, 64)
    counts = manifest["text"]
    assert counts["documents"] == {"train": len(documents) - len(held), "heldout": len(held)}
    assert counts["tokens"] == sum(len(line) for document in documents for line in tokenizer.encode(document))
    kept = sum(len(ids) - 2 - (start < len(ids)) for group in wanted for ids, start in group)
    assert counts["kept"] == kept < counts["tokens"] and counts["bytes"] == book.stat().st_size


def test_plain_packing_keeps_every_token(book, tokenizer, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CHUNK", 1 << 20)  # each chunk ends with a shorter example
    corpus = prepare(book, tmp_path / "c", tokenizer=tokenizer, packing="plain", max_length=64, heldout=0, **QUIET)
    documents = [tokenizer.encode(document) for document in text.documents(book)]
    assert contents(corpus) == pack_examples(documents, 64, cls_id=2, sep_id=3)
    assert corpus.splits == {"train": len(corpus)}
    assert corpus.manifest["text"]["kept"] == corpus.manifest["text"]["tokens"]


def test_settings_matter(book, tokenizer, tmp_path):
    options = [dict(), dict(seed=1), dict(max_length=64), dict(packing="plain"), dict(heldout=0.2)]
    found = {prepare(book, tmp_path / str(i), tokenizer=tokenizer, **o, **QUIET).sha256 for i, o in enumerate(options)}
    assert len(found) == len(options)


def test_vocabulary_is_trained_with_the_rules_given(tmp_path):
    (tmp_path / "a.txt").write_text("Größe Größe Größe\n" * 20, "utf-8")
    for rules, word in [
        (dict(), "große"),
        (dict(lowercase=False), "Größe"),
        (dict(strip_accents=False), "größe"),
    ]:
        corpus = prepare(tmp_path / "a.txt", tmp_path / word, vocab_size=100, heldout=0, **rules, **QUIET)
        (only,) = set(corpus[0][0].tolist()) - {2, 3}
        assert corpus.tokenizer.token(only) == word


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.999])
@pytest.mark.parametrize("number", [1, 2, 3, 200])
def test_held_out_share(tmp_path, tokenizer, number, share):
    (tmp_path / "a.txt").write_text("a few words\n\n" * number)
    corpus = prepare(tmp_path / "a.txt", tmp_path / "c", tokenizer=tokenizer, heldout=share, **QUIET)
    held = corpus.splits.get("heldout", 0)
    assert len(corpus) >= 1 and len(corpus) + held == number
    if share and number >= 2:
        assert held >= 1
    else:
        assert held == 0 and "heldout" not in corpus.splits
    if number == 200:
        assert abs(held - share * number) <= 15


def test_a_text_without_blank_lines_is_divided(tmp_path, tokenizer):
    """2,000 lines are two documents of 1,000; 1 % of the text are its last 20 lines, not half of it."""
    (tmp_path / "a.txt").write_text("a few words\n" * 2000)
    words = r"has 2 documents, too few to hold out 0.01 .* the end of the last is held out, 20 of its lines"
    with pytest.warns(UserWarning, match=words):
        corpus = prepare(tmp_path / "a.txt", tmp_path / "c", tokenizer=tokenizer, packing="plain", **QUIET)
    tokens = len(tokenizer.encode(["a few words"])[0])
    held = sum(len(ids) - 2 for ids, _ in contents(Corpus(tmp_path / "c", "heldout")))
    assert held == 20 * tokens
    assert sum(len(ids) - 2 for ids, _ in contents(corpus)) == 1980 * tokens + 1  # and a [SEP] between the documents


def test_a_text_that_cannot_be_divided_as_asked_is_told(tmp_path, tokenizer):
    (tmp_path / "a.txt").write_text("a few words\n\n" * 3)
    with pytest.warns(
        UserWarning, match="0.333 of the text is held out where --heldout 0.01 was asked for, since it has 3"
    ):
        prepare(tmp_path / "a.txt", tmp_path / "c", tokenizer=tokenizer, **QUIET)


def test_unknown_words_are_told(book, saved, tmp_path):
    (tmp_path / "a.txt").write_text("Привет, мир\n\n" * 200, "utf-8")
    out = ["--out", str(tmp_path / "c"), "--tokenizer", str(saved), "--processes", "1"]
    with pytest.warns(
        UserWarning, match="^66.7% of the tokens are \\[UNK\\], .* pieces for; .*: leave --tokenizer out$"
    ):
        assert main(["prepare", str(tmp_path / "a.txt"), *out]) == 0
    prepare_without_a_word(book, tmp_path / "d", tokenizer=saved)


def prepare_without_a_word(*arguments, **options) -> Corpus:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return prepare(*arguments, **options, **QUIET)


@pytest.mark.parametrize(
    ("line", "share"),
    [
        ("हिन्दी में लिखा है", "22.2%"),  # the virama, e, anusvara and ai, of 18 characters
        ("ภาษาไทยที่นี่", "30.8%"),  # two vowels and two tones of 13
        ("がぎぐ ひらがな", "50.0%"),  # ga gi gu ga of 8
    ],
)
def test_vowel_signs_that_are_dropped_are_told(tmp_path, line, share):
    (tmp_path / "a.txt").write_text(f"{line}\n\n" * 200, "utf-8")
    with pytest.warns(UserWarning, match=f"{share} of the characters lose a mark.*keep them by --no-strip-accents$"):
        corpus = prepare(tmp_path / "a.txt", tmp_path / "c", vocab_size=100, **QUIET)
    with pytest.warns(UserWarning, match="keep them by --no-strip-accents in place of --tokenizer"):
        prepare(tmp_path / "a.txt", tmp_path / "d", tokenizer=corpus.tokenizer, **QUIET)
    for number, rules in enumerate((dict(strip_accents=False), dict(lowercase=False))):
        prepare_without_a_word(tmp_path / "a.txt", tmp_path / str(number), vocab_size=100, **rules)


def test_accents_of_german_are_no_reason_to_warn(tmp_path):
    path = DATA / "languages/german-small.txt.xz"
    if not path.exists():
        pytest.skip(f"needs {path}; set ELECTRA_FAST_DATA")
    corpus = prepare_without_a_word(path, tmp_path / "c", vocab_size=4000)
    counts = corpus.manifest["text"]
    assert 0.01 < counts["stripped"] / counts["characters"] < 0.02


def test_table_and_bar(book, tmp_path, capsys):
    bad = tmp_path / "bad.txt"
    bad.write_bytes(b"caf\xe9 " * 40 + b"\n")
    prepare([book, bad], tmp_path / "c", vocab_size=30000, max_length=16, processes=1)
    said = capsys.readouterr().err
    for part in (
        "vocabulary: 100%",
        "examples: 100%",
        "MB/s",
        "entries; 30,000 were asked for.",
        "documents   train ",
        "replaced    40 characters",
        "[UNK]       0.",
        "are in examples; split long lines into sentences, or use",
    ):
        assert part in said, part
    prepare(book, tmp_path / "d", vocab_size=500, **QUIET)
    assert capsys.readouterr() == ("", "")


def test_without_files_python_s_own_text_is_used(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "embedded_documents", lambda: [["some words", "more words"], ["other words"]])
    corpus = prepare(None, tmp_path / "c", vocab_size=100, **QUIET)
    assert corpus.splits == {"train": 1, "heldout": 1}
    counts = corpus.manifest["text"]
    assert (counts["lines"], counts["bytes"]) == (3, 31)


def test_full_disk_leaves_nothing(book, tokenizer, tmp_path, monkeypatch):
    def full(path, *_):
        path.write_bytes(b"half a shard")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("electra_fast.data.corpus.write_shard", full)
    (tmp_path / "out").mkdir()
    with pytest.raises(
        OSError, match=r"c could not be written \(.*No space left.*nothing of it is left: free some space"
    ):
        prepare(book, tmp_path / "out/c", tokenizer=tokenizer, **QUIET)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(max_length=4), "max_length is 4; it must lie between 5 and 1048576, 128 is usual"),
        (dict(max_length=2**21), "max_length is 2097152; it must lie"),
        (dict(packing="tight"), "packing is 'tight'; it must be one of pairs, plain"),
        (dict(heldout=1.0), "heldout is 1.0; it is a share of the text"),
        (dict(heldout=float("nan")), "heldout is nan; it is a share"),
        (dict(processes=0), "processes is 0; it must be at least 1"),
        (dict(seed=2**63), "seed is 9223372036854775808; it must fit in 64 bits"),
        (dict(vocab_size=20), "vocab_size is 20; it must lie between 32 and 4000000"),
        (dict(vocab_size=500, tokenizer="x"), "vocab_size 500 and the tokenizer x are both given"),
    ],
)
def test_bad_settings_are_refused(book, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        prepare(book, tmp_path / "c", progress=False, **options)
    assert not list(tmp_path.iterdir())


def test_bad_files_are_refused(book, tokenizer, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no text file nowhere.txt"):
        prepare([book, "nowhere.txt"], tmp_path / "c", **QUIET)
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n{}\n')
    with pytest.raises(ValueError, match=r"a.jsonl, line 2 is an object with \[\]"):
        prepare(tmp_path / "a.jsonl", tmp_path / "c", tokenizer=tokenizer, **QUIET)
    (tmp_path / "b.txt").write_text("\x01\x02\n")
    with pytest.raises(ValueError, match="the text gives no training example"):
        prepare(tmp_path / "b.txt", tmp_path / "c", tokenizer=tokenizer, **QUIET)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "b.txt"]


def test_parquet_without_pyarrow_says_what_to_install(tmp_path, monkeypatch, capsys):
    (tmp_path / "a.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert main(["prepare", str(tmp_path / "a.parquet"), "--out", str(tmp_path / "c")]) == 1
    assert "a.parquet needs pyarrow, which is not installed; run: pip install pyarrow" in capsys.readouterr().err


def test_a_used_directory_is_refused_before_any_work(book, tokenizer, tmp_path, monkeypatch):
    prepare(book, tmp_path / "c", tokenizer=tokenizer, **QUIET)
    before = (tmp_path / "c/corpus.json").read_bytes()
    monkeypatch.setattr(module.Tokenizer, "train", lambda *_: pytest.fail("trained before it looked"))
    with pytest.raises(FileExistsError, match="c already holds a corpus; .* rm -r"):
        prepare(book, tmp_path / "c", vocab_size=500, **QUIET)
    assert (tmp_path / "c/corpus.json").read_bytes() == before and json.loads(before)
    with pytest.raises(
        NotADirectoryError, match=r"x/c would lie in .*corpus.json, which is a file; name another place"
    ):
        prepare(book, tmp_path / "c/corpus.json/x/c", vocab_size=500, **QUIET)


def test_two_runs_with_one_out_and_what_killed_ones_left(book, tokenizer, tmp_path):
    dead, foreign = tmp_path / f".tmp-c-{'0f' * 8}", tmp_path / ".tmp-c-notes"
    dead.mkdir()
    foreign.mkdir()
    with Lock(tmp_path / ".c.lock", tmp_path / "c"):
        with pytest.raises(InUseError, match=r"c is in use by another run \(process \d+ on .*choose another directory"):
            prepare(book, tmp_path / "c", tokenizer=tokenizer, **QUIET)
        assert dead.exists() and not (tmp_path / "c").exists()
    prepare(book, tmp_path / "c", tokenizer=tokenizer, **QUIET).verify()
    assert sorted(path.name for path in tmp_path.iterdir()) == [".tmp-c-notes", "c"]


def test_real_speeches(tmp_path):
    path = DATA / "us_speeches/us_speeches.txt.xz"
    if not path.exists():
        pytest.skip(f"needs {path}; set ELECTRA_FAST_DATA")
    corpus = prepare(path, tmp_path / "c", vocab_size=4000, **QUIET)
    corpus.verify()
    counts = corpus.manifest["text"]
    assert counts["unknown"] < 1e-4 * counts["tokens"] and counts["replaced"] == 0
    ids, start = corpus[0]
    opening = corpus.tokenizer.decode(ids[1 : start - 1])
    assert opening.startswith("fellow - citizens of the senate and of the house of representatives :")
    assert 0.7 * len(corpus) * 128 < corpus.tokens
