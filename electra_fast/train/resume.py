"""What a checkpoint knows beside its tensors, and how a run goes on from one."""

from __future__ import annotations

import platform
from dataclasses import MISSING, asdict, fields
from typing import Any

import torch

from electra_fast.config import ElectraConfig
from electra_fast.data.corpus import Corpus
from electra_fast.info import info
from electra_fast.ops._core import why
from electra_fast.report.terminal import say
from electra_fast.storage import checkpoint
from electra_fast.train.schedule import learning_rate
from electra_fast.train.settings import PretrainConfig, RunConfig
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


LATER = ("pretrain.steps", "pretrain.decay_from")  # settings that need not change what a run did so far


def _same_so_far(saved: dict[str, Any], config: PretrainConfig, step: int) -> bool:
    """Whether the steps up to `step` had the same learning rates with the settings of a checkpoint as with these."""
    try:
        before = PretrainConfig(**saved)
    except (TypeError, ValueError):  # a setting that this version does not have
        return False
    return all(
        learning_rate(before, t) == learning_rate(config, t) and before.learning(t) == config.learning(t)
        for t in range(step)
    )


def restore(run: RunConfig, trainer: Pretrainer, corpus: Corpus, saved: checkpoint.Saved) -> None:
    """Load a checkpoint into the trainer, and say from which step the run goes on.

    A setting that the checkpoint does not know is younger than it, and had its default then. Another environment is
    told, since the run is then not bit-equal to one that was never stopped. Raises ValueError
    for other settings, unless run.allow_change names them.
    """
    step, tensors, state = saved
    now = state_of(run, trainer, corpus)
    settings = state["settings"]
    for part, kind in (("model", ElectraConfig), ("pretrain", PretrainConfig)):
        defaults = {field.name: field.default for field in fields(kind)}
        settings[part] = {name: value for name, value in defaults.items() if value is not MISSING} | settings[part]
    changed = checkpoint.differences(settings, now["settings"])
    allowed = [*run.allow_change, *(LATER if _same_so_far(settings["pretrain"], trainer.config, step) else ())]
    if refused := [line for line in changed if line.split(":")[0] not in allowed]:
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
