"""Sentences to tag: of columns, or of the lists in .jsonl and .parquet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from electra_fast.tasks.benchmarks import BENCHMARKS
from electra_fast.tasks.conll import column_sentences
from electra_fast.tasks.examples import Columns, Sentence, sorted_labels
from electra_fast.tasks.files import Malformed, ending, plural
from electra_fast.tasks.tables import read_table
from electra_fast.tasks.texts import row_id

WORDS, TAGS = ("words", "tokens"), ("tags", "ner_tags")  # usual names of the lists


def read_sentences(
    path: Path, columns: Columns | None, benchmark: str | None, malformed: Malformed
) -> tuple[str | None, list[Sentence], list[str]]:
    """The tagged sentences of a file: columns (`column_sentences`), or lists in .jsonl and .parquet.

    path, columns, benchmark: as of `read_dataset`. malformed: takes what does not fit; its sentence is left out.

    Returns ("conll2000" or None, the sentences, the tags in order). Raises ValueError.
    """
    width, found = _sentences(path, columns or Columns(), True, malformed)
    sentences = list(found)
    tags = {tag for sentence in sentences for tag in sentence.tags or ()}
    official = BENCHMARKS["conll2000"].labels
    if width == 3 and tags <= set(official) and (tags >= {"B-NP", "B-VP", "B-PP"} or benchmark == "conll2000"):
        return "conll2000", sentences, list(official)
    return None, sentences, sorted_labels(tags)


def untagged_sentences(path: Path, columns: Columns | None, malformed: Malformed) -> Iterator[Sentence]:
    """The sentences of a file without their tags, as they are read; see `read_sentences`."""
    return _sentences(path, columns or Columns(), False, malformed)[1]


def _sentences(path: Path, columns: Columns, labelled: bool, malformed: Malformed) -> tuple[int, Iterator[Sentence]]:
    """(columns of a line, 0 without lines; the sentences)."""
    if ending(path) in (".csv", ".json"):
        raise ValueError(
            f"{path} ends in {ending(path)}; tagging is read from columns (.txt, .conll, .conllu, .tsv or the like), "
            'and from .jsonl and .parquet with lists "words" and "tags": convert it'
        )
    if ending(path) in (".jsonl", ".parquet"):
        return 0, _of_lists(path, columns, labelled, malformed)
    return column_sentences(path, columns, labelled, malformed)


def _of_lists(path: Path, columns: Columns, labelled: bool, malformed: Malformed) -> Iterator[Sentence]:
    table = read_table(path, malformed)
    words = columns.word or next((name for name in WORDS if name in table.header), WORDS[0])
    tags = columns.tag or next((name for name in TAGS if name in table.header), TAGS[0])
    for row in table.rows([words, tags, columns.id]):
        try:
            id = row_id(row.cells, columns, row.where, row.number)
            sentence = sentence_of(row.cells, row.where, id, words, tags if labelled else None)
        except ValueError as error:
            malformed.leave_out(row.line, error)
        else:
            yield sentence


def sentence_of(
    cells: Mapping[str, Any], where: str, id: str, words: str = "words", tags: str | None = None
) -> Sentence:
    """The sentence in the lists of a row, with tags if their list is named; ValueError that begins with where."""
    ours = _strings(cells, words, where)
    theirs = None if tags is None else _strings(cells, tags, where)
    if theirs is not None and len(theirs) != len(ours):
        raise ValueError(f"{where} has {plural(len(ours), 'word')} and {plural(len(theirs), 'tag')}; each word has one")
    return Sentence(id, ours, theirs)


def _strings(cells: Mapping[str, Any], name: str, where: str) -> tuple[str, ...]:
    """A list of strings, or of whole numbers, which are classes without names."""
    value = cells.get(name)
    if not isinstance(value, list) or not value:
        what = f"{repr(value)[:40]} in" if name in cells else f"the fields {', '.join(cells)} and no"
        raise ValueError(f'{where} has {what} "{name}"; write a list of strings there, such as ["A", "word"]')
    items = [str(item) if isinstance(item, int) and not isinstance(item, bool) else item for item in value]
    bad = next((i for i, item in enumerate(items) if not isinstance(item, str) or not item.strip()), None)
    if bad is not None:
        raise ValueError(f'{where} has {repr(value[bad])[:40]} as "{name}"[{bad}]; each is a string that is not empty')
    return tuple(items)
