"""How the reference reads docstrings: a line `name: text` for an argument becomes a row of the table of arguments.

The docstring of a class describes the arguments of its constructor.
"""

from __future__ import annotations

import re
from typing import Any

import griffe

LINE = re.compile(r"^(\w+(?:, \w+)*): (.+)$")  # `x, y: text` describes both


class ArgumentLines(griffe.Extension):
    """Turns the lines `name: text` of a docstring into the section that the parser knows, `Args:`."""

    def on_function(self, *, func: griffe.Function, **kwargs: Any) -> None:
        if func.docstring is not None and "Args:\n" not in func.docstring.value:
            func.docstring.value = with_section(func.docstring.value, {parameter.name for parameter in func.parameters})

    def on_class(self, *, cls: griffe.Class, **kwargs: Any) -> None:
        if cls.docstring is not None:
            names = {parameter.name for parameter in cls.parameters}
            cls.docstring.value = with_section(cls.docstring.value, names)


def with_section(text: str, parameters: set[str]) -> str:
    """The docstring with its lines on arguments, and what continues them, indented under `Args:`."""
    lines, section = [], False
    for line in text.splitlines():
        match = LINE.match(line)
        if match and parameters.issuperset(match[1].split(", ")):
            if not section:
                lines += ["", "Args:"]
            section = True
            lines.append(f"    {line}")
        elif section and line.strip():
            lines.append(f"        {line.strip()}")
        else:
            section = False
            lines.append(line)
    return "\n".join(lines)
