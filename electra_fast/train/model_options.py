"""The settings that say what a pre-training run trains: its networks, its objective and where it starts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from electra_fast.objective_config import MaskUnit, Noise, TemperatureFall
from electra_fast.train.menu import check_options
from electra_fast.train.recipes import ModelName, ObjectiveName, RecipeName, recipe_of

InitialWeights = Literal["random", "counts"]
EmbeddingSharing = Literal["tied", "disentangled", "none"]


@dataclass(frozen=True, kw_only=True)
class ModelOptions:
    """Model: what is trained, and from where it starts."""

    model: ModelName = "tiny"
    """Sizes of the networks: the paper's, or tiny, which learns something in minutes on two cores."""

    recipe: RecipeName | None = None
    """What is done where no option says otherwise: paper as Google did, few for up to 100 million words of text and
    minutes or hours. (default: few for tiny, paper for the others)"""

    objective: ObjectiveName = "electra"
    """What is learned: electra trains a generator and a discriminator, mlm one network of the discriminator's size that
    fills blanks; the others are described in docs/objectives.md."""

    mask_prob: float | None = None
    """Share of a sequence's tokens that are masked and predicted. (default: 0.15, and 0.25 of large)"""

    mask_unit: MaskUnit = "token"
    """What is masked as a whole: a token, a word, or a span of up to ten words. A word is a piece of the vocabulary and
    those after it that continue it."""

    dropout: float | None = None
    """Dropout of hidden rows and attention probabilities in both networks. (default: that of the weights to start from,
    else 0.1, and 0 by the recipe few)"""

    initial_weights: InitialWeights | None = None
    """How networks begin: random as Google's, counts with what counts of neighbouring words know. (default: counts by
    the recipe few, random by paper)"""

    embedding_sharing: EmbeddingSharing | None = None
    """Embeddings of both networks: tied is one set, none one set for each, and disentangled one set to which the
    discriminator adds tables of its own, and no gradient. (default: tied by the recipe paper, if those of the weights
    to start from are equal, and none by few)"""

    temperature: float = 1.0
    """Number by which the generator's logits are divided for a sample: above 1 its words are easier to tell."""

    temperature_from: float | None = None
    """Temperature in the first step, from which it falls to --temperature. (default: no fall, but 2 of
    frozen-generator)"""

    temperature_steps: int | None = None
    """Steps within which the temperature falls. (default: half of the steps)"""

    temperature_fall: TemperatureFall = "linear"
    """How the temperature falls: linear by equal differences, exponential by equal factors."""

    disallow_correct: bool = False
    """Never let the generator draw the original token."""

    label_smoothing: float = 0.0
    """Share of the target of the generator's loss that all words divide equally."""

    generator_dropout: float | None = None
    """Dropout of the generator, if it is to differ from --dropout. (default: that of --dropout)"""

    noise: Noise = "uniform"
    """Words that the objective uniform draws: each with the same probability, or unigram as often as in the text."""

    init_generator: Path | None = None
    """Hugging Face directory of a generator to start from. (default: random weights)"""

    init_discriminator: Path | None = None
    """Hugging Face directory of a discriminator to start from. (default: random weights)"""

    faithful: bool = False
    """Reproduce Google's code where it is odd: masked positions drawn with replacement, a first learning rate of 0."""

    def chosen(self, name: str, otherwise: Any = None) -> Any:
        """The value of a field that may be None: what was given, else the recipe's, else `otherwise`."""
        value = getattr(self, name)
        chosen = recipe_of(self.model, self.recipe, self.objective)["run"].get(name, otherwise)
        return chosen if value is None else value

    @property
    def given_weights(self) -> Path | None:
        """Weights to start from of a network that learns; those of a frozen generator are none."""
        of_generator = None if self.objective == "frozen-generator" else self.init_generator
        return of_generator or self.init_discriminator

    def check_model(self) -> None:
        """Raise ValueError, which names the option, if one does not fit the others."""
        check_options(self, self.objective)
        weights = self.given_weights
        if self.initial_weights == "counts" and weights is not None:
            raise ValueError(
                f"initial_weights is counts, and the run starts from the weights in {weights}; leave one of them out"
            )
        if self.dropout is not None and not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}; it must lie between 0 (none) and 1, not including 1")
        if self.temperature_steps is not None and self.chosen("temperature_from") is None:
            raise ValueError(
                f"temperature_steps is {self.temperature_steps} and temperature_from is not given; say from where the "
                f"temperature falls: --temperature-from X"
            )
