"""Files of predictions, in each benchmark's own format."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from electra_fast.tasks import Dataset


def write_predictions(
    path: str | Path, dataset: Dataset, predicted: Sequence[Any], null_odds: dict[str, float] | None = None
) -> list[Path]:
    """Write predicted (a label str, a float, a sequence of tags, an answer str; one an example, in order) in the format
    of the dataset, and return the files. path: of the file; a directory gets the benchmark's own name in it."""
    raise NotImplementedError
