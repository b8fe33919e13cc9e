"""curves.png: losses, scores and speed by step."""

from __future__ import annotations

from pathlib import Path
from typing import Any

# What a table of counts reaches on the held-out text, drawn beside a network's curve.
BASELINES = {
    "generator_loss": ("trigram_loss", "counts of triples"),
    "auc": ("auc_pairs", "counts of pairs"),
}


def plot_curves(rows: list[dict[str, Any]], path: Path) -> None:
    """Plot a pre-training run: losses, AUC and speed by step, in training and on held-out text.

    rows: of metrics.jsonl, as read_log returns them; figures that no row has get no panel.
    path: the .png to write.
    """
    from matplotlib.figure import Figure

    train, heldout = ([row for row in rows if row["kind"] == kind] for kind in ("train", "heldout"))
    figure = Figure(figsize=(11, 6.5), layout="constrained")
    titles = (
        ("generator_loss", "generator: loss of the masked tokens (nats)"),
        ("discriminator_loss", "discriminator: loss of every token (nats)"),
        ("auc", "discriminator: AUC, replaced against original"),
        ("tokens_per_s", "tokens/s"),
    )
    shown = [(name, title) for name, title in titles if any(name in row for row in rows)]
    panels = list(figure.subplots(2, max(1, (len(shown) + 1) // 2)).flat)
    for axes in panels[len(shown) :]:
        axes.set_visible(False)
    for axes, (name, title) in zip(panels, shown, strict=False):
        for label, group, style in (("training", train, dict(lw=1)), ("held-out", heldout, dict(marker="o", ms=3))):
            points = [(row["step"], row[name]) for row in group if name in row]
            if points:
                axes.plot(*zip(*points, strict=True), label=label, **style)
        axes.set(title=title, xlabel="step")
        axes.title.set_fontsize(10)
        axes.grid(alpha=0.3)
        baseline, label = BASELINES.get(name, ("", ""))
        if values := [row[baseline] for row in heldout if baseline in row]:
            axes.axhline(values[-1], ls="--", lw=1, color="gray", label=label)
        if axes.lines:
            axes.legend(frameon=False)
    figure.savefig(path, dpi=110)


def plot_finetuning(rows: list[dict[str, Any]], metric: str, path: Path) -> None:
    """Plot a fine-tuning run: the training loss of each seed by step, and the score of each seed on dev.

    rows: of metrics.jsonl, as read_log returns them.
    metric: the name of the score.
    path: the .png to write.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(3, 1))
    losses = [row for row in rows if row["kind"] == "train" and row.keys() >= {"seed", "loss"}]
    scores = [row for row in rows if row["kind"] == "dev" and row.keys() >= {"seed", metric}]
    for seed in dict.fromkeys(row["seed"] for row in losses):
        points = [(row["step"], row["loss"]) for row in losses if row["seed"] == seed]
        left.plot(*zip(*points, strict=True), lw=1, label=f"seed {seed}")
    right.plot([str(row["seed"]) for row in scores], [row[metric] for row in scores], "o")
    left.set(title="training loss", xlabel="step")
    right.set(title=f"{metric} on dev", xlabel="seed")
    left.legend(frameon=False)
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=110)
