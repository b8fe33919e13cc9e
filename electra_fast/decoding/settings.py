"""The options with which a target is written; each field's docstring is the help of its option on the command line."""

from __future__ import annotations

from dataclasses import dataclass

from electra_fast.config import check_fields


@dataclass(frozen=True, kw_only=True)
class WritingConfig:
    """Writing: how a target is written, token by token.

    Raises ValueError if a field is out of its range.
    """

    num_beams: int = 1
    """Targets that beam search keeps for each source; 1 takes the likeliest token at each step (greedy)."""

    max_length: int = 128
    """Tokens of a target at most, the start and the end token among them."""

    min_length: int = 0
    """Tokens of a target at least, the start token among them."""

    length_penalty: float = 1.0
    """Exponent by which beam search ranks finished targets: log-probability / length ** length_penalty. Above 0
    prefers longer ones."""

    no_repeat_ngram_size: int = 0
    """Length of the runs of tokens of which none may stand twice in a target; 0 allows all."""

    do_sample: bool = False
    """Draw each token from its distribution. The same seed gives the same text, whatever the batch."""

    temperature: float = 1.0
    """Number by which the logits are divided before a token is drawn; above 0."""

    top_k: int = 50
    """Likeliest tokens among which one is drawn; 0 takes the whole vocabulary."""

    top_p: float = 1.0
    """Share of the probability of the fewest likeliest tokens among which one is drawn; above 0, at most 1."""

    def __post_init__(self) -> None:
        check_fields(self)
        least = dict(num_beams=1, max_length=2, min_length=0, no_repeat_ngram_size=0, top_k=0)
        for name, smallest in least.items():
            if getattr(self, name) < smallest:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {smallest}")
        if self.min_length > self.max_length:
            raise ValueError(f"min_length is {self.min_length}, above max_length {self.max_length}; lower it")
        if self.temperature <= 0:
            raise ValueError(f"temperature is {self.temperature}; it must be above 0: greedy search draws nothing")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; it must lie above 0 and be at most 1, which turns it off")
        if self.do_sample and self.num_beams > 1:
            raise ValueError(f"do_sample and num_beams {self.num_beams} are both set; sample with num_beams 1")
