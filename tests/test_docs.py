"""Every code block of the documentation runs, in order, in an empty folder, and prints what the page says it prints."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import fork_server
import pytest
from pages import BLOCK

ROOT = Path(__file__).resolve().parent.parent
TEST = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)`")
FENCE = re.compile(r"^ *```(\w+).*$", re.M)
SLOW = ("benches",)  # it runs a race, whose code tests/benches covers
PAGES = sorted(path for path in ROOT.glob("docs/**/*.md") if BLOCK.search(path.read_text()))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The socket of a server whose pages find this environment's programs, and an electra-fast that imports nothing."""
    folder = tmp_path_factory.mktemp("bin")
    address = folder / "server"
    fork_server.install(folder, address)
    path = os.pathsep.join([str(folder), str(Path(sys.executable).parent), os.environ["PATH"]])
    command = [sys.executable, fork_server.__file__, str(address)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PATH": path}) as process:
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        yield address
        process.terminate()


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, id=page.stem, marks=[pytest.mark.slow] if page.stem in SLOW else []) for page in PAGES],
)
def test_page_runs(page: Path, server: Path, tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    with open(tmp_path / "output", "w+") as output:
        succeeded = fork_server.run_page(page, folder, server, output)
        output.seek(0)
        assert succeeded, output.read()


def test_every_test_that_a_page_names_is_there() -> None:
    named = {match for page in ROOT.glob("docs/**/*.md") for match in TEST.findall(page.read_text())}
    assert len(named) > 20, "the pattern finds them"
    for path, function in named:
        defined = {node.name for node in ast.parse((ROOT / path).read_text()).body if isinstance(node, ast.FunctionDef)}
        assert function in defined, f"{path}::{function}"


def test_no_block_is_passed_over() -> None:
    """Code stands in blocks of `python` or `sh`, and `text` below one is what it prints."""
    for page in ROOT.glob("docs/**/*.md"):
        text = page.read_text()
        blocks = BLOCK.findall(text)
        kinds = [kind for kind, _, expected in blocks for kind in ([kind, "text"] if expected else [kind])]
        assert FENCE.findall(text) == kinds, f"{page.name}: a block that no test runs"
