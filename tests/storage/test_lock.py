"""Lock: one owner at a time, who is named; it ends with its process, and with the file that was locked."""

import os
import shutil
import signal
import time

import pytest

from electra_fast.storage.lock import InUseError, Lock

# a fork while torch's threads exist: the children only sleep
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


@pytest.mark.parametrize("has_worker", [False, True])
def test_lock_names_its_holder_and_dies_with_it(has_worker, tmp_path):
    reader, writer = os.pipe()
    holder = os.fork()
    if holder == 0:
        try:
            with Lock(tmp_path / ".lock", tmp_path):
                if not has_worker or os.fork() == 0:
                    os.write(writer, f"{os.getpid():8}".encode())
                time.sleep(60)
        finally:
            os._exit(1)
    worker = int(os.read(reader, 8))
    try:
        with pytest.raises(InUseError) as refused, Lock(tmp_path / ".lock", tmp_path):
            pass
        for part in [str(tmp_path), f"process {holder} on", "only one at a time", "choose another directory"]:
            assert part in str(refused.value)
        with Lock(tmp_path / "another" / ".lock", tmp_path / "another"):
            pass
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)
        with Lock(tmp_path / ".lock", tmp_path):  # at once, although a worker of the dead run lives
            assert not has_worker or os.kill(worker, 0) is None
    finally:
        os.close(reader), os.close(writer)
        if has_worker:
            os.kill(worker, signal.SIGKILL)


def test_lock_in_one_process(tmp_path):
    file, subject = tmp_path / "run" / ".lock", tmp_path / "run"
    with Lock(file, subject) as lock:
        assert lock.is_held()
        for _ in range(2):  # the first refusal must not release it
            with pytest.raises(InUseError, match="in use"), Lock(file, subject):
                pass
    assert not file.exists() and not lock.is_held()
    with Lock(file, subject):
        pass


def test_lock_of_a_removed_directory_is_not_held(tmp_path):
    """What another process locked at the same path since is left alone."""
    file = tmp_path / "run" / ".lock"
    with Lock(file, tmp_path / "run") as first:
        shutil.rmtree(tmp_path / "run")
        assert not first.is_held()
        with Lock(file, tmp_path / "run") as second:
            assert second.is_held() and not first.is_held()
            first.__exit__()
            assert second.is_held()


def test_lock_follows_no_link(tmp_path):
    (tmp_path / "precious").write_text("kept")
    (tmp_path / ".lock").symlink_to(tmp_path / "precious")
    with pytest.raises(OSError), Lock(tmp_path / ".lock", tmp_path):
        pass
    assert (tmp_path / "precious").read_text() == "kept"


def test_a_lock_whose_owner_is_just_leaving(tmp_path, monkeypatch):
    """The owner removes its file between our open and our lock: the lock is taken on a file that others will find."""
    file = tmp_path / ".lock"
    file.touch()
    opened = os.open

    def open_and_lose(path, *arguments, **options):
        handle = opened(path, *arguments, **options)
        if file.exists() and not lost:
            file.unlink()
            lost.append(1)
        return handle

    lost = []
    monkeypatch.setattr(os, "open", open_and_lose)
    with Lock(file, tmp_path) as lock:
        assert lost and lock.is_held() and file.exists()
