"""Extractive question answering in SQuAD's format: reading, and the official exact match and F1."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Question:
    """A question on a context. answers: (start, text), text == context[start : start + len(text)]; none if impossible."""

    id: str
    question: str
    context: str
    answers: tuple[tuple[int, str], ...]
    impossible: bool = False
