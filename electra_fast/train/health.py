"""What goes wrong in a run without an error: seen in its held-out figures, and told once in a line."""

from __future__ import annotations

from collections.abc import Mapping

from electra_fast.train.settings import PretrainConfig

CONSTANT = 1e-3  # standard deviation of the discriminator's logits below which it says the same of every token
REPEATED = 0.5  # share of one token among the generator's samples
IN_A_ROW = 3  # evaluations that see it before a run counts as dead


class Health:
    """Looks at every evaluation's figures.

    config: of the run. Before the end of the warm-up nothing is looked at, since the networks have not learned yet, and
        a discriminator has three quarters of its steps to be better than a table of counts.
    """

    def __init__(self, config: PretrainConfig) -> None:
        first, steps = config.generator_steps, config.steps - config.generator_steps
        self.warm, self.late = first + config.warmup(steps), first + 3 * steps // 4
        self.told: set[str] = set()
        self.seen = {"constant": 0, "repeated": 0}

    @property
    def dead(self) -> bool:
        """Whether a network has collapsed and stayed so for IN_A_ROW evaluations."""
        return max(self.seen.values()) >= IN_A_ROW

    def look(self, step: int, figures: Mapping[str, float]) -> list[str]:
        """Look at the figures of an evaluation, as train.evaluate names them.

        Returns a line for each fault that was not told before: what is seen, and what helps.
        """
        if step < self.warm:
            return []
        faults = {}
        spread, repeated = figures.get("score_spread"), figures["most_sampled"]
        if spread is not None and spread < CONSTANT:
            faults["constant"] = (
                f"the discriminator gives every token the same score (standard deviation {spread:.1e}); lower "
                f"--learning-rate, or start from counts of neighbours: --initial-weights counts"
            )
        if repeated > REPEATED:
            faults["repeated"] = (
                f"{repeated:.0%} of the generator's samples are one and the same token; lower the generator's learning "
                f"rate, or look at the text: is it one line over and over?"
            )
        if spread is not None and step >= self.late and figures["auc"] < figures.get("auc_pairs", 0.0):
            faults["below counts"] = (
                f"the discriminator's AUC, {figures['auc']:.3f}, is below that of a table of neighbouring pairs, "
                f"{figures['auc_pairs']:.3f}, which costs seconds; more steps help, or the recipe few (--recipe few)"
            )
        for name in self.seen:
            self.seen[name] = self.seen[name] + 1 if name in faults else 0
        new = [f"step {step}: {line}" for name, line in faults.items() if name not in self.told]
        self.told |= faults.keys()
        return new
