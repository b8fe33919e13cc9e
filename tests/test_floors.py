"""The floors of the package: nothing imports upward, and the light import stays light."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FLOORS = [  # a module may import from its own floor and from those before it
    {"_C", "kernels"},
    {"ops"},
    {"config"},
    {
        "text",
        "tokenizer",
        "examples",
        "shards",
        "corpus",
        "bundle",
        "weights",
        "huggingface",
        "batch",
        "budget",
        "flops",
        "info",
    },
    {"objective", "model", "mlm", "optim", "reference"},
    {
        "checkpoint",
        "metrics",
        "report",
        "interop_attention",
        "interop_structure",
        "interop_encoder",
        "benchmarks",
        "rows",
        "scores",
        "sentences",
        "squad",
        "tasks",
        "predictions",
    },
    {"interop", "google"},
    {"convert"},
    {"prepare", "trainer", "graph"},
    {"heads"},
    {"features", "task_model"},
    {"predict"},
    {"pretrain", "finetune"},
    {"cli"},
]


def floor(module: str) -> int:
    return next(i for i, names in enumerate(FLOORS) if module in names)


def imported(path: Path) -> set[str]:
    """Modules of electra_fast that a file imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module == "electra_fast":
            found |= {f"electra_fast.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            found.add(node.module or "")
    return {name.split(".")[1] for name in found if name.startswith("electra_fast.")}


@pytest.mark.parametrize(
    "path", sorted(ROOT.glob("electra_fast/**/*.py")), ids=lambda p: p.relative_to(ROOT).as_posix()
)
def test_nothing_imports_upward(path: Path) -> None:
    module = path.relative_to(ROOT / "electra_fast").parts[0].removesuffix(".py")
    if module == "__init__":
        return
    for other in imported(path) - {module}:
        assert floor(other) <= floor(module), f"{path.name} imports {other}, which stands above it"


def test_only_ops_know_the_backends() -> None:
    for path in ROOT.glob("electra_fast/*.py"):
        assert not imported(path) & {"_C", "kernels"}, path.name
    for path in ROOT.glob("kernels/*.py"):
        assert not imported(path), f"{path.name}: kernels know torch and triton only"


def test_no_device_switch_outside_the_dispatcher() -> None:
    for path in ROOT.glob("electra_fast/**/*.py"):
        assert ".is_cuda" not in path.read_text(), path.name


def test_import_loads_neither_triton_nor_transformers() -> None:
    code = "import sys, electra_fast; print([m for m in ('triton', 'transformers', 'matplotlib') if m in sys.modules])"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert run.stdout.strip() == "[]"
