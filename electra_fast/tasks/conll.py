"""Sentences with a tag for each word, in CoNLL's columns or .jsonl."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from electra_fast.tasks.benchmarks import BENCHMARKS
from electra_fast.tasks.examples import Sentence, sorted_labels
from electra_fast.tasks.files import ending, plural, read_rows, read_text


def read_sentences(
    path: str | Path, labelled: bool = True, benchmark: str | None = None
) -> tuple[str | None, list[Sentence], list[str]]:
    """("conll2000" or None, the sentences, the tags in order) of a file.

    .jsonl: lists words and tags in each object. Any other ending: a line for each word, columns with spaces between
    them (tabs where the first line has one), the word first, its tag last; a blank line behind each sentence; lines
    beginning with -DOCSTART- are skipped. Without labels the tag is neither wanted nor read. Raises ValueError with the
    line of a row of other length than the first, of an empty word or tag, of lists of different lengths.
    """
    if ending(path) in (".csv", ".json", ".parquet"):
        raise ValueError(
            f"{path} ends in {ending(path)}; tagging is read from CoNLL columns (.txt, .conll or the like) and from "
            '.jsonl with lists "words" and "tags": convert it'
        )
    width = 0
    if ending(path) == ".jsonl":
        rows = enumerate(read_rows(path)[1])
        sentences = [sentence_of(row, where, str(row.get("id", i)), labelled) for i, (where, row) in rows]
    else:
        groups = list(_columns(path, labelled))
        if not groups:
            raise ValueError(f"{path} has no sentences; name a file with some in it")
        width = len(groups[0][0])
        sentences = [
            Sentence(str(i), tuple(row[0] for row in rows), tuple(row[-1] for row in rows) if labelled else None)
            for i, rows in enumerate(groups)
        ]
    tags = {tag for sentence in sentences for tag in sentence.tags or ()}
    official = BENCHMARKS["conll2000"].labels
    if width == 3 and tags <= set(official) and (tags >= {"B-NP", "B-VP", "B-PP"} or benchmark == "conll2000"):
        return "conll2000", sentences, list(official)
    return None, sentences, sorted_labels(tags)


def _columns(path: str | Path, labelled: bool) -> Iterator[list[list[str]]]:
    rows: list[list[str]] = []
    between: re.Pattern[str] | None = None
    width, first = 0, 0
    for number, line in enumerate([*read_text(path).split("\n"), ""], 1):
        line = line.strip(" \t")
        if not line or line.startswith("-DOCSTART-"):
            if rows:
                yield rows
            rows = []
            continue
        between = between or re.compile(r" *\t *" if "\t" in line else r" +")
        row = between.split(line)
        width, first = width or len(row), first or number
        if labelled and len(row) < 2:
            raise ValueError(f"{path}, line {number} has one column; a word and its tag are wanted")
        if len(row) != width:
            raise ValueError(
                f"{path}, line {number} has {plural(len(row), 'column')} and line {first} has {width}; write as many "
                "in each, the word first and its tag last"
            )
        if not all(row):
            raise ValueError(f"{path}, line {number} has an empty column; fill it")
        rows.append(row)


def sentence_of(row: dict[str, Any], where: str, id: str, labelled: bool) -> Sentence:
    """The sentence of a JSON object; ValueError beginning with where."""
    words = _strings(row, "words", where)
    tags = _strings(row, "tags", where) if labelled else None
    if tags is not None and len(tags) != len(words):
        raise ValueError(f"{where} has {plural(len(words), 'word')} and {plural(len(tags), 'tag')}; each word has one")
    return Sentence(id, words, tags)


def _strings(row: dict[str, Any], name: str, where: str) -> tuple[str, ...]:
    found = row.get(name)
    if not isinstance(found, list) or not found:
        what = f"{found!r} in" if name in row else f"the fields {', '.join(row)} and no"
        raise ValueError(f'{where} has {what} "{name}"; write a list of strings there, such as ["A", "word"]')
    bad = [i for i, item in enumerate(found) if not isinstance(item, str) or not item.strip()]
    if bad:
        raise ValueError(f'{where} has {found[bad[0]]!r} as "{name}"[{bad[0]}]; each is a string that is not empty')
    return tuple(found)
