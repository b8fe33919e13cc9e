"""Checkpoints of a training: safetensors and JSON in one directory that is whole or not there, whenever it is killed.

    ROOT/checkpoint-<step>/   <name>.safetensors ..., state.json, manifest.json (SHA-256 and size of the others)
    ROOT/.tmp-*               a save or a removal under way, or what a killed run left of one
    ROOT/.lock                held while a run writes here

Steps give the order, never clocks.
"""

from __future__ import annotations

import hashlib
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
from electra_fast.storage.weights import read_tensors, write_tensors

FORMAT = 1
Saved = tuple[int, dict[str, dict[str, Tensor]], Any]  # step, tensors and state, as `load` returns them
_NAME = re.compile(r"checkpoint-(0|[1-9][0-9]*)")


class CheckpointError(ValueError):
    """A checkpoint, or the directory of a run, that cannot be used as it is; the message says what to do."""


def save(root: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Any, keep: int) -> Path:
    """Write checkpoint-<step>, then remove all but the newest `keep` of the steps up to this one.

    `tensors` become one file each; `state` is anything JSON holds (keys are strings, tuples come back as lists).
    The manifest is written last and the directory named after that, so a kill leaves the old checkpoints, or those
    and this one. Raises OSError where the disk does; then what was written of this one is gone and the others stand.
    Costs a pass over the tensors and the disk's syncs, and holds one tensor's copy at a time.
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
    older = [path for path in checkpoints(root) if _step(path) < step]
    for path in older[: max(0, len(older) + 1 - keep)]:
        # renamed first: half removed, it must not look whole
        removed = root / f".tmp-removed-{secrets.token_hex(8)}"
        os.rename(path, removed)
        shutil.rmtree(removed, ignore_errors=True)
    return target


def checkpoints(root: Path) -> list[Path]:
    """The complete checkpoints of a run, by step."""
    found = (path for path in root.glob("checkpoint-*") if _NAME.fullmatch(path.name))
    return sorted((path for path in found if (path / "manifest.json").is_file()), key=_step)


def latest(root: Path) -> Path | None:
    """The complete checkpoint of the highest step."""
    return next(reversed(checkpoints(root)), None)


def load(path: Path) -> Saved:
    """Step, tensors and state of a checkpoint, as they were saved.

    The SHA-256 of every file is checked before any is parsed. Raises CheckpointError that names each file missing,
    damaged or of unknown origin, and what to resume from instead. The tensors are views of mapped files: copy them
    before the checkpoint's directory is written to. Costs one read of the files.
    """
    try:
        manifest = read_json(path / "manifest.json")
        if manifest.get("format") != FORMAT:
            found = f"{path / 'manifest.json'} has format {manifest.get('format')!r}"
            raise ValueError(f"{found}; {FORMAT} is read here: resume with the version that wrote it, if it is whole")
        _check(path, manifest.get("files"))
        saved = read_json(path / "state.json", largest=(path / "state.json").stat().st_size)
        if saved.get("step") != manifest.get("step") or "state" not in saved:
            steps = f"step {manifest.get('step')!r}, state.json {saved.get('step')!r}"
            raise ValueError(f"{path / 'manifest.json'} has {steps}; one of them is damaged")
        tensors = {file.stem: read_tensors(file) for file in sorted(path.glob("*.safetensors"))}
    except ValueError as error:
        older = [other for other in checkpoints(path.parent) if _step(other) < _step(path)]
        remedy = (
            f"delete {path} to resume from {older[-1].name}"
            if older
            else f"no older checkpoint is left in {path.parent}: put a copy back, or start anew in another directory"
        )
        raise CheckpointError(f"{error}; {remedy}") from None
    return saved["step"], tensors, saved["state"]


def _check(path: Path, files: Any) -> None:
    """Raise ValueError unless a directory holds the files of its manifest, byte for byte, and no others."""
    if not isinstance(files, dict) or not all(isinstance(entry, dict) for entry in files.values()):
        raise ValueError(f"{path / 'manifest.json'} lists no files; it is damaged")
    # by set, so that no name in a manifest is ever opened as a path
    found = {entry.name for entry in path.iterdir()} - {"manifest.json"}
    problems = [f"{name!r} is missing" for name in sorted({*files, "state.json"} - found)]
    problems += [f"{name!r} is not in the manifest" for name in sorted(found - files.keys())]
    for name in sorted(found & files.keys()):
        size, expected = (path / name).stat().st_size, files[name]
        if size != expected.get("size"):
            problems.append(f"{name!r} has {size} bytes, {expected.get('size')!r} were written")
        elif (digest := _digest(path / name)) != expected.get("sha256"):
            problems.append(f"{name!r} has SHA-256 {digest:.12}..., {expected.get('sha256')!s:.12}... was written")
    if problems:
        raise ValueError(f"{path} is damaged: {'; '.join(problems)}")


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _step(path: Path) -> int:
    name = _NAME.fullmatch(path.name)
    return int(name[1]) if name else -1


def clean(root: Path) -> None:
    """Clear away what a killed run left; under the Lock, before anything else.

    A save that lacked nothing but its name gets it: where it replaced a checkpoint of its step, it may be the last.
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
    """The settings in which two runs differ, a line each, by dotted name: `train.seed: saved 1, now 2`."""
    before, after = _flatten(saved), _flatten(now)
    absent = "nothing"
    return [
        f"{name}: saved {before.get(name, absent)}, now {after.get(name, absent)}"
        for name in [*before, *(after.keys() - before.keys())]
        if before.get(name) != after.get(name)
    ]


def _flatten(settings: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Dotted names and JSON texts, which are the same for a tuple and the list that was saved of it."""
    flat: dict[str, str] = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and value:
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = json.dumps(value, default=str)
    return flat
