"""The version stands in pyproject.toml alone, and a checkout, an installed package and a bare copy each find it."""

import importlib.metadata
import re
import sys
from pathlib import Path

import pytest

import electra_fast as ef

ROOT = Path(__file__).resolve().parent.parent
DECLARED = re.findall(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.M)
INFO = sys.modules["electra_fast.info"]  # the package's name `info` is the function


def test_version_is_the_one_of_pyproject() -> None:
    (declared,) = DECLARED
    assert ef.__version__ == declared
    assert ef.info()["versions"]["electra_fast"] == ef.__version__


def test_installed_package_reads_its_metadata(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(INFO, "__file__", str(tmp_path / "electra_fast/info.py"))
    monkeypatch.setattr(importlib.metadata, "version", {"electra_fast": "7.8.9"}.__getitem__)
    assert INFO.version() == "7.8.9"
    (tmp_path / "pyproject.toml").write_text(
        '[project]\nname = "another"\nversion = "1.0"\n'
    )  # installed in its folder
    assert INFO.version() == "7.8.9"


def test_bare_copy_has_no_version(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(INFO, "__file__", str(tmp_path / "electra_fast/info.py"))
    monkeypatch.setattr(importlib.metadata, "version", absent)
    assert INFO.version() == "unknown"
