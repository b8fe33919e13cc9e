"""Every block of the docs runs, in order, in an empty folder; what is printed below a block is what it prints."""

import contextlib
import io
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import command_server
import pytest

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"^```(python|sh)\n(.*?)^```\n(?:\n?```text\n(.*?)^```\n)?", re.M | re.S)
FENCE = re.compile(r"^ *```(\w+).*$", re.M)
SLOW = ("benches",)  # it runs a race, whose code tests/benches covers
PAGES = sorted(path for path in ROOT.glob("docs/**/*.md") if BLOCK.search(path.read_text()))


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """PATH with this environment's programs, and before them an electra-fast that need not import anything."""
    folder = tmp_path_factory.mktemp("bin")
    command_server.install(folder, folder / "server")
    command = [sys.executable, command_server.__file__, str(folder / "server")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None and server.stdout.readline() == "ready\n"
        yield os.pathsep.join([str(folder), str(Path(sys.executable).parent), os.environ["PATH"]])
        server.terminate()


@pytest.mark.parametrize(
    "page",
    [pytest.param(page, id=page.stem, marks=[pytest.mark.slow] if page.stem in SLOW else []) for page in PAGES],
)
def test_page_runs(page: Path, path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "docs"}
    for kind, code, wanted in BLOCK.findall(page.read_text()):
        if kind == "sh":
            script = f"set -euo pipefail\n{code}"
            run = subprocess.run(
                ["bash", "-c", script], capture_output=True, text=True, env={**os.environ, "PATH": path}
            )
            assert run.returncode == 0, f"{code}\n{run.stderr}"
            said = run.stdout
        else:
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(compile(code, page.name, "exec"), names)
            said = out.getvalue()
        if wanted:
            assert said == wanted, code


def test_no_block_is_passed_over() -> None:
    """Code stands in blocks of `python` or `sh`, and `text` below one is what it prints."""
    for page in ROOT.glob("docs/**/*.md"):
        text = page.read_text()
        blocks = BLOCK.findall(text)
        kinds = [kind for kind, _, wanted in blocks for kind in ([kind, "text"] if wanted else [kind])]
        assert FENCE.findall(text) == kinds, f"{page.name}: a block that no test runs"
