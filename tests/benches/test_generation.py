"""benches/tools/generation.py on miniature data: it runs to the end, and does nothing twice."""

import gzip
import json
import lzma
from pathlib import Path

import pytest
from test_pretrain import TEXT
from tools import generation, transfer
from tools.generation import PARTS, Plan

EN = [f"a {a} {b} a {c}" for a in ("man", "dog") for b in ("sees", "likes") for c in ("cat", "tree", "ball")]
DE = [f"ein {a} {b} einen {c}" for a in ("Mann", "Hund") for b in ("sieht", "mag") for c in ("Kater", "Baum", "Ball")]


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    data = tmp_path / "data"
    for folder in ("multi30k", "scitldr", "squadshifts", "squad"):
        (data / folder).mkdir(parents=True)
    for part, count in (("train", 300), ("val", 2), ("test_2016_flickr", 3)):
        for side, lines in (("en", EN), ("de", DE)):
            with gzip.open(data / "multi30k" / f"{part}.{side}.gz", "wt") as file:
                file.write("".join(f"{line}\n" for line in (lines * 25)[:count]))
    abstract = {"source": ["The cat is new.", "The dog is old."], "target": ["the dog is old"]}
    for name in ("train", "dev"):
        with lzma.open(data / "scitldr" / f"scitldr-A.{name}.jsonl.xz", "wt") as file:
            file.write(f"{json.dumps(abstract)}\n" * 3)
    question = {"id": "1", "question": "what is new?", "answers": [{"text": "the cat", "answer_start": 0}]}
    squad = {"version": "1.1", "data": [{"paragraphs": [{"context": "the cat is new", "qas": [question]}]}]}
    for path in ("squadshifts/a.json.xz", "squad/dev-v1.1.json.xz"):
        with lzma.open(data / path, "wt") as file:
            json.dump(squad, file)
    (tmp_path / "text.txt").write_text("\n\n".join([TEXT] * 40))
    english = transfer.Plan((tmp_path / "text.txt",), (), tmp_path, tmp_path / "work", 80, 1e9)
    (tmp_path / "work").mkdir()
    return Plan(data, english, words=60, steps=2, share=0.1, seeds=(0, 1))


def test_captions_are_cut_so_that_they_come_back(plan: Plan) -> None:
    lines = ['A T-shirt, "red" - or (blue)?', "Zwei Männer, ein Hund.", "x  y"]
    tokenizer = generation.caption_tokenizer(lines, 80)
    assert [tokenizer.decode(ids) for ids in tokenizer.encode(lines)] == lines


def test_first_sentences_and_the_oracle_are_scored(plan: Plan) -> None:
    """The summary is the second sentence, so that the oracle's ROUGE is 1 and the first sentence shares two words of
    four with it: "the" and "is"."""
    generation.simple_summaries(plan)
    rows = {(row["init"], row["metric"]): row["median"] for row in generation.results(plan)}
    assert rows["oracle", "rouge2"] == 1.0 and rows["lead-1", "rouge1"] == pytest.approx(0.5)


@pytest.mark.slow
def test_all_of_it_and_nothing_twice(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "results" / "generation.json"
    generation.run(plan, out, PARTS)
    rows = json.loads(out.read_text())
    assert all(list(row) == ["task", "data", "init", "metric", "median", "runs", "minutes"] for row in rows)
    kinds = {(row["task"], row["data"], row["init"], len(row["runs"])) for row in rows}
    assert kinds == {
        ("translation", "multi30k", "random", 1),
        ("translation", "multi30k_tenth", "random", 2),
        ("translation", "multi30k_tenth", "pretrained", 2),
        ("extractive", "scitldr", "random", 2),
        ("extractive", "scitldr", "pretrained", 2),
        ("extractive", "scitldr", "lead-1", 1),
        ("extractive", "scitldr", "oracle", 1),
        ("summarization", "scitldr", "random", 2),
        ("summarization", "scitldr", "pretrained", 2),
        ("answering", "squadshifts", "pretrained", 1),
        ("qa", "squadshifts", "pretrained", 1),
        ("pretraining", "multi30k", "random", 1),
        ("pretraining", "enwiki2015", "random", 1),
    }
    metrics = [row["metric"] for row in rows if row["data"] == "multi30k" and row["task"] == "translation"]
    assert metrics == ["bleu, greedy", "bleu, 4 beams", "chrf, greedy", "chrf, 4 beams"]
    assert out.with_suffix(".png").stat().st_size > 5_000
    read = json.loads((plan.work / "written" / "scitldr-extractive-random-1" / "results.json").read_text())
    assert read["random_init"] and list(read["seeds"]) == ["1"]
    for name in ("finetune", "load_learner"):
        monkeypatch.setattr(generation, name, lambda *_: pytest.fail("it was done already"))
    monkeypatch.setattr(transfer, "call", lambda *_: pytest.fail("it was done already"))
    generation.run(plan, out, PARTS)
    assert json.loads(out.read_text()) == rows
