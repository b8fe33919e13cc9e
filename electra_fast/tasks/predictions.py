"""Files of predictions, in each benchmark's own format."""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from electra_fast.storage.atomic import write_file
from electra_fast.tasks.benchmarks import BENCHMARKS
from electra_fast.tasks.examples import Dataset
from electra_fast.tasks.files import ending
from electra_fast.tasks.labelsets import BETWEEN

ENDINGS = {"classification": (".csv", ".tsv", ".jsonl"), "tagging": (".txt", ".conll", ".jsonl"), "qa": (".json",)}
ENDINGS["regression"] = ENDINGS["classification"]
ENDINGS["multilabel"] = (".jsonl", ".csv", ".tsv")
BREAKS = {  # by the ending, what a field cannot hold
    ".txt": re.compile(r"[ \t\r\n]|^$|^-DOCSTART-"),
    ".conll": re.compile(r"[ \t\r\n]|^$|^-DOCSTART-"),
    ".tsv": re.compile(r"[\t\r\n]"),
}
# DEL and the C1 controls, which terminals obey; line and paragraph separators; marks that turn the direction of text;
# surrogates, which UTF-8 cannot hold. json.dumps escapes the other controls.
UNSAFE = re.compile("[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def json_line(values: Mapping[str, Any], indent: int | None = None) -> str:
    """A JSON object and a line end. Letters of every script stay as they are, unsafe characters become \\uXXXX."""
    text = json.dumps(values, ensure_ascii=False, indent=indent)
    return UNSAFE.sub(lambda match: f"\\u{ord(match[0]):04x}", text) + "\n"


def write_predictions(
    path: str | Path, dataset: Dataset, predicted: Sequence[Any], null_odds: Mapping[str, float] | None = None
) -> list[Path]:
    """Writes predictions to a file, or to two for SQuAD v2.0.

    classification, multilabel, regression: columns id and prediction in .csv, .tsv or .jsonl; several labels are a list
    in .jsonl, else they have | between them. For a benchmark of GLUE .tsv has what
    its server takes: index and prediction, STS-B's with three decimals from 0 to 5. tagging: a line for each word in
    .txt or .conll (the word, its tag if known, the predicted tag), as conlleval reads them; or .jsonl with lists words
    and tags, the predicted ones. qa: .json, id -> text.

    Args:
        path: the file; its ending, one of the above, chooses the format. Or a directory that exists: the file in it is
            named after the benchmark (CoLA.tsv) or "predictions", and is .jsonl for tagging where a word or a tag holds
            a space.
        dataset: the examples.
        predicted: one for each example, in order: str (classification, qa), labels (multilabel), float (regression), a
            tag for each word (tagging).
        null_odds: id -> how likely there is no answer, for SQuAD v2.0; written beside path as NAME.null_odds.json.

    Returns: the files. Each is whole or not there.

    Raises:
        ValueError: there are not as many predictions as examples, or as `check_predictions_path`.
        OSError: a file cannot be written; the message names the one that was written before it.
    """
    path = Path(path)
    if len(predicted) != len(dataset.examples):
        raise ValueError(f"{len(predicted)} predictions and {len(dataset.examples)} examples are given; one each")
    labels = list[str]()
    if dataset.kind in ("multilabel", "tagging"):
        labels = sorted({label for several in predicted for label in several})
    elif dataset.kind == "classification":
        labels = sorted(set(predicted))
    if path.is_dir():
        path /= _file_name(dataset, labels)
    check_predictions_path(path, dataset, labels)
    if dataset.kind == "qa":
        answers = {question.id: text for question, text in zip(dataset.examples, predicted, strict=True)}
        files = {path: json_line(answers, indent=1)}
        if null_odds is not None:
            files[path.with_name(f"{path.stem}.null_odds.json")] = json_line(null_odds, indent=1)
    elif dataset.kind == "tagging":
        text = _tag_lines(dataset, predicted) if ending(path) == ".jsonl" else _tag_columns(dataset, predicted)
        files = {path: text}
    else:
        files = {path: _rows(ending(path), dataset, predicted)}
    written: list[Path] = []
    for file, text in files.items():
        try:
            write_file(file, [text.encode()])
        except OSError as error:
            if not written:
                raise
            raise OSError(f"{error}; {written[0]} was written before it") from error
        written.append(file)
    return written


def check_predictions_path(path: str | Path, dataset: Dataset, labels: Iterable[str] = ()) -> None:
    """Checks before the predictions are made that they can be written to a path. A directory always can.

    Args:
        path: as of `write_predictions`.
        dataset: the examples that are to be predicted.
        labels: classes or tags that may be predicted.

    Raises:
        ValueError: the ending is not one of the kind's, or the format cannot hold a word, tag, class or id, such as a
            word with a space in .txt.
        FileNotFoundError: the directory of path does not exist.
        PermissionError: nothing may be written to it.
    """
    path, kind = Path(path), dataset.kind
    folder = path if path.is_dir() else path.parent
    if folder.is_dir() and not os.access(folder, os.W_OK):
        raise PermissionError(f"{folder} is not writable; name another place for the predictions, or change its mode")
    if path.is_dir():
        return
    if path.suffix not in ENDINGS[kind]:
        raise ValueError(
            f"{path} ends in {path.suffix or 'nothing'}; predictions of {kind} are written to "
            f"{', '.join(ENDINGS[kind])}: name such a file, or a directory"
        )
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no directory {path.parent}; make it, or name another file than {path}")
    if unfit := _unfit(path.suffix, dataset, labels):
        raise ValueError(f"{path} would have columns, which cannot hold {unfit}; name a .jsonl file in its place")


def _file_name(dataset: Dataset, labels: Iterable[str]) -> str:
    if dataset.name is not None and dataset.kind in ("classification", "regression"):
        return f"{BENCHMARKS[dataset.name].title}.tsv"
    usual = ENDINGS[dataset.kind][0]
    return f"predictions{'.jsonl' if _unfit(usual, dataset, labels) else usual}"


def _unfit(kind: str, dataset: Dataset, labels: Iterable[str]) -> str:
    """Names the first word, tag, class or id that a file of this ending cannot hold; "" if there is none."""
    breaks = BREAKS.get(kind)
    if dataset.kind == "multilabel" and kind != ".jsonl":
        for label in (*dataset.labels, *labels):
            if BETWEEN in label:
                return f"the label {label!r} beside others with {BETWEEN} between them"
    if breaks is None:
        return ""
    for label in (*dataset.labels, *labels):
        if breaks.search(label):
            return f"the label {label!r}"
    for example in dataset.examples:
        fields = (*example.words, *(example.tags or ())) if dataset.kind == "tagging" else (example.id,)
        for field in fields:
            if breaks.search(field):
                return f"{field!r} of example {example.id}"
    return ""


def _rows(kind: str, dataset: Dataset, predicted: Sequence[Any]) -> str:
    stsb = dataset.name == "stsb" and kind == ".tsv"
    values = [f"{min(5.0, max(0.0, value)):.3f}" if stsb else value for value in predicted]
    pairs = [(example.id, value) for example, value in zip(dataset.examples, values, strict=True)]
    if kind == ".jsonl":
        return "".join(json_line({"id": id, "prediction": value}) for id, value in pairs)
    if dataset.kind == "multilabel":
        pairs = [(id, BETWEEN.join(labels)) for id, labels in pairs]
    head = ("index" if dataset.name and kind == ".tsv" else "id", "prediction")
    if kind == ".csv":
        out = io.StringIO()
        csv.writer(out, lineterminator="\n").writerows([head, *pairs])
        return out.getvalue()
    return "".join(f"{id}\t{value}\n" for id, value in (head, *pairs))


def _tag_lines(dataset: Dataset, predicted: Sequence[Sequence[str]]) -> str:
    rows = zip(dataset.examples, predicted, strict=True)
    return "".join(json_line({"id": s.id, "words": s.words, "tags": list(tags)}) for s, tags in rows)


def _tag_columns(dataset: Dataset, predicted: Sequence[Sequence[str]]) -> str:
    lines: list[str] = []
    for sentence, tags in zip(dataset.examples, predicted, strict=True):
        columns = [sentence.words, tags] if sentence.tags is None else [sentence.words, sentence.tags, tags]
        lines += [" ".join(row) for row in zip(*columns, strict=True)] + [""]
    return "\n".join(lines) + "\n"
