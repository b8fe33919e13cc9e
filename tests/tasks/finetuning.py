"""What tests of fine-tuning share: a small model with files of each kind, runs on them, the command line."""

import json
from pathlib import Path
from typing import Any

import torch

from electra_fast.cli.main import main
from electra_fast.config import NetworkConfig
from electra_fast.data.tokenizer import Tokenizer
from electra_fast.model.networks import Discriminator
from electra_fast.tasks.settings import FinetuneConfig, FinetuneRun

GOOD, BAD = "fine great lovely superb".split(), "awful dull poor weak".split()
SIZES = dict(
    embedding_size=16, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
    max_position_embeddings=64, initializer_range=0.1,
)  # fmt: skip


def made(folder: Path) -> Path:
    """A pre-trained model (with random weights), and small files of each kind, in a folder."""
    words = [*GOOD, *BAD, "a", "an", "film", "and", "of", "who", "is", "in", "the"]
    tokenizer = Tokenizer.train([[" ".join(words)] * 3], 200)
    torch.manual_seed(0)
    network = Discriminator(NetworkConfig(vocab_size=tokenizer.vocab_size, **SIZES))  # type: ignore[arg-type]
    network.save_pretrained(folder / "model")
    tokenizer.save(folder / "model")
    pairs = [(f"a {a} and {b} film", str(int(words is GOOD))) for words in (GOOD, BAD) for a in words for b in words]
    text = "sentence\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in pairs)
    (folder / "train.tsv").write_text(text)
    (folder / "numbers.jsonl").write_text(
        "".join(json.dumps({"text": text, "text2": "film", "label": 2 * int(label)}) + "\n" for text, label in pairs)
    )
    with (folder / "labels.jsonl").open("w") as file:
        for i, (text, label) in enumerate(pairs):
            sets = {"0": [], "1": ["good"]}[label] + (["long"] if i % 3 == 0 else [])
            file.write(json.dumps({"text": text + " of the film" * (i % 3 == 0), "labels": sets}) + "\n")
    lines = [f"{word} X B-NP\n" if word in GOOD else f"{word} X O\n" for word in words]
    (folder / "train.txt").write_text("\n".join("".join(lines[i : i + 4]) for i in range(8)))
    contexts = [f"the film of {a} is {b}" for a in GOOD for b in BAD]
    qas = [
        {
            "context": context,
            "qas": [
                {
                    "id": str(i),
                    "question": "who is in the film",
                    "answers": [{"text": context.split()[3], "answer_start": context.index(context.split()[3])}],
                }
            ],
        }
        for i, context in enumerate(contexts)
    ]
    (folder / "qa.json").write_text(json.dumps({"version": "1.1", "data": [{"title": "t", "paragraphs": qas}]}))
    half = [{"context": qa["context"], "qas": [dict(q, is_impossible=False) for q in qa["qas"]]} for qa in qas]  # type: ignore[call-overload]
    for i, paragraph in enumerate(half):
        if i % 2:
            paragraph["qas"][0] |= {"is_impossible": True, "answers": [], "question": "an awful film"}
    (folder / "qa2.json").write_text(json.dumps({"version": "v2.0", "data": [{"title": "t", "paragraphs": half}]}))
    return folder


FILES = {"classification": "train.tsv", "multilabel": "labels.jsonl", "regression": "numbers.jsonl"}
FILES |= {"tagging": "train.txt", "qa": "qa.json"}


def run_for(world: Path, out: Path, task: str = "classification", **changes: Any) -> FinetuneRun:
    file = world / FILES[task]
    return FinetuneRun(**(dict(task=task, model=world / "model", train=file, dev=file, out=out) | changes))


FAST = FinetuneConfig(learning_rate=3e-3, epochs=1, batch_size=8)


def cli(world: Path, out: Path, *flags: str, **changes: Any) -> int:
    options = dict(task="classification", model=world / "model", train=world / "train.tsv", dev=world / "train.tsv")
    options |= dict(out=out, epochs=1) | changes
    words = [str(x) for name, v in options.items() for x in (f"--{name.replace('_', '-')}", v)]
    return main(["finetune", *words, *flags])
