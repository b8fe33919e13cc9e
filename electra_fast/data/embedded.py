"""The text that every CPython carries: what `pretrain` reads when it is given none."""

from __future__ import annotations

import ast
import inspect
import pydoc_data.topics
import re
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def embedded_documents() -> list[list[str]]:
    """About 2 MB of English that every CPython carries: the topics of its help() and the standard library's docstrings.

    A document is a topic or the docstrings of a module, a line is a sentence. The modules are parsed, not imported;
    the order is fixed, the text depends on the Python version alone.
    """
    found = [_sentences(text) for _, text in sorted(pydoc_data.topics.topics.items())]
    root = Path(sysconfig.get_path("stdlib"))
    skipped = {"test", "tests", "idlelib", "lib2to3", "turtledemo", "ensurepip", "site-packages", "dist-packages"}
    for path in sorted(root.rglob("*.py")):
        if not skipped.intersection(path.relative_to(root).parts[:-1]):
            found.append([sentence for text in _docstrings(path) for sentence in _sentences(text)])
    return [document for document in found if document]


def _docstrings(path: Path) -> Iterator[str]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # old modules hold escapes that newer parsers warn of
            nodes: list[Any] = [ast.parse(path.read_bytes())]
    except (SyntaxError, ValueError, OSError):
        return  # templates and deliberately broken modules lie among the others
    while nodes:
        node = nodes.pop()
        text = ast.get_docstring(node, clean=False)
        if text:
            yield text
        kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
        nodes += [child for child in reversed(node.body) if isinstance(child, kinds)]


def _sentences(text: str) -> list[str]:
    """The sentences of the paragraphs of a docstring, without examples of code and rules of asterisks."""
    sentences: list[str] = []
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(text)):
        if paragraph.lstrip().startswith(">>>"):
            continue
        lines = (line.strip() for line in paragraph.splitlines())
        joined = " ".join(line for line in lines if any(character.isalnum() for character in line))
        sentences += re.split(r"(?<=[.!?]) +(?=[A-Z\"'(])", joined)
    return [sentence for sentence in sentences if sentence]
