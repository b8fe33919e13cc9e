"""Files and directories that appear whole: permissions, planted links, left-overs, and two writers of one place."""

import errno
import hashlib
import os
import signal
import stat
import time
from pathlib import Path

import pytest

from electra_fast.storage import atomic
from electra_fast.storage.atomic import staged_directory, write_file
from electra_fast.storage.lock import InUseError

# a fork while torch's threads exist: the children touch small files only
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
WORD = "0123456789abcdef"


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def names(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_file_gets_the_umask_and_keeps_its_mode(tmp_path: Path) -> None:
    path, before = tmp_path / "file", os.umask(0o027)
    try:
        assert write_file(path, [b"one"]) == hashlib.sha256(b"one").hexdigest()
        assert mode(path) == 0o640
        for wanted in (0o600, 0o644):
            path.chmod(wanted)
            write_file(path, [b"two"])
            assert mode(path) == wanted and path.read_bytes() == b"two"
    finally:
        os.umask(before)
    assert names(tmp_path) == ["file"]


def test_planted_links_are_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever guesses the temporary's name gets an error, not a file of another's overwritten; the target of a link
    at the path itself is left alone."""
    precious, path = tmp_path / "precious", tmp_path / "file"
    precious.write_text("kept")
    path.symlink_to(precious)
    write_file(path, [b"new"])
    assert not path.is_symlink() and path.read_bytes() == b"new" and precious.read_text() == "kept"
    monkeypatch.setattr(atomic.secrets, "token_hex", lambda size: WORD)
    (tmp_path / f".file.tmp-{WORD}").symlink_to(precious)
    with pytest.raises(FileExistsError):
        write_file(path, [b"newer"])
    assert path.read_bytes() == b"new" and precious.read_text() == "kept"


def test_abandoned_temporaries_are_removed_and_living_ones_are_not(tmp_path: Path) -> None:
    """One of a killed process goes, one of a living writer of the same path stays, and so do similar names."""
    path, foreign = tmp_path / "file", tmp_path / ".file.tmp-notes"
    foreign.touch()
    (tmp_path / f".other.tmp-{WORD}").touch()
    (tmp_path / f".file.tmp-{WORD}").write_bytes(b"half")
    assert os.fork() or killed_while_writing(path)
    os.wait()
    left = names(tmp_path)
    assert f".file.tmp-{WORD}" not in left and len(left) == 3, "the child removed the older one and left its own"

    def pieces():
        yield b"outer"
        living = [name for name in names(tmp_path) if name.startswith(".file.tmp-") and name != foreign.name]
        assert len(living) == 1, "this writer's own"
        write_file(path, [b"inner"])
        assert living[0] in names(tmp_path)

    write_file(path, pieces())
    assert path.read_bytes() == b"outer"
    assert names(tmp_path) == [foreign.name, f".other.tmp-{WORD}", "file"]


def killed_while_writing(path: Path) -> None:
    def pieces():
        yield b"x"
        os.kill(os.getpid(), signal.SIGKILL)

    try:
        write_file(path, pieces())
    finally:
        os._exit(1)


def test_a_temporary_taken_for_abandoned_before_its_lock_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock, removed = atomic.fcntl.flock, []

    def removed_first(handle: int, how: int) -> None:
        if not removed:
            removed.append(os.readlink(f"/proc/self/fd/{handle}"))
            os.unlink(removed[0])
        lock(handle, how)

    monkeypatch.setattr(atomic.fcntl, "flock", removed_first)
    write_file(tmp_path / "file", [b"whole"])
    assert removed and names(tmp_path) == ["file"] and (tmp_path / "file").read_bytes() == b"whole"


def test_a_directory_appears_when_its_block_ends(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "out"
    with staged_directory(target) as staging:
        (staging / "part").mkdir()
        write_file(staging / "part" / "file", [b"x"])
        assert not target.exists() and staging.parent == target.parent
    assert names(target) == ["part"] and names(target.parent) == ["out"]
    with pytest.raises(FileExistsError, match="no empty directory"), staged_directory(target):
        raise AssertionError("the block must not run")
    (tmp_path / "empty").mkdir()
    with staged_directory(tmp_path / "empty") as staging:
        (staging / "file").touch()
    assert names(tmp_path / "empty") == ["file"]


def test_a_failed_block_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(KeyboardInterrupt), staged_directory(tmp_path / "out") as staging:
        (staging / "file").touch()
        raise KeyboardInterrupt
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"), staged_directory(tmp_path / "out") as staging:
        (staging / "file").touch()
    assert names(tmp_path) == []


def test_somebody_elses_directory_is_not_replaced(tmp_path: Path) -> None:
    with pytest.raises(FileExistsError, match="no empty directory"), staged_directory(tmp_path / "out"):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine").write_text("kept")
    assert names(tmp_path) == ["out"] and (tmp_path / "out" / "mine").read_text() == "kept"


def test_two_writers_of_one_directory_and_what_a_killed_one_left(tmp_path: Path) -> None:
    """The second is refused in a sentence that names the first; killed, the first leaves no hindrance."""
    target, (reader, writer) = tmp_path / "out", os.pipe()
    for name in (f".tmp-out-{WORD}", ".tmp-out-1", f".tmp-other-{WORD}"):  # the last two are not ours to remove
        (tmp_path / name).mkdir()
    child = os.fork()
    if child == 0:
        try:
            with staged_directory(target) as staging:
                (staging / "file").touch()
                os.write(writer, b"x")
                time.sleep(60)
        finally:
            os._exit(1)
    os.read(reader, 1)
    with pytest.raises(InUseError) as refused, staged_directory(target):
        pass
    for part in (f"{target} is in use by another run (process {child} on ", "wait for it, stop it, or choose another"):
        assert part in str(refused.value)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(reader), os.close(writer)
    assert len(names(tmp_path)) == 4, "a lock, what the child left, and the two that are not ours"
    with staged_directory(target) as staging:
        (staging / "mine").touch()
    assert names(target) == ["mine"]
    assert names(tmp_path) == [".tmp-other-" + WORD, ".tmp-out-1", "out"]
