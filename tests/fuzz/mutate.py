"""Changes of JSON that leave it JSON, so that what lies behind the parser is reached."""

from __future__ import annotations

import json
import random
from typing import Any

VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2, 7, 1 << 31, -(1 << 63), 1 << 64, 0.5, 1e300, float("nan"), float("inf"), "", "a",
    "electra", "\0", "\x1b[2J", "\ud800", "../../x", "/dev/zero", "a" * 300, [], {}, [[]], [None], {"": 0}, ["a", "b"],
]  # fmt: skip


def changed(value: Any, random: random.Random) -> Any:
    """A copy of a JSON value in which one node, chosen at random, is another, gone or there twice."""
    if isinstance(value, dict) and value and random.random() < 0.85:
        entries = list(value.items())
        at = random.randrange(len(entries))
        key, inner = entries[at]
        way = random.random()
        if way < 0.08:
            del entries[at]
        elif way < 0.14:
            entries[at] = random.choice(["", "x", "text", "label", key + "2", key[:-1]]), inner
        else:
            entries[at] = key, changed(inner, random)
        return dict(entries)
    if isinstance(value, list) and value and random.random() < 0.85:
        at = random.randrange(len(value))
        way = random.random()
        if way < 0.1:
            return value[:at] + value[at + 1 :]
        if way < 0.2:
            return value[:at] + value[at : at + 1] * random.choice([2, 3, 50]) + value[at + 1 :]
        return value[:at] + [changed(value[at], random)] + value[at + 1 :]
    if isinstance(value, int) and not isinstance(value, bool) and random.random() < 0.4:
        return value + random.choice([-1, 1, 8, 1 << 32])
    if isinstance(value, str) and value and random.random() < 0.3:
        at = random.randrange(len(value))
        return value[:at] + random.choice(["", " ", "0", "é", "\n", "\t", "/"]) + value[at + 1 :]
    return random.choice(VALUES)


def changed_json(data: bytes, head: int, random: random.Random) -> bytes | None:
    """An input with a change in its JSON, which begins after `head` bytes; None if there is no JSON.

    A header of nine bytes is a choice and the length of the JSON, which is made to fit.
    """
    length = int.from_bytes(data[1:9], "little") if head == 9 else len(data)
    text, rest = data[head : head + length], data[head + length :]
    lines = text.split(b"\n") if head == 1 and text.count(b"\n") else [text]
    at = random.randrange(len(lines))
    for place, line in ((0, text), (at, lines[at])):
        try:
            new = json.dumps(changed(json.loads(line), random)).encode()
        except (ValueError, RecursionError):
            continue
        if line is not text:
            new = b"\n".join([*lines[:place], new, *lines[place + 1 :]])
        return data[:1] + (len(new).to_bytes(8, "little") if head == 9 else b"") + new + rest
    return None
