"""What tests share: Triton's interpreter where there is no GPU, a fixed seed, the data, the mark `cuda`, the world that
faults befall."""

import importlib.util
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
    if "triton" in sys.modules:  # it reads the variable once, as it is imported
        raise RuntimeError("triton was imported before tests/conftest.py could set TRITON_INTERPRET=1; set it outside")
    os.environ["TRITON_INTERPRET"] = "1"


pytest.register_assert_rewrite("world")


def pytest_configure() -> None:
    """Triton's interpreter computes products whose bits a test may compare, and does so in a third of the time."""
    if os.environ.get("TRITON_INTERPRET") == "1" and importlib.util.find_spec("triton") is not None:
        from interpreted import prepare
        from triton.runtime import interpreter

        prepare(interpreter)


@pytest.hookimpl(tryfirst=True)  # before `-m cuda` chooses among them
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    config.collected = {item.nodeid for item in items}  # for test_faults.py
    for item in items:
        if hasattr(item, "callspec") and item.callspec.params.get("device") == "cuda":
            item.add_marker("cuda")
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("cuda"):
                item.add_marker(pytest.mark.skip(reason="no NVIDIA GPU"))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def data() -> Path:
    """The folder of real data: $ELECTRA_FAST_DATA, or shared/data beside the repository."""
    folder = Path(os.environ.get("ELECTRA_FAST_DATA") or Path(__file__).parents[2] / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no data in {folder}; name its folder in ELECTRA_FAST_DATA")
    return folder


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Any:
    from world import made

    return made(tmp_path_factory.mktemp("faults"))


@pytest.fixture
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs draw an empty curves.png and measure no peak, which in a run of a few steps take most of the time."""
    from electra_fast.tasks import finetune
    from electra_fast.train import finish, pretrain

    monkeypatch.setattr(finish, "plot_curves", lambda rows, path: path.touch())
    monkeypatch.setattr(finetune, "plot_finetuning", lambda rows, metric, path: path.touch())
    monkeypatch.setattr(pretrain, "measured_peak", lambda device: 1e12)


@pytest.fixture
def world(original: Any, tmp_path: Path, no_pictures: None) -> Any:
    """A copy of the files that faults befall, for one test."""
    return type(original)(Path(shutil.copytree(original.root, tmp_path / "world")))
