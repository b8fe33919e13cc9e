"""The kinds of options that the benches and the tools share; a wrong value is told in a sentence, by argparse."""

from __future__ import annotations

import re
from argparse import ArgumentTypeError

MODELS = ("tiny", "small", "small_plus", "base", "large")


def shape(text: str) -> str:
    """A batch shape, sequences x tokens, such as "16x128"; a word after it chooses the sequences' lengths.

    Raises:
        ArgumentTypeError: the text is something else.
    """
    if not re.fullmatch(r"[1-9]\d*x[1-9]\d*( text| ragged)?", text):
        raise ArgumentTypeError(
            f"{text!r} is no batch shape; write sequences x tokens, such as 16x128 or '16x128 text'"
        )
    return text


def plain_shape(text: str) -> str:
    """A batch shape of equally long sequences, such as "16x128".

    Raises:
        ArgumentTypeError: the text is something else.
    """
    if " " in shape(text):
        raise ArgumentTypeError(f"{text!r} has sequences of different lengths; write a plain shape, such as 16x128")
    return text
