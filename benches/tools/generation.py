"""python benches generation: how good translations, summaries and answers are, and what pre-training is worth to them.

Each model is trained on one thread and written greedily and with 4 beams. A row is a model's kind: `init` says what its
weights begin as, and `runs` has a score for each seed.

    part       trained on                               measured on    init
    multi30k   Multi30k en -> de, 29,000 captions       test_2016      random
    tenth      every tenth of these pairs               test_2016      random, pretrained
    scitldr    SciTLDR-A, written and extractive        its dev        random, pretrained, and lead-1 and the oracle
    squad      squadshifts' three sets, written and     SQuAD 1.1 dev  pretrained
               by the extractive head of --task qa

Captions have an encoder of 4 layers of 128, a decoder of 3, and 4,000 pieces of words (BPE) for both languages. Their
networks are pre-trained as ELECTRA on all training captions of both languages, which are not paired there. English
networks are those of `python benches transfer`: its start electra, which is taken from WORK if it is there, and
pre-trained at its cost (--budget) if not. Multi30k's models are chosen by its validation set; SciTLDR and SQuAD have no
third set here, so their best validation is chosen on the set that they are measured on, whatever the init.

--work keeps what is finished, so the same command continues a run that was stopped. The results are generation.json, a
row {"task", "data", "init", "metric", "median", "runs", "minutes"} for each score, and generation.png. `minutes` is the
processor time of one training (median), pre-training not counted, which has rows of its own.
"""

from __future__ import annotations

import argparse
import dataclasses
import gzip
import json
import lzma
import os
import statistics
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tokenizers
import torch
from tokenizers import decoders, models, pre_tokenizers, trainers
from tqdm import tqdm

from electra_fast.config import NetworkConfig
from electra_fast.data.tokenizer import SPECIAL_TOKENS, Tokenizer
from electra_fast.decoding.settings import WritingConfig
from electra_fast.model.networks import Discriminator, Generator
from electra_fast.seq2seq.finetune import finetune, load_learner
from electra_fast.seq2seq.metrics import ROUGE, text_scores
from electra_fast.seq2seq.pairs import read_pairs, read_parallel
from electra_fast.seq2seq.sentences import oracle
from electra_fast.seq2seq.settings import SequenceConfig, SequenceRun
from tools import transfer

PARTS = ("multi30k", "tenth", "scitldr", "squad")
CAPTIONS = dict(embedding_size=128, hidden_size=128, num_attention_heads=4, intermediate_size=256)
LAYERS = {"discriminator": 4, "generator": 3}  # of the encoder and of the decoder of captions
METRICS = {"translation": ("bleu", "chrf"), "answering": ("exact", "f1"), "qa": ("exact", "f1")}
TRANSLATE = SequenceConfig(learning_rate=3e-3, batch_tokens=2500, epochs=15, warmup_prob=0.06, dropout=0.1)
SUMMARIZE = SequenceConfig(learning_rate=1e-3, epochs=10, dropout=0.1, max_source_length=384)


@dataclass(frozen=True)
class Plan:
    """What is measured, and with how much.

    Attributes:
        data: folder of the data sets.
        english: the pre-training of the English networks, whose WORK is that of this experiment too.
        words: entries of the captions' vocabulary.
        steps: of the captions' pre-training.
        share: of the epochs that are trained; tests take less.
        seeds: of the parts that compare starts.
    """

    data: Path
    english: transfer.Plan
    words: int = 4000
    steps: int = 1500
    share: float = 1.0
    seeds: tuple[int, ...] = (0, 1, 2)

    @property
    def work(self) -> Path:
        return self.english.work


@dataclass(frozen=True)
class Job:
    """A kind of model: trained once for each seed, and measured on one set.

    Attributes:
        part: of the experiment. task, data, init: as its rows say.
        networks: folder of the pre-trained discriminator and generator.
        files: what it is trained and validated on, by the names of SequenceRun.
        config, writing: how it is trained and writes.
        test: sources and targets that it is measured on; the validation's scores count if there are none.
    """

    part: str
    task: str
    data: str
    init: str
    networks: Path
    files: dict[str, Path]
    seeds: tuple[int, ...]
    config: SequenceConfig
    writing: WritingConfig = field(default_factory=WritingConfig)
    test: tuple[Path, Path] | None = None

    def name(self, seed: int) -> str:
        return f"{self.data}-{self.task}-{self.init}-{seed}"


def jobs(plan: Plan) -> list[Job]:
    """All models, in the order of their parts."""
    data, work, some = plan.data, plan.work, plan.seeds
    random, pretrained, english = (
        work / "networks" / "captions",
        work / "captions" / "final",
        work / "electra" / "final",
    )
    captions = data / "multi30k"
    names = ("train", "val", "test_2016_flickr")
    train, dev, test = ((captions / f"{name}.en.gz", captions / f"{name}.de.gz") for name in names)
    dev_files = dict(dev_source=dev[0], dev_target=dev[1])
    whole = dict(source=train[0], target=train[1], **dev_files)
    tenth = dict(source=work / "data" / "tenth.en", target=work / "data" / "tenth.de", **dev_files)
    of_whole, short = TRANSLATE, WritingConfig(max_length=80)
    of_tenth = dataclasses.replace(TRANSLATE, epochs=24.0, batch_tokens=1500)
    task = "translation"
    found = [
        Job("multi30k", task, "multi30k", "random", random, whole, some[:1], of_whole, short, test),
        Job("tenth", task, "multi30k_tenth", "random", random, tenth, some, of_tenth, short, test),
        Job("tenth", task, "multi30k_tenth", "pretrained", pretrained, tenth, some, of_tenth, short, test),
    ]
    abstracts = data / "scitldr"
    files = dict(train=abstracts / "scitldr-A.train.jsonl.xz", dev=abstracts / "scitldr-A.dev.jsonl.xz")
    beams = WritingConfig(max_length=64, num_beams=4, no_repeat_ngram_size=3)
    choose = dataclasses.replace(SUMMARIZE, epochs=4.0, learning_rate=5e-4)
    for init in ("random", "pretrained"):
        found.append(Job("scitldr", "extractive", "scitldr", init, english, files, some, choose))
        found.append(Job("scitldr", "summarization", "scitldr", init, english, files, some, SUMMARIZE, beams))
    files = dict(train=work / "data" / "squadshifts.json", dev=data / "squad" / "dev-v1.1.json.xz")
    answer = dataclasses.replace(SUMMARIZE, epochs=2.0)
    short = WritingConfig(max_length=32)
    found.append(Job("squad", "answering", "squadshifts", "pretrained", english, files, some[:1], answer, short))
    found.append(Job("squad", "qa", "squadshifts", "pretrained", english, files, some[:1], answer))
    return found


@contextmanager
def timed(plan: Plan, name: str) -> Iterator[None]:
    """Add the processor time of what is done in it to WORK/seconds/NAME, also if it fails."""
    before = sum(os.times()[:4])
    try:
        yield
    finally:
        path = plan.work / "seconds" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write(f"{sum(os.times()[:4]) - before:.1f}\n")


def minutes(plan: Plan, name: str) -> float | None:
    """The processor time of a training, all its starts together; None if it is not known."""
    path = plan.work / "seconds" / name
    return sum(map(float, path.read_text().split())) / 60 if path.exists() else None


def captions(plan: Plan, side: str) -> list[str]:
    """The training captions of one language."""
    with gzip.open(plan.data / "multi30k" / f"train.{side}.gz", "rt") as file:
        return file.read().splitlines()


def caption_tokenizer(lines: Sequence[str], words: int) -> Tokenizer:
    """Byte-pair encoding of cased text; spaces belong to the pieces, so that decoding gives the text as it was."""
    library = tokenizers.Tokenizer(models.BPE(unk_token="[UNK]"))
    cut = [pre_tokenizers.Metaspace(), pre_tokenizers.Punctuation()]
    library.pre_tokenizer, library.decoder = pre_tokenizers.Sequence(cut), decoders.Metaspace()
    options: dict[str, Any] = dict(special_tokens=list(SPECIAL_TOKENS), min_frequency=2, show_progress=False)
    library.train_from_iterator(lines, trainers.BpeTrainer(vocab_size=words, **options))
    return Tokenizer(library.to_str().encode())


def prepare_captions(plan: Plan) -> None:
    """Write the tenth of the pairs, and both networks of captions with random weights."""
    folder, networks = plan.work / "data", plan.work / "networks" / "captions"
    if networks.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    lines = {side: captions(plan, side) for side in ("en", "de")}
    for side, part in lines.items():
        (folder / f"tenth.{side}").write_text("".join(f"{line}\n" for line in part[::10]))
    both = lines["en"] + lines["de"]
    (folder / "captions.txt").write_text("".join(f"{line}\n\n" for line in both))
    tokenizer = caption_tokenizer(both, plan.words)
    torch.manual_seed(0)
    sizes: dict[str, Any] = dict(vocab_size=tokenizer.vocab_size, max_position_embeddings=128, initializer_range=0.08)
    configs = [NetworkConfig(num_hidden_layers=LAYERS[name], **CAPTIONS, **sizes) for name in LAYERS]
    discriminator = Discriminator(configs[0])
    pair = dict(zip(LAYERS, (discriminator, Generator(configs[1], discriminator.encoder.embeddings)), strict=True))
    for name, network in pair.items():
        network.save_pretrained(networks.with_suffix(".tmp") / name)
        tokenizer.save(networks.with_suffix(".tmp") / name)
    networks.with_suffix(".tmp").rename(networks)


def pretrain_captions(plan: Plan) -> None:
    """Pre-train both networks of captions into WORK/captions."""
    networks, out = plan.work / "networks" / "captions", plan.work / "captions"
    if (out / "final").exists():
        return
    options: list[str | Path] = ["--data", plan.work / "data" / "captions.txt", "--out", out, "--resume"]
    for name in LAYERS:
        options += [f"--init-{name}", networks / name]
    options += "--recipe few --embedding-sharing tied --generator-share 0 --dropout 0.1 --learning-rate 2e-3".split()
    options += ["--steps", str(plan.steps), "--eval-every", str(max(1, plan.steps // 10)), "--save-every", "200"]
    with timed(plan, "captions"):
        words = ["pretrain", *options, "--device", "cpu", "--threads", "1", "--keep", "1"]
        transfer.call(plan.english, "captions", words)


def prepare_questions(plan: Plan) -> None:
    """Write the questions of squadshifts' three sets into one file."""
    out = plan.work / "data" / "squadshifts.json"
    if not out.exists():
        out.parent.mkdir(parents=True, exist_ok=True)
        articles = []
        for path in sorted((plan.data / "squadshifts").glob("*.json.xz")):
            with lzma.open(path) as file:
                articles += json.load(file)["data"]
        out.write_text(json.dumps({"version": "1.1", "data": articles}))


def train(plan: Plan, job: Job, seed: int) -> None:
    """Train a model into WORK/written/NAME and, where there is a test set, score what it writes of it."""
    name = job.name(seed)
    out = plan.work / "written" / name
    epochs = job.config.epochs * plan.share
    if not finished(out):
        with timed(plan, name):
            if job.task == "qa":
                words: list[str | Path] = ["--train", job.files["train"], "--dev", job.files["dev"], "--out", out]
                words += (
                    "--resume --learning-rate 5e-4 --layerwise-decay 1 --stride 96 --device cpu --threads 1".split()
                )
                words += ["--model", job.networks / "discriminator", "--epochs", f"{epochs}"]
                transfer.call(plan.english, name, ["finetune", "--task", "qa", *words])
            else:
                networks: dict[str, Any] = dict(model=job.networks / "discriminator")
                if job.task != "extractive":
                    networks["decoder"] = job.networks / "generator"
                options: dict[str, Any] = dict(task=job.task, out=out, resume=True, seeds=(seed,), dev_examples=200)
                options |= dict(random_init=job.init == "random", device="cpu", threads=1)
                config = dataclasses.replace(job.config, epochs=epochs)
                finetune(SequenceRun(**networks, **job.files, **options), config, job.writing)
    if job.test is None:
        return
    pairs = read_parallel(*job.test)
    for beams in (1, 4):
        scores = plan.work / "scores" / f"{name}-{beams}.json"
        if not scores.exists():
            writing = dataclasses.replace(job.writing, num_beams=beams)
            written = load_learner(out / "model").write(pairs, writing)
            scores.parent.mkdir(parents=True, exist_ok=True)
            scores.write_text(json.dumps(text_scores(job.task, written, [pair.references for pair in pairs])))


def finished(out: Path) -> bool:
    """Whether a training wrote the scores of its seed."""
    return (out / "results.json").exists() and bool(json.loads((out / "results.json").read_text())["seeds"])


def scores_of(plan: Plan, job: Job, seed: int) -> dict[str, float]:
    """The scores of a finished model, by the names of metrics; none if it is not finished."""
    name, kept = job.name(seed), METRICS.get(job.task, ROUGE)
    if job.test:
        files = {beams: plan.work / "scores" / f"{name}-{beams}.json" for beams in (1, 4)}
        if not all(path.exists() for path in files.values()):
            return {}
        read = {beams: json.loads(path.read_text()) for beams, path in files.items()}
        return {f"{m}, {'greedy' if b == 1 else '4 beams'}": read[b][m] for m in kept for b in read}
    results = plan.work / "written" / name / "results.json"
    seeds = json.loads(results.read_text())["seeds"] if results.exists() else {}
    return {metric: seeds[str(seed)][metric] for metric in kept} if str(seed) in seeds else {}


def results(plan: Plan) -> list[dict[str, Any]]:
    """The rows of results: one for each kind of model and metric of which a seed is finished."""
    rows: list[dict[str, Any]] = []
    for job in jobs(plan):
        found = {seed: scores for seed in job.seeds if (scores := scores_of(plan, job, seed))}
        spent = [m for seed in found if (m := minutes(plan, job.name(seed))) is not None]
        for metric in next(iter(found.values()), {}):
            runs = [scores[metric] for scores in found.values()]
            row = dict(task=job.task, data=job.data, init=job.init, metric=metric, median=statistics.median(runs))
            rows.append(row | dict(runs=runs, minutes=round(statistics.median(spent), 1) if spent else None))
    simple = plan.work / "scores" / "scitldr-simple.json"
    for init, scores in (json.loads(simple.read_text()) if simple.exists() else {}).items():
        for metric, score in scores.items():
            row = dict(task="extractive", data="scitldr", init=init, metric=metric)
            rows.append(row | dict(median=score, runs=[score], minutes=0.0))
    for name, data in (("captions", "multi30k"), ("electra", "enwiki2015")):
        if (plan.work / name / "final").exists() and (spent_there := minutes(plan, name)) is not None:
            row = dict(task="pretraining", data=data, init="random", metric="minutes", median=round(spent_there, 1))
            rows.append(row | dict(runs=[round(spent_there, 1)], minutes=round(spent_there, 1)))
    return rows


def simple_summaries(plan: Plan) -> None:
    """Score the first sentence, and the oracle's sentences, of SciTLDR's dev set."""
    out = plan.work / "scores" / "scitldr-simple.json"
    if not out.exists():
        pairs, _ = read_pairs(plan.data / "scitldr" / "scitldr-A.dev.jsonl.xz", "extractive")
        best = [oracle(pair.sentences, pair.references) for pair in pairs]
        texts = {
            "lead-1": [pair.sentences[0] for pair in pairs],
            "oracle": [" ".join(p.sentences[i] for i in chosen) for p, chosen in zip(pairs, best, strict=True)],
        }
        references = [pair.references for pair in pairs]
        scores = {name: text_scores("extractive", written, references) for name, written in texts.items()}
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(scores))


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw a panel for each data set and metric, with a point for each run and a bar at the median."""
    from matplotlib.figure import Figure

    rows = [row for row in rows if row["task"] != "pretraining"]
    panels = list(dict.fromkeys((row["data"], row["metric"]) for row in rows))
    across = min(4, len(panels))
    down = -(-len(panels) // across)
    figure = Figure(figsize=(3.6 * across, 3.2 * down), layout="constrained")
    grid = figure.subplots(down, across, squeeze=False).flatten()
    for axes in grid[len(panels) :]:
        axes.remove()
    for axes, (data, metric) in zip(grid, panels, strict=False):
        here = [row for row in rows if (row["data"], row["metric"]) == (data, metric)]
        for x, row in enumerate(here):
            axes.plot([x] * len(row["runs"]), row["runs"], "o", ms=4)
            axes.hlines(row["median"], x - 0.25, x + 0.25, color="black", lw=1)
        axes.set_xticks(range(len(here)), [f"{row['task']}\n{row['init']}" for row in here], fontsize=7)
        axes.set_xlim(-0.6, len(here) - 0.4)
        axes.set_title(f"{data}: {metric}", fontsize=9)
        axes.grid(axis="y", alpha=0.3)
    figure.savefig(path, dpi=110)


def write(plan: Plan, out: Path) -> None:
    if rows := results(plan):
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")
        plot(rows, out.with_suffix(".png"))


def run(plan: Plan, out: Path, parts: Sequence[str]) -> None:
    """Run the parts of the experiment one model at a time; the results are written after each."""
    todo = [(job, seed) for job in jobs(plan) if job.part in parts for seed in job.seeds]
    if {"multi30k", "tenth"} & set(parts):
        prepare_captions(plan)
    if "tenth" in parts:
        pretrain_captions(plan)
    if "squad" in parts:
        prepare_questions(plan)
    if "scitldr" in parts:
        simple_summaries(plan)
    if {"scitldr", "squad"} & set(parts) and not (plan.work / "electra" / "final").exists():
        transfer.prepare(plan.english)
        with timed(plan, "electra"):
            transfer.pretrain(plan.english, "electra")
    write(plan, out)
    with tqdm(todo, dynamic_ncols=True) as bar:
        for job, seed in bar:
            bar.set_description(job.name(seed))
            train(plan, job, seed)
            write(plan, out)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        "python benches generation", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    here = Path(__file__).resolve().parent.parent
    data = Path(os.environ.get("ELECTRA_FAST_DATA") or here.parents[1] / "shared" / "data")
    add = parser.add_argument
    add("--data", type=Path, default=data, help="folder of the data sets (default: %(default)s)")
    add("--work", type=Path, required=True, help="folder for intermediate results, from which a run resumes")
    results_file = here / "results" / "generation.json"
    add("--json", type=Path, default=results_file, help="file for the results (default: %(default)s)")
    add("--parts", nargs="+", choices=PARTS, default=PARTS, help="parts to run (default: all)")
    budget = transfer.Plan.budget
    add("--budget", type=float, default=budget, help="operations of the English pre-training (default: %(default)s)")
    add("--seeds", type=int, default=3, help="models of each kind where starts are compared (default: 3)")
    options = parser.parse_args(arguments)
    if not options.data.is_dir():
        parser.error(f"there is no folder {options.data}; name the folder of the data sets with --data")
    if options.seeds < 1:
        parser.error(f"--seeds is {options.seeds}; at least 1 is needed")
    options.work.mkdir(parents=True, exist_ok=True)
    texts = tuple(sorted((options.data / "enwiki2015").glob("*.txt.xz")))
    english = transfer.Plan(texts, (), Path(), options.work, budget=options.budget)
    try:
        run(Plan(options.data, english, seeds=tuple(range(options.seeds))), options.json, options.parts)
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    return 0
