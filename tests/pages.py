"""The code blocks of a documentation page: how to find them, and how to run them."""

from __future__ import annotations

import contextlib
import io
import re
import subprocess
from pathlib import Path

BLOCK = re.compile(r"^```(python|sh)\n(.*?)^```\n(?:\n?```text\n(.*?)^```\n)?", re.M | re.S)


def run(page: Path) -> None:
    """Run a page's blocks in order, in the current folder.

    The Python blocks of a page share their names, as in one script. Raises AssertionError if a shell block fails, or
    if a block prints something else than the `text` block below it says.
    """
    names: dict[str, object] = {"__name__": "docs"}
    for kind, code, expected in BLOCK.findall(page.read_text()):
        if kind == "sh":
            script = f"set -euo pipefail\n{code}"
            process = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
            assert process.returncode == 0, f"{page.name}: this block failed:\n{code}\n{process.stderr}"
            printed = process.stdout
        else:
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(compile(code, page.name, "exec"), names)
            printed = out.getvalue()
        if expected:
            assert printed == expected, f"{page.name}: this block:\n{code}\nprinted:\n{printed}\nnot:\n{expected}"
