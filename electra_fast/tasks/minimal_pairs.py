"""Minimal pairs, as BLiMP has them: two sentences that differ in what makes one of them ungrammatical.

A network that was never fine-tuned is right about a pair if it gives the good sentence the higher score (see
tasks/sentence_scores.py).

Source: Warstadt et al., "BLiMP", TACL 2020.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from electra_fast.tasks.files import decode, parse_object, read_lines


class MinimalPair(NamedTuple):
    """Two sentences, the set they belong to, and the phenomenon that the set is about."""

    good: str
    bad: str
    set: str
    phenomenon: str


def read_pairs(path: Path) -> list[MinimalPair]:
    """Read BLiMP's .jsonl files: one, or all of a directory.

    Raises ValueError, with file and line, for a line without a text for sentence_good and sentence_bad, and for no file
    at all.
    """
    files = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
    if not files:
        raise ValueError(f"{path} holds no .jsonl file; name a set of BLiMP, or a directory of them")
    pairs = []
    for file in files:
        for number, line in enumerate(read_lines(file), 1):
            where = f"{file}, line {number}"
            row = parse_object(decode(line, where), where)
            good, bad, phenomenon = (row.get(key) for key in ("sentence_good", "sentence_bad", "linguistics_term"))
            if not all(isinstance(sentence, str) and sentence.strip() for sentence in (good, bad)):
                raise ValueError(
                    f"{where}: a JSON object with sentence_good and sentence_bad, two texts, is needed, as BLiMP has "
                    f"them"
                )
            pairs.append(MinimalPair(str(good), str(bad), file.stem, str(phenomenon or file.stem)))
    return pairs


def accuracies(pairs: Sequence[MinimalPair], scores: Tensor) -> dict[str, float]:
    """Share of pairs whose good sentence has the higher score, by phenomenon, and a mean over sets.

    scores: (2 len(pairs),), of the good sentences and then of the bad ones. A draw is half right.
    """
    good, bad = scores.chunk(2)
    right = ((good > bad).double() + (good == bad).double() / 2).tolist()

    def mean(of: list[float]) -> float:
        return sum(of) / len(of)

    def by(name: str) -> dict[str, float]:
        keys = sorted({getattr(pair, name) for pair in pairs})
        return {
            key: mean([r for r, pair in zip(right, pairs, strict=True) if getattr(pair, name) == key]) for key in keys
        }

    return {"accuracy": mean(list(by("set").values()))} | by("phenomenon")
