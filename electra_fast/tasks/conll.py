"""Sentences with a tag for each word: columns, as CoNLL's shared tasks and Universal Dependencies have them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from itertools import chain, dropwhile, islice
from pathlib import Path
from typing import NamedTuple

from electra_fast.tasks.examples import Columns, Sentence
from electra_fast.tasks.files import Malformed, decode, plural, read_lines

CONLLU = "ID FORM LEMMA UPOS XPOS FEATS HEAD DEPREL DEPS MISC".split()
GLOBAL = re.compile(r"#\s*global\.columns\s*=\s*(.+)")  # names the columns of CoNLL-U Plus
COUNT = re.compile(r"\d+")  # of a word in its sentence
SPAN_OR_EMPTY = re.compile(r"\d+[-.]\d+")  # 3-4: what words 3 and 4 are written as; 8.1: a word that is not written
LOOKED_AT = 1000  # sentences from which the layout of a file is told
Line = tuple[int, str]  # its number from 1, its text


class Group(NamedTuple):
    """The lines between two blank lines, and the number of the first that is no text with what is wrong with it."""

    lines: list[Line]
    error: tuple[int, ValueError] | None


class Layout(NamedTuple):
    """Where the words and tags of a file are.

    separator: between columns. word, tag: indices of their columns. width: columns of each line, or the least of them
    if `least`. counted: whether the first column counts the words. header: whether the first line names the columns.
    known: tags of lines that can be no comment, to tell a comment from the word "#".
    """

    separator: re.Pattern[str]
    word: int
    tag: int
    width: int
    least: bool
    counted: bool
    header: bool
    known: set[str]


def column_sentences(
    path: Path, columns: Columns, labelled: bool, malformed: Malformed
) -> tuple[int, Iterator[Sentence]]:
    """(columns of a line, the sentences as they are read) of a file with a word a line.

    path: of the file. columns: the columns of the words and of the tags, by number from 1 or by a name in the first
    line; unless they are given the word is first and its tag last, or FORM and UPOS in CoNLL-U, which is known by its
    ten columns. labelled: whether the tag is wanted. malformed: takes lines that do not fit, whose sentences are left
    out.

    Columns have spaces between them, or tabs if the first line has one. A blank line ends a sentence. Comments (lines
    from "#" on before a sentence), -DOCSTART- lines, and CoNLL-U's ranges (3-4) and empty nodes (8.1) are skipped.
    Raises ValueError where the first column counts the words and nothing says which column has them.
    """
    groups = _groups(path)
    first = list(islice(groups, LOOKED_AT))
    if not first:
        raise ValueError(f"{path} has no sentences; name a file with some in it")
    layout = _layout(path, first, columns, labelled)
    return layout.width, _sentences(path, chain(first, groups), layout, labelled, malformed)


def _groups(path: Path) -> Iterator[Group]:
    lines: list[Line] = []
    error: tuple[int, ValueError] | None = None
    for number, data in enumerate(chain(read_lines(path), [b""]), 1):
        try:
            line = decode(data, f"{path}, line {number}").strip(" \t")
        except ValueError as found:
            error, line = error or (number, found), "?"
        if not line or line.startswith("-DOCSTART-"):
            if lines:
                yield Group(lines, error)
            lines, error = [], None
        else:
            lines.append((number, line))


def _layout(path: Path, groups: Sequence[Group], columns: Columns, labelled: bool) -> Layout:
    lines = [line for group in groups for _, line in group.lines]
    plain = next((line for line in lines if not line.startswith("#")), lines[0])
    separator = re.compile(r" *\t *" if "\t" in plain else r" +")
    width = len(separator.split(plain))
    named = next((match[1].split() for line in lines if (match := GLOBAL.match(line))), None)
    asked = [name for name in (columns.word, columns.tag) if name is not None and not name.isdecimal()]
    header = bool(asked) and named is None and not (width == len(CONLLU) and set(asked) <= set(CONLLU))
    names = separator.split(plain) if header else named or (CONLLU if width == len(CONLLU) else [])
    rows = [
        [separator.split(line) for _, line in dropwhile(lambda line: line[1].startswith("#"), group.lines)]
        for group in groups
    ]
    if header:
        rows[0] = rows[0][1:]
    counted = _counts([[row[0] for row in group] for group in rows])
    word, tag = (_index(path, name, names, width) for name in (columns.word, columns.tag))
    if counted and word is None and "FORM" in names:
        word = names.index("FORM")
        tag = names.index("UPOS") if tag is None and "UPOS" in names else tag
    if counted and word is None:
        example = 3 if width > 2 else 2
        raise ValueError(
            f"{path} counts 1, 2, 3 in its first column, so its words are in another; say which columns have the words "
            f"and the tags, such as --word-column 2 --tag-column {example} (of {', '.join(plain.split())})"
        )
    least = columns.word is not None or columns.tag is not None
    tag = width - 1 if tag is None else tag
    if labelled and least and tag == (word or 0):
        raise ValueError(f"{path} has its words and its tags in column {tag + 1}; name two columns")
    kept = [row[tag] for group in rows for row in group if len(row) > tag]
    if labelled and counted and kept and set(kept) == {"_"}:
        raise ValueError(f'{path} has nothing but "_" in column {tag + 1}; name the column of the tags: --tag-column')
    wanted = max(word or 0, tag if labelled else 0) + 1 if least else width
    return Layout(separator, word or 0, tag, wanted, least, counted, header, set(kept))


def _counts(groups: list[list[str]]) -> bool:
    """Whether the first columns count the words of each sentence, from 1 or 0."""
    longest = 0
    for column in groups:
        numbers = [cell for cell in column if COUNT.fullmatch(cell)]
        if len(numbers) + sum(SPAN_OR_EMPTY.fullmatch(cell) is not None for cell in column) < len(column):
            return False
        if numbers and [int(n) for n in numbers] != list(range(int(numbers[0]), int(numbers[0]) + len(numbers))):
            return False
        if numbers and int(numbers[0]) > 1:
            return False
        longest = max(longest, len(numbers))
    return longest > 1


def _index(path: Path, column: str | None, names: Sequence[str], width: int) -> int | None:
    """The index of a column that is named, or numbered from 1; None if none is."""
    if column is None:
        return None
    if not column.isdecimal():
        if column not in names:
            has = f"the columns {', '.join(names)}" if names else f"no names for its {plural(width, 'column')}"
            raise ValueError(f"{path} has {has}; {column!r} is wanted: give its number, counted from 1")
        return names.index(column)
    if not 1 <= int(column) <= width:
        raise ValueError(f"{path} has {plural(width, 'column')}; column {column} is wanted, and 1 is the first")
    return int(column) - 1


def _sentences(
    path: Path, groups: Iterator[Group], layout: Layout, labelled: bool, malformed: Malformed
) -> Iterator[Sentence]:
    header = layout.header
    index = 0
    for group in groups:
        rows: list[list[str]] = []
        error = group.error
        for number, line in group.lines:
            row = layout.separator.split(line)
            if line.startswith("#") and _comment(row, layout, bool(rows)):
                continue
            if header or (layout.counted and SPAN_OR_EMPTY.fullmatch(row[0])):
                header = False
                continue
            if error is None and (wrong := _wrong(row, layout, labelled, f"{path}, line {number}")) is not None:
                error = number, wrong
            rows.append(row)
        if error is not None:
            malformed.leave_out(*error)
        elif rows:
            layout.known.update(row[layout.tag] for row in rows if len(row) > layout.tag)
            tags = tuple(row[layout.tag] for row in rows) if labelled else None
            yield Sentence(str(index), tuple(row[layout.word] for row in rows), tags)
        index += bool(rows)


def _comment(row: list[str], layout: Layout, inside: bool) -> bool:
    """Whether a line that begins with "#" is a comment, and not the word "#" or "#tag"."""
    if layout.counted:
        return True
    if inside:
        return False
    if len(row) < layout.width or (len(row) > layout.width and not layout.least):
        return True
    return layout.tag != layout.word and len(row) > layout.tag and row[layout.tag] not in layout.known


def _wrong(row: list[str], layout: Layout, labelled: bool, where: str) -> ValueError | None:
    wanted = layout.width
    if labelled and len(row) < 2:
        return ValueError(f"{where} has one column; a word and its tag are wanted")
    if len(row) < wanted or (len(row) > wanted and not layout.least):
        more = " or more" if layout.least else ""
        return ValueError(
            f"{where} has {plural(len(row), 'column')} and {wanted}{more} are wanted; write as many in each line, or "
            "name the columns that are read: --word-column, --tag-column"
        )
    if not row[layout.word] or (labelled and not row[layout.tag]):
        return ValueError(f"{where} has an empty column; fill it")
    return None
