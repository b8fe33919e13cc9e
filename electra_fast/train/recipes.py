"""The recipes: what a run is trained with unless it says otherwise."""

from __future__ import annotations

from typing import Any, Literal, TypedDict

ModelName = Literal["tiny", "small", "small_plus", "base", "large"]
ObjectiveName = Literal[
    "electra", "mlm", "electric", "uniform", "two-stage", "frozen-generator", "corrective", "decoupled", "electra+mlm"
]
RecipeName = Literal["paper", "few"]


class Recipe(TypedDict):
    """What a run is trained with unless it says otherwise, by the names of fields."""

    optimisation: dict[str, Any]  # of PretrainConfig
    run: dict[str, Any]  # of RunConfig


PAPER: dict[ModelName, tuple[int, float, int, int]] = {  # batch size, learning rate, steps, length: the paper's table 6
    "tiny": (128, 6e-4, 2000, 64),  # not in the paper
    "small": (128, 5e-4, 1_000_000, 128),
    "small_plus": (128, 5e-4, 1_000_000, 512),
    "base": (256, 2e-4, 766_000, 512),
    "large": (2048, 2e-4, 400_000, 512),
}
FEW = Recipe(  # measured in docs/recipes.md
    optimisation=dict(
        batch_size=32,
        steps=1200,
        learning_rate=7e-4,
        generator_share=1 / 6,
        generator_learning_rate=2e-3,
        beta2=0.98,
    ),
    run=dict(
        max_length=64,
        packing="plain",
        dropout=0.0,
        initial_weights="counts",
        embedding_sharing="none",
    ),
)


OF_OBJECTIVES: dict[ObjectiveName, Recipe] = {  # what an objective changes of a recipe
    "two-stage": Recipe(
        optimisation=dict(generator_share=0.5, copy_generator=True), run=dict(embedding_sharing="none")
    ),
    "frozen-generator": Recipe(
        optimisation=dict(generator_later="frozen"), run=dict(embedding_sharing="none", temperature_from=2.0)
    ),
    "decoupled": Recipe(optimisation=dict(updates="decoupled"), run=dict(embedding_sharing="disentangled")),
}
ALONE_FIRST = ("electra", "two-stage", "corrective")  # objectives whose generator may learn alone at first


def recipe_of(model: ModelName, name: RecipeName | None, objective: ObjectiveName) -> Recipe:
    """A recipe by its name, with what the objective changes of it; without a name, few for tiny and the paper's for the
    others."""
    if name == "few" or (name is None and model == "tiny"):
        optimisation, run = dict(FEW["optimisation"]), dict(FEW["run"])
        if objective not in ALONE_FIRST:
            del optimisation["generator_share"]
            rate = optimisation.pop("generator_learning_rate")
            if objective == "mlm":
                optimisation["learning_rate"] = rate
            if objective == "decoupled":
                optimisation["generator_learning_rate"] = rate
    else:
        optimisation = dict(zip(("batch_size", "learning_rate", "steps"), PAPER[model], strict=False))
        run = dict(max_length=PAPER[model][-1], packing="pairs", embedding_sharing="tied")
    changes = OF_OBJECTIVES.get(objective, Recipe(optimisation={}, run={}))
    return Recipe(optimisation=optimisation | changes["optimisation"], run=run | changes["run"])
