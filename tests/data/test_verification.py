"""The digests of shards, checked in a thread beside a run."""

import threading
from pathlib import Path

import pytest

from electra_fast.data import shards
from electra_fast.data.corpus import Corpus
from electra_fast.data.prepare import prepare
from electra_fast.data.verification import Verification


@pytest.fixture
def corpus(book: Path, saved: Path, tmp_path: Path) -> Corpus:
    return prepare(book, tmp_path / "corpus", tokenizer=saved, heldout=0.2, progress=False)


def test_whole_data_pass(corpus: Corpus) -> None:
    with Verification(corpus) as verification:
        verification.wait()
        verification.check()


def test_check_does_not_wait_and_wait_does(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    go, waited = threading.Event(), []
    read = shards.Shard._read

    def slow(shard: shards.Shard, at: int, size: int) -> bytes:
        assert go.wait(60)
        return read(shard, at, size)

    heldout = corpus.path / "heldout-00000.bin"
    heldout.write_bytes(heldout.read_bytes()[:-1] + b"\1")
    monkeypatch.setattr(shards.Shard, "_read", slow)
    with Verification(corpus) as verification:
        verification.check()
        with pytest.raises(ValueError, match=rf"shard {heldout}: sha256 .* its content has changed"):
            verification.wait(lambda: (waited.append(1), go.set()))
        assert waited
        with pytest.raises(ValueError, match="heldout-00000.bin"):
            verification.check()


def test_leaving_ends_the_thread_early(corpus: Corpus, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the block no more is read, however much is left."""
    monkeypatch.setattr(shards, "CHECKED_AT_ONCE", 16)
    begun, places = threading.Event(), []
    read = shards.Shard._read

    def noted(shard: shards.Shard, at: int, size: int) -> bytes:
        places.append(at)
        begun.set()
        assert verification._cancelled.wait(60)
        return read(shard, at, size)

    monkeypatch.setattr(shards.Shard, "_read", noted)
    with Verification(corpus) as verification:
        assert begun.wait(60)
    assert places == [0] and not verification._thread.is_alive()


def test_a_shard_that_cannot_be_read_is_told(corpus: Corpus) -> None:
    (corpus.path / "heldout-00000.bin").unlink()
    with Verification(corpus) as verification, pytest.raises(FileNotFoundError, match=r"heldout-00000.bin is missing"):
        verification.wait()
