"""Checkpoints under kill -9, full disks and damage: the last whole one loads, bit for bit, and nothing else does."""

import builtins
import errno
import json
import os
import re
import resource
import shutil
import signal
import sys
import time

import pytest
import torch

from electra_fast.storage import checkpoint
from electra_fast.storage.checkpoint import CheckpointError
from electra_fast.storage.digests import file_digest

# a fork while torch's threads exist: the children touch small tensors only
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def content(seed, size=50):
    g = torch.Generator().manual_seed(seed)
    tensors = {
        "model": {"a.weight": torch.randn(size, generator=g), "a.bias": torch.randn(3, 2, generator=g).t()},
        "optimizer": {"exp_avg": torch.randn(size, generator=g), "step": torch.tensor(seed)},
    }
    return tensors, {"seed": seed, "rng": [seed, 0.1 * seed], "settings": {"path": "é", "none": None}}


def is_content(loaded, step, seed, size=50):
    found_step, tensors, state = loaded
    expected, expected_state = content(seed, size)
    return (
        found_step == step
        and state == expected_state
        and {name: group.keys() for name, group in tensors.items()} == {n: g.keys() for n, g in expected.items()}
        and all(torch.equal(tensors[n][key], expected[n][key]) for n in expected for key in expected[n])
    )


def save(root, step, seed=None, keep=2, size=50):
    return checkpoint.save(root, step, *content(step if seed is None else seed, size), keep)


def leftovers(root):
    return sorted(path.name for path in root.rglob("*") if ".tmp-" in path.name)


def test_save_load_keep(tmp_path):
    root = tmp_path / "run"
    assert checkpoint.latest(root) is None and checkpoint.checkpoints(root) == []
    for step in (0, 5, 40, 100):
        path = save(root, step)
        assert path == root / f"checkpoint-{step}" == checkpoint.latest(root)
        assert is_content(checkpoint.load(path), step, step)
    assert [p.name for p in checkpoint.checkpoints(root)] == ["checkpoint-40", "checkpoint-100"]
    assert is_content(checkpoint.load(root / "checkpoint-40"), 40, 40)
    save(root, 100, seed=7)
    assert is_content(checkpoint.load(root / "checkpoint-100"), 100, 7), "the same step was not replaced"
    save(root, 60, keep=1)  # later steps belong to another run: never removed
    assert [p.name for p in checkpoint.checkpoints(root)] == ["checkpoint-60", "checkpoint-100"]
    assert leftovers(root) == []
    again = save(tmp_path / "again", 60)
    assert (again / "manifest.json").read_bytes() == (root / "checkpoint-60/manifest.json").read_bytes()


@pytest.mark.parametrize("step, keep, name", [(-1, 1, "m"), (1, 0, "m"), (1, 1, "../m"), (1, 1, ""), (1, 1, "a.b")])
def test_bad_arguments(step, keep, name, tmp_path):
    with pytest.raises(ValueError, match="are allowed: correct them"):
        checkpoint.save(tmp_path / "run", step, {name: {}}, {}, keep)
    assert not (tmp_path / "run").exists()


def test_steps_give_the_order_not_clocks(tmp_path):
    for step in (9, 10, 100):
        save(tmp_path, step, keep=3)
        os.utime(tmp_path / f"checkpoint-{step}", (10**9 - step, 10**9 - step))  # the later, the older
    shutil.copytree(tmp_path / "checkpoint-100", tmp_path / "checkpoint-0999")  # names of no step
    shutil.copytree(tmp_path / "checkpoint-100", tmp_path / "checkpoint-best")
    (tmp_path / "checkpoint-500").mkdir()  # no manifest
    assert [checkpoint.load(path)[0] for path in checkpoint.checkpoints(tmp_path)] == [9, 10, 100]
    save(tmp_path, 101, keep=2)
    assert [path.name for path in checkpoint.checkpoints(tmp_path)] == ["checkpoint-100", "checkpoint-101"]


def test_all_is_synced_before_it_is_named(tmp_path, monkeypatch):
    synced, fsync, rename = [], os.fsync, os.rename

    def note_sync(handle):
        synced.append(os.path.basename(os.readlink(f"/proc/self/fd/{handle}")))
        fsync(handle)

    def note_rename(one, other):
        synced.append(f"named {os.path.basename(other)}")
        rename(one, other)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "rename", note_rename)
    save(tmp_path, 10)
    synced = [re.sub("[0-9a-f]{16}", "*", name) for name in synced]
    staging = ".tmp-checkpoint-10-*"
    assert sorted(synced[:6:2]) == sorted(f".{n}.tmp-*" for n in FILES if n != "manifest.json")
    assert synced[1:6:2] == [staging] * 3
    assert synced[6:8] == [".manifest.json.tmp-*", staging] and sorted(synced[8:-3]) == sorted(FILES)
    assert synced[-3:] == [staging, "named checkpoint-10", tmp_path.name]


WORD = "0123456789abcdef"
FILES = ["manifest.json", "state.json", "model.safetensors", "optimizer.safetensors"]


CALLS = {"open", "write", "flush", "close", "fsync", "mkdir", "rename", "replace", "unlink", "rmdir", "scandir"}


def killed_at(call, action):
    """Run `action` in a child that dies by SIGKILL before its `call`-th file-system call; False if it has fewer."""
    child = os.fork()
    if child == 0:
        seen = 0

        def tick(_frame, event, function):
            nonlocal seen
            if event == "c_call" and function.__name__ in CALLS:
                if seen == call:
                    os.kill(os.getpid(), signal.SIGKILL)
                seen += 1

        sys.setprofile(tick)
        try:
            action()
            os._exit(0)
        finally:
            os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0, "the save failed by itself"
    return os.WIFSIGNALED(status)


def old_or_new(root, step):
    loaded = checkpoint.load(checkpoint.latest(root))
    if is_content(loaded, step, 99):
        return "new"
    assert is_content(loaded, 20, 20), "neither the old nor the new one"
    return "old"


@pytest.mark.parametrize(
    "step", [pytest.param(30, id="a new step"), pytest.param(20, id="a step replaced", marks=pytest.mark.slow)]
)
def test_kill_at_every_call(step, tmp_path):
    old, root = tmp_path / "old", tmp_path / "root"
    save(old, 10), save(old, 20)
    outcomes = []
    while True:
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(old, root)
        if not killed_at(len(outcomes), lambda: save(root, step, seed=99)):
            break
        if step == 30:  # a reader that does not clean up finds one too
            assert old_or_new(root, step)
        checkpoint.clean(root)
        assert leftovers(root) == [], f"killed at call {len(outcomes)}"
        outcomes.append(old_or_new(root, step))
        assert all(checkpoint.load(path) for path in checkpoint.checkpoints(root))
    assert outcomes == sorted(outcomes, reverse=True), "first the old one, then the new one"
    assert {"old", "new"} == set(outcomes)
    assert len(outcomes) > 40
    save(root, 40)  # and the run goes on
    assert is_content(checkpoint.load(checkpoint.latest(root)), 40, 40)


def test_kill_at_any_moment(tmp_path):
    size, count = 100_000, 0
    save(tmp_path, 0, size=size)
    start = time.monotonic()
    save(tmp_path, 1, size=size)
    duration = time.monotonic() - start
    for trial in range(200):
        if trial >= 16 and count > 3:
            break
        last = checkpoint.load(checkpoint.latest(tmp_path))[0]
        child = os.fork()
        if child == 0:
            try:
                for step in range(last + 1, last + 100):
                    save(tmp_path, step, size=size)
            finally:
                os._exit(1)
        time.sleep(duration * (0.2 + trial % 16 / 5))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        count += bool(leftovers(tmp_path))
        checkpoint.clean(tmp_path)
        assert leftovers(tmp_path) == []
        step = checkpoint.load(checkpoint.latest(tmp_path))[0]
        assert step >= last and is_content(checkpoint.load(checkpoint.latest(tmp_path)), step, step, size)
    assert count > 3, "hardly a kill fell into a save: the test shows nothing"


@pytest.mark.parametrize("step", [30, 20], ids=["a new step", "a step replaced"])
@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_disk_fails_at_every_call(number, step, tmp_path):
    old, root = tmp_path / "old", tmp_path / "root"
    save(old, 10), save(old, 20)
    failing = {builtins.open, os.fsync, os.mkdir, os.rename, os.replace, "write", "flush"}
    call = failures = 0
    while True:
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(old, root)
        seen = 0

        def fail(_frame, event, function, call=call):
            nonlocal seen
            if event == "c_call" and (function in failing or function.__name__ in failing):
                seen += 1
                if seen == call + 1:
                    raise OSError(number, os.strerror(number))

        try:
            sys.setprofile(fail)
            save(root, step, seed=99)
        except OSError as error:
            assert error.errno == number
            failures += 1
        finally:
            sys.setprofile(None)
        if seen <= call:
            break
        assert leftovers(root) == [], f"failed at call {call}"
        assert old_or_new(root, step)
        assert all(checkpoint.load(path) for path in checkpoint.checkpoints(root))
        assert len(checkpoint.checkpoints(root)) >= 2, "an old one was lost"
        call += 1
    assert failures >= call - 1, "mkdir of a directory that is there may fail; nothing else may pass in silence"
    assert failures > 20
    assert old_or_new(root, step) == "new"


def test_a_real_limit_in_the_middle_of_a_file(tmp_path):
    save(tmp_path, 10)
    child = os.fork()
    if child == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
        try:
            save(tmp_path, 20, size=100_000)
        except OSError as error:
            os._exit(0 if error.errno == errno.EFBIG and leftovers(tmp_path) == [] else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert [path.name for path in checkpoint.checkpoints(tmp_path)] == ["checkpoint-10"]
    with pytest.raises(OSError):
        save(tmp_path / "checkpoint-10" / "manifest.json", 20)  # no directory
    with pytest.raises(TypeError):
        checkpoint.save(tmp_path, 20, {}, {"a": torch.zeros(1)}, 2)  # not JSON
    assert leftovers(tmp_path) == [] and is_content(checkpoint.load(tmp_path / "checkpoint-10"), 10, 10)


@pytest.fixture
def run(tmp_path):
    save(tmp_path, 10), save(tmp_path, 20)
    return tmp_path


@pytest.mark.parametrize("name", FILES)
def test_every_flipped_bit_and_every_truncation(name, run, monkeypatch):
    path = run / "checkpoint-20"
    whole = (path / name).read_bytes()
    damaged = [whole[:i] for i in {0, 1, len(whole) // 2, len(whole) - 1}] + [whole + b"\0", whole + b"\n"]
    for i in range(len(whole)):
        damaged.append(whole[:i] + bytes([whole[i] ^ 1 << i % 8]) + whole[i + 1 :])
    parsed = []
    monkeypatch.setattr(checkpoint, "read_tensors", lambda file: parsed.append(file) or {})
    for i, text in enumerate(damaged):
        if name == "manifest.json" and text == whole + b"\n":
            continue  # the same manifest
        (path / name).write_bytes(text)
        with pytest.raises(CheckpointError) as refused:
            checkpoint.load(path)
        message = str(refused.value)
        assert "checkpoint-20" in message and f"delete {path} to resume from checkpoint-10" in message, i
        assert name == "manifest.json" or name in message, i
        assert name == "manifest.json" or ("bytes" if len(text) != len(whole) else "SHA-256") in message, i
    if name != "manifest.json":
        assert parsed == [], "a file was parsed before all were checked"


@pytest.mark.parametrize(
    "damage, parts",
    [
        (lambda p: (p / "model.safetensors").unlink(), ["'model.safetensors' is missing"]),
        (lambda p: (p / "state.json").unlink(), ["'state.json' is missing"]),
        (lambda p: (p / "manifest.json").unlink(), ["manifest.json is missing"]),
        (
            lambda p: shutil.copy(p / "model.safetensors", p / "new.safetensors"),
            ["'new.safetensors' is not in the man"],
        ),
        (lambda p: (p / "model.pt").write_bytes(b"x"), ["'model.pt' is not in the manifest"]),
        (lambda p: shutil.copy(p.parent / "checkpoint-10/state.json", p), ["'state.json' has SHA-256", "was written"]),
        (lambda p: edit(p, lambda m: m.update(format=2)), ["format 2", "1 is read here", "the version that wrote it"]),
        (lambda p: edit(p, lambda m: m.update(step=21)), ["step 21", "state.json 20"]),
        (lambda p: edit(p, lambda m: m.update(files=[])), ["lists no files"]),
        (lambda p: edit(p, lambda m: m.update(files={"state.json": 1})), ["lists no files"]),
        (lambda p: edit(p, lambda m: m.update(files={})), ["'state.json' is not in the manifest"]),
        (
            lambda p: edit(p, lambda m: m["files"].update({"../checkpoint-10/state.json": {}})),
            ["state.json' is missing"],
        ),
        (lambda p: edit(p, lambda m: m["files"].update({"/etc/passwd": {}})), ["'/etc/passwd' is missing"]),
    ],
)
def test_missing_extra_and_forged(damage, parts, run):
    path = run / "checkpoint-20"
    damage(path)
    with pytest.raises(CheckpointError) as refused:
        checkpoint.load(path)
    for part in ["checkpoint-20", *parts, f"delete {path} to resume from checkpoint-10"]:
        assert part in str(refused.value)


def edit(path, change):
    manifest = json.loads((path / "manifest.json").read_text())
    change(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))


def test_both_digests_and_no_older_one(run):
    path = run / "checkpoint-10"
    written = json.loads((path / "manifest.json").read_text())["files"]["state.json"]["sha256"]
    (path / "state.json").write_bytes((path / "state.json").read_bytes().replace(b"10", b"11"))
    found = file_digest(path / "state.json")
    with pytest.raises(CheckpointError) as refused:
        checkpoint.load(path)
    for part in [found[:12], written[:12], "no older checkpoint is left", str(run), "start anew in another directory"]:
        assert part in str(refused.value)


def test_clean_leaves_the_rest_alone(run):
    (run / ".tmp-file").write_text("x")
    (run / ".tmp-link").symlink_to(run / "checkpoint-10")
    (run / f".tmp-checkpoint-30-{WORD}").mkdir()
    (run / "final").mkdir()
    shutil.copytree(run / "checkpoint-10", run / f".tmp-removed-{WORD}")
    shutil.copytree(run / "checkpoint-10", run / f".tmp-checkpoint-20-{WORD}")
    checkpoint.clean(run)
    assert sorted(path.name for path in run.iterdir()) == ["checkpoint-10", "checkpoint-20", "final"]
    assert is_content(checkpoint.load(run / "checkpoint-20"), 20, 20)
    checkpoint.clean(run / "none")


def test_differences():
    saved = {"train": {"seed": 1, "betas": [0.9, 0.999], "loss": float("nan")}, "model": {}, "gone": None, "data": "a"}
    now = {
        "train": {"seed": 2, "betas": (0.9, 0.999), "loss": float("nan")},
        "model": {},
        "data": "b",
        "new": {"x": True},
    }
    assert checkpoint.differences(saved, now) == [
        "train.seed: saved 1, now 2",
        "gone: saved null, now nothing",
        'data: saved "a", now "b"',
        "new.x: saved nothing, now true",
    ]
    assert checkpoint.differences(saved, saved) == []
