"""What a checkpoint knows beside its tensors, and how a run goes on from one."""

from __future__ import annotations

import platform
from dataclasses import asdict
from typing import Any

import torch

from electra_fast.data.corpus import Corpus
from electra_fast.info import info
from electra_fast.ops._core import why
from electra_fast.report.terminal import say
from electra_fast.storage import checkpoint
from electra_fast.train.settings import RunConfig
from electra_fast.train.trainer import Pretrainer


def state_of(run: RunConfig, trainer: Pretrainer, corpus: Corpus) -> dict[str, Any]:
    """The state that a checkpoint of this run holds beside its tensors.

    settings: what must be equal for a resumed run to be the same run. environment: what must be equal for it to be the
    same to the bit. skipped: how many steps were left out since their loss was not finite.
    """
    data = {"sha256": corpus.sha256, "max_length": corpus.max_length}
    model, config = asdict(trainer.model.config), asdict(trainer.config)
    settings = {"objective": run.objective, "model": model, "pretrain": config, "data": data}
    versions = info()["versions"]
    environment = {
        **{name: versions[name] for name in ("electra_fast", "torch", "numpy")},
        "core": why,
        "threads": torch.get_num_threads(),
        "machine": platform.machine(),
        "device": trainer.seed.device.type,
    }
    return {"settings": settings, "environment": environment, "skipped": trainer.skipped}


def restore(run: RunConfig, trainer: Pretrainer, corpus: Corpus, saved: checkpoint.Saved) -> None:
    """Load a checkpoint into the trainer, and say from which step the run goes on.

    Another environment is told, since the run is then not bit-equal to one that was never stopped. Raises ValueError
    for other settings, unless run.allow_change names them.
    """
    step, tensors, state = saved
    now = state_of(run, trainer, corpus)
    changed = checkpoint.differences(state["settings"], now["settings"])
    if refused := [line for line in changed if line.split(":")[0] not in run.allow_change]:
        raise ValueError(
            f"{run.out} was trained with other settings than these:\n  "
            + "\n  ".join(refused)
            + "\npass the old values, or accept a change by --allow-change NAME"
        )
    if elsewhere := checkpoint.differences(state["environment"], now["environment"]):
        say("note: another environment than the checkpoint's, so not bit-equal to a run in one go:")
        say("\n".join(f"  {line}" for line in elsewhere))
    trainer.load_state_dict(tensors, step, state["skipped"])
    say(f"resumed from {run.out}/checkpoint-{step}")
