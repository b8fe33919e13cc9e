"""Every block of the docs runs, in order, in an empty folder; what is printed below a block is what it prints."""

import contextlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BLOCK = re.compile(r"^```(python|sh)\n(.*?)^```\n(?:```text\n(.*?)^```\n)?", re.M | re.S)
PAGES = sorted(ROOT.glob("docs/*.md"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_page_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    names: dict[str, object] = {"__name__": "docs"}
    blocks = BLOCK.findall(page.read_text())
    assert blocks, f"{page.name} has no block to run"
    for kind, code, wanted in blocks:
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
