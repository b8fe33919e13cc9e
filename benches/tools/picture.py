"""python benches picture: draws the README's picture, what electra_fast is for, from the rows in benches/results.

On the left is the speed of a training step beside transformers', on the right what pre-training is worth on real tasks.
Each is drawn twice, for light and for dark pages, to docs/pictures/.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parents[1]
PROVIDERS = {
    "ours": "electra_fast",
    "hf-compiled": "transformers,\ncompiled",
    "hf-tuned": "transformers,\ntuned by hand",
    "hf-as-written": "transformers,\nas people write it",
}
INITS = {  # label, and the colour's name in a theme
    "random": ("random weights", "faint"),
    "paper": ("ELECTRA, the paper's recipe", "third"),
    "mlm": ("masked language model", "second"),
    "electra": ("ELECTRA", "first"),
}
TASKS = {"sst2": "SST-2", "conll": "CoNLL-2000", "mrpc": "MRPC", "squad": "SQuAD", "stsb": "STS-B", "rte": "RTE"}
METRICS = {"accuracy": "accuracy", "f1": "F1", "matthews": "Matthews", "spearman": "Spearman"}
THEMES = {
    "light": dict(page="#ffffff", ink="#1f2328", faint="#8c959f", grid="#d8dee4")
    | dict(first="#d9480f", second="#1c6ea4", third="#2b8a3e"),
    "dark": dict(page="#0d1117", ink="#e6edf3", faint="#8b949e", grid="#30363d")
    | dict(first="#ff8c42", second="#58a6ff", third="#56d364"),
}


def newest_race(rows: list[dict[str, Any]], model: str, shape: str) -> list[dict[str, Any]]:
    """The rows of the last race of a training step of this model and shape that has all four contestants.

    Args:
        rows: rows of `python benches pretrain_step`, in the order in which they were measured.
        model: "small" or another size.
        shape: sequences x tokens, such as "16x128".

    Returns:
        A row for each name in PROVIDERS, in that order. A row of another commit or day belongs to another race.

    Raises:
        ValueError: there is no such race.
    """
    races: dict[tuple[str, ...], dict[str, dict[str, Any]]] = {}
    for row in rows:
        if (row["bench"], row["model"], row["shape"]) == ("pretrain_step", model, shape) and row["ms"] is not None:
            races.setdefault((row["commit"], row["device"], row["date"][:10]), {})[row["provider"]] = row
    complete = [race for race in races.values() if race.keys() >= PROVIDERS.keys()]
    if not complete:
        raise ValueError(f"no race of pretrain_step, {model}, {shape} has {', '.join(PROVIDERS)}; run it again")
    return [complete[-1][provider] for provider in PROVIDERS]


def draw(steps: list[dict[str, Any]], transfer: list[dict[str, Any]], theme: dict[str, str], path: Path) -> None:
    """Both halves of the picture, in the colours of a theme."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    settings = {f"{part}.color": theme["ink"] for part in ("text", "xtick", "ytick")}
    settings |= {"axes.edgecolor": theme["grid"], "axes.labelcolor": theme["ink"], "font.size": 11}
    with rc_context(settings | {"axes.titlecolor": theme["ink"], "axes.facecolor": theme["page"]}):
        figure = Figure(figsize=(11, 4.2), layout="constrained", facecolor=theme["page"])
        figure.get_layout_engine().set(wspace=0.08)
        speed, learning = figure.subplots(1, 2, width_ratios=[1, 1.25])
        draw_speed(steps, theme, speed)
        draw_learning(transfer, theme, learning)
        for axes in (speed, learning):
            axes.spines[["top", "right"]].set_visible(False)
            axes.tick_params(length=0)
        figure.savefig(path, dpi=120, metadata={"Software": None})


def draw_speed(steps: list[dict[str, Any]], theme: dict[str, str], axes: Any) -> None:
    """A bar a contestant: tokens a second."""
    ours = steps[0]["tokens_per_s"]
    sequences, length = steps[0]["shape"].split("x")
    for y, row in enumerate(steps):
        rate, colour = row["tokens_per_s"], theme["first"] if row["provider"] == "ours" else theme["faint"]
        axes.barh(y, rate, color=colour, height=0.66)
        axes.text(rate + 0.02 * ours, y, f"{rate:,.0f}", va="center")
    axes.set_yticks(range(len(steps)), [PROVIDERS[row["provider"]] for row in steps])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.18 * ours)
    axes.set_xticks([])
    axes.spines["bottom"].set_visible(False)
    cores = steps[0]["device"].split(", ")[-1].replace("threads", "CPU cores")
    axes.set_title("Pre-training speed, tokens per second", loc="left", weight="bold")
    axes.set_xlabel(
        f"ELECTRA-{steps[0]['model'].capitalize()}, {sequences} x {length} tokens a step, {cores}", loc="left"
    )


def draw_learning(rows: list[dict[str, Any]], theme: dict[str, str], axes: Any) -> None:
    """A group of points a task: the median score of each start, with a line from the lowest to the highest seed."""
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    inits = [init for init in INITS if any(row["init"] == init for row in rows)]
    for i, init in enumerate(inits):
        label, colour = INITS[init][0], theme[INITS[init][1]]
        for row in (row for row in rows if row["init"] == init):
            x = tasks.index(row["task"]) + 0.2 * (i - (len(inits) - 1) / 2)
            axes.vlines(x, min(row["runs"]), max(row["runs"]), color=colour, lw=2)
            axes.plot(x, row["median"], "o", color=colour, ms=9, label=label)
            label = ""
            if init in ("random", "electra"):
                score, y, offset = f"{row['median']:.2f}", max(row["runs"]), 7
                if init == "random":
                    y, offset = min(row["runs"]), -18
                axes.annotate(score, (x, y), (0, offset), textcoords="offset points", ha="center", color=colour)
    names = {row["task"]: METRICS.get(row["metric"], row["metric"]) for row in rows}
    axes.set_xticks(range(len(tasks)), [f"{TASKS.get(task, task)}\n{names[task]}" for task in tasks])
    axes.set_xlim(-0.5, len(tasks) - 0.5)
    axes.set_ylim(-0.05, 1)
    axes.grid(axis="y", color=theme["grid"], lw=0.8)
    axes.set_axisbelow(True)
    axes.spines["left"].set_visible(False)
    axes.set_title("Score after fine-tuning, by the start", loc="left", weight="bold")
    legend = axes.legend(loc="best", fontsize=10, labelcolor=theme["ink"], facecolor=theme["page"], framealpha=1)
    legend.get_frame().set_linewidth(0)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        "python benches picture", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--results", type=Path, default=HERE / "results", help="folder of the rows")
    parser.add_argument("--out", type=Path, default=HERE.parent / "docs" / "pictures", help="folder of the pictures")
    options = parser.parse_args(arguments)
    lines = (options.results / "cpu-2-cores.jsonl").read_text().splitlines()
    steps = newest_race([json.loads(line) for line in lines], "small", "16x128")
    transfer = json.loads((options.results / "transfer.json").read_text())
    options.out.mkdir(parents=True, exist_ok=True)
    for name, theme in THEMES.items():
        draw(steps, transfer, theme, options.out / f"speed-and-learning-{name}.png")
    return 0
