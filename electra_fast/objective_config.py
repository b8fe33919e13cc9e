"""The settings of the objectives: what is masked, how replacements are drawn, and how the losses are weighted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

TemperatureFall = Literal["linear", "exponential"]
MaskUnit = Literal["token", "word", "span"]
Noise = Literal["uniform", "unigram"]


@dataclass(frozen=True)
class ObjectiveConfig:
    """The settings of the objectives. Each objective reads those that it needs."""

    mask_prob: float = 0.15
    """Share of a sequence's tokens that the generator predicts."""

    replace_prob: float = 0.85
    """Share of the predicted tokens that the generator sees as [MASK]; it sees the others unchanged."""

    mask_unit: MaskUnit = "token"
    """What is masked as a whole: a token, a word, or a span of up to ten words."""

    max_predictions: int | None = None
    """Most predicted tokens of one sequence, or None for no limit. Google: int((mask_prob + 0.005) * length)."""

    temperature: float = 1.0
    """Number by which the generator's logits are divided for a sample; 0 takes the most likely token."""

    temperature_from: float | None = None
    """Temperature in step 0, from which it falls to `temperature` within `temperature_steps`; None for no fall."""

    temperature_steps: int = 0
    """Steps within which the temperature falls."""

    temperature_fall: TemperatureFall = "linear"
    """How the temperature falls: linear by equal differences, exponential by equal factors."""

    noise: Noise = "uniform"
    """Words that the objective uniform draws: each with the same probability, or as often as in the text."""

    disallow_correct: bool = False
    """Whether the generator never samples the original token."""

    label_smoothing: float = 0.0
    """Share of the target, in the generator's loss in training, that all words divide equally; from 0 to below 1."""

    generator_dropout: float | None = None
    """Dropout of the generator's hidden rows and attention probabilities; None for that of the discriminator."""

    gen_weight: float = 1.0
    """Weight of the generator's loss in the sum of both."""

    disc_weight: float = 50.0
    """Weight of the discriminator's loss in the sum of both."""

    correction_weight: float = 1.0
    """Weight of the loss of naming the original tokens, which the objective corrective adds."""

    share_embeddings: bool = True
    """Whether both networks have one set of embeddings; without it each has its own."""

    disentangled: bool = False
    """Whether the discriminator adds tables of its own to embeddings that are shared, and sends them no gradient."""

    faithful: bool = False
    """Whether Google's code is reproduced where it is odd: predicted positions are drawn with replacement, a position
    that is drawn twice gets the mean of its samples' ids, and the learning rate is 0 in the first step."""

    def check_objective(self) -> None:
        """Raise ValueError, which names the field, if one is out of its range or does not fit another."""
        if self.temperature < 0:
            raise ValueError(f"temperature is {self.temperature}; it must be 0 (the most likely token) or above")
        first = self.temperature_from
        if first is not None and not 0 < self.temperature <= first:
            raise ValueError(
                f"temperature_from is {first} and temperature {self.temperature}; the first must be the higher, and "
                f"both above 0"
            )
        if (first is None) != (self.temperature_steps == 0) or self.temperature_steps < 0:
            raise ValueError(
                f"temperature_from is {first} and temperature_steps {self.temperature_steps}; give both, the steps at "
                f"least 1, or neither"
            )
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing is {self.label_smoothing}; it must lie between 0 and 1, not including 1")
        p = self.generator_dropout
        if p is not None and not 0 <= p < 1:
            raise ValueError(f"generator_dropout is {p}; it must lie between 0 (none) and 1, not including 1")
        if self.max_predictions is not None and self.max_predictions < 1:
            raise ValueError(f"max_predictions is {self.max_predictions}; it must be at least 1, or None for no cap")
        if self.mask_unit != "token" and self.faithful:
            raise ValueError(
                f"mask_unit is {self.mask_unit} and faithful True, which draws tokens one by one, as Google's code; "
                f"leave one of them out"
            )
        if self.disentangled and not self.share_embeddings:
            raise ValueError("disentangled is True and share_embeddings False; only shared embeddings are disentangled")
