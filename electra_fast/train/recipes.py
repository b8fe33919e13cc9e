"""The recipes: what a run is trained with unless it says otherwise."""

from __future__ import annotations

from typing import Any, Literal, TypedDict

ModelName = Literal["tiny", "small", "small_plus", "base", "large"]
ObjectiveName = Literal["electra", "mlm"]
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
        embeddings="separate",
    ),
)


def recipe_of(model: ModelName, name: RecipeName | None, objective: ObjectiveName) -> Recipe:
    """A recipe by its name; without one, few for tiny and the paper's for the others."""
    if name == "few" or (name is None and model == "tiny"):
        if objective == "electra":
            return FEW
        alone = dict(FEW["optimisation"])
        alone["learning_rate"] = alone.pop("generator_learning_rate")
        del alone["generator_share"]
        return Recipe(optimisation=alone, run=FEW["run"])
    fields = dict(zip(("batch_size", "learning_rate", "steps"), PAPER[model], strict=False))
    length = PAPER[model][-1]
    return Recipe(optimisation=fields, run=dict(max_length=length, packing="pairs", embeddings="shared"))
