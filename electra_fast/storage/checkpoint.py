"""Checkpoints of a training run: each is one directory that is complete or absent, whenever the process is killed.

    ROOT/checkpoint-<step>/   <name>.safetensors ..., state.json, manifest.json (size and SHA-256 of the others)
    ROOT/.tmp-*               a save or a removal that is under way, or what a killed run left of one
    ROOT/.lock                held by the run that writes here (see storage/lock.py)

Checkpoints are ordered by their step, never by the clock.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from electra_fast.storage.atomic import RANDOM, read_json, staged_rename, sync, write_file
from electra_fast.storage.digests import file_digest
from electra_fast.storage.weights import read_tensors, write_tensors

FORMAT = 1
Saved = tuple[int, dict[str, dict[str, Tensor]], Any]  # step, tensors and state, as `load` returns them
_NAME = re.compile(r"checkpoint-(0|[1-9][0-9]*)")


class CheckpointError(ValueError):
    """A checkpoint, or a run's directory, that cannot be used as it is; the message says what to do."""


def save(root: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Any, keep: int) -> Path:
    """Write ROOT/checkpoint-<step>, then remove older checkpoints.

    The directory gets its name when everything in it is on the disk, so a kill leaves the older checkpoints, or these
    and the new one. Costs one pass over the tensors and the disk's syncs, and holds the copy of one tensor at a time.

    root: the run's directory, which the caller has locked.
    step: the number of optimiser steps done; a checkpoint of the same step is replaced.
    tensors: file name without .safetensors -> tensors by name.
    state: anything that JSON can hold; keys must be strings, and tuples are lists when they are loaded.
    keep: how many checkpoints stay, counted from this step back; later steps are never removed.

    Returns the checkpoint's path. Raises OSError if the disk is full or not writable; then the older checkpoints are as
    they were and nothing is left of this one.
    """
    if step < 0 or keep < 1 or not all(re.fullmatch(r"[A-Za-z0-9_-]+", name) for name in tensors):
        raise ValueError(
            f"step is {step}, keep {keep} and the names {sorted(tensors)}; "
            f"a step from 0, keep from 1 and names of letters, digits, _ and - are allowed: correct them"
        )
    root.mkdir(parents=True, exist_ok=True)
    target = root / f"checkpoint-{step}"
    with staged_rename(target, replace=True) as staging:
        text = json.dumps({"step": step, "state": state}, indent=1)
        digests = {"state.json": write_file(staging / "state.json", [text.encode()])}
        for name, group in tensors.items():
            digests[f"{name}.safetensors"] = write_tensors(staging / f"{name}.safetensors", group)
        files = {name: {"size": (staging / name).stat().st_size, "sha256": digest} for name, digest in digests.items()}
        text = json.dumps({"format": FORMAT, "step": step, "files": files}, indent=1)
        write_file(staging / "manifest.json", [text.encode()])
    older = [path for path in checkpoints(root) if step_of(path) < step]
    for path in older[: max(0, len(older) + 1 - keep)]:
        # Renamed before it is removed: a checkpoint that is half removed must not look complete.
        removed = root / f".tmp-removed-{secrets.token_hex(8)}"
        os.rename(path, removed)
        shutil.rmtree(removed, ignore_errors=True)
    return target


def checkpoints(root: Path) -> list[Path]:
    """The complete checkpoints of a run, in the order of their steps."""
    paths = (path for path in root.glob("checkpoint-*") if _NAME.fullmatch(path.name))
    return sorted((path for path in paths if (path / "manifest.json").is_file()), key=step_of)


def latest(root: Path) -> Path | None:
    """The complete checkpoint of the highest step, or None."""
    return next(reversed(checkpoints(root)), None)


def load(path: Path) -> Saved:
    """Read a checkpoint: its step, tensors and state, as they were given to `save`.

    The SHA-256 of every file is checked before any of them is parsed; costs one read of the files. The tensors are
    views of mapped files: copy them before the checkpoint's directory is written to.

    Raises CheckpointError, which names each file that is missing, damaged or not in the manifest, and says what to
    resume from instead.
    """
    try:
        manifest = read_json(path / "manifest.json")
        if manifest.get("format") != FORMAT:
            raise ValueError(
                f"{path / 'manifest.json'} has format {manifest.get('format')!r}; {FORMAT} is read here: "
                f"resume with the version that wrote it, if it is whole"
            )
        _check(path, manifest.get("files"))
        saved = read_json(path / "state.json", largest=(path / "state.json").stat().st_size)
        if saved.get("step") != manifest.get("step") or "state" not in saved:
            steps = f"step {manifest.get('step')!r}, state.json {saved.get('step')!r}"
            raise ValueError(f"{path / 'manifest.json'} has {steps}; one of them is damaged")
        tensors = {file.stem: read_tensors(file) for file in sorted(path.glob("*.safetensors"))}
    except ValueError as error:
        older = [other for other in checkpoints(path.parent) if step_of(other) < step_of(path)]
        remedy = (
            f"delete {path} to resume from {older[-1].name}"
            if older
            else f"no older checkpoint is left in {path.parent}: put a copy back, or start anew in another directory"
        )
        raise CheckpointError(f"{error}; {remedy}") from None
    return saved["step"], tensors, saved["state"]


def _check(path: Path, files: Any) -> None:
    """Raise ValueError unless a directory holds exactly the files of its manifest, with these sizes and digests.

    Names are compared as sets, so that no name in a manifest is ever opened as a path.
    """
    if not isinstance(files, dict) or not all(isinstance(entry, dict) for entry in files.values()):
        raise ValueError(f"{path / 'manifest.json'} lists no files; it is damaged")
    names = {entry.name for entry in path.iterdir()} - {"manifest.json"}
    problems = [f"{name!r} is missing" for name in sorted({*files, "state.json"} - names)]
    problems += [f"{name!r} is not in the manifest" for name in sorted(names - files.keys())]
    for name in sorted(names & files.keys()):
        size, expected = (path / name).stat().st_size, files[name]
        if size != expected.get("size"):
            problems.append(f"{name!r} has {size} bytes, {expected.get('size')!r} were written")
        elif (digest := file_digest(path / name)) != expected.get("sha256"):
            problems.append(f"{name!r} has SHA-256 {digest:.12}..., {expected.get('sha256')!s:.12}... was written")
    if problems:
        raise ValueError(f"{path} is damaged: {'; '.join(problems)}")


def step_of(path: Path) -> int:
    """The step in a checkpoint's name; -1 for another name."""
    name = _NAME.fullmatch(path.name)
    return int(name[1]) if name else -1


def clean(root: Path) -> None:
    """Remove what a killed run left in its directory; the caller holds the lock, and has not written anything yet.

    A save that was complete but for its name is kept and gets the name: where it was to replace a checkpoint of the
    same step, that one may be gone already.
    """
    for path in sorted(root.glob(".tmp-*")):
        name = re.fullmatch(rf"\.tmp-(checkpoint-[0-9]+)-{RANDOM}", path.name)
        if name and (path / "manifest.json").is_file() and not (root / name[1]).exists():
            os.rename(path, root / name[1])
            sync(root)
        elif path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def differences(saved: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Compare the settings of two runs.

    saved, now: nested settings by name.

    Returns a line for each difference, by dotted name: `train.seed: saved 1, now 2`.
    """
    before, after = _flatten(saved), _flatten(now)
    absent = "nothing"
    return [
        f"{name}: saved {before.get(name, absent)}, now {after.get(name, absent)}"
        for name in [*before, *(after.keys() - before.keys())]
        if before.get(name) != after.get(name)
    ]


def _flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as dotted name -> JSON text, which is the same for a tuple and for the list it is saved as."""
    flat: dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = json.dumps(value, default=str)
    return flat
