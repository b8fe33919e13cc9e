"""Which options go with which objective, checked before anything is read."""

from __future__ import annotations

import dataclasses
from typing import Any, get_args

from electra_fast.train.recipes import ALONE_FIRST, ObjectiveName

EVERY: tuple[ObjectiveName, ...] = get_args(ObjectiveName)
PAIRS = ("electra", "two-stage", "frozen-generator", "corrective", "decoupled")  # a generator and a discriminator
DRAWS = tuple(name for name in EVERY if name != "mlm")  # those that draw replacements
TAKES: dict[str, tuple[str, ...]] = {  # option -> the objectives that take it; all take the options that are not here
    "embedding_sharing": (*PAIRS, "electric"),
    "temperature": DRAWS,
    "temperature_from": DRAWS,
    "temperature_steps": DRAWS,
    "temperature_fall": DRAWS,
    "disallow_correct": DRAWS,
    "label_smoothing": ("electra", "mlm", "two-stage", "corrective", "decoupled", "electra+mlm"),
    "generator_dropout": ("electra", "two-stage", "corrective", "decoupled", "electric"),
    "noise": ("uniform",),
    "init_generator": (*PAIRS, "mlm"),
    "init_discriminator": DRAWS,
    "faithful": tuple(name for name in EVERY if name != "electric"),
    "generator_share": ALONE_FIRST,
    "generator_later": PAIRS,
    "copy_generator": ALONE_FIRST,
    "updates": ("electra", "corrective", "decoupled"),
    "generator_learning_rate": (*ALONE_FIRST, "decoupled"),
}


def check_options(options: Any, objective: str) -> None:
    """Raise ValueError, which names the option, if one that was set does not go with the objective.

    options: a dataclass; a field whose value is not its default was set.
    """
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if value != field.default and objective not in TAKES.get(field.name, EVERY):
            raise ValueError(
                f"{field.name} is {value} and objective {objective}, which does not take it; leave "
                f"--{field.name.replace('_', '-')} out, or choose one of: {', '.join(TAKES[field.name])}"
            )


def check_together(objective: str, config: Any, sharing: str | None, init_generator: Any) -> None:
    """Raise ValueError if the optimiser's settings do not go with the objective or with the embeddings.

    config: a PretrainConfig. sharing: how embeddings are shared, where that is known yet. init_generator: the generator
    to start from, if there is one.
    """
    check_options(config, objective)
    needs = {
        "two-stage": ("generator_share", config.generator_share > 0, "a share above 0, such as 0.5"),
        "frozen-generator": ("generator_later", config.generator_later == "frozen", "frozen"),
        "decoupled": ("updates", config.updates == "decoupled", "decoupled"),
    }
    if objective in needs:
        name, fits, needed = needs[objective]
        if not fits:
            raise ValueError(
                f"objective is {objective} and {name} {getattr(config, name)}; it must be {needed}: pass "
                f"--{name.replace('_', '-')}, or take PretrainConfig.recipe(model, objective={objective!r})"
            )
    if config.generator_later == "frozen" and config.generator_share == 0 and init_generator is None:
        raise ValueError(
            "generator_later is frozen and no generator is given, so that one of random weights would write; name a "
            "trained one: --init-generator RUN/final/generator"
        )
    if sharing == "tied" and (config.frozen or config.updates == "decoupled"):
        name = "generator_later"
        if config.updates == "decoupled" or config.generator_share > 0:
            name = "updates" if config.updates == "decoupled" else "generator_share"
        raise ValueError(
            f"{name} is {getattr(config, name)} and embeddings are shared: a discriminator that learns alone would "
            f"change the generator's too. Give each its own (--embedding-sharing none), or let the discriminator add "
            f"to the generator's (--embedding-sharing disentangled)"
        )
