"""python benches transfer: measure on real tasks what pre-training a tiny network for 40 minutes is worth.

The tiny network is fine-tuned from three starts: pre-trained by ELECTRA, pre-trained by masked language
modelling (MLM), and random weights. Pre-training reads English Wikipedia, in sequences of 16 tokens, then 32, 64 and
128: from short sequences a network of this size learns which words stand together in three million tokens, from longer
ones it takes more. In the first phase both are trained by MLM, and ELECTRA's discriminator starts from those weights,
as in the paper's two stages (section 3.2); from random weights it learns next to nothing in seven million tokens (AUC
0.62, where [CLS] and [SEP] alone give 0.60). In the later phases MLM, which trains one network where ELECTRA trains
two, takes more steps, so that both spend the same number of floating-point operations. Each takes 40 minutes on one
core.

    task   trained on                        measured on   metric
    sst2   SST-2, sentences                  its dev       accuracy
    mrpc   MRPC, pairs, in either order      its dev       F1, or as results.json names it
    conll  CoNLL-2000, chunks                its test      F1
    squad  squadshifts' new_wiki             SQuAD 1.1 dev F1

Each task is fine-tuned with the same settings from every start. All layers have the same learning rate, since random
layers must be trained as well. --work keeps what is finished, so the same command continues a run that was stopped. The
results are transfer.json, with a row for each task and start, and transfer.png.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from electra_fast.config import ElectraConfig
from electra_fast.model.flops import generator_flops, step_flops
from electra_fast.model.networks import Discriminator
from electra_fast.ops.masking import count_slots
from electra_fast.tasks.model import load_encoder

INITS = ("electra", "mlm", "random")
CLI = [sys.executable, "-m", "electra_fast"]
LONGEST = 128  # tokens of a sequence: the positions that were trained


@dataclass(frozen=True)
class Phase:
    """A phase of pre-training: `steps` steps of ELECTRA on batches of `batch_size` sequences of `length` tokens."""

    length: int
    batch_size: int
    steps: int

    def steps_of(self, objective: str, vocab_size: int) -> int:
        """How many steps of an objective cost as many floating-point operations as the phase's steps of ELECTRA."""
        if objective == "electra":
            return self.steps
        config = ElectraConfig.tiny(vocab_size=vocab_size)
        lengths = [self.length] * self.batch_size
        slots = int(count_slots(torch.tensor(lengths), config.mask_prob, None)[-1])
        theirs = generator_flops(config.discriminator, lengths, slots)
        return math.ceil(self.steps * step_flops(config, lengths, slots) / theirs)


@dataclass(frozen=True)
class Task:
    name: str
    kind: str
    train: Path
    dev: Path
    epochs: float
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    texts: tuple[Path, ...]
    tasks: tuple[Task, ...]
    work: Path
    vocab_size: int = 2000
    start: Phase = Phase(16, 64, 10_134)
    phases: tuple[Phase, ...] = (Phase(32, 32, 4000), Phase(64, 32, 2500), Phase(128, 16, 3500))
    learning_rate: float = 8e-4
    seeds: tuple[int, ...] = (0, 1, 2)


def full(data: Path, work: Path) -> Plan:
    """The whole experiment on the data sets in this folder; unpacks GLUE under `work`."""
    glue = work / "glue"
    if not glue.exists():
        with tarfile.open(data / "glue" / "glue-nomnli.tar.xz") as archive:
            archive.extractall(glue.with_suffix(".tmp"), filter="data")
        glue.with_suffix(".tmp").rename(glue)
    chunks, shifts, squad = data / "conll2000", data / "squadshifts", data / "squad" / "dev-v1.1.json.xz"
    tasks = (
        Task("sst2", "classification", glue / "SST-2" / "train.tsv", glue / "SST-2" / "dev.tsv", 1),
        Task("conll", "tagging", chunks / "train.txt.xz", chunks / "test.txt.xz", 2),
        Task("mrpc", "classification", glue / "MRPC" / "train.tsv", glue / "MRPC" / "dev.tsv", 2),
        Task("squad", "qa", shifts / "new_wiki.json.xz", squad, 0.5, ("--stride", "96", "--head", "huggingface")),
    )
    return Plan(tuple(sorted((data / "enwiki2015").glob("*.txt.xz"))), tasks, work)


def call(plan: Plan, name: str, arguments: Sequence[str | Path]) -> None:
    """Run one electra-fast command on one thread, with its output in WORK/logs/NAME.log.

    Raises RuntimeError with the last line of its output if it fails.
    """
    (plan.work / "logs").mkdir(parents=True, exist_ok=True)
    log = plan.work / "logs" / f"{name}.log"
    with log.open("w") as file:
        done = subprocess.run(
            [*CLI, *map(str, arguments)],
            stdout=file,
            stderr=subprocess.STDOUT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
    if done.returncode:
        raise RuntimeError(f"{name} failed: {log.read_text().strip().splitlines()[-1]} (all of it in {log})")


def prepare(plan: Plan) -> None:
    """Prepare WORK/wikiLENGTH for each phase, all with the tokenizer of the first."""
    first = plan.work / f"wiki{plan.start.length}"
    for phase in (plan.start, *plan.phases):
        out = plan.work / f"wiki{phase.length}"
        words = ["--vocab-size", str(plan.vocab_size)] if out == first else ["--tokenizer", first / "tokenizer"]
        if not out.exists():
            options = ["--out", out, "--max-length", str(phase.length), "--heldout", "0.005", "--processes", "1"]
            call(plan, out.name, ["prepare", *plan.texts, *options, *words])


def train(plan: Plan, phase: Phase, objective: str, steps: int, start: Sequence[str | Path] = ()) -> Path:
    """Train one phase in WORK/OBJECTIVE-LENGTH; returns the folder of its final weights."""
    out = plan.work / f"{objective}-{phase.length}"
    if not (out / "final").exists():
        options = ["--recipe", "paper", "--objective", objective, "--steps", str(steps)]
        options += ["--batch-size", str(phase.batch_size)]
        options += ["--learning-rate", str(plan.learning_rate), "--save-every", "500", "--keep", "1"]
        data = ["--data", plan.work / f"wiki{phase.length}", "--out", out, "--resume", "--device", "cpu"]
        call(plan, out.name, ["pretrain", *options, "--eval-every", "250", "--log-every", "50", *data, *start])
    return out / "final"


def begin(plan: Plan) -> None:
    """Make the weights that both start from: MLM's network, and a discriminator with its encoder and a new head."""
    final, out = train(plan, plan.start, "mlm", plan.start.steps), plan.work / "discriminator"
    encoder, tokenizer = load_encoder(final / "generator")
    torch.manual_seed(0)
    discriminator = Discriminator(encoder.config)
    discriminator.encoder.load_state_dict(encoder.state_dict())
    discriminator.save_pretrained(out)
    tokenizer.save(out)


def pretrain(plan: Plan, objective: str) -> None:
    """Run the phases after the first, each from the weights of the one before."""
    start: list[str | Path] = ["--init-generator", plan.work / f"mlm-{plan.start.length}" / "final" / "generator"]
    if objective == "electra":
        start = ["--init-discriminator", plan.work / "discriminator"]
    size = len((plan.work / f"wiki{plan.start.length}" / "tokenizer" / "vocab.txt").read_text().splitlines())
    for phase in plan.phases:
        final = train(plan, phase, objective, phase.steps_of(objective, size), start)
        networks = ("generator",) if objective == "mlm" else ("generator", "discriminator")
        start = [word for name in networks for word in (f"--init-{name}", final / name)]


def finetune(plan: Plan, task: Task, init: str) -> None:
    """Fine-tune all seeds into WORK/finetuned/TASK-INIT; a folder that lacks some of them is done anew."""
    out = plan.work / "finetuned" / f"{task.name}-{init}"
    if out.exists():
        if len(json.loads((out / "results.json").read_text())["seeds"]) == len(plan.seeds):
            return
        shutil.rmtree(out)
    network = "generator" if init == "mlm" else "discriminator"
    pretrained = "electra" if init == "random" else init
    model = plan.work / f"{pretrained}-{plan.phases[-1].length}" / "final" / network
    files = ["--model", model, "--train", task.train, "--dev", task.dev, "--out", out]
    settings = ["--seeds", *map(str, plan.seeds), "--epochs", str(task.epochs), "--learning-rate", "5e-4"]
    settings += ["--layerwise-decay", "1", "--max-length", str(LONGEST), "--device", "cpu", *task.options]
    drawn = ["--random-init"] if init == "random" else []
    call(plan, out.name, ["finetune", "--task", task.kind, *files, *settings, *drawn])


def results(plan: Plan) -> list[dict[str, Any]]:
    """The rows of results: one for each task and start that is finished."""
    rows = []
    for task in plan.tasks:
        for init in INITS:
            path = plan.work / "finetuned" / f"{task.name}-{init}" / "results.json"
            if path.exists():
                result = json.loads(path.read_text())
                runs = [scores[result["metric"]] for scores in result["seeds"].values()]
                row = dict(task=task.name, init=init, metric=result["metric"])
                rows.append(row | dict(median=statistics.median(runs), runs=runs))
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """A line for each task: median and range of the runs from each start."""
    lines = [f"{'task':8}{'metric':10}" + "".join(f"{init:>24}" for init in INITS)]
    for name in dict.fromkeys(row["task"] for row in rows):
        cells = {row["init"]: row for row in rows if row["task"] == name}
        line = f"{name:8}{next(iter(cells.values()))['metric']:10}"
        for init in INITS:
            row = cells.get(init)
            cell = f"{row['median']:.4f} ({min(row['runs']):.4f}-{max(row['runs']):.4f})" if row else "-"
            line += f"{cell:>24}"
        lines.append(line)
    return "\n".join(lines)


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw a panel for each task, with a point for each run and a bar at the median."""
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(row["task"] for row in rows))
    figure = Figure(figsize=(3 * len(names), 3.4), layout="constrained")
    for axes, name in zip(figure.subplots(1, len(names), squeeze=False)[0], names, strict=True):
        for row in (row for row in rows if row["task"] == name):
            x = INITS.index(row["init"])
            axes.plot([x] * len(row["runs"]), row["runs"], "o", ms=4)
            axes.hlines(row["median"], x - 0.25, x + 0.25, color="black", lw=1)
            axes.set(title=f"{name}: {row['metric']}")
        axes.set_xticks(range(len(INITS)), INITS)
        axes.set_xlim(-0.6, len(INITS) - 0.4)
        axes.grid(axis="y", alpha=0.3)
    figure.savefig(path, dpi=110)


def write(plan: Plan, out: Path) -> None:
    if rows := results(plan):
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")
        plot(rows, out.with_suffix(".png"))
        print(table(rows))


def run(plan: Plan, out: Path, jobs: int) -> None:
    """Run the whole experiment, `jobs` processes at once; the results are written after each stage."""
    prepare(plan)
    stages: dict[str, list[Callable[[], None]]] = {
        "start": [partial(begin, plan)],
        "pre-training": [partial(pretrain, plan, objective) for objective in ("electra", "mlm")],
    }
    for task in plan.tasks:
        stages[task.name] = [partial(finetune, plan, task, init) for init in INITS]
    for name, works in stages.items():
        with ThreadPoolExecutor(jobs) as pool, tqdm(total=len(works), desc=name, dynamic_ncols=True) as bar:
            for done in as_completed([pool.submit(work) for work in works]):
                done.result()
                bar.update()
        write(plan, out)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        "python benches transfer", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    here = Path(__file__).resolve().parent.parent
    data = Path(os.environ.get("ELECTRA_FAST_DATA") or here.parents[1] / "shared" / "data")
    parser.add_argument("--data", type=Path, default=data, help="folder of the data sets (default: %(default)s)")
    parser.add_argument(
        "--work",
        type=Path,
        required=True,
        help="folder for intermediate results, from which an interrupted run resumes",
    )
    parser.add_argument(
        "--json",
        type=Path,
        default=here / "results" / "transfer.json",
        help="file for the results (default: %(default)s)",
    )
    parser.add_argument(
        "--jobs", type=int, default=2, help="number of single-threaded processes to run at once (default: 2)"
    )
    options = parser.parse_args(arguments)
    if not options.data.is_dir():
        parser.error(f"there is no folder {options.data}; name the folder of the data sets with --data")
    options.work.mkdir(parents=True, exist_ok=True)
    try:
        run(full(options.data, options.work), options.json, options.jobs)
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    return 0
