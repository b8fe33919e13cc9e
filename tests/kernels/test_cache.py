"""Triton's cache of compiled kernels where it cannot be written; and that there is no cache of tuned tiles."""

import os
import warnings
from pathlib import Path

import pytest

from electra_fast.ops import _library, _triton_cache
from electra_fast.ops._triton_cache import make_cache_usable

KERNELS = sorted((Path(__file__).resolve().parents[2] / "kernels").rglob("*.py"))


@pytest.fixture(autouse=True)
def _asked_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", "")  # so that what is set meanwhile is undone
    make_cache_usable.cache_clear()
    monkeypatch.setattr(_triton_cache.atexit, "register", lambda *_, **__: None)


def test_a_cache_that_cannot_be_written_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Told once; what Triton then writes there is found again."""
    cache = pytest.importorskip("triton.runtime.cache")
    monkeypatch.setattr(_triton_cache.tempfile, "mkdtemp", lambda prefix: str(tmp_path / "made"))
    (tmp_path / "file").touch()
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "file" / "cache"))
    with pytest.warns(
        RuntimeWarning, match=f"Triton's cache {tmp_path}/file/cache cannot be written .*Not a directory"
    ):
        make_cache_usable()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_cache_usable()
    assert os.environ["TRITON_CACHE_DIR"] == str(tmp_path / "made")
    cache.FileCacheManager("0" * 64).put(b"kernel", "kernel.bin")
    path = cache.FileCacheManager("0" * 64).get_file("kernel.bin")
    assert path.startswith(str(tmp_path / "made")) and Path(path).read_bytes() == b"kernel"


def test_a_cache_that_can_be_written_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "new" / "cache"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_cache_usable()
    assert os.environ["TRITON_CACHE_DIR"] == str(tmp_path / "new" / "cache")
    assert list((tmp_path / "new" / "cache").iterdir()) == []


def test_every_launch_asks_first(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked() -> None:
        raise InterruptedError

    monkeypatch.setattr(_library, "make_cache_usable", asked)
    with pytest.raises(InterruptedError):
        _library.launcher("seeds", "derive_seeds_fwd")(1)


@pytest.mark.parametrize("path", KERNELS, ids=lambda path: path.name)
def test_no_kernel_is_tuned_while_it_runs(path: Path) -> None:
    """Tiles stand in tables in the source: no run writes or reads a cache of them, which could be damaged or stale."""
    assert "autotune" not in path.read_text() and "heuristics" not in path.read_text()
