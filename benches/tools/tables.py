"""The kernels' tables of tiles: list their entries, change an entry by one step, and print them as Python."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from electra_fast import kernels

Tile = dict[str, int]
WARPS, STAGES = (1, 16), (1, 5)  # the least and the largest number
FIXED = {
    ("attention_block", "FWD"): ["BLOCK_S"],
    ("generator_head", "FWD"): ["BLOCK_N"],
}  # not tuned: the key names this block
LARGEST: dict[tuple[str, str], Callable[[Any], Tile]] = {  # limits of blocks without a mask, which must divide the size
    ("linear", "FWD"): lambda key: dict(BLOCK_N=key[1], BLOCK_K=64) if key[1] > 1 else {},
    ("linear", "BWD_INPUT"): lambda key: dict(BLOCK_N=64, BLOCK_K=key[1]) if key[1] > 1 else {},
    ("linear_weight", "BWD_WEIGHT"): lambda key: dict(BLOCK_N=key[1], BLOCK_K=key[1]) if key[1] > 1 else {},
    ("ffn_block", "FWD"): lambda key: dict(BLOCK_F=64),
    ("ffn_block", "BWD"): lambda key: dict(BLOCK_F=64),
    ("attention_block_bwd", "BWD"): lambda key: dict(BLOCK_N=key[1]),
    ("discriminator_head", "FWD"): lambda key: dict(BLOCK_K=64 if key[0] == 2 else 16) if key[1] else {},
    ("discriminator_head", "BWD"): lambda key: dict(BLOCK_K=64 if key[0] == 2 else 16) if key[1] else {},
}


@dataclass
class Entry:
    """A tile in a table of kernels/<file>.py; in adamw.py, the constants that make one."""

    file: str
    table: str
    key: Any  # None: the table is a single tile
    where: dict[str, Any]  # the dictionary that holds the tile
    names: list[str]  # the tile's keys in it; empty where the entry launches no kernel of its own

    def __str__(self) -> str:
        return f"{self.file}.{self.table}" + ("" if self.key is None else f"[{self.key}]")

    @property
    def tile(self) -> Tile:
        return {name: self.where[name] for name in self.names}

    @property
    def warps(self) -> str:
        """The key of the number of warps."""
        return next(name for name in self.names if "warps" in name.lower())

    @contextmanager
    def being(self, tile: Tile) -> Iterator[None]:
        """Inside this context, the entry has another tile."""
        before = self.tile
        self.where.update(tile)
        try:
            yield
        finally:
            self.where.update(before)

    def neighbours(self, tile: Tile) -> Iterator[Tile]:
        """The tiles one step away: a block or the warps doubled or halved, or a stage more or less."""
        place = self.file, self.table
        largest = LARGEST.get(place, lambda key: {})(self.key)
        for name, value in tile.items():
            if name in FIXED.get(place, []):
                continue
            if name == "num_stages":
                (low, high), steps = STAGES, (value - 1, value + 1)
            else:
                (low, high), steps = (
                    WARPS if name == self.warps else (1, largest.get(name, 4096)),
                    (value // 2, 2 * value),
                )
            yield from (tile | {name: step} for step in steps if low <= step <= high)


def entries() -> list[Entry]:
    """All entries of all tables, in the order of the files."""
    entries = []
    folder = Path(kernels.__path__[0])
    for path in sorted(folder.rglob("[a-z]*.py")):
        file = ".".join(path.relative_to(folder).with_suffix("").parts)
        own = vars(importlib.import_module(f"electra_fast.kernels.{file}"))
        if "WARPS" in own:
            entries.append(Entry(file, "", None, own, ["BLOCK", "WARPS"]))
        for name, table in own.items():
            if isinstance(table, dict) and "num_warps" in table:
                entries.append(Entry(file, name, None, table, list(table)))
            elif isinstance(table, dict) and any(isinstance(t, dict) and "num_warps" in t for t in table.values()):
                entries += [Entry(file, name, key, tile, list(tile)) for key, tile in table.items()]
    return entries


def text(tile: Tile) -> str:
    return ", ".join(f"{name}={value}" for name, value in tile.items())


def python(entries: list[Entry]) -> str:
    """The tables as Python, in the form that the kernels' files have."""
    lines: list[str] = []
    for (file, table), group in groupby(entries, lambda entry: (entry.file, entry.table)):
        first, *others = group
        if (header := f"\n# kernels/{file.replace('.', '/')}.py") not in lines:
            lines.append(header)
        if not table:
            lines += [f"{name} = {value}" for name, value in first.tile.items()]
        elif first.key is None:
            lines.append(f"{table} = dict({text(first.tile)})")
        else:
            inner = [f"    {_key(entry.key)}: {_value(entry)}," for entry in (first, *others)]
            lines += [f"{table} = {{", *inner, "}"]
    return "\n".join(lines)


def _value(entry: Entry) -> str:
    return f"dict({text(entry.tile)})" if entry.names else "{}"


def _key(key: Any) -> str:
    return repr(key).replace("'", '"')
