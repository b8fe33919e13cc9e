"""benches/tools/transfer.py on miniature data: it runs to the end, does nothing twice, and spends equal flops."""

import dataclasses
import json
from pathlib import Path

import pytest
from test_pretrain import TEXT
from tools import transfer
from tools.learning import cost
from tools.transfer import INITS, STARTS, Plan, Task

from electra_fast.data.corpus import Corpus
from electra_fast.train.settings import PretrainConfig, RunConfig
from electra_fast.train.start import build_model


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    (tmp_path / "text.txt").write_text("\n\n".join([TEXT] * 40))
    lines = [
        f"the {a} is {b}\t{int(b in ('new', 'big'))}\n"
        for a in "cat dog sun".split()
        for b in "new big old dry".split()
    ]
    (tmp_path / "task.tsv").write_text("text\tlabel\n" + "".join(lines))
    tasks = (Task("words", "classification", tmp_path / "task.tsv", tmp_path / "task.tsv", 1),)
    pair = {"sentence_good": "the cat is new", "sentence_bad": "the cat new is", "linguistics_term": "order"}
    (tmp_path / "pairs").mkdir()
    (tmp_path / "pairs" / "order.jsonl").write_text(json.dumps(pair) + "\n")
    return Plan((tmp_path / "text.txt",), tasks, tmp_path / "pairs", tmp_path / "work", 80, 1e9, (0, 1))


@pytest.mark.slow
def test_all_of_it_and_nothing_twice(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "results" / "transfer.json"
    transfer.run(plan, out, jobs=2)
    rows = json.loads(out.read_text())
    assert all(list(row) == ["task", "init", "metric", "median", "runs"] for row in rows)
    assert [(row["task"], row["init"], len(row["runs"])) for row in rows] == [
        *(("words", init, 2) for init in INITS),
        ("blimp_generator", "electra", 1),
        ("blimp", "electra", 1),
        ("blimp", "mlm", 1),
        ("blimp_generator", "paper", 1),
        ("blimp", "paper", 1),
    ]
    assert out.with_suffix(".png").stat().st_size > 5_000
    results = {init: json.loads((plan.work / f"finetuned/words-{init}/results.json").read_text()) for init in INITS}
    assert {init: found["random_init"] for init, found in results.items()} == dict.fromkeys(STARTS, False) | {
        "random": True
    }
    models = {init: Path(found["model"]).relative_to(plan.work).as_posix() for init, found in results.items()}
    ours = "electra/final/discriminator"
    assert models == {
        "electra": ours,
        "mlm": "mlm/final/generator",
        "paper": "paper/final/discriminator",
        "random": ours,
    }
    log = (plan.work / "logs" / "electra.log").stat()
    monkeypatch.setattr(transfer, "call", lambda *_: pytest.fail("it was done already"))
    transfer.run(plan, out, jobs=2)
    assert (plan.work / "logs" / "electra.log").stat() == log


def test_seeds_that_are_missing_are_trained(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    out, called = plan.work / "finetuned" / "words-mlm", []
    out.mkdir(parents=True)
    monkeypatch.setattr(transfer, "call", lambda plan, name, arguments: called.append((name, out.exists())))
    for seeds in ({"0": {}, "1": {}}, {"0": {}}):
        (out / "results.json").write_text(json.dumps({"seeds": seeds}))
        transfer.finetune(plan, plan.tasks[0], "mlm")
    assert called == [("words-mlm", False)]


def test_every_start_costs_the_budget(plan: Plan) -> None:
    """Within half a step: so many operations as the budget has, whatever the objective and the recipe."""
    plan = dataclasses.replace(plan, budget=2e12)
    transfer.prepare(plan)
    for start in STARTS.values():
        data = plan.work / ("wiki-pairs" if start.recipe == "paper" else "wiki-plain")
        run = RunConfig(out=plan.work, recipe=start.recipe, objective=start.objective)
        config = PretrainConfig.recipe("tiny", start.recipe, start.objective)
        corpus = Corpus(data)
        each = cost(build_model(run, corpus, 0), config, corpus.max_length)
        assert abs(transfer.steps(plan, start, data) * each - plan.budget) <= each / 2


def test_a_part_that_fails_is_named(plan: Plan) -> None:
    with pytest.raises(RuntimeError, match=r"x failed: .* \(all of it in .*x.log\)"):
        transfer.call(plan, "x", ["pretrain", "--model", "huge"])
