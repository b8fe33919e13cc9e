"""Whole files that inputs are made of and lie beside: a small corpus, models, a run, and Google's checkpoint."""

from __future__ import annotations

import contextlib
import functools
import io
import tempfile
from pathlib import Path

import torch
from finetuning import FAST, run_for
from finetuning import made as made_task
from world import World, made

from electra_fast.tasks.finetune import finetune

GOOGLE = Path(__file__).parents[1] / "interop" / "google"
MEMORY = next((path for path in ("/dev/shm",) if Path(path).is_dir()), None)  # a disk would take most of the time


@functools.cache
def _root() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="fuzz-world-", dir=MEMORY)


@functools.cache
def world() -> World:
    """A text, a corpus, a pair of models and a run of two steps, as tests/faults.py makes them."""
    torch.set_num_threads(1)
    root = Path(_root().name) / "pretraining"
    root.mkdir()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        return made(root)


@functools.cache
def task_model() -> Path:
    """The directory of a model that is fine-tuned for a classification."""
    root = Path(_root().name) / "task"
    root.mkdir()
    made_task(root)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        finetune(run_for(root, root / "out"), FAST)
    return root / "out" / "model"
