"""Files of predictions, in each benchmark's own format."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from electra_fast.storage.atomic import write_file
from electra_fast.tasks.benchmarks import BENCHMARKS
from electra_fast.tasks.examples import Dataset
from electra_fast.tasks.files import ending

ENDINGS = {"classification": (".csv", ".tsv", ".jsonl"), "tagging": (".txt", ".conll", ".jsonl"), "qa": (".json",)}
ENDINGS["regression"] = ENDINGS["classification"]
SPACES = re.compile(r"[ \t\r\n]")  # what ends a column or a line


def write_predictions(
    path: str | Path, dataset: Dataset, predicted: Sequence[Any], null_odds: Mapping[str, float] | None = None
) -> list[Path]:
    """Write predicted, one for each example in order, and return the files written, each whole or not there.

    path: the file, or a directory that is there, in which the file gets the benchmark's name (CoLA.tsv), or
    predictions with the first ending below. By the ending:
    classification (str), regression (float): .csv, .tsv or .jsonl with id and prediction; for a benchmark of GLUE the
    .tsv that its server takes, index and prediction, STS-B's with three decimals in 0..5. tagging (a tag a word):
    .txt or .conll, a word a line, its tag if known, and the predicted one, as conlleval reads them; or .jsonl with
    words, and tags that are the predicted ones. qa (str): .json, id -> text; with null_odds (id -> float, for SQuAD
    v2.0) the same with these beside it, in NAME.null_odds.json.

    Raises ValueError on unequal numbers, an ending that is not for the kind, a word that columns cannot hold.
    """
    path = Path(path)
    if len(predicted) != len(dataset.examples):
        raise ValueError(f"{len(predicted)} predictions and {len(dataset.examples)} examples are given; one each")
    if path.is_dir():
        glue = dataset.name is not None and dataset.kind in ("classification", "regression")
        path /= f"{BENCHMARKS[str(dataset.name)].title}.tsv" if glue else f"predictions{ENDINGS[dataset.kind][0]}"
    check_predictions_path(path, dataset.kind)
    if dataset.kind == "qa":
        answers = {question.id: text for question, text in zip(dataset.examples, predicted, strict=True)}
        files = {path: _json(answers)}
        if null_odds is not None:
            files[path.with_name(f"{path.stem}.null_odds.json")] = _json(null_odds)
    elif dataset.kind == "tagging":
        files = {
            path: _json_lines(_tagged(dataset, predicted)) if ending(path) == ".jsonl" else _columns(dataset, predicted)
        }
    else:
        files = {path: _rows(ending(path), dataset, predicted)}
    for file, text in files.items():
        write_file(file, [text.encode()])
    return list(files)


def check_predictions_path(path: str | Path, kind: str) -> None:
    """Raises ValueError where predictions of the kind are not written to such a file, FileNotFoundError where its
    directory is not there: worth asking before the predictions are made. A directory passes."""
    path = Path(path)
    if path.is_dir():
        return
    if path.suffix not in ENDINGS[kind]:
        raise ValueError(
            f"{path} ends in {path.suffix or 'nothing'}; predictions of {kind} are written to "
            f"{', '.join(ENDINGS[kind])}: name such a file, or a directory"
        )
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no directory {path.parent}; make it, or name another file than {path}")


def _rows(kind: str, dataset: Dataset, predicted: Sequence[Any]) -> str:
    stsb = dataset.name == "stsb" and kind == ".tsv"
    values = [f"{min(5.0, max(0.0, value)):.3f}" if stsb else value for value in predicted]
    pairs = [(example.id, value) for example, value in zip(dataset.examples, values, strict=True)]
    if kind == ".jsonl":
        return _json_lines({"id": id, "prediction": value} for id, value in pairs)
    head = ("index" if dataset.name and kind == ".tsv" else "id", "prediction")
    if kind == ".csv":
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows([head, *pairs])
        return out.getvalue()
    return "".join(f"{id}\t{value}\n" for id, value in (head, *pairs))


def _tagged(dataset: Dataset, predicted: Sequence[Sequence[str]]) -> Iterable[dict[str, Any]]:
    for sentence, tags in zip(dataset.examples, predicted, strict=True):
        yield {"id": sentence.id, "words": sentence.words, "tags": list(tags)}


def _columns(dataset: Dataset, predicted: Sequence[Sequence[str]]) -> str:
    lines: list[str] = []
    for sentence, tags in zip(dataset.examples, predicted, strict=True):
        columns = [sentence.words, tags] if sentence.tags is None else [sentence.words, sentence.tags, tags]
        for row in zip(*columns, strict=True):
            if any(not field or SPACES.search(field) for field in row):
                raise ValueError(
                    f"sentence {sentence.id} has the row {row}, whose spaces columns cannot hold; write to .jsonl"
                )
            lines.append(" ".join(row))
        lines.append("")
    return "\n".join(lines) + "\n"


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False, indent=1) + "\n"


def _json_lines(rows: Iterable[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
