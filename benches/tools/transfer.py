"""python benches transfer: measure on eight tasks what an hour of one core's pre-training is worth.

A tiny network begins a task from four starts. Three were pre-trained on English Wikipedia, at the same cost in
floating-point operations, which is an hour of one core; `--budget` changes it. The fourth is random weights.

    start    pre-trained by                                           the task begins from
    electra  the recipe few                                           its discriminator
    mlm      the recipe few for masked language modelling alone       its generator
    paper    the paper's recipe: larger batches, random weights       its discriminator

    task     trained on                        measured on    metric
    sst2     SST-2, sentences                  its dev        accuracy
    conll    CoNLL-2000, chunks                its test       F1
    mrpc     MRPC, pairs, in either order      its dev        as results.json names it
    stsb     STS-B, pairs, in either order     its dev        as results.json names it
    rte      RTE, pairs                        its dev        accuracy
    cola     CoLA, sentences                   its dev        as results.json names it
    squad    squadshifts' new_wiki             SQuAD 1.1 dev  F1
    blimp    nothing                           34 sets        accuracy

Each task is fine-tuned with the same settings from every start, once per seed. All layers have the same learning rate,
since random layers must be trained as well. BLiMP asks the networks as they are: a discriminator by its log-odds, and
the generator of electra and paper too (blimp_generator). --work keeps what is finished, so the same command continues a
run that was stopped. The results are transfer.json, with a row for each task and start, and transfer.png.
"""

from __future__ import annotations

import argparse
import json
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

from tqdm import tqdm

from electra_fast.data.corpus import Corpus
from electra_fast.train.recipes import ObjectiveName, RecipeName
from electra_fast.train.settings import PretrainConfig, RunConfig
from electra_fast.train.start import build_model
from tools.learning import cost

CLI = [sys.executable, "-m", "electra_fast"]
LENGTH = 128  # tokens of a sequence


@dataclass(frozen=True)
class Start:
    """How a network is pre-trained, and which of its networks tasks begin from."""

    objective: ObjectiveName
    recipe: RecipeName
    network: str


STARTS = {
    "electra": Start("electra", "few", "discriminator"),
    "mlm": Start("mlm", "few", "generator"),
    "paper": Start("electra", "paper", "discriminator"),
}
INITS = (*STARTS, "random")


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
    pairs: Path  # minimal pairs
    work: Path
    vocab_size: int = 8000
    budget: float = 2e14  # floating-point operations of a pre-training
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)


def full(data: Path, work: Path, budget: float) -> Plan:
    """The whole experiment on the data sets in this folder; unpacks GLUE and BLiMP under `work`."""
    glue, blimp = work / "glue", work / "blimp"
    for folder, archive in ((glue, "glue/glue-nomnli.tar.xz"), (blimp, "blimp/blimp-34-of-67.tar.xz")):
        if not folder.exists():
            with tarfile.open(data / archive) as packed:
                packed.extractall(folder.with_suffix(".tmp"), filter="data")
            folder.with_suffix(".tmp").rename(folder)
    chunks, shifts, squad = data / "conll2000", data / "squadshifts", data / "squad" / "dev-v1.1.json.xz"

    def of_glue(name: str, folder: str, kind: str, epochs: float) -> Task:
        return Task(name, kind, glue / folder / "train.tsv", glue / folder / "dev.tsv", epochs)

    tasks = (
        of_glue("sst2", "SST-2", "classification", 2),
        Task("conll", "tagging", chunks / "train.txt.xz", chunks / "test.txt.xz", 5),
        of_glue("mrpc", "MRPC", "classification", 3),
        of_glue("stsb", "STS-B", "regression", 5),
        of_glue("rte", "RTE", "classification", 5),
        of_glue("cola", "CoLA", "classification", 3),
        Task("squad", "qa", shifts / "new_wiki.json.xz", squad, 2, ("--stride", "96", "--head", "huggingface")),
    )
    texts = tuple(sorted((data / "enwiki2015").glob("*.txt.xz")))
    return Plan(texts, tasks, next(blimp.rglob("*.jsonl")).parent, work, budget=budget)


def call(plan: Plan, name: str, arguments: Sequence[str | Path]) -> str:
    """Run one electra-fast command on one thread, with its messages in WORK/logs/NAME.log.

    Returns what it printed. Raises RuntimeError with the last line of its output if it fails.
    """
    (plan.work / "logs").mkdir(parents=True, exist_ok=True)
    log = plan.work / "logs" / f"{name}.log"
    with log.open("w") as messages:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        words = [*CLI, *map(str, arguments)]
        done = subprocess.run(words, stdout=subprocess.PIPE, stderr=messages, env=environment, text=True)
    if done.returncode:
        raise RuntimeError(f"{name} failed: {log.read_text().strip().splitlines()[-1]} (all of it in {log})")
    return done.stdout


def prepare(plan: Plan) -> None:
    """Prepare WORK/wiki-PACKING for both recipes, with one tokenizer."""
    first = plan.work / "wiki-plain"
    for packing in ("plain", "pairs"):
        out = plan.work / f"wiki-{packing}"
        words = ["--vocab-size", str(plan.vocab_size)] if out == first else ["--tokenizer", first / "tokenizer"]
        if not out.exists():
            options = ["--out", out, "--max-length", str(LENGTH), "--packing", packing, "--heldout", "0.005"]
            call(plan, out.name, ["prepare", *plan.texts, *options, "--processes", "1", *words])


def steps(plan: Plan, start: Start, data: Path) -> int:
    """How many steps of pre-training the budget pays for."""
    corpus = Corpus(data)
    run = RunConfig(out=data, recipe=start.recipe, objective=start.objective)
    config = PretrainConfig.recipe("tiny", start.recipe, start.objective)
    return max(6, round(plan.budget / cost(build_model(run, corpus, 0), config, corpus.max_length)))


def pretrain(plan: Plan, init: str) -> None:
    """Pre-train one start in WORK/INIT."""
    start, out = STARTS[init], plan.work / init
    data = plan.work / ("wiki-pairs" if start.recipe == "paper" else "wiki-plain")
    if not (out / "final").exists():
        number = steps(plan, start, data)
        often = str(max(1, number // 40))
        options = ["--recipe", start.recipe, "--objective", start.objective, "--steps", str(number), "--data", data]
        options += ["--out", out, "--resume", "--device", "cpu", "--threads", "1", "--keep", "1"]
        call(plan, init, ["pretrain", *options, "--eval-every", often, "--save-every", often])


def finetune(plan: Plan, task: Task, init: str) -> None:
    """Fine-tune all seeds into WORK/finetuned/TASK-INIT; a run that was stopped goes on with the seeds it lacks."""
    out = plan.work / "finetuned" / f"{task.name}-{init}"
    if (out / "results.json").exists():
        if len(json.loads((out / "results.json").read_text())["seeds"]) == len(plan.seeds):
            return
        shutil.rmtree(out)
    pretrained = "electra" if init == "random" else init
    model = plan.work / pretrained / "final" / STARTS[pretrained].network
    files = ["--model", model, "--train", task.train, "--dev", task.dev, "--out", out, "--resume"]
    settings = ["--seeds", *map(str, plan.seeds), "--epochs", str(task.epochs), "--learning-rate", "5e-4"]
    settings += ["--layerwise-decay", "1", "--max-length", str(LENGTH), "--device", "cpu", *task.options]
    drawn = ["--random-init"] if init == "random" else []
    call(plan, out.name, ["finetune", "--task", task.kind, *files, *settings, *drawn])


def judge(plan: Plan, init: str, network: str) -> None:
    """Ask a pre-trained network about the minimal pairs: its accuracies go to WORK/pairs/INIT-NETWORK.json."""
    out = plan.work / "pairs" / f"{init}-{network}.json"
    if not out.exists():
        model = plan.work / init / "final" / network
        printed = call(plan, out.stem, ["evaluate", "--task", "blimp", "--model", model, "--data", plan.pairs])
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(printed)


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
    for init, start in STARTS.items():
        for network in ("generator", "discriminator"):
            path = plan.work / "pairs" / f"{init}-{network}.json"
            if path.exists():
                accuracy = json.loads(path.read_text())["accuracy"]
                name = "blimp" if network == start.network else f"blimp_{network}"
                rows.append(dict(task=name, init=init, metric="accuracy", median=accuracy, runs=[accuracy]))
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
        "pre-training": [partial(pretrain, plan, init) for init in STARTS],
        "blimp": [
            partial(judge, plan, init, network)
            for init, start in STARTS.items()
            for network in (("generator",) if start.objective == "mlm" else ("discriminator", "generator"))
        ],
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
        "--budget",
        type=float,
        default=Plan.budget,
        help="floating-point operations of each pre-training (default: %(default)s)",
    )
    parser.add_argument(
        "--jobs", type=int, default=2, help="number of single-threaded processes to run at once (default: 2)"
    )
    options = parser.parse_args(arguments)
    if not options.data.is_dir():
        parser.error(f"there is no folder {options.data}; name the folder of the data sets with --data")
    options.work.mkdir(parents=True, exist_ok=True)
    try:
        run(full(options.data, options.work, options.budget), options.json, options.jobs)
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    return 0
