"""The table of faults in faults.py is whole: every row, tests that exist, breaks that can still be planted."""

import ast
from functools import cache
from pathlib import Path

import pytest
from faults import BREAKS, FAULTS, NOT_YET, Break

ROOT = Path(__file__).resolve().parents[1]


@cache
def functions(path: str) -> set[str]:
    return {node.name for node in ast.parse((ROOT / path).read_text()).body if isinstance(node, ast.FunctionDef)}


def test_every_row_has_a_break_that_a_test_sees() -> None:
    assert sorted(FAULTS) == list(range(1, 57))
    assert {broken.row for broken in BREAKS} - {0} == set(FAULTS) - set(NOT_YET)
    assert len(BREAKS) >= 60 and len(set(BREAKS)) == len(BREAKS)


def test_every_test_is_there(request: pytest.FixtureRequest) -> None:
    """By its full name where this run collected the file (any run of the whole suite did), else by its function."""
    collected: set[str] = request.config.collected
    files = {name.split("::")[0] for name in collected}
    for broken in BREAKS:
        for test in broken.tests:
            path, function = test.split("::")
            assert function.split("[")[0] in functions(path), f"{test} is not there"
            whole = any(name == test or name.startswith(f"{test}[") for name in collected)
            assert path not in files or whole or not seen_whole(path, collected), f"{test} was not collected"


def seen_whole(path: str, collected: set[str]) -> bool:
    """Whether the run collected all of a file, not only tests that were named."""
    return {name.split("::")[1].split("[")[0] for name in collected if name.startswith(f"{path}::")} >= {
        name for name in functions(path) if name.startswith("test_")
    }


@pytest.mark.parametrize("broken", BREAKS, ids=lambda broken: f"{broken.row}-{broken.path}-{broken.name}")
def test_every_break_can_be_planted(broken: Break) -> None:
    assert (ROOT / broken.path).read_text().count(broken.old) == 1, f"{broken.path}: {broken.old!r}"
    assert broken.new != broken.old and broken.tests
