"""The digests of a corpus's shards, checked while a run trains."""

from __future__ import annotations

import threading
from collections.abc import Callable

from electra_fast.data.corpus import Corpus


class Verification:
    """Hashes every shard of a corpus, of all splits, in a thread of its own as long as a `with` block runs.

    A flipped bit in a token id is most often another valid id, which no other check can see. Hashing takes one read of
    the corpus, and runs beside the training: Python releases its lock meanwhile.

    corpus: opened; its files are read through its own handles, other splits are opened by the thread.
    """

    def __init__(self, corpus: Corpus) -> None:
        self._corpus = corpus
        self._error: Exception | None = None
        self._cancelled = threading.Event()
        self._thread = threading.Thread(target=self._run, name="verification", daemon=True)

    def __enter__(self) -> Verification:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._cancelled.set()
        self._thread.join()

    def check(self) -> None:
        """Raise ValueError, naming the file, if a shard has been found that is not what was written; does not wait."""
        if self._error is not None:
            raise self._error

    def wait(self, on_wait: Callable[[], None] = lambda: None) -> None:
        """Return when every shard has been found right; raises as `check`.

        on_wait: is called if that is not yet so.
        """
        if self._thread.is_alive():
            on_wait()
            self._thread.join()
        self.check()

    def _run(self) -> None:
        try:
            for split, examples in self._corpus.splits.items():
                if examples and not self._cancelled.is_set():
                    corpus = self._corpus if split == self._corpus.split else Corpus(self._corpus.path, split)
                    corpus.check_digests(self._cancelled.is_set)
        except Exception as error:  # of whatever kind: the run must not go on as if the data were right
            self._error = error
