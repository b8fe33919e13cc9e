"""What a trained model writes of a stream of sources."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from electra_fast.decoding.settings import WritingConfig
from electra_fast.seq2seq.learner import Learner
from electra_fast.seq2seq.pairs import Pair
from electra_fast.tasks.examples import Refused


def write_stream(
    learner: Learner, pairs: Iterable[Pair | Refused], writing: WritingConfig, seed: int, at_once: int
) -> Iterator[dict[str, Any]]:
    """Write the texts of a stream, as soon as `at_once` sources are read or the stream ends.

    seed: of samples; a source's text depends on the seed and its number in the stream, and not on at_once.

    Yields {"id", "text"} for each source in order, and {"id", "error"} for each line that holds none.
    """
    stream, first = iter(pairs), 0
    while group := list(islice(stream, at_once)):
        names = [first + i for i, pair in enumerate(group) if not isinstance(pair, Refused)]
        sources = [pair for pair in group if not isinstance(pair, Refused)]
        texts = iter(learner.write(sources, writing, seed, names))
        for pair in group:
            yield {"id": pair.id, **({"error": pair.error} if isinstance(pair, Refused) else {"text": next(texts)})}
        first += len(group)
